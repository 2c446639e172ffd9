"""Who owes what when messages are lost, orders are broken off and buyers do not pay."""

import asyncio
from typing import Any

import pytest
from attrs import evolve

from ledger.changes import Change, Expired, Granted, Released, Reserved
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import Entry, MemoryJournal
from ledger.money import Unit
from ledger.payload import decode_events
from ledger.rails.credit import name as credit_rail
from ledger.records import Acknowledgement, Cancel, Receipt, Signed, Voucher, digest_of, open_record, sign
from node.engine.port import Job
from node.exchange import seller
from node.exchange.book import Book
from node.exchange.buyer import Buyer
from node.exchange.delivery import Delivery
from node.exchange.purchase import NotPlaced
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.frames import CancelFrame, CheckpointFrame, Frame, ReceiptFrame
from node.wire.messages import Refused, Unreachable
from tests.node.trading import (
    CREDIT,
    HOT,
    Customer,
    Draft,
    Line,
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

BUYER = Identity(bytes([2]) * 32)
STRANGER = Identity(bytes([3]) * 32)


def voucher_for(payer: Identity, payee: str, total: int, unit: Unit = "uusd", **changes: Any) -> Signed[Voucher]:
    fields: dict[str, Any] = {
        "payer": payer.did,
        "payee": payee,
        "rail": credit_rail,
        "network": "",
        "account": "",
        "unit": unit,
        "total": total,
    }
    return sign(Voucher(**fields | changes), payer)


def acknowledgement(
    draft: Draft, of: bytes, amount: int, voucher: Signed[Voucher], signer: Identity = BUYER, accepted: bool = True
) -> Signed[Acknowledgement]:
    reason = "" if accepted else "the receipt does not fit"
    return sign(Acknowledgement(draft.order.digest, of, accepted, reason, amount, None, voucher.raw), signer)


async def sold(store: Store, clock: ManualClock, nonce: int = 0, tokens: int = 10) -> tuple[Draft, bytes]:
    """One order by BUYER, delivered and not acknowledged; the draft and the receipt's digest."""
    draft = draft_order(BUYER, await store.offer(), clock, nonce=nonce, max_tokens=tokens)
    last = (await frames_of(store.seller, draft))[-1]
    assert isinstance(last, ReceiptFrame)
    return draft, digest_of(last.raw)


# Acknowledgements on bad ways.


class Losing(Line):
    """Loses the first acknowledgements: some on the way there, some after they arrived."""

    def __init__(self, store: Store, lost: int, arrived: bool) -> None:
        super().__init__(store.seller)
        self._lost, self._arrived = lost, arrived

    async def acknowledge(self, raw: bytes) -> None:
        if self._lost == 0:
            await super().acknowledge(raw)
            return
        self._lost -= 1
        if self._arrived:
            await super().acknowledge(raw)
        raise Unreachable("the answer got lost")


@pytest.mark.parametrize("arrived", [False, True])
async def test_a_lost_acknowledgement_is_handed_over_again(
    tokenizer: Tokenizer, clock: ManualClock, arrived: bool
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Losing(store, lost=1, arrived=arrived))

    await customer.order(offer, max_tokens=10)

    assert store.owed_by(customer.did).authorized == customer.owes(store.did).authorized == price_of(5, 10)


async def test_an_acknowledgement_that_comes_twice_counts_once(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    draft, receipt = await sold(store, clock)
    ack = acknowledgement(draft, receipt, 25, voucher_for(BUYER, store.did, 25))

    await store.seller.acknowledge(ack.raw)
    before = store.book.journal.head
    await store.seller.acknowledge(ack.raw)

    assert store.book.journal.head == before
    assert (store.owed_by(BUYER.did).owed, store.owed_by(BUYER.did).authorized) == (25, 25)


async def test_acknowledgements_that_come_in_the_wrong_order_are_all_kept_and_take_nothing_back(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await Store.open(tokenizer, clock)
    made = [await sold(store, clock, nonce) for nonce in range(3)]
    acks = [
        acknowledgement(draft, receipt, 25, voucher_for(BUYER, store.did, 25 * (number + 1)))
        for number, (draft, receipt) in enumerate(made)
    ]

    for ack in reversed(acks):
        await store.seller.acknowledge(ack.raw)

    for (draft, _), ack in zip(made, acks, strict=True):
        kept = await store.book.journal.records_of(draft.order.digest)
        assert ack.raw in [record.raw for record in kept], "both signatures of every order are here"
    assert store.owed_by(BUYER.did).authorized == 75


async def test_an_unreachable_sellers_acknowledgements_wait_for_it_in_order(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = Losing(store, lost=1, arrived=False)
    offer = await customer.meet(line)

    for _ in range(3):
        await customer.buy(offer, max_tokens=2).outcome()
    await customer.settled(3)

    totals = [
        open_record(open_record(raw, Acknowledgement).record.voucher, Voucher).record.total for raw in line.acknowledged
    ]
    assert totals == [9, 18, 27]
    assert store.owed_by(customer.did).authorized == 27


async def test_an_acknowledgement_made_just_as_the_last_one_was_handed_over_is_handed_over_too(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    gate = asyncio.Event()

    class Slow(Line):
        async def acknowledge(self, raw: bytes) -> None:
            if not self.acknowledged:
                await gate.wait()
            await super().acknowledge(raw)

    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Slow(store.seller))
    held: list[Delivery] = []

    async def hold(delivery: Delivery) -> None:
        held.append(delivery)

    await customer.buy(offer, max_tokens=2).outcome()
    await customer.settled_but_not_handed_over()
    other = Buyer(customer.book, SeededEntropy(9), hold)
    await other.buy(customer.lines[store.did], offer, ask(max_tokens=2), tokenizer).outcome()

    async def settle_at_once() -> None:
        await gate.wait()
        await customer.settler.settle(held[0])

    task = asyncio.create_task(settle_at_once())
    await asyncio.sleep(0)
    gate.set()  # the sender goes on first, finds nothing more and ends; then, in the same breath, this one settles
    await task
    await customer.handed_over()

    assert store.owed_by(customer.did).authorized == 18


async def test_a_seller_that_refuses_an_acknowledgement_does_not_block_the_next(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    class Choosy(Line):
        async def acknowledge(self, raw: bytes) -> None:
            if not self.acknowledged:
                self.acknowledged.append(raw)
                raise Refused("malformed", "not that one")
            await super().acknowledge(raw)

    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Choosy(store.seller))

    await customer.order(offer, max_tokens=2)
    await customer.order(offer, max_tokens=2)

    assert store.owed_by(customer.did).authorized == 18


@pytest.mark.parametrize("code", ["too_many_requests", "busy", "not_selling", "failed"])
async def test_a_seller_that_cannot_take_it_now_gets_the_acknowledgement_later(
    tokenizer: Tokenizer, clock: ManualClock, code: Any
) -> None:
    class Busy(Line):
        async def acknowledge(self, raw: bytes) -> None:
            if not self.acknowledged:
                self.acknowledged.append(raw)
                raise Refused(code, "not now", 1)
            await super().acknowledge(raw)

    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)

    await customer.order(await customer.meet(Busy(store.seller)), max_tokens=2)

    assert store.owed_by(customer.did).authorized == 9


# Acknowledgements that are not what they should be.


async def test_an_acknowledgement_is_taken_only_from_the_orders_buyer(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    draft, receipt = await sold(store, clock)

    foreign = acknowledgement(draft, receipt, 25, voucher_for(STRANGER, store.did, 25), signer=STRANGER)

    with pytest.raises(Refused) as refusal:
        await store.seller.acknowledge(foreign.raw)

    assert refusal.value.code == "unknown_order"


@pytest.mark.parametrize(
    "voucher",
    [
        lambda store: voucher_for(STRANGER, store.did, 25),
        lambda store: voucher_for(BUYER, STRANGER.did, 25),
        lambda store: voucher_for(BUYER, store.did, 25, unit="msat"),
        lambda store: voucher_for(BUYER, store.did, 25, rail="lightning"),
        lambda store: voucher_for(BUYER, store.did, 25, network="regtest"),
        lambda store: sign(voucher_for(BUYER, store.did, 25).record, STRANGER),
    ],
    ids=["by a stranger", "for a stranger", "another unit", "another rail", "another network", "signed by a stranger"],
)
async def test_an_acknowledgement_whose_voucher_does_not_pay_this_account_is_refused(
    tokenizer: Tokenizer, clock: ManualClock, voucher: Any
) -> None:
    store = await Store.open(tokenizer, clock)
    draft, receipt = await sold(store, clock)

    with pytest.raises(Refused) as refusal:
        await store.seller.acknowledge(acknowledgement(draft, receipt, 25, voucher(store)).raw)

    assert refusal.value.code == "malformed"
    assert store.owed_by(BUYER.did).authorized == 0


async def test_a_forged_acknowledgement_is_refused(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    draft, receipt = await sold(store, clock)
    raw = acknowledgement(draft, receipt, 25, voucher_for(BUYER, store.did, 25)).raw

    for spoilt in (raw[:-1] + bytes([raw[-1] ^ 1]), raw + bytes(Acknowledgement.limit), draft.raw, b""):
        with pytest.raises(Refused, match=r"."):
            await store.seller.acknowledge(spoilt)

    assert store.owed_by(BUYER.did).authorized == 0


async def test_nobody_acknowledges_more_than_an_order_could_cost(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    draft, receipt = await sold(store, clock)

    too_much = acknowledgement(draft, receipt, 10**6, voucher_for(BUYER, store.did, 10**6))

    with pytest.raises(Refused, match="more than was delivered"):
        await store.seller.acknowledge(too_much.raw)

    assert (store.owed_by(BUYER.did).owed, store.owed_by(BUYER.did).authorized) == (25, 0)


async def test_one_order_is_not_acknowledged_any_number_of_times(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    draft, receipt = await sold(store, clock)

    raws = [acknowledgement(draft, receipt, 1, voucher_for(BUYER, store.did, total)).raw for total in range(1, 18)]
    for raw in raws[:-1]:
        await store.seller.acknowledge(raw)

    with pytest.raises(Refused, match="often enough"):
        await store.seller.acknowledge(raws[-1])


async def test_a_dispute_never_blocks_the_account(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    draft, receipt = await sold(store, clock)
    disputed = acknowledgement(draft, receipt, 7, voucher_for(BUYER, store.did, 7), accepted=False)

    await store.seller.acknowledge(disputed.raw)

    account = store.owed_by(BUYER.did)
    assert (account.owed, account.authorized, account.unpaid) == (25, 7, 18)
    assert len(ids_of(await frames_of(store.seller, draft_order(BUYER, await store.offer(), clock, nonce=1)))) == 10


# Acknowledgements and checkpoints while the answer is still on its way.


async def test_each_checkpoint_is_earned_and_on_disk_before_the_buyer_has_it(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await Store.open(tokenizer, clock)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=130)
    reader, seen = draft.reader(), []

    async for chunk in store.seller.order(draft.raw, draft.sealed):
        for frame in reader.feed(chunk):
            if isinstance(frame, CheckpointFrame):
                kept = await store.book.journal.records_of(draft.order.digest)
                assert frame.raw in [record.raw for record in kept]
                seen.append(store.owed_by(BUYER.did).earned)

    assert seen == [price_of(0, 64), price_of(0, 128)]
    assert store.owed_by(BUYER.did).earned == price_of(5, 130)


async def test_an_acknowledgement_for_more_than_came_so_far_is_refused_and_the_sale_goes_on_to_its_receipt(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await Store.open(tokenizer, clock)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=100)
    reader, frames = draft.reader(), list[Frame]()
    stream = store.seller.order(draft.raw, draft.sealed)
    while len(ids_of(frames)) < 70:
        frames += reader.feed(await anext(stream))
    (checkpoint,) = [frame.raw for frame in frames if isinstance(frame, CheckpointFrame)]
    so_far = price_of(0, 64)

    too_much = acknowledgement(draft, digest_of(checkpoint), so_far + 1, voucher_for(BUYER, store.did, so_far + 1))
    with pytest.raises(Refused, match="more than was delivered"):
        await store.seller.acknowledge(too_much.raw)
    fair = acknowledgement(draft, digest_of(checkpoint), so_far, voucher_for(BUYER, store.did, so_far))
    await store.seller.acknowledge(fair.raw)
    async for chunk in stream:
        frames += reader.feed(chunk)

    assert isinstance(frames[-1], ReceiptFrame)
    account = store.owed_by(BUYER.did)
    assert (account.owed, account.authorized, account.reserved) == (price_of(5, 100), so_far, 0)


# Buyers that do not pay.


async def taken_or_refused(store: Store, clock: ManualClock, buyer: Identity, nonce: int) -> int | str:
    """What an order of ten tokens was worth, or the code of its refusal."""
    draft = draft_order(buyer, await store.offer(), clock, nonce=nonce)
    try:
        return price_of(5, len(ids_of(await frames_of(store.seller, draft))))
    except Refused as refusal:
        return refusal.code


async def test_a_buyer_that_never_acknowledges_costs_the_seller_one_window_once(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    terms = evolve(CREDIT, window=uusd(100))
    store = await Store.open(tokenizer, clock, credit={"uusd": terms})

    outcomes = [await taken_or_refused(store, clock, BUYER, nonce) for nonce in range(20)]

    assert outcomes == [25] * 4 + ["window"] * 16
    assert store.owed_by(BUYER.did).unpaid == 100

    clock.advance(30 * 24 * 3_600)
    late = draft_order(BUYER, await store.offer(), clock, nonce=99, max_tokens=1)
    assert (await refusal_of(store.seller, late)).code == "window"


async def test_paying_opens_the_window_again(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock, credit={"uusd": evolve(CREDIT, window=uusd(30))})
    draft, receipt = await sold(store, clock)
    next_one = draft_order(BUYER, await store.offer(), clock, nonce=1)
    assert (await refusal_of(store.seller, next_one)).code == "window"

    await store.seller.acknowledge(acknowledgement(draft, receipt, 25, voucher_for(BUYER, store.did, 25)).raw)

    assert len(ids_of(await frames_of(store.seller, next_one))) == 10


async def test_credit_in_all_is_bounded_for_those_who_acknowledge_too(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock, credit={"uusd": evolve(CREDIT, limit=uusd(50), window=uusd(50))})
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    for _ in range(2):
        await customer.order(offer, max_tokens=10)

    with pytest.raises(NotPlaced) as error:
        await customer.order(offer, max_tokens=1)

    assert error.value.code == "credit"
    third = draft_order(customer.book.identity, offer, clock, nonce=9, max_tokens=1)
    assert (await refusal_of(store.seller, third)).code == "credit"


async def test_fresh_identities_together_win_no_more_than_the_exposure(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    terms = evolve(CREDIT, window=uusd(100), exposure=uusd(250))
    store = await Store.open(tokenizer, clock, credit={"uusd": terms})

    fresh = [Identity((1_000 + number).to_bytes(32, "big")) for number in range(40)]
    outcomes = [await taken_or_refused(store, clock, one, nonce) for one in fresh for nonce in range(5)]

    assert set(outcomes) == {25, "window", "exposure"}
    owed = sum(account.owed for account in store.book.journal.books.accounts.values())
    assert owed == 250


async def test_a_buyer_that_the_owner_named_is_served_while_strangers_wait(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    terms = evolve(CREDIT, window=uusd(100), exposure=uusd(30))
    customer = await Customer.open(tokenizer, clock)
    store = await Store.open(tokenizer, clock, credit={"uusd": terms}, named=[customer.did])
    offer = await customer.meet(store.seller)
    await sold(store, clock)

    stranger = draft_order(STRANGER, offer, clock)
    assert (await refusal_of(store.seller, stranger)).code == "exposure"
    assert (await customer.order(offer, max_tokens=10)).objection is None


async def test_promises_alone_make_no_stranger_proven(tokenizer: Tokenizer, clock: ManualClock) -> None:
    terms = evolve(CREDIT, window=uusd(100), exposure=uusd(60))
    store = await Store.open(tokenizer, clock, credit={"uusd": terms})
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)

    for _ in range(2):  # each is acknowledged with a voucher, which is a promise and no money
        await customer.order(offer, max_tokens=10)

    with pytest.raises(NotPlaced, match="owe too much here together"):
        await customer.order(offer, max_tokens=10)


# Orders that are broken off.


async def test_a_buyer_that_cancels_owes_the_input_and_what_was_sent_and_both_books_agree(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = Line(store.seller)
    purchase = customer.buy(await customer.meet(line), max_tokens=1_000)

    seen = 0
    async for ids in purchase.tokens():
        seen += len(ids)
        if seen == 70:
            purchase.cancel()
    delivery = await purchase.outcome()
    await customer.settled()

    assert len(line.cancelled) == 1
    assert delivery.receipt is not None
    assert (delivery.receipt.record.finish, delivery.objection) == ("cancelled", None)
    assert 70 <= len(delivery.ids) < 100
    due = price_of(5, len(delivery.ids))
    assert customer.owes(store.did).owed == customer.owes(store.did).authorized == due
    assert store.owed_by(customer.did).owed == store.owed_by(customer.did).authorized == due
    assert store.owed_by(customer.did).reserved == 0


async def test_a_purchase_cancelled_before_anything_came_owes_no_more_than_the_input(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await Store.open(tokenizer, clock, engine=engine_of(tokenizer, stall_after=0))
    customer = await Customer.open(tokenizer, clock)
    purchase = customer.buy(await customer.meet(store.seller))
    await asyncio.sleep(0.01)

    purchase.cancel()
    delivery = await purchase.outcome()
    await customer.settled()

    assert (delivery.ids, delivery.owed) == ((), price_of(5, 0))
    assert customer.owes(store.did).authorized == store.owed_by(customer.did).owed == price_of(5, 0)


async def test_an_order_cancelled_while_it_is_still_on_its_way_is_stopped_once_it_has_arrived(
    tokenizer: Tokenizer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seller, "_SLOT_WAIT_S", 60.0)
    engine = engine_of(tokenizer)
    store, customer = await Store.open(tokenizer, clock, engine=engine), await Customer.open(tokenizer, clock)
    line = Line(store.seller)
    offer = await customer.meet(line)
    running = engine.generate(Job((5,), HOT, 4, 2_000))
    await anext(running)

    purchase = customer.buy(offer, max_tokens=1_500)
    await until(lambda: bool(line.ordered))
    purchase.cancel()
    await until(lambda: bool(line.cancelled))
    await running.aclose()  # only now is there a slot, and the seller takes the order
    delivery = await purchase.outcome()
    await customer.settled()

    assert len(line.cancelled) > 1
    assert len(delivery.ids) < 1_500
    assert customer.owes(store.did).authorized == store.owed_by(customer.did).owed == delivery.owed


async def test_a_buyer_that_hangs_up_owes_the_input_and_what_was_sent(tokenizer: Tokenizer, clock: ManualClock) -> None:
    engine = engine_of(tokenizer)
    store = await Store.open(tokenizer, clock, engine=engine)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=1_000)
    stream = store.seller.order(draft.raw, draft.sealed)

    for _ in range(10):
        await anext(stream)
    await stream.aclose()

    raw = await store.seller.receipt(draft.order.digest)
    assert raw is not None
    said = open_record(raw, Receipt).record
    assert (said.finish, said.output_tokens) == ("cancelled", 10)
    account = store.owed_by(BUYER.did)
    assert (account.owed, account.reserved) == (price_of(5, 10), 0)
    assert engine.free_slots() == 1


async def test_a_handler_that_is_cancelled_midway_leaves_the_account_settled(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    engine = engine_of(tokenizer, stall_after=10)
    store = await Store.open(tokenizer, clock, engine=engine)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=100)
    reader, frames = draft.reader(), list[Frame]()

    async def read() -> None:
        async for chunk in store.seller.order(draft.raw, draft.sealed):
            frames.extend(reader.feed(chunk))

    task = asyncio.create_task(read())
    await until(lambda: len(ids_of(frames)) == 10)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not store.owed_by(BUYER.did).reserved)

    assert store.owed_by(BUYER.did).owed == price_of(5, 10)
    assert engine.free_slots() == 1


class Slow(MemoryJournal):
    """A journal whose writes take until `go` is set."""

    def __init__(self, chain_id: str) -> None:
        super().__init__(chain_id)
        self.writing, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, *events: Any, **rest: Any) -> Entry:
        self.writing.set()
        await self.go.wait()
        return await super().append(*events, **rest)


async def test_a_buyer_that_hangs_up_while_its_reservation_is_written_leaves_nothing_reserved(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    journal = Slow(Identity((1).to_bytes(32, "little")).did)
    store = await Store.open(tokenizer, clock, journal=journal)
    draft = draft_order(BUYER, await store.offer(), clock)
    task = asyncio.create_task(frames_of(store.seller, draft))
    await journal.writing.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.seller.sweep()
    journal.go.set()
    await until(lambda: draft.order.digest in store.owed_by(BUYER.did).orders)
    await until(lambda: not store.owed_by(BUYER.did).reserved)

    assert store.owed_by(BUYER.did).owed == 0
    again = draft_order(BUYER, await store.offer(), clock, nonce=1)
    assert len(ids_of(await frames_of(store.seller, again))) == 10


async def test_the_sellers_sweep_lets_go_of_orders_that_nobody_answers_and_of_no_others(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await Store.open(tokenizer, clock)
    stranded = store.owed_by(STRANGER.did).key
    await store.book.post(
        AccountChanged(stranded, Granted(100, 100, 1)), AccountChanged(stranded, Reserved(bytes(32), 50, 9))
    )
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=20)
    stream = store.seller.order(draft.raw, draft.sealed)
    await anext(stream)

    await store.seller.sweep()

    assert store.owed_by(STRANGER.did).reserved == 0
    assert store.owed_by(BUYER.did).reserved == price_of(5, 20)
    assert [chunk async for chunk in stream]
    assert store.owed_by(BUYER.did).owed == price_of(5, 20)


async def test_only_the_buyer_of_an_order_can_cancel_it(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=100)
    stream = store.seller.order(draft.raw, draft.sealed)
    await anext(stream)

    for raw, code in (
        (sign(Cancel(draft.order.digest, 0), STRANGER).raw, "unknown_order"),
        (sign(Cancel(bytes(32), 0), BUYER).raw, "unknown_order"),
        (b"no record", "malformed"),
    ):
        with pytest.raises(Refused) as refusal:
            await store.seller.cancel(raw)
        assert refusal.value.code == code

    assert len([chunk async for chunk in stream]) == 99 + 1 + 1, (
        "tokens, a checkpoint, the receipt: it went on to its end"
    )


@pytest.mark.parametrize(("fails_after", "owed"), [(10, 0), (64, 128), (70, 128), (130, 256)])
async def test_a_seller_whose_engine_fails_is_owed_up_to_its_last_checkpoint_and_both_books_agree(
    tokenizer: Tokenizer, clock: ManualClock, fails_after: int, owed: int
) -> None:
    store = await Store.open(tokenizer, clock, engine=engine_of(tokenizer, fail_after=fails_after))
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)

    delivery = await customer.order(offer, max_tokens=200)

    assert (len(delivery.ids), delivery.receipt) == (fails_after, None)
    for account in (customer.owes(store.did), store.owed_by(customer.did)):
        assert (account.owed, account.authorized, account.reserved) == (owed, owed, 0)
    assert (await customer.order(offer, max_tokens=5)).objection is None


async def test_a_seller_whose_engine_fails_says_so_with_a_cancel(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock, engine=engine_of(tokenizer, fail_after=3))
    frames = await frames_of(store.seller, draft_order(BUYER, await store.offer(), clock))

    last = frames[-1]
    assert isinstance(last, CancelFrame)
    said = open_record(last.raw, Cancel)
    assert (said.signer, said.record.tokens) == (store.did, 3)


# Time.


async def test_orders_that_expired_and_came_to_nothing_are_swept_away(tokenizer: Tokenizer, clock: ManualClock) -> None:
    class Lost(Line):
        def before_order(self) -> None:
            raise RuntimeError("this buyer dies here")

    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Lost(store.seller))
    with pytest.raises(NotPlaced):
        await customer.buy(offer, max_tokens=10).outcome()
    assert customer.owes(store.did).reserved == price_of(5, 10)

    await customer.settler.sweep()
    assert customer.owes(store.did).reserved == price_of(5, 10), "the order may still be answered"
    clock.advance(600 + 241)
    await customer.settler.sweep()

    assert (customer.owes(store.did).reserved, customer.owes(store.did).owed) == (0, 0)
    assert [type(change) for change in await last_changes(customer.book)] == [Expired]


async def last_changes(book: Book) -> list[Change]:
    """The changes of the newest entry."""
    *_, entry = [entry async for entry in book.journal.entries()]
    return [event.change for event in decode_events(entry.payload) if isinstance(event, AccountChanged)]


async def test_an_expired_order_is_swept_away_also_beside_an_older_one_that_is_answered(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    purchase = customer.buy(await customer.meet(store.seller), max_tokens=50)
    await anext(purchase.tokens())
    stranded = Reserved(bytes(32), 50, int(clock.now()) + 601)
    await customer.book.post(AccountChanged(customer.owes(store.did).key, stranded))

    clock.advance(3_600)
    await customer.settler.sweep()

    assert await last_changes(customer.book) == [Released(bytes(32))]
    await purchase.outcome()
    await customer.settled()
    assert customer.owes(store.did).authorized == price_of(5, 50)


async def test_the_sweep_leaves_an_answer_that_takes_long_alone(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    purchase = customer.buy(await customer.meet(store.seller), max_tokens=50)
    tokens = purchase.tokens()
    await anext(tokens)

    clock.advance(3_600)
    await customer.settler.sweep()
    delivery = await purchase.outcome()
    await customer.settled()

    assert delivery.objection is None
    assert customer.owes(store.did).authorized == store.owed_by(customer.did).owed == price_of(5, 50)


async def test_what_may_be_spent_in_a_day_starts_anew_at_midnight(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    await customer.order(await customer.meet(store.seller), max_tokens=10)
    assert customer.book.spent_today() == {"uusd": 25}

    clock.advance(12 * 3_600)

    assert customer.book.spent_today() == {"uusd": 0}
    await customer.order(await store.offer(), max_tokens=1)
    assert customer.book.spent_today() == {"uusd": 7}


async def test_orders_long_closed_are_forgotten_on_both_sides_and_the_sums_stay(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    await customer.order(await customer.meet(store.seller), max_tokens=10)
    clock.advance(8 * 24 * 3_600)

    await customer.book.sweep()
    await store.book.sweep()

    for account in (customer.owes(store.did), store.owed_by(customer.did)):
        assert (dict(account.orders), account.owed, account.authorized) == ({}, 25, 25)


# Credit.


async def test_asking_for_credit_changes_nothing(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)

    for _ in range(3):
        await customer.meet(store.seller)

    assert store.book.journal.head.sequence == 0
    assert customer.book.journal.head.sequence == 1, "what was known before is no news"


@pytest.mark.parametrize("ordered_before", [False, True])
async def test_a_buyer_learns_of_every_change_of_its_credit(
    tokenizer: Tokenizer, clock: ManualClock, ordered_before: bool
) -> None:
    customer, journal = await Customer.open(tokenizer, clock), None
    for limit in (1_000, 2_000, 500, 1_000):
        store = await Store.open(tokenizer, clock, journal=journal, credit={"uusd": evolve(CREDIT, limit=uusd(limit))})
        journal = store.book.journal
        offer = await customer.meet(store.seller)
        assert customer.owes(store.did).limit == limit
        if ordered_before:
            await customer.order(offer, max_tokens=1)
            assert store.owed_by(customer.did).limit == limit
        clock.advance(60)
