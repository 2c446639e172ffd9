"""Buyers and sellers that lose power at any write, and start again from the same file.

Whatever the moment: nothing that was delivered and acknowledged is lost, nothing is paid twice, and no reservation
stays behind.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from attrs import evolve

from ledger.identity import Identity
from ledger.journal import replay
from ledger.records import Acknowledgement, Order, Receipt, Signed, Verdict, Voucher, open_record, sign
from node.exchange import left_behind
from node.exchange.book import kept
from node.exchange.continuing import earlier_of
from node.exchange.purchase import NotPlaced
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.messages import Refused
from tests.node.trading import (
    ALL_AUDITED,
    CREDIT,
    NO_AUDITS,
    PROMPT,
    Customer,
    Line,
    Mains,
    MainsLine,
    Store,
    ask,
    draft_order,
    engine_of,
    frames_of,
    ids_of,
    price_of,
    refusal_of,
    until,
    uusd,
)

TOKENS = 70
FULL, AT_CHECKPOINT = price_of(5, TOKENS), price_of(0, 64)


class Machines:
    """A buyer's and a seller's machine: started any number of times, each on its own file."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, clock: ManualClock, stack: AsyncExitStack) -> None:
        self._folder, self._tokenizer, self.clock, self._stack = folder, tokenizer, clock, stack
        self._starts = 0
        self._on: dict[int, Mains] = {}
        self.credit = CREDIT  # what the seller gives

    async def seller(self) -> tuple[Store, Mains]:
        """Start, or start again, the seller."""
        mains, entropy = await self._start(1)
        terms = {self.credit.limit.unit: self.credit}
        return await Store.open(
            self._tokenizer, self.clock, seed=1, journal=mains, entropy=entropy, credit=terms
        ), mains

    async def buyer(self, audited: bool = True) -> tuple[Customer, Mains]:
        """Start, or start again, the buyer."""
        mains, entropy = await self._start(2)
        engines = [engine_of(self._tokenizer)] if audited else []
        policy = ALL_AUDITED if audited else NO_AUDITS
        customer = await Customer.open(
            self._tokenizer, self.clock, seed=2, journal=mains, entropy=entropy, engines=engines, policy=policy
        )
        self._stack.push_async_callback(customer.close)
        return customer, mains

    async def _start(self, seed: int) -> tuple[Mains, SeededEntropy]:
        self._starts += 1
        if seed in self._on:
            await self._on[seed].unplug()
        path = self._folder / f"{seed}.db"
        mains = self._on[seed] = await Mains.open(path, Identity(seed.to_bytes(32, "little")).did)
        self._stack.push_async_callback(mains.close)
        # Entropy never repeats, also not after a restart.
        return mains, SeededEntropy(1_000 + self._starts)


@pytest.fixture
async def machines(tmp_path: Path, tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Machines]:
    async with AsyncExitStack() as stack:
        yield Machines(tmp_path, tokenizer, clock, stack)


async def dark(mains: Mains) -> None:
    """Wait until the power is gone, and what was running has noticed."""
    await until(lambda: mains.dark)
    await asyncio.sleep(0.01)


async def chain_holds(mains: Mains, did: str) -> bool:
    return replay(did, [entry async for entry in mains.entries()]) == mains.books


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("write", ["reserve", "deliver", "verdict", "acknowledge"])
async def test_a_buyer_that_dies_at_any_write_pays_once_for_what_was_delivered(
    machines: Machines, write: str, written: bool
) -> None:
    store, _ = await machines.seller()
    line = Line(store.seller)
    customer, mains = await machines.buyer()
    offer = await customer.meet(line)
    mains.left, mains.written = ["reserve", "deliver", "verdict", "acknowledge"].index(write), written
    customer.buy(offer, max_tokens=TOKENS)
    await dark(mains)

    again, new_mains = await machines.buyer()
    again.lines[store.did] = line
    await again.settler.recover()
    await again.handed_over()
    machines.clock.advance(600 + 241)
    await again.settler.sweep()
    await again.handed_over()

    ordered = write != "reserve"
    due = FULL if ordered else 0
    for account in (again.owes(store.did), store.owed_by(again.did)):
        assert (account.owed, account.authorized, account.reserved) == (due, due, 0)
    assert len({open_record(raw, Acknowledgement).record.order for raw in line.acknowledged}) == int(ordered)
    assert await chain_holds(new_mains, again.did)


async def test_a_buyer_that_died_goes_on_buying_and_its_acknowledgements_stay_one_chain(machines: Machines) -> None:
    store, _ = await machines.seller()
    line = Line(store.seller)
    customer, mains = await machines.buyer()
    offer = await customer.meet(line)
    await customer.order(offer, max_tokens=TOKENS)
    mains.left = 2  # dies at the verdict of the second order
    customer.buy(offer, max_tokens=TOKENS)
    await dark(mains)

    again, _ = await machines.buyer()
    again.lines[store.did] = line
    await again.settler.recover()
    await again.order(await again.meet(line), max_tokens=TOKENS)

    distinct = {raw: open_record(raw, Acknowledgement) for raw in line.acknowledged}
    first, second, third = distinct.values()
    assert (first.record.previous, second.record.previous) == (None, first.digest)
    assert third.record.previous == second.digest
    assert again.owes(store.did).authorized == store.owed_by(again.did).authorized == 3 * FULL


async def test_what_a_buyer_could_not_hand_over_before_it_died_is_handed_over_after(machines: Machines) -> None:
    store, _ = await machines.seller()
    customer, _ = await machines.buyer(audited=False)
    offer = await customer.meet(Line(store.seller))
    customer.lines[store.did] = gone = GoneForAcknowledgements(store.seller)
    for _ in range(3):
        await customer.buy(offer, max_tokens=TOKENS).outcome()
    await until(lambda: customer.owes(store.did).authorized == 3 * FULL)
    await customer.close()
    assert store.owed_by(customer.did).authorized == 0

    again, _ = await machines.buyer(audited=False)
    again.lines[store.did] = Line(store.seller)
    await again.settler.recover()
    await again.handed_over()

    assert store.owed_by(again.did).authorized == 3 * FULL
    for raw, _sealed in gone.ordered:
        kinds = [k.kind for k in await store.book.journal.records_of(open_record(raw, Order).digest)]
        assert Acknowledgement.kind in kinds, "the seller has both signatures of every order"


async def test_what_was_not_handed_over_is_found_again_behind_many_acknowledgements_of_buyers(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_behind, "_LOOK_BACK", 2)
    store, _ = await machines.seller()
    customer, _ = await machines.buyer(audited=False)
    offer = await customer.meet(Line(store.seller))
    customer.lines[store.did] = GoneForAcknowledgements(store.seller)
    await customer.buy(offer, max_tokens=TOKENS).outcome()
    await until(lambda: customer.owes(store.did).authorized == FULL)
    for number in range(5):
        await customer.book.post(records=(kept(acknowledgement_to(customer.did, number)),))
    await customer.close()

    again, _ = await machines.buyer(audited=False)
    again.lines[store.did] = Line(store.seller)
    await again.settler.recover()
    await again.handed_over()

    assert store.owed_by(again.did).authorized == FULL


def acknowledgement_to(payee: str, number: int) -> Signed[Acknowledgement]:
    """What a buyer of this node's own says."""
    buyer = Identity(bytes([9]) * 32)
    voucher = sign(Voucher(buyer.did, payee, "credit", "", "", "uusd", number), buyer)
    order = number.to_bytes(32, "big")
    return sign(Acknowledgement(order, order, True, "", number, None, voucher.raw), buyer)


class GoneForAcknowledgements(Line):
    """Takes orders; acknowledgements never arrive."""

    async def acknowledge(self, raw: bytes) -> None:
        await asyncio.Event().wait()


async def test_a_buyer_that_lost_an_answer_pays_by_its_receipt_if_the_sums_fit(machines: Machines) -> None:
    store, _ = await machines.seller()
    line = Line(store.seller)
    customer, mains = await machines.buyer(audited=False)
    offer = await customer.meet(line)
    mains.left = 1
    customer.buy(offer, max_tokens=TOKENS)
    await dark(mains)

    again, _ = await machines.buyer(audited=False)
    again.lines[store.did] = line
    await again.settler.recover()
    await again.handed_over()

    (receipt,) = await again.book.journal.list_records(Receipt.kind, 9)
    assert open_record(receipt.raw, Receipt).record.output_tokens == TOKENS
    assert again.owes(store.did).authorized == FULL


async def test_an_order_whose_seller_is_away_after_a_restart_stays_reserved_until_it_expires(
    machines: Machines,
) -> None:
    store, seller_mains = await machines.seller()
    line = MainsLine(store.seller, seller_mains)
    customer, mains = await machines.buyer(audited=False)
    offer = await customer.meet(line)
    mains.left = 1
    customer.buy(offer, max_tokens=TOKENS)
    await dark(mains)
    seller_mains.dark = True

    again, _ = await machines.buyer(audited=False)
    again.lines[store.did] = line
    await again.settler.recover()
    assert again.owes(store.did).reserved == FULL
    machines.clock.advance(600 + 241)
    await again.settler.sweep()

    assert (again.owes(store.did).reserved, again.owes(store.did).owed) == (0, 0)


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
async def test_a_seller_that_dies_when_it_takes_an_order_delivers_nothing_and_is_owed_nothing(
    machines: Machines, written: bool
) -> None:
    store, mains = await machines.seller()
    customer, _ = await machines.buyer()
    line = MainsLine(store.seller, mains)
    offer = await customer.meet(line)
    mains.left, mains.written = 0, written

    with pytest.raises(NotPlaced):
        await customer.buy(offer, max_tokens=TOKENS).outcome()

    again, new_mains = await machines.seller()
    for account in (customer.owes(store.did), again.owed_by(customer.did)):
        assert (account.owed, account.authorized, account.reserved) == (0, 0, 0)
    assert await chain_holds(new_mains, again.did)
    await buys_again(customer, line, again, new_mains, earlier=0)


@pytest.mark.parametrize(
    ("written", "at_the_seller"), [(False, AT_CHECKPOINT), (True, FULL)], ids=["before the write", "after the write"]
)
async def test_a_seller_that_dies_before_its_receipt_goes_out_is_paid_up_to_its_last_checkpoint(
    machines: Machines, written: bool, at_the_seller: int
) -> None:
    store, mains = await machines.seller()
    customer, _ = await machines.buyer()
    line = MainsLine(store.seller, mains)
    offer = await customer.meet(line)
    mains.left, mains.written = 2, written

    delivery = await customer.buy(offer, max_tokens=TOKENS).outcome()
    assert (len(delivery.ids), delivery.owed) == (TOKENS, AT_CHECKPOINT)

    again, new_mains = await machines.seller()
    line.peer, line.mains = again.seller, new_mains
    await customer.settled()

    ours, theirs = customer.owes(store.did), again.owed_by(customer.did)
    assert (ours.owed, ours.authorized, ours.reserved) == (AT_CHECKPOINT, AT_CHECKPOINT, 0)
    assert (theirs.owed, theirs.authorized, theirs.reserved) == (at_the_seller, AT_CHECKPOINT, 0)
    await buys_again(customer, line, again, new_mains, earlier=AT_CHECKPOINT)


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
async def test_a_seller_that_dies_when_it_is_paid_is_paid_once(machines: Machines, written: bool) -> None:
    store, mains = await machines.seller()
    customer, _ = await machines.buyer()
    line = MainsLine(store.seller, mains)
    offer = await customer.meet(line)
    mains.left, mains.written = 3, written

    await customer.buy(offer, max_tokens=TOKENS).outcome()
    await dark(mains)
    again, new_mains = await machines.seller()
    line.peer, line.mains = again.seller, new_mains
    await customer.settled()

    for account in (customer.owes(store.did), again.owed_by(customer.did)):
        assert (account.owed, account.authorized, account.reserved) == (FULL, FULL, 0)
    await buys_again(customer, line, again, new_mains, earlier=FULL)


async def buys_again(customer: Customer, line: MainsLine, store: Store, mains: Mains, earlier: int) -> None:
    """After a restart of the seller, trade goes on as before."""
    line.peer, line.mains = store.seller, mains
    delivery = await customer.order(await customer.meet(line), max_tokens=TOKENS)
    assert delivery.objection is None
    for account in (customer.owes(store.did), store.owed_by(customer.did)):
        assert (account.authorized, account.reserved) == (earlier + FULL, 0)


# An answer that is paid as it goes: of 200 tokens, through a window of 128.
LONG = 200


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("write", range(5), ids=["reserve", "pay 64", "pay 128", "deliver", "acknowledge"])
async def test_a_buyer_that_dies_while_it_pays_for_a_long_answer_pays_once(
    machines: Machines, write: int, written: bool
) -> None:
    machines.credit = evolve(CREDIT, window=uusd(price_of(0, 128)))
    store, _ = await machines.seller()
    line = Line(store.seller)
    customer, mains = await machines.buyer(audited=False)
    offer = await customer.meet(line)
    mains.left, mains.written = write, written
    purchase = customer.buy(offer, max_tokens=LONG)
    await dark(mains)
    purchase.cancel()
    await customer.buyer.close()
    await until(lambda: not store.owed_by(customer.did).reserved)

    again, new_mains = await machines.buyer(audited=False)
    again.lines[store.did] = line
    await again.settler.recover()
    await again.handed_over()
    machines.clock.advance(600 + 241)
    await again.settler.sweep()
    await again.handed_over()

    ours, theirs = again.owes(store.did), store.owed_by(again.did)
    assert (ours.owed, ours.reserved) == (theirs.owed, 0)
    assert ours.owed == ours.authorized == theirs.authorized
    assert (ours.owed > 0) == (write > 0)
    assert await chain_holds(new_mains, again.did)


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("write", range(10))
async def test_a_seller_that_dies_while_it_is_paid_for_a_long_answer_is_paid_once(
    machines: Machines, write: int, written: bool
) -> None:
    machines.credit = evolve(CREDIT, window=uusd(price_of(0, 128)))
    store, mains = await machines.seller()
    customer, _ = await machines.buyer(audited=False)
    line = MainsLine(store.seller, mains)
    offer = await customer.meet(line)
    mains.left, mains.written = write, written
    with suppress(NotPlaced):
        await customer.buy(offer, max_tokens=LONG).outcome()
    await dark(mains)

    again, new_mains = await machines.seller()
    line.peer, line.mains = again.seller, new_mains
    await customer.handed_over()

    ours, theirs = customer.owes(store.did), again.owed_by(customer.did)
    assert (ours.reserved, theirs.reserved) == (0, 0)
    assert ours.owed == ours.authorized == theirs.authorized <= theirs.owed
    assert await chain_holds(new_mains, again.did)


CLAIMED = tuple(range(600, 640))


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("write", [0, 1, 2], ids=["reserve", "deliver", "acknowledge"])
async def test_a_buyer_that_dies_in_a_score_order_pays_for_it_once_if_the_score_is_on_disk(
    machines: Machines, write: int, written: bool
) -> None:
    store, _ = await machines.seller()
    line = Line(store.seller)
    customer, mains = await machines.buyer()
    offer = await customer.meet(line)
    mains.left, mains.written = write, written
    customer.helping.buy(line, offer, ask(max_tokens=1, claimed=CLAIMED), customer.tokenizer)
    await dark(mains)

    again, new_mains = await machines.buyer()
    again.lines[store.did] = line
    await again.settler.recover()
    await again.handed_over()
    machines.clock.advance(600 + 241)
    await again.settler.sweep()
    await again.handed_over()

    kept = write > 1 or (write == 1 and written)
    paid = price_of(5 + len(CLAIMED), 0) if kept else 0
    ours = again.owes(store.did)
    assert (ours.owed, ours.authorized, ours.reserved) == (paid, paid, 0)
    assert store.owed_by(again.did).authorized == paid
    assert await new_mains.list_records(Verdict.kind, 10) == []
    assert await chain_holds(new_mains, again.did)


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("write", ["reserve", "deliver", "verdict", "acknowledge"])
async def test_a_buyer_that_dies_in_the_second_part_of_an_answer_pays_each_part_once(
    machines: Machines, write: str, written: bool
) -> None:
    store, _ = await machines.seller()
    line = Line(store.seller)
    customer, mains = await machines.buyer()
    offer = await customer.meet(line)
    first = await customer.order(offer, max_tokens=TOKENS)
    mains.left, mains.written = ["reserve", "deliver", "verdict", "acknowledge"].index(write), written
    rest = ask((*PROMPT, *first.ids), TOKENS, start=TOKENS, earlier=earlier_of(first))
    customer.buyer.buy(line, offer, rest, customer.tokenizer)
    await dark(mains)

    again, new_mains = await machines.buyer()
    again.lines[store.did] = line
    await again.settler.recover()
    await again.handed_over()
    machines.clock.advance(600 + 241)
    await again.settler.sweep()
    await again.handed_over()

    due = FULL + (price_of(5 + TOKENS, TOKENS) if write != "reserve" else 0)
    for account in (again.owes(store.did), store.owed_by(again.did)):
        assert (account.owed, account.authorized, account.reserved) == (due, due, 0)
    assert await chain_holds(new_mains, again.did)


async def test_a_seller_closes_the_orders_that_an_earlier_run_left_open(machines: Machines) -> None:
    store, mains = await machines.seller()
    buyer = Identity(bytes([3]) * 32)
    draft = draft_order(buyer, await store.offer(), machines.clock, max_tokens=TOKENS)
    stream = store.seller.order(draft.raw, draft.sealed)
    await anext(stream)
    mains.left = 0
    assert store.owed_by(buyer.did).reserved == FULL

    again, _ = await machines.seller()

    assert (again.owed_by(buyer.did).reserved, again.owed_by(buyer.did).owed) == (0, 0)
    with pytest.raises(Exception, match="no power"):
        await stream.aclose()


async def test_nonces_are_remembered_over_a_restart(machines: Machines) -> None:
    store, _ = await machines.seller()
    buyer = Identity(bytes([3]) * 32)
    first = draft_order(buyer, await store.offer(), machines.clock, nonce=7)
    await frames_of(store.seller, first)

    again, _ = await machines.seller()

    other = draft_order(buyer, await again.offer(), machines.clock, nonce=7)
    assert (await refusal_of(again.seller, other)).code == "replayed"
    assert (await refusal_of(again.seller, first)).code == "failed", "its prekey is gone, and with it the outcome's key"
    assert await again.seller.receipt(first.order.digest) is not None
    fresh = draft_order(buyer, await again.offer(), machines.clock, nonce=8)
    assert len(ids_of(await frames_of(again.seller, fresh))) == 10


async def test_a_restart_forgets_no_debt(machines: Machines) -> None:
    store, _ = await machines.seller()
    buyer = Identity(bytes([3]) * 32)
    offer = await store.offer()
    await frames_of(store.seller, draft_order(buyer, offer, machines.clock, max_tokens=TOKENS))

    again, _ = await machines.seller()

    assert again.owed_by(buyer.did).unpaid == FULL
    with pytest.raises(Refused) as refusal:
        await frames_of(again.seller, draft_order(buyer, offer, machines.clock, nonce=1))
    assert refusal.value.code == "unknown_offer", "prekeys do not outlive the process"


async def test_a_restart_remembers_what_is_known_of_sellers(machines: Machines) -> None:
    store, _ = await machines.seller()
    customer, mains = await machines.buyer()
    await customer.order(await customer.meet(store.seller), max_tokens=TOKENS)
    before = customer.book.experience.standing(store.did)
    model = engine_of(customer.tokenizer).manifest.digest

    await customer.close()
    await mains.close()
    again, _ = await machines.buyer()

    assert again.book.experience.standing(store.did) == before
    assert (before.history.delivered, before.history.honest, before.audits) == (1, 1, 1)
    assert again.book.experience.evidence(store.did, model) == customer.book.experience.evidence(store.did, model)
    assert again.book.experience.contexts(store.did, model) == customer.book.experience.contexts(store.did, model)
    assert len(again.book.experience.contexts(store.did, model)) == TOKENS


async def test_what_was_open_at_a_stop_is_settled_once_those_who_help_in_audits_are_there(machines: Machines) -> None:
    store, _ = await machines.seller()
    line = Line(store.seller)
    customer, mains = await machines.buyer()
    offer = await customer.meet(line)
    mains.left = 1
    customer.buy(offer, max_tokens=TOKENS)
    await dark(mains)

    again, _ = await machines.buyer()
    again.lines[store.did] = line
    there = asyncio.Event()

    async def ready() -> None:
        await there.wait()

    await again.settler.recover(ready)
    await again.buy(await again.meet(line), max_tokens=TOKENS).outcome()
    await again.settled_but_not_handed_over()
    assert again.owes(store.did).authorized == FULL, "new orders do not wait, and the old one does"
    there.set()
    await again.handed_over()

    for account in (again.owes(store.did), store.owed_by(again.did)):
        assert (account.owed, account.authorized, account.reserved) == (2 * FULL, 2 * FULL, 0)
