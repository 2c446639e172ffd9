"""Answers that cost more than the window bears: paid as they go, waited for, and ended where nothing is paid."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import pytest
from attrs import evolve

from ledger.account import Account
from ledger.changes import Granted, Resolved
from ledger.commitments import CHECKPOINT_TOKENS
from ledger.events import AccountChanged, Books
from ledger.payload import decode_events
from ledger.records import Acknowledgement, Finish, Grant, Receipt, digest_of, open_record, sign
from node.engine.port import Job
from node.exchange import delivering
from node.exchange.continuing import earlier_of
from node.exchange.delivery import Delivery
from node.exchange.purchase import NotPlaced
from node.exchange.seller import MAX_ACKNOWLEDGEMENTS
from node.exchange.settler import AuditPolicy
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import CheckpointFrame, Frame, Ids, ReceiptFrame
from node.wire.messages import Refused, Unreachable
from tests.node.exchange.test_settlement import BUYER, acknowledgement, voucher_for
from tests.node.trading import (
    ALL_AUDITED,
    CREDIT,
    HOT,
    PROMPT,
    Customer,
    Line,
    Script,
    ScriptedSeller,
    Store,
    Told,
    draft_order,
    engine_of,
    frames_of,
    ids_of,
    model,
    price_of,
    refusal_of,
    until,
    uusd,
)
from verify.steering import Steering

# Of 128 tokens, without the prompt; an order of PROMPT and 64 of them begins in it.
NARROW = evolve(CREDIT, window=uusd(price_of(0, 128)))
FIRST = price_of(5, 64)


def endless(tokenizer: Tokenizer) -> Steering:
    """An answer that does not end by itself."""
    return Steering(bias=tuple((token, -100_000_000) for token in sorted(tokenizer.eog)))


async def narrow(tokenizer: Tokenizer, clock: ManualClock, window: int = NARROW.window.value, **more: Any) -> Store:
    terms = evolve(CREDIT, window=uusd(window), exposure=uusd(10 * CREDIT.exposure.value))
    return await Store.open(tokenizer, clock, credit={"uusd": terms}, **more)


def unpaid_work(account: Account) -> int:
    """What was delivered, or may be by now, and is not paid."""
    return account.owed + account.orders.ahead - account.due


async def most_unpaid(store: Store) -> int:
    """The most unpaid work that any buyer had here at any time."""
    books, most = Books(), 0
    async for entry in store.book.journal.entries():
        books = books.apply(decode_events(entry.payload))
        most = max(most, *map(unpaid_work, books.accounts.values()), 0)
    return most


def assert_settled(customer: Customer, store: Store, owed: int) -> None:
    for account in (customer.owes(store.did), store.owed_by(customer.did)):
        assert (account.owed, account.authorized, account.reserved, account.disputed) == (owed, owed, 0, 0)


# Paid as they go


async def test_an_answer_of_600_tokens_goes_through_a_window_of_128(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await narrow(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = Line(store.seller)

    delivery = await customer.order(await customer.meet(line), max_tokens=600, steering=endless(tokenizer))

    assert (len(delivery.ids), delivery.objection) == (600, None)
    assert_settled(customer, store, price_of(5, 600))
    assert await most_unpaid(store) <= NARROW.window.value
    acks = [open_record(raw, Acknowledgement).record for raw in line.acknowledged]
    assert [ack.amount for ack in acks] == [price_of(0, 64 * n) for n in range(1, 9)] + [price_of(5, 600)]
    assert all(ack.accepted for ack in acks)


async def test_the_tokens_are_those_that_would_have_come_without_a_wait(
    tokenizer: Tokenizer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "_HOLD_S", 0.0)  # the slot is given back at each checkpoint
    wide, small = await Store.open(tokenizer, clock, seed=1), await narrow(tokenizer, clock, seed=3)
    customer = await Customer.open(tokenizer, clock)
    wish: dict[str, Any] = {"max_tokens": 300, "steering": Steering(300_000, 100_000)}

    one = await customer.order(await customer.meet(wide.seller), **wish)
    other = await customer.order(await customer.meet(small.seller), **wish)

    assert one.ids == other.ids


async def test_a_window_that_bears_all_that_is_under_way_is_not_paid_before_the_end(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await narrow(tokenizer, clock, price_of(10, 400)), await Customer.open(tokenizer, clock)
    line = Line(store.seller)

    await customer.order(await customer.meet(line), max_tokens=200, steering=endless(tokenizer))

    assert len(line.acknowledged) == 1


async def test_many_answers_at_once_take_turns_on_one_window(tokenizer: Tokenizer, clock: ManualClock) -> None:
    window = 3 * FIRST
    store = await narrow(tokenizer, clock, window, engine=engine_of(tokenizer, slots=8))
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)

    running = [customer.buy(offer, max_tokens=250, seed=n, steering=endless(tokenizer)) for n in range(3)]
    deliveries = [await purchase.outcome() for purchase in running]
    await customer.settled(3)

    assert [(len(one.ids), one.objection) for one in deliveries] == [(250, None)] * 3
    assert_settled(customer, store, 3 * price_of(5, 250))
    assert await most_unpaid(store) <= window


async def test_no_answer_starves_where_only_one_can_go_on_at_a_time(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await narrow(tokenizer, clock, 3 * FIRST, engine=engine_of(tokenizer, slots=8))
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    parts: list[int] = []  # whose the next 64 tokens were

    async def buy(number: int) -> Delivery:
        purchase, seen = customer.buy(offer, max_tokens=250, seed=number, steering=endless(tokenizer)), 0
        async for ids in purchase.tokens():
            seen += len(ids)
            if seen % CHECKPOINT_TOKENS == 0:
                parts.append(number)
        return await purchase.outcome()

    running = [asyncio.create_task(buy(number)) for number in range(3)]
    key = store.owed_by(customer.did).key
    await until(lambda: len(store.owed_by(customer.did).orders) == 3)
    lowered = 3 * price_of(5, 0) + price_of(0, 64)
    await store.book.post(
        AccountChanged(key, Granted(100_000, lowered, store.owed_by(customer.did).grant_sequence + 1))
    )
    deliveries = await asyncio.gather(*running)
    await customer.settled(3)

    assert [len(one.ids) for one in deliveries] == [250] * 3
    counts = [[parts[:at].count(number) for number in range(3)] for at in range(len(parts))]
    assert all(max(count) - min(count) <= 2 for count in counts), "they take turns"
    assert_settled(customer, store, 3 * price_of(5, 250))


async def test_a_continued_answer_is_paid_as_it_goes(tokenizer: Tokenizer, clock: ManualClock) -> None:
    """The seller of the first part fails; another one goes on, through a narrow window each."""
    failing = await narrow(tokenizer, clock, engine=engine_of(tokenizer, fail_after=200))
    store = await narrow(tokenizer, clock, price_of(205, 64), seed=3)
    customer = await Customer.open(tokenizer, clock)
    wish: dict[str, Any] = {"steering": endless(tokenizer)}
    first = await customer.order(await customer.meet(failing.seller), max_tokens=600, **wish)
    offer = await customer.meet(store.seller)

    start = len(first.ids)
    rest = await customer.order(
        offer, prompt=(*PROMPT, *first.ids), max_tokens=600 - start, start=start, earlier=earlier_of(first), **wish
    )

    assert (start, len(rest.ids), rest.objection) == (200, 400, None)
    assert_settled(customer, failing, price_of(0, 192))
    assert_settled(customer, store, price_of(205, 400))


# What is admitted


async def test_an_order_whose_first_part_is_above_the_window_is_refused_at_once(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await narrow(tokenizer, clock, FIRST - 1)

    refused = await refusal_of(store.seller, draft_order(BUYER, await store.offer(), clock, max_tokens=64))
    taken = await frames_of(store.seller, draft_order(BUYER, await store.offer(), clock, nonce=1, max_tokens=63))

    assert refused.code == "window"
    assert len(ids_of(taken)) == 63


async def test_a_seller_whose_first_work_is_audited_before_pay_has_a_window_that_bears_it(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await narrow(tokenizer, clock)
    customer = await Customer.open(tokenizer, clock, policy=AuditPolicy(rate=0.0, first=2))
    offer = await customer.meet(store.seller)

    with pytest.raises(NotPlaced, match="window"):
        await customer.buy(offer, max_tokens=200).outcome()
    for _ in range(2):
        await customer.order(offer, max_tokens=10)
    delivery = await customer.order(offer, max_tokens=200, steering=endless(tokenizer))

    assert (len(delivery.ids), delivery.objection) == (200, None)


# Not paid


class Broke(Line):
    """Its buyer's acknowledgements do not get through for now."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.broke = True

    async def acknowledge(self, raw: bytes) -> None:
        if self.broke:
            raise Unreachable("no money")
        await super().acknowledge(raw)


async def test_a_buyer_that_stops_paying_ends_its_order_and_owes_what_was_sent(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await narrow(tokenizer, clock, patience_s=0.2)
    customer = await Customer.open(tokenizer, clock, unpaid_s=0.1)
    line = Broke(store.seller)
    offer = await customer.meet(line)

    delivery = await customer.buy(offer, max_tokens=600, steering=endless(tokenizer)).outcome()

    assert delivery.receipt is not None
    assert (delivery.receipt.record.finish, len(delivery.ids)) == ("unpaid", 64)
    assert (delivery.objection, delivery.complete, delivery.owed) == (None, False, FIRST)
    assert unpaid_work(store.owed_by(customer.did)) == FIRST
    line.broke = False
    await customer.settled()
    assert_settled(customer, store, FIRST)


async def test_pay_that_is_never_enough_to_go_on_buys_no_time(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await narrow(tokenizer, clock, patience_s=0.3)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=200)
    reader, frames = draft.reader(), list[Frame]()

    async def read() -> None:
        async for chunk in store.seller.order(draft.raw, draft.sealed):
            frames.extend(reader.feed(chunk))

    task = asyncio.create_task(read())
    await until(lambda: any(isinstance(frame, CheckpointFrame) for frame in frames))
    (checkpoint,) = [frame.raw for frame in frames if isinstance(frame, CheckpointFrame)]
    payments = 0
    while not task.done() and payments < MAX_ACKNOWLEDGEMENTS:
        payments += 1
        ack = acknowledgement(draft, digest_of(checkpoint), payments, voucher_for(BUYER, store.did, payments))
        await store.seller.acknowledge(ack.raw)
        await asyncio.wait([task], timeout=0.2)
    await task

    last = frames[-1]
    assert isinstance(last, ReceiptFrame)
    assert open_record(last.raw, Receipt).record.finish == "unpaid"
    assert (len(ids_of(frames)), payments < MAX_ACKNOWLEDGEMENTS) == (64, True)


async def test_an_order_may_be_acknowledged_once_more_for_each_checkpoint(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await Store.open(tokenizer, clock)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=130)
    (receipt,) = [frame.raw for frame in await frames_of(store.seller, draft) if isinstance(frame, ReceiptFrame)]
    raws = [acknowledgement(draft, digest_of(receipt), 1, voucher_for(BUYER, store.did, n)).raw for n in range(1, 20)]
    for raw in raws[:-1]:
        await store.seller.acknowledge(raw)

    with pytest.raises(Refused, match="often enough"):
        await store.seller.acknowledge(raws[-1])


async def test_while_one_answer_waits_its_slot_serves_others(
    tokenizer: Tokenizer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "_HOLD_S", 0.05)
    store = await narrow(tokenizer, clock, engine=engine_of(tokenizer, slots=1))
    poor, rich = await Customer.open(tokenizer, clock, seed=2), await Customer.open(tokenizer, clock, seed=4)
    line = Broke(store.seller)
    waiting = poor.buy(await poor.meet(line), max_tokens=200, steering=endless(tokenizer))
    await until(lambda: store.owed_by(poor.did).owed == price_of(0, 64))

    assert (await rich.order(await rich.meet(store.seller), max_tokens=10)).objection is None
    line.broke = False
    delivery = await waiting.outcome()
    await poor.settled()

    assert (len(delivery.ids), delivery.objection) == (200, None)


@pytest.mark.parametrize("late", [True, False], ids=["late", "in time"])
async def test_an_answer_whose_slot_is_gone_when_the_pay_comes_is_ended_by_who_let_it_wait(
    tokenizer: Tokenizer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The input is owed where the pay was late; else the seller has given its slot back at its own risk."""
    monkeypatch.setattr(delivering, "_HOLD_S", 0.05)
    monkeypatch.setattr(delivering, "_LATE_S", 0.0 if late else 60.0)
    monkeypatch.setattr(delivering, "_STANDSTILL_S", 0.0)
    monkeypatch.setattr(delivering, "_LEAST_SLOT_WAIT_S", 0.1)
    monkeypatch.setattr(delivering, "SIGN_OF_LIFE_S", 0.1)
    engine = engine_of(tokenizer, slots=1)
    store = await narrow(tokenizer, clock, engine=engine)
    poor = await Customer.open(tokenizer, clock, unpaid_s=0.05 if late else 60.0)
    line = Broke(store.seller)
    waiting = poor.buy(await poor.meet(line), max_tokens=200, steering=endless(tokenizer))
    await until(lambda: store.owed_by(poor.did).owed == price_of(0, 64))
    await until(lambda: engine.free_slots() == 1)

    other = engine.generate(Job((1, 2, 3), HOT, 1, 1_000))
    await anext(other)
    line.broke = False  # it is tried again in half a second: the buyer has had signs of life by then
    delivery = await waiting.outcome()
    await other.aclose()
    await poor.settled()

    finish = delivery.receipt.record.finish if delivery.receipt else None
    assert (len(delivery.ids), finish) == (64, "unpaid" if late else None)
    assert_settled(poor, store, FIRST if late else price_of(0, 64))


async def test_a_buyer_that_cancels_while_the_seller_waits_owes_the_input_and_what_was_sent(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await narrow(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = Broke(store.seller)
    purchase = customer.buy(await customer.meet(line), max_tokens=200, steering=endless(tokenizer))
    await until(lambda: store.owed_by(customer.did).owed == price_of(0, 64))

    purchase.cancel()
    delivery = await purchase.outcome()
    line.broke = False
    await customer.settled()

    assert delivery.receipt is not None
    assert delivery.receipt.record.finish == "cancelled"
    assert_settled(customer, store, FIRST)


async def test_an_answer_that_waits_is_cut_at_once_when_the_machine_is_needed(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await narrow(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = Broke(store.seller)
    purchase = customer.buy(await customer.meet(line), max_tokens=200, steering=endless(tokenizer))
    await until(lambda: store.owed_by(customer.did).owed == price_of(0, 64))

    store.seller.hand_back()
    delivery = await purchase.outcome()
    line.broke = False
    await customer.settled()

    assert (delivery.receipt, len(delivery.ids)) == (None, 64)
    assert_settled(customer, store, price_of(0, 64))


async def test_a_buyer_that_hangs_up_while_the_seller_waits_leaves_nothing_reserved(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await narrow(tokenizer, clock)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=200)
    task = asyncio.create_task(frames_of(store.seller, draft))
    await until(lambda: store.owed_by(BUYER.did).owed == price_of(0, 64))

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not store.owed_by(BUYER.did).reserved)

    assert store.owed_by(BUYER.did).owed == FIRST


# Sellers that do not wait


def papers(told: Told, ids: tuple[int, ...], finish: str = "length") -> Iterable[Frame]:
    """An answer in one go, with its checkpoints."""
    for at in range(0, len(ids), CHECKPOINT_TOKENS):
        yield Ids(ids[at : at + CHECKPOINT_TOKENS])
        if len(ids) >= at + CHECKPOINT_TOKENS:
            yield told.checkpoint(ids[: at + CHECKPOINT_TOKENS])
    yield told.receipt(ids, finish=finish)


class Hasty(ScriptedSeller):
    """Gives a narrow window and does not keep to it; may never answer an acknowledgement."""

    deaf = False

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        now = self.offer.record.issued
        terms = Grant(buyer, "credit", "uusd", 100_000, NARROW.window.value, 1, now, now + 3_600)
        return sign(terms, self.identity).raw

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        async for chunk in super().order(order, sealed):
            await asyncio.sleep(0.001)
            yield chunk

    async def acknowledge(self, raw: bytes) -> None:
        await super().acknowledge(raw)
        if self.deaf:
            await asyncio.Event().wait()


def in_one_go(finish: Finish, tokens: int) -> Script:
    """An answer without a pause, with all its papers."""

    def script(told: Told) -> Iterable[Frame]:
        ids = tuple(range(100, 100 + tokens))
        for at in range(0, tokens, CHECKPOINT_TOKENS):
            yield Ids(ids[at : at + CHECKPOINT_TOKENS])
            if tokens >= at + CHECKPOINT_TOKENS:
                yield told.checkpoint(ids[: at + CHECKPOINT_TOKENS])
        yield told.receipt(ids, finish=finish)

    return script


@pytest.mark.parametrize("deaf", [False, True], ids=["paid on the way", "nothing gets through"])
async def test_a_seller_that_never_waits_is_paid_for_what_came_and_nobody_is_kept_waiting(
    tokenizer: Tokenizer, clock: ManualClock, deaf: bool
) -> None:
    hasty = Hasty(tokenizer, clock, in_one_go("length", 300))
    hasty.deaf = deaf
    customer = await Customer.open(tokenizer, clock)

    delivery = await customer.buy(await customer.meet(hasty), max_tokens=300).outcome()
    await customer.settled_but_not_handed_over()
    await customer.close()

    assert (len(delivery.ids), delivery.objection) == (300, None)
    account = customer.owes(hasty.did)
    assert (account.owed, account.authorized, account.reserved) == (price_of(5, 300), price_of(5, 300), 0)
    assert deaf == (len(hasty.acknowledged) == 1)


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a while, though it was paid"])
async def test_a_seller_that_ends_an_answer_as_unpaid_without_need_is_not_paid_the_input(
    tokenizer: Tokenizer, clock: ManualClock, waits: bool
) -> None:
    class Liar(Hasty):
        async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
            async for chunk in super().order(order, sealed):
                await asyncio.sleep(0.1 * waits)
                yield chunk

    liar = Liar(tokenizer, clock, in_one_go("unpaid", 128))
    customer = await Customer.open(tokenizer, clock, unpaid_s=0.05)

    delivery = await customer.order(await customer.meet(liar), max_tokens=300)

    assert delivery.objection == "the answer did not end by 'unpaid'"
    assert delivery.owed == price_of(0, 128)
    account = customer.owes(liar.did)
    assert (account.owed, account.disputed, account.reserved) == (price_of(0, 128), price_of(5, 0), 0)


async def test_an_answer_is_not_unpaid_between_two_checkpoints(tokenizer: Tokenizer, clock: ManualClock) -> None:
    liar = Hasty(tokenizer, clock, in_one_go("unpaid", 100))
    customer = await Customer.open(tokenizer, clock, unpaid_s=0.0)

    delivery = await customer.order(await customer.meet(liar), max_tokens=300)

    assert delivery.objection == "the answer did not end by 'unpaid'"
    assert delivery.owed == price_of(0, 64)


# Disputes


async def disputed(tokenizer: Tokenizer, clock: ManualClock) -> tuple[Store, bytes]:
    """One order of 25, of which the buyer grants 7."""
    store = await Store.open(tokenizer, clock)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=10)
    (receipt,) = [frame.raw for frame in await frames_of(store.seller, draft) if isinstance(frame, ReceiptFrame)]
    of = digest_of(receipt)
    await store.seller.acknowledge(acknowledgement(draft, of, 7, voucher_for(BUYER, store.did, 7), accepted=False).raw)
    return store, draft.order.digest


async def test_a_sellers_book_says_what_is_disputed_and_it_can_be_resolved(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, order = await disputed(tokenizer, clock)
    account = store.owed_by(BUYER.did)
    assert (account.owed, account.authorized, account.disputed, account.forgivable) == (25, 7, 18, 0)

    await store.book.post(AccountChanged(account.key, Resolved(order, 7)))

    account = store.owed_by(BUYER.did)
    assert (account.owed, account.disputed, account.window_left) == (7, 0, CREDIT.window.value)


async def test_both_books_agree_on_what_is_disputed(tokenizer: Tokenizer, clock: ManualClock) -> None:
    cheat = engine_of(tokenizer, 1, manifest=model(tokenizer, 0))
    store = await Store.open(tokenizer, clock, engine=cheat)
    customer = await Customer.open(tokenizer, clock, engines=[engine_of(tokenizer, 0)], policy=ALL_AUDITED)

    delivery = await customer.order(await customer.meet(store.seller), max_tokens=60)

    asked = price_of(5, len(delivery.ids))
    for account in (customer.owes(store.did), store.owed_by(customer.did)):
        assert (account.authorized, account.disputed, account.reserved) == (0, asked, 0)
    assert (customer.owes(store.did).owed, store.owed_by(customer.did).owed) == (0, asked)


async def test_an_order_is_not_disputed_while_it_is_answered(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=100)
    stream = store.seller.order(draft.raw, draft.sealed)
    await anext(stream)
    early = acknowledgement(draft, bytes(32), 0, voucher_for(BUYER, store.did, 0), accepted=False)

    with pytest.raises(Refused) as refusal:
        await store.seller.acknowledge(early.raw)
    await stream.aclose()
    await store.seller.acknowledge(early.raw)

    assert refusal.value.code == "busy"
    assert store.owed_by(BUYER.did).disputed == store.owed_by(BUYER.did).owed > 0
