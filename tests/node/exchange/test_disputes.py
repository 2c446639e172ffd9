"""Disputes are ended and debts forgiven by whoever gives way, and the other side learns of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from attrs import define, evolve, field, frozen

from ledger.changes import Authorized, Change, Disputed, Earned, Released, Reserved, VoucherReceived
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import Entry
from ledger.records import Acknowledgement, Forgiveness, Resolution, open_record, sign
from node.exchange.buyer import Buyer
from node.exchange.delivery import Delivery
from node.exchange.disputes import Disputes, LetGoTwice, NotLetGo
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.messages import Refused, Unreachable
from tests.node.trading import Customer, Store, ask, until, uusd

STRANGER = Identity(bytes([9]) * 32)
LOST = bytes([9]) * 32
TOKENS = 10
# What five prompt tokens and ten output tokens cost at the tests' price.
COST = 25
GRANTED = 15


@define
class Way:
    """The way to a payee; while it is `down` nothing arrives."""

    payee: Disputes
    down: bool = False

    async def resolution(self, order: bytes) -> bytes | None:
        self._check()
        return await self.payee.resolution(order)

    async def forgiveness(self, raw: bytes) -> bytes:
        self._check()
        return await self.payee.forgiveness(raw)

    def _check(self) -> None:
        if self.down:
            raise Unreachable("the line is down")


@frozen
class Liar:
    """A payee that answers these, whatever it is asked."""

    resolved: bytes | None = None
    forgiven: bytes = b""

    async def resolution(self, _order: bytes) -> bytes | None:
        return self.resolved

    async def forgiveness(self, _raw: bytes) -> bytes:
        return self.forgiven


@define
class Market:
    """A seller, its buyer, and one order of which the buyer grants a part."""

    store: Store
    customer: Customer
    order: bytes
    seller: Disputes = field(init=False)
    way: Way | Liar = field(init=False)
    buyer: Disputes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.seller = Disputes(self.store.book, lambda _: None, self.customer.settler.give_way)
        self.way = Way(self.seller)
        self.buyer = Disputes(self.customer.book, lambda _: self.way, self.customer.settler.give_way)

    async def post(self, *changes: Change) -> None:
        """On both sides."""
        key = self.customer.owes(self.store.did).key
        for book in (self.store.book, self.customer.book):
            await book.post(*(AccountChanged(key, change) for change in changes))

    @property
    def owed(self) -> tuple[int, int]:
        """At the buyer, and at the seller."""
        return self.customer.owes(self.store.did).owed, self.store.owed_by(self.customer.did).owed

    @property
    def disputed(self) -> tuple[int, int]:
        return self.customer.owes(self.store.did).disputed, self.store.owed_by(self.customer.did).disputed


@pytest.fixture
async def market(tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Market]:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    settled: asyncio.Queue[bytes] = asyncio.Queue()

    async def object_to(delivery: Delivery) -> None:
        assert delivery.owed == COST
        await customer.settler.settle(evolve(delivery, owed=GRANTED, objection="it is too short"))
        settled.put_nowait(delivery.terms.order.digest)

    buyer = Buyer(customer.book, SeededEntropy(5), object_to)
    buyer.buy(customer.lines[offer.signer], offer, ask(max_tokens=TOKENS), tokenizer)
    order = await asyncio.wait_for(settled.get(), 20)
    await customer.handed_over()
    market = Market(store, customer, order)
    await market.post(Disputed(order, COST, GRANTED))
    yield market
    await buyer.close()
    await customer.close()


async def test_a_dispute_is_shown_on_both_sides_with_the_buyers_reason(market: Market) -> None:
    for side in (market.seller, market.buyer):
        (shown,) = await side.shown()
        assert (shown.dispute.order, shown.dispute.asked, shown.dispute.granted) == (market.order, COST, GRANTED)
        assert (shown.reason, shown.unit) == ("it is too short", "uusd")
    assert market.owed == (GRANTED, COST)


async def test_a_payee_that_asks_no_more_than_is_granted_ends_the_dispute_on_both_sides(market: Market) -> None:
    assert await market.seller.resolve(market.seller.find(market.order.hex())) == uusd(GRANTED)
    assert market.disputed == (COST - GRANTED, 0)
    await market.buyer.sweep()
    assert market.disputed == (0, 0)
    assert market.owed == (GRANTED, GRANTED)
    for book in (market.store.book, market.customer.book):
        (kept,) = await book.journal.list_records(Resolution.kind, 9)
        assert open_record(kept.raw, Resolution).signer == market.store.did


async def test_a_payee_may_let_go_of_a_part_and_later_of_the_rest(market: Market) -> None:
    await market.seller.resolve(market.seller.find(market.order.hex()[:8]), 20)
    await market.buyer.sweep()
    assert market.disputed == (5, 5)
    with pytest.raises(NotLetGo, match=r"name what it is to cost, from 0\.000015usd to 0\.000020usd"):
        await market.seller.resolve(market.seller.find(market.order.hex()[:8]))
    await market.seller.resolve(market.seller.find(market.order.hex()[:8]), GRANTED)
    await market.buyer.sweep()
    assert market.disputed == (0, 0)
    assert market.owed == (GRANTED, GRANTED)


async def test_a_payer_that_gives_way_pays_what_is_asked(market: Market) -> None:
    assert await market.buyer.resolve(market.buyer.find(market.order.hex())) == uusd(COST)
    await market.customer.handed_over()
    assert market.customer.owes(market.store.did).authorized == COST
    assert market.store.owed_by(market.customer.did).authorized == COST
    assert market.owed == (COST, COST)
    assert await market.buyer.shown() == []
    records = await market.store.book.journal.list_records(Acknowledgement.kind, 9)
    first, last = (open_record(one.raw, Acknowledgement) for one in reversed(records))
    assert (last.record.accepted, last.record.amount, last.record.reason) == (True, COST, "")
    assert (last.record.previous, last.record.of) == (first.digest, first.record.of)


async def test_giving_way_is_not_cut_short_where_who_asked_goes_away(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, written, go_on = market.customer.book.journal, asyncio.Event(), asyncio.Event()
    append = journal.append

    async def slow(*events: Any, **rest: Any) -> Entry:
        entry = await append(*events, **rest)
        written.set()
        await go_on.wait()
        return entry

    monkeypatch.setattr(journal, "append", slow)
    asking = asyncio.create_task(market.buyer.resolve(market.buyer.find(market.order.hex())))
    await written.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    go_on.set()
    await until(lambda: market.disputed == (0, 0))
    assert market.owed == (COST, COST)
    assert market.store.owed_by(market.customer.did).authorized == COST


async def test_a_payer_may_give_way_by_a_part(market: Market) -> None:
    assert await market.buyer.resolve(market.buyer.find(market.order.hex()), 20) == uusd(20)
    await market.customer.handed_over()
    assert market.store.owed_by(market.customer.did).authorized == 20
    (shown,) = await market.buyer.shown()
    assert (shown.dispute.granted, shown.reason) == (20, "it is too short")
    with pytest.raises(NotLetGo, match="you gave way by a part"):
        await market.buyer.resolve(shown.dispute)
    assert await market.buyer.resolve(shown.dispute, COST) == uusd(COST)


async def test_of_many_disputes_each_is_asked_about(market: Market) -> None:
    orders = [bytes([n]) * 32 for n in range(40)]
    for order in orders:
        await market.post(Reserved(order, 2, 9), Earned(order, 2), Released(order), Disputed(order, 2, 1))
    asked = list[bytes]()

    class Asked(Way):
        async def resolution(self, order: bytes) -> bytes | None:
            asked.append(order)
            return None

    market.way = Asked(market.seller)
    for _ in range(3):
        await market.buyer.sweep()
    assert set(asked) == {*orders, market.order}


async def test_asking_again_changes_nothing(market: Market) -> None:
    await market.seller.resolve(market.seller.find(market.order.hex()))
    await market.buyer.sweep()
    head = market.customer.book.journal.head
    await market.buyer.sweep()
    assert market.customer.book.journal.head == head


async def test_what_is_beyond_the_dispute_is_refused(market: Market) -> None:
    for side in (market.seller, market.buyer):
        for total in (GRANTED - 1, COST + 1):
            with pytest.raises(NotLetGo, match="choose between"):
                await side.resolve(side.find(market.order.hex()), total)
    assert market.disputed == (COST - GRANTED, COST - GRANTED)


async def test_an_order_that_is_not_in_dispute_is_not_found(market: Market) -> None:
    with pytest.raises(NotLetGo, match="`idlemesh disputes` lists them"):
        market.seller.find("00" * 32)


async def test_what_was_forgiven_before_is_let_go_of_again_only_if_the_owner_insists(market: Market) -> None:
    await market.store.book.post(
        AccountChanged(market.store.owed_by(market.customer.did).key, Reserved(LOST, 50, 9)),
        AccountChanged(market.store.owed_by(market.customer.did).key, Earned(LOST, 50)),
    )
    # More is owed by now than is in dispute, and all but that is forgiven; then the buyer pays its part of it.
    await market.seller.forgive(market.customer.did, uusd(50))
    key = market.store.owed_by(market.customer.did).key
    await market.store.book.post(AccountChanged(key, VoucherReceived(GRANTED + 5)))
    dispute = market.seller.find(market.order.hex())
    with pytest.raises(LetGoTwice, match=r"0\.000005usd of it was forgiven before"):
        await market.seller.resolve(dispute)
    assert await market.seller.resolve(dispute, twice=True) == uusd(GRANTED)


async def test_what_a_voucher_covers_or_is_in_dispute_is_not_forgiven(market: Market) -> None:
    with pytest.raises(NotLetGo, match="idlemesh resolve"):
        await market.seller.forgive(market.customer.did, uusd(1))
    await market.seller.resolve(market.seller.find(market.order.hex()))
    with pytest.raises(NotLetGo, match="idlemesh settle"):
        await market.seller.forgive(market.customer.did, uusd(1))
    with pytest.raises(NotLetGo, match="above 0"):
        await market.seller.forgive(market.customer.did, uusd(0))


async def a_debt_without_a_voucher(market: Market) -> None:
    """Both count an order that the buyer has not paid for: it was away."""
    await market.post(Reserved(LOST, 50, 9), Earned(LOST, 50), Released(LOST))


async def test_a_payer_learns_what_it_was_forgiven_and_both_owe_the_same(market: Market) -> None:
    await market.seller.resolve(market.seller.find(market.order.hex()))
    await a_debt_without_a_voucher(market)
    let = await market.seller.forgive(market.customer.did, uusd(30))
    assert (let.forgiven, let.left) == (uusd(30), uusd(20))
    await market.buyer.sweep()
    assert market.owed == (GRANTED + 20, GRANTED + 20)
    (kept,) = await market.customer.book.journal.list_records(Forgiveness.kind, 9)
    assert open_record(kept.raw, Forgiveness).record.total == 30


async def test_what_is_forgiven_after_it_was_promised_pays_for_work_to_come(
    market: Market, tokenizer: Tokenizer
) -> None:
    await market.seller.resolve(market.seller.find(market.order.hex()))
    await a_debt_without_a_voucher(market)
    await market.seller.forgive(market.customer.did, uusd(50))
    await market.customer.book.post(AccountChanged(market.customer.owes(market.store.did).key, Authorized(65)))
    await market.buyer.sweep()
    offer = await market.customer.meet(market.store.seller)
    await market.customer.order(offer, max_tokens=TOKENS)
    assert market.owed == (GRANTED + COST, GRANTED + COST)
    assert market.store.owed_by(market.customer.did).authorized == 65


async def test_a_payee_that_is_away_is_asked_later(market: Market) -> None:
    assert isinstance(market.way, Way)
    await market.seller.resolve(market.seller.find(market.order.hex()))
    market.way.down = True
    await market.buyer.sweep()
    assert market.disputed == (COST - GRANTED, 0)
    market.way.down = False
    await market.buyer.sweep()
    assert market.disputed == (0, 0)


async def test_forgiveness_is_asked_for_at_the_start_and_then_by_the_hour(market: Market, clock: ManualClock) -> None:
    await market.seller.resolve(market.seller.find(market.order.hex()))
    await a_debt_without_a_voucher(market)
    await market.buyer.sweep()
    await market.seller.forgive(market.customer.did, uusd(30))
    await market.buyer.sweep()
    assert market.customer.owes(market.store.did).forgiven == 0
    clock.advance(3600)
    await market.buyer.sweep()
    assert market.customer.owes(market.store.did).forgiven == 30


def lies(market: Market) -> list[Liar]:
    """What must not change anything at the buyer."""
    payer, payee = market.customer.did, market.store.did
    mine, seller = market.customer.book.identity, market.store.book.identity
    fields = {"payer": payer, "payee": payee, "rail": "credit", "unit": "uusd", "counted": GRANTED, "issued": 1}
    forgiveness = Forgiveness(**fields, total=GRANTED)  # type: ignore[arg-type]
    return [
        Liar(b"nonsense"),
        Liar(sign(Resolution(market.order, 0, 1), STRANGER).raw),
        Liar(sign(Resolution(market.order, 0, 1), mine).raw),
        Liar(sign(Resolution(LOST, 0, 1), seller).raw),
        Liar(None, b"nonsense"),
        Liar(None, sign(forgiveness, mine).raw),
        Liar(None, sign(forgiveness, STRANGER).raw),
        Liar(None, sign(evolve(forgiveness, counted=GRANTED + 1), seller).raw),
    ]


async def test_lies_let_go_of_nothing(market: Market) -> None:
    before = market.customer.book.journal.head
    for lie in lies(market):
        market.way = lie
        await market.buyer.sweep()
    assert market.customer.book.journal.head == before


async def test_a_resolution_below_what_was_granted_is_the_payees_own_loss(market: Market) -> None:
    market.way = Liar(sign(Resolution(market.order, 5, 1), market.store.book.identity).raw)
    await market.buyer.sweep()
    assert market.customer.owes(market.store.did).owed == 5


async def test_only_the_payer_hears_what_it_was_forgiven(market: Market) -> None:
    said = Forgiveness(market.customer.did, market.store.did, "credit", "uusd", 0, 0, 1)
    stranger = Forgiveness(STRANGER.did, market.store.did, "credit", "uusd", 0, 0, 1)
    for raw, code in [
        (b"nonsense", "malformed"),
        (sign(said, STRANGER).raw, "malformed"),
        (sign(evolve(said, payee=STRANGER.did), market.customer.book.identity).raw, "malformed"),
        (sign(stranger, STRANGER).raw, "credit"),
    ]:
        with pytest.raises(Refused) as refused:
            await market.seller.forgiveness(raw)
        assert refused.value.code == code


async def test_there_is_no_resolution_of_what_was_not_resolved(market: Market) -> None:
    assert await market.seller.resolution(market.order) is None
    assert await market.seller.resolution(LOST) is None
