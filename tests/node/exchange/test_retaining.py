"""After the owner's time the records of closed orders go, the chain stays whole, and trade goes on."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from attrs import define, evolve

from ledger.chainfile import ChainReader
from ledger.changes import Disputed, ForgivenessReceived
from ledger.events import AccountChanged
from ledger.identity import Did
from ledger.journal import Kept
from ledger.records import Acknowledgement, Offer, Order, Receipt
from node.api.owner import account_rows
from node.exchange.book import Book
from node.exchange.buyer import Buyer
from node.exchange.delivery import Delivery
from node.exchange.exporting import chain_file
from node.exchange.retaining import Retention
from node.exchange.taking import Taking
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.messages import Handed
from tests.node.trading import Customer, Store, ask

DAY_S = 86_400
DAYS = 10
COST = 25  # of five prompt tokens and ten output tokens


@define
class Trade:
    """A seller and a buyer that have traded once, long ago."""

    store: Store
    customer: Customer
    clock: ManualClock
    order: bytes

    @property
    def books(self) -> tuple[Book, Book]:
        return self.store.book, self.customer.book

    async def buy(self) -> bytes:
        offer = await self.customer.meet(self.store.seller)
        return (await self.customer.order(offer, max_tokens=10)).terms.order.digest

    async def days_pass(self, days: int) -> None:
        self.clock.advance(days * DAY_S)
        for book in self.books:
            await book.sweep()


@pytest.fixture
async def trade(tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Trade]:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    trade = Trade(store, customer, clock, b"")
    trade.order = await trade.buy()
    yield trade
    await customer.close()


async def kinds(book: Book, order: bytes) -> set[str]:
    return {kept.kind for kept in await book.journal.records_of(order)}


async def verified(book: Book) -> int:
    """How many records were dropped, of a chain that is whole."""
    reader = ChainReader(Did(book.me))
    async for chunk in chain_file(book.journal, book.me):
        for _ in reader.feed(chunk):
            pass
    reader.finish()
    rows = await account_rows(book.journal, book.me)
    assert (rows["chain"], rows["balanced"]) == ("intact", True)
    return reader.dropped


async def test_what_is_old_and_closed_goes_and_the_latest_voucher_stays(trade: Trade) -> None:
    await trade.days_pass(DAYS + 1)
    for book in trade.books:
        before = await kinds(book, trade.order)
        assert {Order.kind, Receipt.kind, Acknowledgement.kind} <= before
        await Retention(book, DAYS).sweep()
        assert await kinds(book, trade.order) == {Acknowledgement.kind}
        assert await verified(book) == len(before) - 1
    await trade.buy()
    assert trade.store.owed_by(trade.customer.did).authorized == 2 * COST


async def test_offers_go_later_and_replaced_vouchers_with_them(trade: Trade) -> None:
    await trade.days_pass(1)
    second = await trade.buy()
    await trade.days_pass(DAYS + 4)
    for book in trade.books:
        await Retention(book, DAYS).sweep()
        assert await kinds(book, trade.order) == set()
        assert await kinds(book, second) == {Acknowledgement.kind}
        assert await book.journal.list_records(Offer.kind, 9) == []
        assert await verified(book) > 0


async def handed_back(book: Book, orders: list[bytes]) -> Handed:
    """All that a node keeps of some orders, in the form in which it is handed back."""
    records = [kept for order in orders for kept in await book.journal.records_of(order)]
    offers = await book.journal.list_records(Offer.kind, 9)
    return tuple((kept.kind, kept.raw) for kept in (*offers, *records))


async def test_what_was_dropped_and_comes_back_does_not_undo_what_was_forgiven(trade: Trade) -> None:
    orders = [trade.order]
    for _ in range(2):
        await trade.days_pass(1)
        orders.append(await trade.buy())
    book, key = trade.customer.book, trade.customer.owes(trade.store.did).key
    await book.post(AccountChanged(key, ForgivenessReceived(COST)))
    handed = await handed_back(trade.store.book, orders)
    await trade.days_pass(DAYS + 1)
    await Retention(book, DAYS).sweep()
    assert await kinds(book, trade.order) == set()
    for _ in range(2):
        assert await Taking(book, lambda *_: None).take(trade.store.did, handed, {}) == 0
        assert book.journal.books.account(key).owed == 2 * COST
        # The mark is in the chain, and so a restart knows it.
        book = await Book.open(book.journal, book.identity, trade.clock)
    assert not book.trails.was_dropped(key, 3 * COST)


async def test_what_goes_while_the_last_entries_are_written_is_accounted_for(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trade.days_pass(DAYS + 1)
    book = trade.customer.book
    read = book.journal.records_between

    async def going(first: int, last: int) -> Sequence[Kept]:
        await Retention(book, DAYS).sweep()
        return await read(first, last)

    monkeypatch.setattr(book.journal, "records_between", going)
    assert await verified(book) > 0


async def test_what_is_young_stays(trade: Trade) -> None:
    await trade.days_pass(DAYS - 1)
    for book in trade.books:
        head = book.journal.head
        await Retention(book, DAYS).sweep()
        assert book.journal.head == head


async def test_without_a_setting_everything_stays(trade: Trade) -> None:
    await trade.days_pass(1_000)
    for book in trade.books:
        head = book.journal.head
        await Retention(book, None).sweep()
        assert book.journal.head == head


async def dispute(trade: Trade, tokenizer: Tokenizer) -> bytes:
    """Buy once more, and grant a part of it."""
    settled: asyncio.Queue[bytes] = asyncio.Queue()

    async def object_to(delivery: Delivery) -> None:
        await trade.customer.settler.settle(evolve(delivery, owed=COST - 1, objection="it is too short"))
        settled.put_nowait(delivery.terms.order.digest)

    offer = await trade.customer.meet(trade.store.seller)
    buyer = Buyer(trade.customer.book, SeededEntropy(5), object_to)
    buyer.buy(trade.customer.lines[offer.signer], offer, ask(max_tokens=10), tokenizer)
    order = await asyncio.wait_for(settled.get(), 20)
    await trade.customer.handed_over()
    await buyer.close()
    key = trade.store.owed_by(trade.customer.did).key
    await trade.store.book.post(AccountChanged(key, Disputed(order, COST, COST - 1)))
    return order


async def test_what_is_in_dispute_stays_with_its_offer(trade: Trade, tokenizer: Tokenizer) -> None:
    order = await dispute(trade, tokenizer)
    await trade.days_pass(DAYS + 20)
    before = await kinds(trade.store.book, order)
    await Retention(trade.store.book, DAYS).sweep()
    assert await kinds(trade.store.book, order) == before
    assert await kinds(trade.store.book, trade.order) == set()
    assert len(await trade.store.book.journal.list_records(Offer.kind, 9)) == 1


async def test_it_looks_by_the_hour(trade: Trade) -> None:
    retention = Retention(trade.store.book, DAYS)
    trade.clock.advance(DAYS * DAY_S - 60)
    await trade.days_pass(0)
    await retention.sweep()
    before = await kinds(trade.store.book, trade.order)
    trade.clock.advance(3_599)
    await retention.sweep()
    assert await kinds(trade.store.book, trade.order) == before
    trade.clock.advance(1)
    await retention.sweep()
    assert await kinds(trade.store.book, trade.order) == {Acknowledgement.kind}


async def test_token_ids_are_kept_as_long_as_the_owner_says(trade: Trade) -> None:
    trade.customer.book.token_ids_s = DAY_S
    second = await trade.buy()
    await trade.days_pass(2)
    assert await trade.customer.book.material(trade.order) is not None
    assert await trade.customer.book.material(second) is None
    await trade.days_pass(6)
    assert await trade.customer.book.material(trade.order) is None
