"""Several processes of one node on one ledger: what each guards, holds and says holds for all of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from attrs import evolve

from ledger.account import AccountKey
from ledger.changes import Admitted, Expired, Granted, Released
from ledger.database import Database, Part
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.money import Unit
from ledger.records import AccountState, Acknowledgement, Settlement, open_record, sign
from node.exchange.book import Book
from node.exchange.heads import Heads
from node.exchange.holding import GONE_S, Watch
from node.exchange.purchase import NotPlaced
from node.exchange.recollection import Recollection
from node.exchange.seller import Credit
from node.exchange.settling import NoSuchRequest, Settling
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.messages import Refused
from tests.node.trading import CREDIT, Customer, Store, draft_order, engine_of, frames_of, price_of, uusd

BUYER = Identity((2).to_bytes(32, "little"))
SELLER = Identity((1).to_bytes(32, "little"))
KEY = AccountKey(BUYER.did, SELLER.did, "credit", "uusd")
ONE = price_of(5, 10)


def order(n: int) -> bytes:
    return n.to_bytes(32, "big")


@contextlib.asynccontextmanager
async def twins(url: str, identity: Identity) -> AsyncIterator[tuple[Database, Database]]:
    """Two processes' ledgers of one node."""
    async with (
        await Database.open(url, identity.did, part=Part(b"one")) as one,
        await Database.open(url, identity.did, part=Part(b"other")) as other,
    ):
        yield one, other


@pytest.fixture
async def sellers(postgres_url: str, tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[list[Store]]:
    """Two processes that sell."""
    terms: dict[Unit, Credit] = {"uusd": evolve(CREDIT, window=uusd(3 * ONE), exposure=uusd(10 * ONE))}
    async with twins(postgres_url, SELLER) as journals:
        yield [
            await Store.open(
                tokenizer,
                clock,
                engine=engine_of(tokenizer, slots=8),
                journal=journal,
                credit=terms,
                entropy=SeededEntropy(10 + n),
            )
            for n, journal in enumerate(journals)
        ]


async def outcomes(stores: list[Store], buyers: list[Identity], clock: ManualClock) -> list[object]:
    """What becomes of one order by each buyer, all at once, at each process in turn."""
    offers = [await store.offer() for store in stores]
    drafts = [draft_order(one, offers[n % 2], clock, nonce=n, max_tokens=10) for n, one in enumerate(buyers)]
    frames = (frames_of(stores[n % 2].seller, draft) for n, draft in enumerate(drafts))
    return list(await asyncio.gather(*frames, return_exceptions=True))


class TestSelling:
    async def test_one_window_bounds_what_both_sell_to_a_buyer(self, sellers: list[Store], clock: ManualClock) -> None:
        came = await outcomes(sellers, [BUYER] * 8, clock)
        assert sorted(one.code for one in came if isinstance(one, Refused)) == ["window"] * 5
        await asyncio.gather(*(store.book.journal.refresh() for store in sellers))
        assert [store.owed_by(BUYER.did).owed for store in sellers] == [3 * ONE, 3 * ONE]

    async def test_one_exposure_bounds_what_both_sell_to_strangers(
        self, sellers: list[Store], clock: ManualClock
    ) -> None:
        fresh = [Identity((1_000 + n).to_bytes(32, "big")) for n in range(16)]
        came = await outcomes(sellers, fresh, clock)
        assert [one.code for one in came if isinstance(one, Refused)] == ["exposure"] * 6
        await sellers[0].book.journal.refresh()
        assert sum(account.owed for account in sellers[0].book.journal.books.accounts.values()) == 10 * ONE

    async def test_what_one_sells_is_the_others_to_end_only_once_it_is_gone_for_a_while(
        self, postgres_url: str, tokenizer: Tokenizer, clock: ManualClock
    ) -> None:
        async with await Database.open(postgres_url, SELLER.did, part=Part(b"other")) as other:
            selling = await Database.open(postgres_url, SELLER.did, part=Part(b"one"))
            book = await Book.open(selling, SELLER, clock)
            admitted = Admitted(order(1), 50, 10, clock_s(clock) + 60)
            await book.post(AccountChanged(KEY, Granted(100, 100, 1)), AccountChanged(KEY, admitted))
            store = await Store.open(tokenizer, clock, journal=other)

            async def sweep() -> bool:
                await store.seller.sweep()
                await store.book.end_left_sales()
                return store.owed_by(BUYER.did).orders[order(1)].open

            await other.refresh()
            clock.advance(GONE_S + 1)
            assert await sweep()
            assert not await store.book.gone()
            await selling.close()
            assert await sweep()
            clock.advance(GONE_S - 1)
            assert await sweep()
            clock.advance(1)
            assert await store.book.gone() == {b"one"}
            assert not await sweep()
            assert not await store.book.gone()

    async def test_one_that_was_missed_long_ago_and_came_back_is_not_gone_when_it_is_missed_again(
        self, postgres_url: str
    ) -> None:
        async with await Database.open(postgres_url, SELLER.did, part=Part(b"other")) as other:
            watch = Watch(other)
            assert not await watch.gone([b"one", b"third"], 1_000)
            assert not await watch.gone([b"one"], 1_000 + GONE_S - 1)
            # It is back, and for long it holds nothing that anybody would look for.
            assert not await watch.gone([b"third"], 1_000 + GONE_S - 1)
            assert not await watch.gone([b"one"], 2_000)
            assert await watch.gone([b"one"], 2_000 + GONE_S) == {b"one"}

    async def test_what_one_left_it_ends_itself_as_soon_as_it_is_back(
        self, postgres_url: str, tokenizer: Tokenizer, clock: ManualClock
    ) -> None:
        async with await Database.open(postgres_url, SELLER.did, part=Part(b"other")) as other:
            assert await other.leads()
            async with await Database.open(postgres_url, SELLER.did, part=Part(b"one")) as selling:
                book = await Book.open(selling, SELLER, clock)
                admitted = Admitted(order(1), 50, 10, clock_s(clock) + 60)
                await book.post(AccountChanged(KEY, Granted(100, 100, 1)), AccountChanged(KEY, admitted))
            async with await Database.open(postgres_url, SELLER.did, part=Part(b"one")) as again:
                store = await Store.open(tokenizer, clock, journal=again)
                assert not store.owed_by(BUYER.did).orders[order(1)].open

    async def test_who_does_not_lead_ends_nothing_of_others(self, postgres_url: str, clock: ManualClock) -> None:
        async with twins(postgres_url, SELLER) as (one, other):
            leader, follower = [await Book.open(journal, SELLER, clock) for journal in (one, other)]
            assert [await leader.leads(), await follower.leads()] == [True, False]
            third = await Database.open(postgres_url, SELLER.did, part=Part(b"third"))
            book = await Book.open(third, SELLER, clock)
            await book.post(
                AccountChanged(KEY, Granted(100, 100, 1)), AccountChanged(KEY, Admitted(order(1), 50, 10, 99))
            )
            await third.close()
            for step in (0.0, GONE_S):
                clock.advance(step)
                await follower.end_left_sales()
                await one.refresh()
                assert one.books.account(KEY).orders[order(1)].open
                await leader.gone()
            await leader.end_left_sales()
            assert not one.books.account(KEY).orders[order(1)].open


def clock_s(clock: ManualClock) -> int:
    return int(clock.now())


class TestBuying:
    async def test_what_both_promise_at_once_adds_up_and_each_names_the_one_before_it(
        self, postgres_url: str, tokenizer: Tokenizer, clock: ManualClock
    ) -> None:
        terms: dict[Unit, Credit] = {
            "uusd": evolve(CREDIT, limit=uusd(100 * ONE), window=uusd(100 * ONE), exposure=uusd(100 * ONE))
        }
        store = await Store.open(tokenizer, clock, engine=engine_of(tokenizer, slots=16), credit=terms)
        async with twins(postgres_url, BUYER) as journals:
            customers = [
                await Customer.open(tokenizer, clock, journal=journal, entropy=SeededEntropy(20 + n))
                for n, journal in enumerate(journals)
            ]
            offers = [await customer.meet(store.seller) for customer in customers]
            for n, customer in enumerate(customers):
                for _ in range(6):
                    customer.buy(offers[n], max_tokens=10)
            await asyncio.gather(*(customer.settled(6) for customer in customers))
            await asyncio.gather(*(journal.refresh() for journal in journals))

            assert [customer.owes(store.did).authorized for customer in customers] == [12 * ONE] * 2
            assert store.owed_by(BUYER.did).authorized == 12 * ONE
            kept = [
                open_record(one.raw, Acknowledgement) for one in await journals[0].list_records("acknowledgement", 99)
            ]
            assert len(kept) == 12
            assert [one.record.previous for one in kept] == [*(one.digest for one in kept[1:]), None]
            for customer in customers:
                await customer.close()

    async def test_what_one_buys_is_not_settled_by_the_other_until_it_is_gone(
        self, postgres_url: str, tokenizer: Tokenizer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await Store.open(tokenizer, clock)
        async with await Database.open(postgres_url, BUYER.did, part=Part(b"other")) as other:
            buying = await Database.open(postgres_url, BUYER.did, part=Part(b"one"))
            first = await Customer.open(tokenizer, clock, journal=buying, entropy=SeededEntropy(20))
            offer = await first.meet(store.seller)
            # It gets its answer, and ends before it could settle.
            monkeypatch.setattr(first.settler, "settle", stopped)
            await first.buy(offer, max_tokens=10).outcome()
            second = await Customer.open(tokenizer, clock, journal=other, entropy=SeededEntropy(21))
            second.lines[store.did] = store.seller
            await other.refresh()
            await second.settler.sweep()
            assert second.owes(store.did).reserved == ONE
            await buying.close()
            await second.settler.sweep()
            clock.advance(GONE_S)
            await second.settler.sweep()
            await second.handed_over()
            assert second.owes(store.did).authorized == store.owed_by(BUYER.did).authorized == ONE
            await second.close()

    async def test_of_two_orders_that_the_credit_bears_once_one_is_placed(
        self, postgres_url: str, tokenizer: Tokenizer, clock: ManualClock
    ) -> None:
        terms: dict[Unit, Credit] = {"uusd": evolve(CREDIT, limit=uusd(ONE), window=uusd(ONE))}
        store = await Store.open(tokenizer, clock, credit=terms)
        async with twins(postgres_url, BUYER) as journals:
            customers = [
                await Customer.open(tokenizer, clock, journal=journal, entropy=SeededEntropy(20 + n))
                for n, journal in enumerate(journals)
            ]
            offers = [await customer.meet(store.seller) for customer in customers]
            came = await asyncio.gather(
                *(one.buy(offers[n], max_tokens=10).outcome() for n, one in enumerate(customers)),
                return_exceptions=True,
            )
            assert [type(one) for one in came].count(NotPlaced) == 1
            for customer in customers:
                await customer.close()


async def stopped(_: object) -> None:
    """What a process does that has just ended."""


class TestAgreements:
    async def test_of_two_settlements_on_one_balance_one_is_counted(
        self, postgres_url: str, clock: ManualClock
    ) -> None:
        async with twins(postgres_url, SELLER) as journals:
            books = [await Book.open(journal, SELLER, clock) for journal in journals]
            await books[0].post(AccountChanged(KEY, Granted(100, 100, 1)))
            await journals[1].refresh()
            settling = [Settling(book, lambda _: None) for book in books]
            for one, amount in zip(settling, (5, 7), strict=True):
                asked = Settlement(BUYER.did, SELLER.did, "uusd", 0, amount, books[0].now())
                await one.settlement(sign(asked, BUYER).raw)
            await settling[0].confirm(BUYER.did, uusd(5))
            with pytest.raises(NoSuchRequest):
                await settling[1].confirm(BUYER.did, uusd(7))
            assert [book.debt_of(BUYER.did, "uusd").settled for book in books] == [5, 5]

    async def test_what_another_process_has_just_signed_is_no_cut(self, postgres_url: str, clock: ManualClock) -> None:
        async with twins(postgres_url, SELLER) as journals:
            books = [await Book.open(journal, SELLER, clock) for journal in journals]
            heads = Heads(books[1])
            await heads.open()
            for n in range(3):
                await books[0].post(AccountChanged(KEY, Granted(100 + n, 100, 1 + n)))
            head = journals[0].head
            state = AccountState(BUYER.did, bytes(16), head.sequence, head.hash, (), books[0].now_ms())
            assert await heads.shown(BUYER.did, sign(state, SELLER).raw)
            assert heads.cut is None


class TestHolders:
    async def test_they_are_remembered_until_an_order_is_closed_in_any_way(
        self, postgres_url: str, clock: ManualClock
    ) -> None:
        async with twins(postgres_url, SELLER) as (one, other):
            book = await Book.open(one, SELLER, clock)
            await book.post(AccountChanged(KEY, Granted(100, 100, 1)))
            for n, expires in ((1, 10), (2, 20), (3, 30)):
                await book.post(AccountChanged(KEY, Admitted(order(n), 10, 10, expires)))
            follower = await Book.open(other, SELLER, clock)
            await other.refresh()
            assert [follower.is_others(order(n)) for n in (1, 2, 3, 4)] == [True, True, True, False]
            assert not any(book.is_others(order(n)) for n in (1, 2, 3))
            await book.post(AccountChanged(KEY, Released(order(3))))
            await book.post(AccountChanged(KEY, Expired(15)))
            await other.refresh()
            assert [follower.is_others(order(n)) for n in (1, 2, 3)] == [False, True, False]
        # A start goes on from what the snapshot tells of them.
        async with await Database.open(postgres_url, SELLER.did, part=Part(b"third")) as third:
            assert third.remembered is not None
            raw = third.remembered.raw
            assert Recollection.read(raw, SELLER.did, third.books.accounts.values()).freeze()() == raw
            assert (await Book.open(third, SELLER, clock)).is_others(order(2))
