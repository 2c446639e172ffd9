"""What a seller has signed and its buyer never saw: paid as far as what came bears it out, and else in dispute."""

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from ledger.account import Account
from ledger.identity import Identity
from ledger.records import Acknowledgement, Checkpoint, Margins, Order, Receipt, Verdict, open_record, sign
from ledger.waivers import disputes
from node.engine.memory import FINGERPRINT
from node.exchange import lacking
from node.exchange.book import kept
from node.exchange.claims import Claims
from node.exchange.delivery import Claimed
from node.exchange.purchase import NotPlaced
from node.exchange.reconciling import Reconciler
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import NoTokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.frames import CheckpointFrame, Frame, Ids, ReceiptFrame
from node.wire.messages import Unreachable
from tests.node.trading import Customer, Line, Mains, ScriptedSeller, Store, Told, price_of, until

TOKENS = 140
FULL = price_of(5, TOKENS)
STRANGER = Identity(bytes([9]) * 32)


class Breaking(Line):
    """Breaks, once, before the record of a kind goes over it that the seller has just written down."""

    def __init__(self, store: Store, kind: str, nth: int = 1) -> None:
        super().__init__(store.seller)
        self._store, self._kind, self._nth = store, kind, nth
        self.down = False

    async def _is_written(self, order: bytes) -> bool:
        records = await self._store.book.journal.records_of(order)
        return sum(record.kind == self._kind for record in records) >= self._nth

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        digest = open_record(order, Order).digest
        stream = super().order(order, sealed)
        try:
            async for chunk in stream:
                if not self.down and await self._is_written(digest):
                    self.down = True
                if self.down:
                    raise Unreachable("the line is down")
                yield chunk
        finally:
            await stream.aclose()

    async def receipt(self, order: bytes) -> bytes | None:
        if self.down:
            raise Unreachable("the line is down")
        return await super().receipt(order)

    async def acknowledge(self, raw: bytes) -> None:
        if self.down:
            raise Unreachable("the line is down")
        await super().acknowledge(raw)


@define
class Trade:
    """A seller and a buyer that compare their accounts."""

    store: Store
    customer: Customer
    sellers: Reconciler
    buyers: Reconciler

    async def meet(self, by_seller: bool = False) -> None:
        await (self.sellers.meet(self.customer.did) if by_seller else self.buyers.meet(self.store.did))
        await self.customer.handed_over()

    @property
    def ours(self) -> Account:
        return self.customer.owes(self.store.did)

    @property
    def theirs(self) -> Account:
        return self.store.owed_by(self.customer.did)


def claims_of(customer: Customer) -> Claims:
    async def tokenizer(_: bytes) -> Tokenizer:
        return customer.tokenizer

    return Claims(customer.book, customer.settler, tokenizer)


@pytest.fixture
async def trade(tokenizer: Tokenizer, clock: ManualClock) -> Trade:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    made: list[Reconciler] = []
    promised = customer.settler.promised
    made.append(Reconciler(store.book, SeededEntropy(11), lambda _: made[1], lambda _key, _digest: None))
    made.append(Reconciler(customer.book, SeededEntropy(12), lambda _: made[0], promised))
    made[0].taking.paid = store.seller.acknowledge
    made[1].taking.claimed = claims_of(customer).take
    return Trade(store, customer, *made)


async def break_off(trade: Trade, kind: str, nth: int = 1, **wishes: Any) -> Breaking:
    """An order whose line breaks before a record goes over it; settled, and the line mended."""
    line = Breaking(trade.store, kind, nth)
    offer = await trade.customer.meet(line)
    await trade.customer.buy(offer, max_tokens=TOKENS, **wishes).outcome()
    await trade.customer.settled_but_not_handed_over()
    line.down, line._nth = False, 1_000
    await trade.customer.handed_over()
    return line


@pytest.mark.parametrize("by_seller", [False, True], ids=["the buyer asks", "the seller asks"])
async def test_a_receipt_that_never_came_is_paid_if_the_whole_answer_did(trade: Trade, by_seller: bool) -> None:
    line = await break_off(trade, Receipt.kind)
    assert (trade.ours.owed, trade.theirs.owed) == (price_of(0, 128), FULL)

    await trade.meet(by_seller)

    for account in (trade.ours, trade.theirs):
        assert (account.owed, account.authorized, account.disputed, account.reserved) == (FULL, FULL, 0, 0)
    said = [open_record(raw, Acknowledgement).record for raw in line.acknowledged]
    assert [(one.accepted, one.amount) for one in said] == [(True, price_of(0, 128)), (True, FULL)]
    await trade.meet(by_seller)
    assert len(line.acknowledged) == 2, "what is answered is not claimed again"


@pytest.mark.parametrize("nth", [1, 2])
async def test_of_an_answer_that_broke_off_the_checkpoint_is_paid_and_the_rest_disputed_on_both_sides(
    trade: Trade, nth: int
) -> None:
    await break_off(trade, Checkpoint.kind, nth)
    covered, asked = price_of(0, 64 * nth), price_of(5, 64 * nth)
    assert (trade.ours.owed, trade.theirs.owed) == (price_of(0, 64 * (nth - 1)), asked)

    await trade.meet()

    assert (trade.ours.owed, trade.theirs.owed) == (covered, asked)
    for account in (trade.ours, trade.theirs):
        assert account.authorized == covered
        assert [(one.asked, one.granted) for one in disputes(account)] == [(asked, covered)]
    await trade.meet()
    assert len(disputes(trade.ours)) == 1


async def test_claims_that_do_not_fit_at_once_come_one_after_another(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lacking, "_CLAIMED", 1)
    for _ in range(3):
        await break_off(trade, Receipt.kind)
    assert trade.theirs.owed == 3 * FULL

    await trade.meet()
    await trade.meet()

    for account in (trade.ours, trade.theirs):
        assert (account.owed, account.authorized, account.disputed) == (3 * FULL, 3 * FULL, 0)
    assert [met.differences for met in trade.buyers.heads.met().values()] == [[]]


async def test_what_is_being_settled_is_not_answered_twice(trade: Trade) -> None:
    offer = await trade.customer.meet(Line(trade.store.seller))
    tokens = trade.customer.buy(offer, max_tokens=TOKENS).tokens()
    await anext(tokens)
    await trade.meet()
    async for _ in tokens:
        pass
    await trade.meet()
    await trade.customer.settled()
    await trade.meet()
    assert (trade.ours.owed, trade.theirs.owed, trade.ours.disputed) == (FULL, FULL, 0)


# A seller that says afterwards what it likes


class Afterwards:
    """An order of which so many ids came, and nothing that its seller signed; then it claims."""

    def __init__(self, tokenizer: Tokenizer, clock: ManualClock, sent: int, checkpoints: bool = False) -> None:
        self.ids = tuple(10 + i % 50 for i in range(sent))
        self.told: list[Told] = []

        def script(told: Told) -> list[Frame]:
            self.told.append(told)
            frames: list[Frame] = []
            for start in range(0, sent, 64):
                frames.append(Ids(self.ids[start : start + 64]))
                if checkpoints and start + 64 <= sent:
                    frames.append(told.checkpoint(self.ids[: start + 64]))
            return frames

        self.seller = ScriptedSeller(tokenizer, clock, script)

    async def order(self, customer: Customer, **wishes: Any) -> None:
        offer = await customer.meet(self.seller)
        await customer.order(offer, **{"max_tokens": 100, **wishes})

    async def claims(self, customer: Customer, *frames: CheckpointFrame | ReceiptFrame) -> bool:
        claimed = Claimed(
            next((open_record(one.raw, Receipt) for one in frames if isinstance(one, ReceiptFrame)), None),
            next((open_record(one.raw, Checkpoint) for one in frames if isinstance(one, CheckpointFrame)), None),
        )
        news = await claims_of(customer).take(self.seller.did, self.told[-1].order.digest, claimed)
        await customer.handed_over()
        return news

    def said(self) -> list[tuple[bool, int]]:
        records = [open_record(raw, Acknowledgement).record for raw in self.seller.acknowledged]
        return [(one.accepted, one.amount) for one in records]


Claim = Callable[[Told, Sequence[int]], list[CheckpointFrame | ReceiptFrame]]


@pytest.mark.parametrize(
    ("sent", "claim", "granted", "asked"),
    [
        (64, lambda told, ids: [told.checkpoint(ids)], 128, 128),
        (70, lambda told, ids: [told.checkpoint(ids[:64])], 128, 128),
        (63, lambda told, ids: [told.checkpoint((*ids, 7))], 0, 128),
        (63, lambda told, ids: [told.checkpoint(ids)], 0, 126),
        (64, lambda told, ids: [told.checkpoint(ids, commitment=bytes(32))], 0, 128),
        (64, lambda told, ids: [told.checkpoint(ids, cost=200)], 0, 200),
        (70, lambda told, ids: [told.receipt(ids)], 0, 145),
        (70, lambda told, ids: [told.receipt(ids, finish="stop")], 0, 145),
        (70, lambda told, ids: [told.receipt(ids, finish="cancelled"), told.checkpoint(ids[:64])], 128, 145),
        (70, lambda told, ids: [told.receipt((*ids, 7), finish="unpaid"), told.checkpoint(ids[:64])], 128, 147),
    ],
    ids=[
        "a checkpoint that fits",
        "one before the last ids",
        "for an id that never came",
        "where none belongs",
        "for other ids",
        "for too much",
        "a receipt of half an answer",
        "one that says it stopped",
        "one that says it was cancelled",
        "one for an id that never came",
    ],
)
async def test_a_claim_is_paid_as_far_as_what_came_bears_it_out(
    tokenizer: Tokenizer, clock: ManualClock, sent: int, claim: Claim, granted: int, asked: int
) -> None:
    customer, after = await Customer.open(tokenizer, clock), Afterwards(tokenizer, clock, sent)
    await after.order(customer)

    frames = claim(after.told[0], after.ids)
    assert await after.claims(customer, *frames)

    owes = customer.owes(after.seller.did)
    assert (owes.owed, owes.authorized, owes.disputed, owes.reserved) == (granted, granted, asked - granted, 0)
    assert after.said() == [(asked == granted, granted)]
    assert not await after.claims(customer, *frames), "once only"


async def test_a_whole_answer_is_paid_with_its_input(tokenizer: Tokenizer, clock: ManualClock) -> None:
    customer, after = await Customer.open(tokenizer, clock), Afterwards(tokenizer, clock, 60)
    await after.order(customer, max_tokens=60)
    assert await after.claims(customer, after.told[0].receipt(after.ids))
    assert after.said() == [(True, 125)]


async def test_of_a_whole_answer_no_more_than_its_cost_is_undisputed(tokenizer: Tokenizer, clock: ManualClock) -> None:
    customer, after = await Customer.open(tokenizer, clock), Afterwards(tokenizer, clock, 60)
    await after.order(customer, max_tokens=60)
    assert await after.claims(customer, after.told[0].receipt(after.ids, output_commitment=bytes(32)))
    assert after.said() == [(False, 125)]


async def test_whether_an_answer_stopped_cannot_be_told_without_its_tokenizer(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    customer, after = await Customer.open(tokenizer, clock), Afterwards(tokenizer, clock, 60)
    after.ids = (*after.ids[:-1], min(tokenizer.eog))
    await after.order(customer)

    async def none_here(digest: bytes) -> Tokenizer:
        raise NoTokenizer(digest)

    claims, told = Claims(customer.book, customer.settler, none_here), after.told[0]
    receipt = open_record(told.receipt(after.ids, finish="stop").raw, Receipt)
    assert await claims.take(after.seller.did, told.order.digest, Claimed(receipt))
    await customer.handed_over()
    assert after.said() == [(False, 0)]


async def test_an_answer_that_stopped_by_itself_is_paid(tokenizer: Tokenizer, clock: ManualClock) -> None:
    customer, after = await Customer.open(tokenizer, clock), Afterwards(tokenizer, clock, 60)
    after.ids = (*after.ids[:-1], min(tokenizer.eog))
    await after.order(customer)
    assert await after.claims(customer, after.told[0].receipt(after.ids, finish="stop"))
    assert after.said() == [(True, 125)]


@pytest.mark.parametrize(
    "claim",
    [
        lambda told, ids: [told.receipt(ids, cost=100_000)],
        lambda told, ids: [told.receipt(ids, signer=STRANGER)],
        lambda told, ids: [told.receipt(ids, order=bytes(32))],
        lambda told, ids: [told.checkpoint(ids, cost=0)],
        lambda told, ids: [],
    ],
    ids=["above what was reserved", "a stranger's", "about another order", "for nothing", "nothing"],
)
async def test_a_claim_that_proves_nothing_moves_nothing(
    tokenizer: Tokenizer, clock: ManualClock, claim: Claim
) -> None:
    customer, after = await Customer.open(tokenizer, clock), Afterwards(tokenizer, clock, 64)
    await after.order(customer)
    assert not await after.claims(customer, *claim(after.told[0], after.ids))
    assert customer.owes(after.seller.did).owed == customer.owes(after.seller.did).disputed == 0
    assert after.said() == []


async def test_what_ended_in_a_receipt_or_a_dispute_is_not_claimed_again(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    customer, after = await Customer.open(tokenizer, clock), Afterwards(tokenizer, clock, 64)
    await after.order(customer, max_tokens=64)
    told = after.told[0]
    assert await after.claims(customer, told.checkpoint(after.ids))
    assert await after.claims(customer, told.receipt(after.ids))
    assert not await after.claims(customer, told.receipt(after.ids, cost=133, started_ms=0))
    assert after.said() == [(True, 128), (True, 133)]
    assert customer.owes(after.seller.did).owed == 133


async def test_what_an_audit_condemned_is_not_paid_afterwards(tokenizer: Tokenizer, clock: ManualClock) -> None:
    customer, after = await Customer.open(tokenizer, clock), Afterwards(tokenizer, clock, 64)
    await after.order(customer)
    order = after.told[0].order.digest
    none = Margins(0, 0, 0, 0)
    verdict = Verdict(
        order, after.seller.did, after.seller.offer.record.model, none, 0, "dishonest", "odd", FINGERPRINT, 1
    )
    await customer.book.post(records=(kept(sign(verdict, customer.book.identity), order),))

    assert await after.claims(customer, after.told[0].checkpoint(after.ids))

    assert after.said() == [(False, 0)]
    assert customer.owes(after.seller.did).disputed == 128


@pytest.mark.parametrize("fits", [True, False])
async def test_an_answer_that_the_buyer_lost_is_paid_by_its_checkpoint_if_the_sums_fit(
    tokenizer: Tokenizer, clock: ManualClock, tmp_path: Path, fits: bool
) -> None:
    after = Afterwards(tokenizer, clock, 64, checkpoints=True)
    did = Identity((2).to_bytes(32, "little")).did
    mains = await Mains.open(tmp_path / "2.db", did)
    customer = await Customer.open(tokenizer, clock, journal=mains)
    offer = await customer.meet(after.seller)
    mains.left, mains.written = 1, False  # dies when it writes down what came
    with pytest.raises(NotPlaced):
        await customer.buy(offer, max_tokens=100).outcome()
    await until(lambda: mains.dark)
    await customer.close()
    await mains.unplug()

    mains = await Mains.open(tmp_path / "2.db", did)
    again = await Customer.open(tokenizer, clock, journal=mains, entropy=SeededEntropy(77))
    again.lines[after.seller.did] = after.seller
    await again.settler.recover()
    checkpoint = after.told[0].checkpoint(after.ids, **({} if fits else {"cost": 130}))
    assert await after.claims(again, checkpoint) is fits

    owes = again.owes(after.seller.did)
    assert (owes.owed, owes.authorized, owes.disputed) == ((128, 128, 0) if fits else (0, 0, 0))
    assert after.said() == ([(True, 128)] if fits else [])
    await again.close()
    await mains.close()
