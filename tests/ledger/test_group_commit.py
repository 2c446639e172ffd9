"""Appends that wait together: one transaction, an answer for each."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa
from attrs import define

from ledger.account import AboveCapacity, AccountKey
from ledger.changes import Granted, Reserved
from ledger.database import Database, LedgerUnavailable, Place
from ledger.database.grouping import MAX_APPENDS, Append, Drafted, Stored, draft_group, how_many
from ledger.database.lane import Lane
from ledger.database.opening import enter, verify
from ledger.database.places import lanes_to
from ledger.events import AccountChanged, Books, Observed
from ledger.journal import Entry, Kept, Material, Nonce, NonceReused, genesis, replay
from ledger.payload import decode_events

NODE = "did:key:node"
KEY = AccountKey("did:payer", NODE, "credit", "msat")
GRANTED = AccountChanged(KEY, Granted(100, 100, 1))
T = TypeVar("T")


def order(n: int) -> bytes:
    return n.to_bytes(32, "big")


def reserved(n: int, amount: int = 10) -> AccountChanged:
    return AccountChanged(KEY, Reserved(order(n), amount, n))


def nonce(n: int) -> Nonce:
    return Nonce("did:payer", order(n), order(n), 99)


@define
class WatchedLane:
    """A lane that counts its transactions, and loses answers when told: it committed, and nobody knows."""

    lane: Lane
    transactions: int = 0
    losing: bool = False

    @property
    def shared(self) -> bool:
        return self.lane.shared

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        self.transactions += 1
        answer = await self.lane.run(work)
        if self.losing:
            raise LedgerUnavailable("the answer was lost")
        return answer

    async def close(self) -> None:
        await self.lane.close()


class Watched:
    """A database that writes through a watched lane."""

    def __init__(self, place: Place) -> None:
        self.place = place

    async def __aenter__(self) -> tuple[Database, WatchedLane]:
        writer, reader = await lanes_to(self.place, NODE)
        chain = await writer.run(lambda connection: enter(connection, NODE))
        opened = await reader.run(lambda connection: verify(connection, NODE, chain))
        lane = WatchedLane(writer)
        self._database = Database(lane, reader, opened)
        return self._database, lane

    async def __aexit__(self, *_: object) -> None:
        await self._database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for a ledger."""
    return tmp_path / "ledger.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    async with await Database.open(place, NODE) as opened:
        await opened.append([GRANTED], time_ms=0)
        yield opened


async def entries_of(database: Database) -> list[Entry]:
    return [entry async for entry in database.entries()]


class TestTogether:
    async def test_many_appends_take_few_transactions(self, place: Place) -> None:
        async with Watched(place) as (database, lane):
            entries = await asyncio.gather(*(database.append(time_ms=n) for n in range(300)))
            assert lane.transactions <= 2
            assert [entry.sequence for entry in entries] == list(range(1, 301))
            assert await entries_of(database) == entries

    async def test_no_transaction_grows_without_end(self, place: Place) -> None:
        async with Watched(place) as (database, lane):
            await asyncio.gather(*(database.append(time_ms=n) for n in range(2 * MAX_APPENDS + 1)))
            assert lane.transactions == 3

    async def test_one_that_breaks_a_guard_fails_alone(self, database: Database) -> None:
        outcomes = await asyncio.gather(
            *(database.append([reserved(n, 40)], time_ms=n, records=[Kept("order", order(n))]) for n in range(4)),
            return_exceptions=True,
        )
        assert [type(outcome).__name__ for outcome in outcomes] == ["Entry", "Entry", "AboveCapacity", "AboveCapacity"]
        assert database.books.account(KEY).reserved == 80
        assert [len(await database.records_of(order(n))) for n in range(4)] == [0, 0, 0, 0]
        assert await database.record(Kept("order", order(1)).digest) is not None
        assert await database.record(Kept("order", order(2)).digest) is None
        assert replay(NODE, await entries_of(database)) == database.books

    async def test_a_group_of_refusals_alone_writes_nothing(self, database: Database) -> None:
        outcomes = await asyncio.gather(
            *(database.append([reserved(n, 101)], time_ms=n) for n in range(3)), return_exceptions=True
        )
        assert all(isinstance(outcome, AboveCapacity) for outcome in outcomes)
        assert database.head.sequence == 1

    async def test_what_cannot_be_stored_fails_alone(self, database: Database) -> None:
        outcomes = await asyncio.gather(
            database.append(time_ms=-1),
            database.append(time_ms=1, nonces=[Nonce("a\0", b"n", order(1), 9)]),
            database.append(time_ms=1, nonces=[Nonce("\udfff", b"n", order(1), 9)]),
            database.append(time_ms=1, materials=[Material(order(1), b"", 2**63)]),
            database.append(time_ms=1),
            return_exceptions=True,
        )
        assert [isinstance(outcome, Entry) for outcome in outcomes] == [False, False, False, False, True]

    async def test_of_two_with_one_nonce_the_first_is_written(self, database: Database) -> None:
        outcomes = await asyncio.gather(
            *(database.append([reserved(n)], time_ms=n, nonces=[nonce(7)]) for n in (1, 2)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Entry, NonceReused]
        assert database.books.account(KEY).reserved == 10

    async def test_a_nonce_used_long_ago_refuses_its_append_alone(self, database: Database) -> None:
        await database.append(time_ms=1, nonces=[nonce(7)])
        outcomes = await asyncio.gather(
            *(database.append([reserved(n)], time_ms=n, nonces=[nonce(n)]) for n in (6, 7, 8)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Entry, NonceReused, Entry]
        assert database.books.account(KEY).reserved == 20

    async def test_a_record_that_many_bring_is_kept_once(self, place: Place) -> None:
        offer = Kept("offer", b"offer")
        async with await Database.open(place, NODE) as database:
            entries = await asyncio.gather(*(database.append(time_ms=n, records=[offer]) for n in range(3)))
            assert [len(decode_events(entry.payload)) for entry in entries] == [1, 0, 0]
        # One that opens later knows it from the disk alone.
        async with await Database.open(place, NODE) as database:
            orders = [Kept("order", order(n), order(n)) for n in range(3)]
            await asyncio.gather(*(database.append(time_ms=9, records=[offer, kept]) for kept in orders))
            assert [kept.sequence for kept in await database.list_records("order", 9)] == [6, 5, 4]
            assert [kept.sequence for kept in await database.list_records("offer", 9)] == [1]

    async def test_of_two_materials_of_one_order_the_later_stays(self, database: Database) -> None:
        laid = [Material(order(1), sealed, 9) for sealed in (b"request", b"request and answer")]
        await asyncio.gather(*(database.append(time_ms=1, materials=[material]) for material in laid))
        assert await database.material(order(1)) == b"request and answer"


class TestTrouble:
    async def test_a_group_whose_answer_was_lost_counts_once(self, place: Place) -> None:
        async with Watched(place) as (database, lane):
            await database.append([GRANTED], time_ms=0)
            lane.losing = True
            lost = await asyncio.gather(
                *(database.append([reserved(n, 30)], time_ms=n) for n in range(4)), return_exceptions=True
            )
            # The last of them too: whether it was to be refused hangs on what nobody knows.
            assert all(isinstance(outcome, LedgerUnavailable) for outcome in lost)
            assert database.head.sequence == 1
            lane.losing = False
            assert (await database.append([reserved(9)], time_ms=9)).sequence == 5
            assert database.books.account(KEY).reserved == 100
            assert replay(NODE, await entries_of(database)) == database.books

    async def test_callers_that_gave_up_leave_a_whole_journal(self, database: Database) -> None:
        tasks = [asyncio.ensure_future(database.append([reserved(n, 1)], time_ms=n)) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await database.append(time_ms=9)
        assert database.books.account(KEY).reserved == 20
        assert replay(NODE, await entries_of(database)) == database.books

    async def test_closing_waits_for_what_was_handed_over(self, place: Place) -> None:
        database = await Database.open(place, NODE)
        tasks = [asyncio.ensure_future(database.append(time_ms=n)) for n in range(1_000)]
        await asyncio.sleep(0)
        await database.close()
        entries = await asyncio.gather(*tasks)
        async with await Database.open(place, NODE) as again:
            assert again.head == entries[-1]


def bare(events: int = 0, records: int = 0, size: int = 0) -> Append:
    kept = [Kept("receipt", b"%d" % n + bytes(size)) for n in range(records)]
    return Append([Observed("a", "b", {"c": bytes(100_000)})] * events, 0, kept, (), ())


class TestSizes:
    @pytest.mark.parametrize(
        ("group", "count"),
        [
            ([], 0),
            ([bare()] * 3, 3),
            ([bare()] * (MAX_APPENDS + 1), MAX_APPENDS),
            ([bare(records=2_000)] * 4, 2),
            ([bare(records=9_000)] * 2, 1),
            ([bare(records=1, size=3 * 2**20)] * 5, 2),
        ],
    )
    def test_a_group_is_bounded_by_count_rows_and_bytes(self, group: list[Append], count: int) -> None:
        assert how_many(group) == count

    def test_a_group_is_bounded_by_what_its_events_take(self) -> None:
        outcomes = draft_group(genesis(NODE), Books(), [bare(events=9)] * 30, Stored())
        assert len(outcomes) == 10
        assert all(isinstance(outcome, Drafted) for outcome in outcomes)
