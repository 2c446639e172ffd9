"""Orders on a rail other than credit, with the bank of the scripted one behind it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from attrs import evolve

from ledger.account import AccountKey
from ledger.changes import Funded
from ledger.events import AccountChanged
from ledger.rails.scripted import Bank, ScriptedRail
from ledger.records import Acknowledgement, Grant, Signed, Voucher, open_record
from node.exchange.book import Book
from node.exchange.purchase import NotPlaced
from node.exchange.rails import NoSuchRail, Rails
from node.exchange.reconciling import Reconciler
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.messages import Refused
from tests.node.trading import CREDIT, Customer, Store, price_of, uusd

RAIL = "stablecoin"
AN_ORDER = price_of(5, 100)


class Trade:
    """A buyer with a funded channel at a seller."""

    def __init__(self, store: Store, customer: Customer) -> None:
        self.store, self.customer, self.bank = store, customer, Bank()
        self.key = AccountKey(customer.did, store.did, RAIL, "uusd")
        for book in (store.book, customer.book):
            book.rails.add(ScriptedRail(self.bank, _never))

    async def fund(self, amount: int) -> None:
        """Both sides see so much in the channel."""
        self.bank.deposit(self.key, amount)
        purse = self.bank.purse(self.key)
        for book in (self.store.book, self.customer.book):
            await book.post(AccountChanged(self.key, Funded(purse.funded, purse.sequence)))

    async def meet(self) -> None:
        self.offer = await self.customer.meet(self.store.seller)
        for rail in self.offer.record.rails:
            raw = await self.store.seller.grant(self.customer.did, "uusd", rail)
            await self.customer.buyer.take_grant(self.store.did, open_record(raw, Grant).record)

    async def order(self, **wishes: Any) -> str:
        """Order; how it was paid."""
        delivery = await self.customer.order(self.offer, **wishes)
        return delivery.terms.order.record.rail

    def authorized(self) -> tuple[int, int]:
        """By the channel, as either side sees it."""
        books = self.store.book, self.customer.book
        seller, buyer = (book.journal.books.account(self.key) for book in books)
        assert (seller.owed, seller.authorized) == (buyer.owed, buyer.authorized)
        return buyer.owed, buyer.authorized


async def _never() -> None:
    raise AssertionError("nothing of this waits")


@pytest.fixture
async def trade(tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Trade]:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    yield Trade(store, customer)
    await customer.close()


async def test_a_funded_channel_pays_before_credit_does(trade: Trade) -> None:
    await trade.fund(10_000)
    await trade.meet()

    assert trade.offer.record.rails == (RAIL, "credit")
    assert await trade.order() == RAIL
    assert trade.authorized() == (AN_ORDER, AN_ORDER)
    assert trade.customer.owes(trade.store.did).owed == 0


async def test_what_the_channel_does_not_bear_goes_on_credit(trade: Trade) -> None:
    await trade.fund(AN_ORDER + 1)
    await trade.meet()

    assert [await trade.order() for _ in range(3)] == [RAIL, "credit", "credit"]
    assert trade.authorized() == (AN_ORDER, AN_ORDER)
    assert trade.store.owed_by(trade.customer.did).authorized == 2 * AN_ORDER


async def test_the_owner_chooses_how_sellers_are_paid(trade: Trade) -> None:
    await trade.fund(10_000)
    await trade.meet()
    trade.customer.book.rails.prefer(["credit", RAIL])
    assert await trade.order() == "credit"
    trade.customer.book.rails.prefer([RAIL])
    assert await trade.order() == RAIL
    with pytest.raises(NotPlaced, match="its channel does not bear the order"):
        await trade.order(max_tokens=10_000)


async def test_without_channel_and_credit_there_is_one_refusal(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock, credit={"uusd": evolve(CREDIT, limit=uusd(0))})
    customer = await Customer.open(tokenizer, clock)
    trade = Trade(store, customer)
    await trade.meet()

    assert trade.offer.record.rails == (RAIL,)
    assert customer.book.ways_to_pay(store.did, trade.offer.record.rails, "uusd") == ()
    with pytest.raises(NotPlaced, match="it is paid by stablecoin, and this node has no money there") as refused:
        await trade.order()
    assert refused.value.code == "rail"
    await trade.fund(AN_ORDER - 1)
    with pytest.raises(NotPlaced, match="its channel does not bear the order"):
        await trade.order()
    await customer.close()


async def test_a_long_answer_is_paid_on_the_way_from_its_channel(tokenizer: Tokenizer, clock: ManualClock) -> None:
    narrow = evolve(CREDIT, window=uusd(price_of(5, 100)))
    trade = Trade(await Store.open(tokenizer, clock, credit={"uusd": narrow}), await Customer.open(tokenizer, clock))
    await trade.fund(100_000)
    await trade.meet()

    assert await trade.order(max_tokens=300) == RAIL
    assert trade.authorized() == (price_of(5, 300), price_of(5, 300))
    said = [record async for record in _acknowledgements(trade)]
    assert len(said) > 2
    assert all(open_record(one.record.voucher, Voucher).record.rail == RAIL for one in said)
    await trade.customer.close()


async def _acknowledgements(trade: Trade) -> AsyncIterator[Signed[Acknowledgement]]:
    for record in await trade.store.book.journal.list_records(Acknowledgement.kind, 100, None):
        yield open_record(record.raw, Acknowledgement)


async def test_acknowledgements_of_one_seller_are_chained_by_account(trade: Trade) -> None:
    await trade.fund(AN_ORDER)
    await trade.meet()
    assert [await trade.order() for _ in range(3)] == [RAIL, "credit", "credit"]

    third, second, first = [one async for one in _acknowledgements(trade)]
    assert (first.record.previous, second.record.previous, third.record.previous) == (None, None, second.digest)


async def test_what_a_restored_seller_has_lost_of_a_channel_comes_back(
    trade: Trade, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    await trade.fund(10_000)
    await trade.meet()
    await trade.order()
    again = Trade(await Store.open(tokenizer, clock), trade.customer)
    again.store.book.rails.add(ScriptedRail(trade.bank, _never))
    made: list[Reconciler] = []
    made.append(Reconciler(again.store.book, SeededEntropy(11), lambda _: made[1], lambda _key, _digest: None))
    made.append(Reconciler(trade.customer.book, SeededEntropy(12), lambda _: made[0], trade.customer.settler.promised))
    made[0].taking.paid = again.store.seller.acknowledge

    await made[1].meet(again.store.did)
    restored = again.store.book.journal.books.account(trade.key)
    assert (restored.owed, restored.authorized) == (AN_ORDER, AN_ORDER)


async def test_an_order_on_a_rail_that_the_seller_does_not_have_is_refused(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    raw = await store.seller.grant(customer.did, "uusd")
    assert open_record(raw, Grant).record.rail == "credit"
    with pytest.raises(Refused, match="payment by 'stablecoin' is not taken here"):
        await store.seller.grant(customer.did, "uusd", RAIL)
    with pytest.raises(NoSuchRail, match="no section for it"):
        Rails().of(AccountKey("a", "b", RAIL, "uusd"))


async def test_with_money_in_a_channel_comes_a_window_and_no_limit(trade: Trade) -> None:
    async def granted() -> tuple[int, int]:
        raw = await trade.store.seller.grant(trade.customer.did, "uusd", RAIL)
        said = open_record(raw, Grant).record
        assert said.rail == RAIL
        return said.credit, said.window

    assert await granted() == (0, 0)
    await trade.fund(1)
    assert await granted() == (0, CREDIT.window.value)


async def test_the_best_voucher_of_a_channel_is_found_again_after_a_restart(trade: Trade) -> None:
    await trade.fund(10_000)
    await trade.meet()
    for _ in range(2):
        await trade.order()

    again = await Book.open(trade.store.book.journal, trade.store.book.identity, ManualClock())
    for book in (trade.store.book, again):
        (total, digest) = book.promised.best[trade.key]
        kept = await book.journal.record(digest)
        assert kept is not None
        voucher = open_record(open_record(kept.raw, Acknowledgement).record.voucher, Voucher).record
        assert total == voucher.total == 2 * AN_ORDER
