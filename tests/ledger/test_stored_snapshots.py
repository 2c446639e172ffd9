"""Starting from a snapshot: what it saves, and that a bad one costs no more than the time to read everything."""

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import sqlalchemy as sa
from attrs import Factory, define

from ledger import snapshot
from ledger.account import AccountKey
from ledger.changes import Earned, Granted, Released, Reserved
from ledger.database import Database, LedgerCorrupt, Place, is_postgres, keeping
from ledger.database import postgres as on_postgres
from ledger.database.lane import Lane, SqliteLane
from ledger.events import AccountChanged, Books, Event, Observed
from ledger.journal import Accounts, Entry, replay

NODE = "did:key:node"
KEY = AccountKey("did:payer", NODE, "credit", "msat")


def order(n: int) -> bytes:
    return n.to_bytes(32, "big")


def trade(n: int) -> list[Event]:
    changes = (Reserved(order(n), 10, n), Earned(order(n), 7), Released(order(n)))
    return [*(AccountChanged(KEY, change) for change in changes), Observed("did:payee", "delivered", {"tokens": n})]


@define
class Seen:
    """A follower that remembers which times and debts it saw."""

    seen: list[tuple[int, int]] = Factory(list)

    def take(self, time_ms: int, events: Iterable[Event], accounts: Accounts) -> None:
        assert all(isinstance(event, AccountChanged | Observed) for event in events)
        self.seen.append((time_ms, accounts.account(KEY).owed))

    def freeze(self) -> Callable[[], bytes]:
        seen = list(self.seen)
        return lambda: repr(seen).encode()


async def fill(database: Database, trades: range) -> None:
    if database.head.sequence == 0:
        await database.append([AccountChanged(KEY, Granted(10**6, 10**6, 1))], time_ms=0)
    await asyncio.gather(*(database.append(trade(n), time_ms=n) for n in trades))


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for a ledger."""
    return tmp_path / "ledger.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def written(place: Place) -> Place:
    """A closed ledger of eleven entries, whose snapshot tells what a follower saw."""
    async with await Database.open(place, NODE) as database:
        database.follow(Seen())
        await fill(database, range(1, 11))
    return place


async def alter(place: Place, statement: str, **values: object) -> None:
    """Run a statement past the program."""
    lane: Lane
    if is_postgres(place):
        lane = on_postgres.PostgresLane(on_postgres.make_engine(str(place), 60))
    else:
        plain = sa.create_engine(sa.URL.create("sqlite", database=str(place)), poolclass=sa.NullPool)
        lane = SqliteLane(plain, writes=True)
    try:
        assert await lane.run(lambda connection: connection.execute(sa.text(statement), values).rowcount) > 0
    finally:
        await lane.close()


async def stored_in(place: Place) -> tuple[int, bytes, bytes | None]:
    async with await Database.open(place, NODE) as database:
        found = await database.snapshot()
        assert found is not None
        return found.sequence, found.books, found.memory


async def entries_of(database: Database) -> list[Entry]:
    return [entry async for entry in database.entries()]


class TestStarting:
    async def test_it_has_books_head_and_what_the_follower_wrote_down(self, written: Place) -> None:
        async with await Database.open(written, NODE) as database:
            assert database.remembered is not None
            assert database.remembered.head == database.head
            assert database.remembered.books == database.books == replay(NODE, await entries_of(database))
            assert database.remembered.raw == repr([(n, 7 * n) for n in range(11)]).encode()

    async def test_what_came_before_the_snapshot_is_not_read_again(self, written: Place) -> None:
        await alter(written, "UPDATE journal SET payload = previous WHERE sequence = 4")
        async with await Database.open(written, NODE) as database:
            assert database.books.account(KEY).owed == 70
        with pytest.raises(LedgerCorrupt) as corrupt:
            await Database.open(written, NODE, whole=True)
        assert corrupt.value.sequence == 4

    @pytest.mark.parametrize("sequence", [11, 12])
    async def test_what_came_at_and_after_it_is_checked(self, written: Place, sequence: int) -> None:
        before = await stored_in(written)
        async with await Database.open(written, NODE) as database:
            await fill(database, range(11, 13))
        books = {"books": before[1], "memory": before[2], "sequence": before[0]}
        await alter(written, "UPDATE snapshots SET books = :books, memory = :memory, sequence = :sequence", **books)
        async with await Database.open(written, NODE) as database:
            assert database.books.account(KEY).owed == 84
        await alter(written, "UPDATE journal SET payload = previous WHERE sequence = :n", n=sequence)
        with pytest.raises(LedgerCorrupt) as corrupt:
            await Database.open(written, NODE)
        assert corrupt.value.sequence == sequence

    async def test_it_goes_on_after_it(self, written: Place) -> None:
        async with await Database.open(written, NODE) as database:
            follower = Seen([(1, 1)])
            database.follow(follower, resumed=True)
            assert database.remembered is None
            await fill(database, range(11, 14))
            assert follower.seen == [(1, 1), (11, 77), (12, 84), (13, 91)]
        assert (await stored_in(written))[0] == 14

    async def test_every_so_many_entries_one_is_taken_while_appends_go_on(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keeping, "EVERY", 20)
        async with await Database.open(place, NODE) as database:
            follower = Seen()
            database.follow(follower)
            for n in range(1, 200, 10):
                await fill(database, range(n, n + 10))
            found = await database.snapshot()
            assert found is not None
            taken = snapshot.decode(found.books, NODE)
            assert 20 <= taken.sequence <= 201
            upto = (await entries_of(database))[: taken.sequence]
            snapshot.check(taken, upto[-1], replay(NODE, upto))
            assert found.memory == repr(follower.seen[: taken.sequence]).encode()

    async def test_a_killed_process_leaves_one_that_is_used(self, tmp_path: Path) -> None:
        file = tmp_path / "ledger.db"
        await asyncio.to_thread(kill_after_a_snapshot, file)
        async with await Database.open(file, NODE) as database:
            assert database.remembered is not None
            assert database.head.sequence >= database.remembered.head.sequence > 0
            assert replay(NODE, await entries_of(database)) == database.books


KILLED = """
import asyncio, sys
from pathlib import Path
from ledger.database import Database, keeping
from test_stored_snapshots import NODE, Seen, fill

async def main():
    keeping.EVERY = 20
    database = await Database.open(Path(sys.argv[1]), NODE)
    database.follow(Seen())
    n = 1
    while await database.snapshot() is None:
        await fill(database, range(n, n + 10))
        n += 10
    print(flush=True)
    while True:
        await fill(database, range(n, n + 10))
        n += 10

asyncio.run(main())
"""


def kill_after_a_snapshot(file: Path) -> None:
    here = Path(__file__).parent
    environment = {"PYTHONPATH": ":".join([str(here), str(here.parent.parent), *sys.path])}
    command = [sys.executable, "-c", KILLED, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)


BAD = [
    "UPDATE snapshots SET sequence = 10",
    "UPDATE snapshots SET sequence = 0",
    "UPDATE snapshots SET books = memory",
    "UPDATE snapshots SET books = substr(books, 1, length(books) - 20)",
    "UPDATE snapshots SET books = substr(books, 1, 0)",
]


class TestBadSnapshots:
    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.parametrize("statement", BAD)
    async def test_one_is_told_passed_over_and_made_again(
        self, written: Place, statement: str, whole: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = await stored_in(written)
        await alter(written, statement)
        with caplog.at_level(logging.WARNING):
            async with await Database.open(written, NODE, whole=whole) as database:
                assert database.books.account(KEY).owed == 70
                assert database.remembered is None
                follower = Seen([(n, 7 * n) for n in range(11)])
                database.follow(follower)
        assert "snapshot is passed over" in caplog.text
        assert await stored_in(written) == before

    async def test_one_of_other_books_is_found_by_the_whole_check(
        self, written: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with await Database.open(written, NODE) as database:
            wrong = snapshot.encode(snapshot.take(NODE, database.head, Books()))
        await alter(written, "UPDATE snapshots SET books = :wrong", wrong=wrong)
        async with await Database.open(written, NODE, whole=True) as database:
            assert database.books.account(KEY).owed == 70
        assert "its accounts are not those after entry 11" in caplog.text
        assert (await stored_in(written))[1] != wrong

    async def test_one_of_another_history_is_passed_over(
        self, written: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with await Database.open(written, NODE) as database:
            entries = await entries_of(database)
            other = snapshot.encode(snapshot.Snapshot(NODE, 11, entries[3].hash, Books()))
        await alter(written, "UPDATE snapshots SET books = :other", other=other)
        async with await Database.open(written, NODE) as database:
            assert database.books.account(KEY).owed == 70
        assert "another entry 11" in caplog.text

    @pytest.mark.parametrize("whole", [False, True])
    async def test_one_that_the_chain_ends_before_tells_that_it_was_cut(self, written: Place, whole: bool) -> None:
        await alter(written, "DELETE FROM journal WHERE sequence > 9")
        with pytest.raises(LedgerCorrupt, match="ends before entry 11"):
            await Database.open(written, NODE, whole=whole)

    async def test_a_memory_that_is_damaged_costs_only_itself(
        self, written: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        await alter(written, "UPDATE snapshots SET memory = books")
        async with await Database.open(written, NODE) as database:
            assert database.remembered is None
            assert database.books.account(KEY).owed == 70
        assert "what was remembered with the ledger's snapshot is damaged" in caplog.text


class TestWhoOnlyLooks:
    @pytest.mark.parametrize("whole", [False, True])
    async def test_it_leaves_the_snapshot_as_it_is(self, written: Place, whole: bool) -> None:
        before = await stored_in(written)
        async with await Database.open(written, NODE, whole=whole):
            pass
        assert await stored_in(written) == before

    async def test_it_leaves_the_one_of_a_process_that_was_killed_later(self, written: Place) -> None:
        before = await stored_in(written)
        async with await Database.open(written, NODE) as database:
            await fill(database, range(11, 13))
        row = {"sequence": before[0], "books": before[1]}
        await alter(written, "UPDATE snapshots SET sequence = :sequence, books = :books", **row)
        after = await stored_in(written)
        async with await Database.open(written, NODE) as database:
            assert database.head.sequence == 13
        assert await stored_in(written) == after


async def test_a_snapshot_that_cannot_be_written_stops_nothing(
    written: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshot, "MAX_BYTES", 100)
    async with await Database.open(written, NODE) as database:
        await fill(database, range(11, 13))
    assert "no snapshot of the ledger was taken" in caplog.text
    monkeypatch.undo()
    async with await Database.open(written, NODE) as database:
        assert database.books.account(KEY).owed == 84
