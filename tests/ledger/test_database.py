"""The ledger on disk: reopened, damaged, killed, cut off from its disk."""

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
import sqlalchemy as sa
from attrs import define, frozen

from ledger.account import AccountKey
from ledger.changes import Earned, Granted, Released, Reserved
from ledger.database import (
    Database,
    LedgerCorrupt,
    LedgerError,
    LedgerInUse,
    LedgerOutdated,
    LedgerTooNew,
    LedgerUnavailable,
    Place,
    is_postgres,
    presence,
    schema,
    upgrade_tables,
)
from ledger.database import postgres as on_postgres
from ledger.database.lane import Lane, SqliteLane, make_engine
from ledger.database.opening import enter, verify
from ledger.database.places import lanes_to
from ledger.events import AccountChanged, Event, Observed
from ledger.journal import Entry, Kept, Material, Nonce, NonceReused, genesis, link, replay

NODE = "did:key:node"
KEY = AccountKey("did:payer", "did:payee", "credit", "msat")
T = TypeVar("T")
W = TypeVar("W", bound=Lane)


def order(n: int) -> bytes:
    return n.to_bytes(32, "big")


def trade(n: int) -> list[Event]:
    return [
        AccountChanged(KEY, Reserved(order(n), 10, n)),
        AccountChanged(KEY, Earned(order(n), 7)),
        AccountChanged(KEY, Released(order(n))),
        Observed("did:payee", "delivered", {"tokens": n}),
    ]


def signed(n: int) -> list[Kept]:
    # Stand-ins for COSE objects: the ledger never looks inside.
    return [Kept(kind, f"{kind} {n} ".encode() * 40, order(n)) for kind in ("order", "receipt")]


async def fill(database: Database, trades: int) -> None:
    await database.append([AccountChanged(KEY, Granted(10**6, 10**6, 1))], time_ms=0)
    for n in range(1, trades + 1):
        nonce, material = Nonce("did:payer", order(n), order(n), n), Material(order(n), b"sealed", n)
        await database.append(trade(n), time_ms=n, records=signed(n), nonces=[nonce], materials=[material])


@frozen
class Ledger:
    """A place for a ledger, and a way to its tables past the program."""

    place: Place

    def open(self, node: str = NODE) -> "Opening":
        return Opening(self.place, node)

    async def alter(self, statement: str, **values: object) -> None:
        """Run a statement as someone would who breaks into the database: no key is checked."""
        lane, unchecked = self._way_in()

        def work(connection: sa.Connection) -> int:
            if unchecked is not None:
                connection.exec_driver_sql(unchecked)
            return connection.execute(sa.text(statement), values).rowcount

        try:
            assert await lane.run(work) != 0
        finally:
            await lane.close()

    async def ask(self, statement: str) -> object:
        """The one value that a query gives."""
        lane, _ = self._way_in()
        try:
            return await lane.run(lambda connection: connection.execute(sa.text(statement)).scalar_one())
        finally:
            await lane.close()

    def _way_in(self) -> tuple[Lane, str | None]:
        if is_postgres(self.place):
            engine = on_postgres.make_engine(str(self.place), 60)
            return on_postgres.PostgresLane(engine), "SET LOCAL session_replication_role = replica"
        plain = sa.create_engine(sa.URL.create("sqlite", database=str(self.place)), poolclass=sa.NullPool)
        return SqliteLane(plain, writes=True), None


class Opening:
    """A database that is opened when its context is entered."""

    def __init__(self, place: Place, node: str) -> None:
        self._place, self._node = place, node

    async def __aenter__(self) -> Database:
        self._database = await Database.open(self._place, self._node)
        return self._database

    async def __aexit__(self, *_: object) -> None:
        await self._database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    """An empty place for a ledger, on either database."""
    if request.param == "sqlite":
        return Ledger(tmp_path / "ledger.db")
    return Ledger(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def written(ledger: Ledger) -> Ledger:
    """A closed ledger of eleven entries and twenty records, on either database."""
    async with ledger.open() as database:
        await fill(database, 10)
    return ledger


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """The same in a file of SQLite."""
    path = tmp_path / "ledger.db"
    async with await Database.open(path, NODE) as database:
        await fill(database, 10)
    return path


@pytest.fixture
async def served(postgres_url: str) -> Ledger:
    """The same in PostgreSQL."""
    async with await Database.open(postgres_url, NODE) as database:
        await fill(database, 10)
    return Ledger(postgres_url)


async def entries_of(database: Database) -> list[Entry]:
    return [entry async for entry in database.entries()]


def contents(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, raw: bytes | bytearray) -> None:
    path.write_bytes(raw)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


class TestReopening:
    async def test_it_has_the_same_books_and_the_same_head(self, written: Ledger) -> None:
        async with written.open() as database:
            before = database.books, database.head
            assert database.books.account(KEY).owed == 70
            assert replay(NODE, await entries_of(database)) == database.books
        async with written.open() as database:
            assert (database.books, database.head) == before

    async def test_it_goes_on_where_it_ended(self, written: Ledger) -> None:
        async with written.open() as database:
            assert (await database.append(trade(11), time_ms=1)).sequence == 12
        async with written.open() as database:
            assert database.books.account(KEY).owed == 77

    async def test_it_remembers_records_nonces_and_materials(self, written: Ledger) -> None:
        async with written.open() as database:
            assert [kept.raw for kept in await database.records_of(order(3))] == [k.raw for k in signed(3)]
            assert await database.material(order(3)) == b"sealed"
            with pytest.raises(NonceReused):
                await database.append(time_ms=1, nonces=[Nonce("did:payer", order(3), order(99), 1)])

    async def test_more_entries_than_are_read_at_a_time(self, ledger: Ledger) -> None:
        entries = [genesis(NODE)]
        for n in range(2_500):
            entries.append(link(entries[-1], n, b"\x80"))
        writer, reader = await lanes_to(ledger.place, NODE)
        chain = await writer.run(lambda connection: enter(connection, NODE))
        rows = [schema.row_of(chain, entry, schema.journal) for entry in entries[1:]]
        await writer.run(lambda connection: str(connection.execute(sa.insert(schema.journal), rows)))
        await reader.close()
        await writer.close()
        async with ledger.open() as database:
            assert database.head == entries[-1]
            assert await entries_of(database) == entries[1:]

    async def test_only_the_owner_may_read_the_file(self, file: Path) -> None:
        assert mode_of(file) == 0o600

    async def test_two_ledgers_open_at_once(self, tmp_path: Path) -> None:
        opened = await asyncio.gather(*(Database.open(tmp_path / f"{n}.db", NODE) for n in range(3)))
        for database in opened:
            await database.append(time_ms=1)
            await database.close()

    async def test_closing_twice_is_closing_once(self, ledger: Ledger) -> None:
        database = await Database.open(ledger.place, NODE)
        await database.close()
        await database.close()
        with pytest.raises(LedgerUnavailable, match="closed"):
            await database.append(time_ms=1)


class TestTampering:
    @pytest.mark.parametrize("column", ["sequence", "time_ms", "payload", "previous", "hash"])
    async def test_a_flipped_byte_in_a_row_of_the_journal_is_found(self, written: Ledger, column: str) -> None:
        async with written.open() as database:
            entry = (await entries_of(database))[4]
        value = getattr(entry, column)
        wrong = value + 4096 if isinstance(value, int) else flipped(value)
        await written.alter("DELETE FROM records WHERE sequence = 5")  # else its foreign key would show
        await written.alter(f"UPDATE journal SET {column} = :wrong WHERE sequence = 5", wrong=wrong)
        with pytest.raises(LedgerCorrupt) as corrupt:
            await Database.open(written.place, NODE, whole=True)
        assert corrupt.value.sequence in (5, 6)
        assert "backup" in str(corrupt.value)

    async def test_a_flipped_byte_in_a_record_is_found(self, written: Ledger) -> None:
        raw = signed(4)[1].raw
        await written.alter("UPDATE records SET raw = :wrong WHERE raw = :raw", wrong=flipped(raw), raw=raw)
        with pytest.raises(LedgerCorrupt) as corrupt:
            await Database.open(written.place, NODE, whole=True)
        assert corrupt.value.sequence == 5

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM records WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET kind = 'offer' WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET \"order\" = NULL WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET sequence = 6 WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET digest = raw WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET sequence = 99 WHERE sequence = 11 AND kind = 'receipt'",
            "UPDATE records SET chain = 99 WHERE sequence = 11 AND kind = 'receipt'",
            "DELETE FROM journal WHERE sequence = 5",
            "DELETE FROM journal WHERE sequence = 11",
            "UPDATE journal SET payload = hash WHERE sequence = 5",
            "UPDATE journal SET chain = 99 WHERE sequence = 5",
            "DROP TABLE records",
            "DROP TABLE alembic_version",
        ],
    )
    async def test_a_row_that_was_changed_or_taken_is_found(self, written: Ledger, statement: str) -> None:
        await written.alter(statement)
        with pytest.raises(LedgerCorrupt):
            await Database.open(written.place, NODE, whole=True)

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE records SET raw = 'text' WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET kind = CAST(x'ff' AS TEXT) WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE journal SET payload = 'text' WHERE sequence = 5",
            "UPDATE journal SET chain = 99 WHERE sequence = 11",
            "UPDATE chains SET genesis = zeroblob(32)",
        ],
    )
    async def test_what_only_a_file_of_one_chain_and_loose_types_can_have_is_found(
        self, file: Path, statement: str
    ) -> None:
        await Ledger(file).alter(statement)
        with pytest.raises(LedgerCorrupt):
            await Database.open(file, NODE, whole=True)

    async def test_a_record_that_the_journal_does_not_tell_of_is_found(self, written: Ledger) -> None:
        forged = Kept("receipt", b"forged", order(5), 3)
        await written.alter(
            'INSERT INTO records (chain, digest, kind, "order", sequence, raw) VALUES (1, :digest, :kind, :o, 3, :raw)',
            digest=forged.digest,
            kind=forged.kind,
            o=forged.order,
            raw=forged.raw,
        )
        with pytest.raises(LedgerCorrupt):
            await Database.open(written.place, NODE, whole=True)

    async def test_a_record_damaged_while_the_ledger_is_open_is_not_given_out(self, written: Ledger) -> None:
        kept = signed(4)[0]
        async with written.open() as database:
            await written.alter(
                "UPDATE records SET raw = :wrong WHERE digest = :digest", wrong=flipped(kept.raw), digest=kept.digest
            )
            with pytest.raises(LedgerCorrupt):
                await database.record(kept.digest)

    async def test_the_file_of_another_node_is_refused(self, file: Path) -> None:
        with pytest.raises(LedgerCorrupt, match="another node"):
            await Database.open(file, "did:key:other")

    async def test_a_flipped_byte_anywhere_in_the_file_is_found_or_harmless(self, file: Path) -> None:
        async with await Database.open(file, NODE) as database:
            books, head = database.books, database.head
        whole, random = contents(file), Random(3)
        found = 0
        for _ in range(150):
            raw = bytearray(whole)
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
            overwrite(file, raw)
            try:
                async with await Database.open(file, NODE) as database:
                    assert (database.books, database.head) == (books, head)
            except LedgerError:
                found += 1
        assert found > 0


def flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


class TestWhatIsNoLedger:
    async def test_a_file_of_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.db"
        overwrite(path, b"Dear diary, " * 500)
        with pytest.raises(LedgerCorrupt):
            await Database.open(path, NODE)

    async def test_a_database_of_another_program(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE bookmarks (url TEXT)")
        with pytest.raises(LedgerCorrupt, match="bookmarks"):
            await Database.open(path, NODE)

    async def test_a_database_of_another_program_on_a_server(self, bare_postgres_url: str) -> None:
        await Ledger(bare_postgres_url).alter("CREATE TABLE bookmarks (url TEXT)")
        for attempt in (Database.open(bare_postgres_url, NODE), upgrade_tables(bare_postgres_url)):
            with pytest.raises(LedgerCorrupt, match="bookmarks"):
                await attempt

    async def test_a_file_cut_in_half(self, file: Path) -> None:
        whole = contents(file)
        overwrite(file, whole[: len(whole) // 2])
        with pytest.raises(LedgerCorrupt):
            await Database.open(file, NODE)

    async def test_an_overwritten_page(self, file: Path) -> None:
        raw = bytearray(contents(file))
        raw[4096 : 2 * 4096] = b"\xff" * 4096
        overwrite(file, raw)
        with pytest.raises(LedgerCorrupt):
            await Database.open(file, NODE)

    async def test_a_ledger_of_a_later_version(self, written: Ledger) -> None:
        await written.alter("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(LedgerTooNew, match="upgrade idlemesh"):
            await Database.open(written.place, NODE)

    async def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerUnavailable):
            await Database.open(tmp_path, NODE)

    async def test_a_path_that_leads_nowhere(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerUnavailable):
            await Database.open(tmp_path / "missing" / "ledger.db", NODE)


# Appends as fast as it can, and tells on its output what was acknowledged.
WRITER = """
import asyncio, sys
from test_database import Database, NODE, fill, signed, trade

async def main():
    async with await Database.open(sys.argv[1], NODE) as database:
        if database.head.sequence == 0:
            await fill(database, 0)
        while True:
            n = database.head.sequence
            entry = await database.append(trade(n), time_ms=n, records=signed(n))
            print(entry.sequence, entry.hash.hex(), flush=True)

asyncio.run(main())
"""


class TestTwoProcessesOnOneFile:
    async def test_the_second_is_refused_until_the_first_is_gone(self, file: Path) -> None:
        with writing(file) as writer:
            await asyncio.to_thread(next, iter(writer.stdout or ()))
            for opening in (Database.open(file, NODE), upgrade_tables(file)):
                with pytest.raises(LedgerInUse, match=r"another process has ledger\.db open.*Stop the other one"):
                    await opening
            writer.send_signal(signal.SIGKILL)
        async with await Database.open(file, NODE) as database:
            assert database.head.sequence > 11

    async def test_one_that_is_ending_is_waited_for(self, file: Path) -> None:
        first = await Database.open(file, NODE)
        second = asyncio.ensure_future(Database.open(file, NODE))
        await asyncio.sleep(0)
        await first.close()
        await (await second).close()

    async def test_by_another_name_it_is_the_same_file(self, file: Path) -> None:
        link = file.with_name("link.db")
        link.symlink_to(file)
        async with await Database.open(file, NODE):
            with pytest.raises(LedgerInUse):
                await Database.open(link, NODE)


class TestCrashes:
    async def test_killed_at_any_moment_nothing_acknowledged_is_missing(self, ledger: Ledger) -> None:
        random = Random(5)
        acknowledged: dict[int, str] = {}
        for _ in range(4):
            lines = await asyncio.to_thread(write_and_kill, ledger.place, random.randint(5, 60))
            acknowledged |= {int(sequence): hash_ for sequence, hash_ in map(str.split, lines)}
            async with ledger.open() as database:
                written = {entry.sequence: entry.hash.hex() for entry in await entries_of(database)}
                assert acknowledged.items() <= written.items()
                assert database.books.account(KEY).owed == 7 * (database.head.sequence - 1)

    async def test_a_cancelled_caller_leaves_a_whole_journal(self, ledger: Ledger) -> None:
        async with ledger.open() as database:
            await fill(database, 0)
            for n in range(1, 30):
                task = asyncio.ensure_future(database.append(trade(n), time_ms=n, records=signed(n)))
                for _ in range(n % 4):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await database.append(trade(99), time_ms=99)
            books, head = database.books, database.head
        async with ledger.open() as database:
            assert (database.books, database.head) == (books, head)


@contextmanager
def writing(place: Place) -> Iterator[subprocess.Popen[str]]:
    """Another process that appends."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", WRITER, str(place)]
    environment = {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent.parent), *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        try:
            yield writer
        finally:
            writer.kill()


def write_and_kill(place: Place, after: int) -> list[str]:
    """Start a writer, kill it when it has acknowledged so many appends, and return what it acknowledged."""
    with writing(place) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(after)]
        writer.send_signal(signal.SIGKILL)
        lines += [line for line in writer.stdout if line.endswith("\n")]
    return lines


@frozen
class SlowLane:
    """A lane to a slow disk: every piece of work takes a while before it begins."""

    lane: Lane

    @property
    def shared(self) -> bool:
        return self.lane.shared

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        await asyncio.sleep(0.02)
        return await self.lane.run(work)

    async def close(self) -> None:
        await self.lane.close()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """While inside, no file of this process grows beyond `size` bytes: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@define
class ForgetfulLane:
    """A lane whose answers get lost on the way back, as often as told: it committed, and nobody knows."""

    lane: Lane
    losing: int = 0

    @property
    def shared(self) -> bool:
        return self.lane.shared

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        answer = await self.lane.run(work)
        if self.losing:
            self.losing -= 1
            raise LedgerUnavailable("the answer was lost")
        return answer

    async def close(self) -> None:
        await self.lane.close()


async def open_by(wrap: Callable[[Lane], W], ledger: Ledger) -> tuple[W, Database]:
    """Open a ledger that writes through a lane of another kind."""
    writer, reader = await lanes_to(ledger.place, NODE)
    chain = await writer.run(lambda connection: enter(connection, NODE))
    opened = await reader.run(lambda connection: verify(connection, NODE, chain))
    wrapped = wrap(writer)
    return wrapped, Database(wrapped, reader, opened)


class TestTrouble:
    async def test_a_full_disk_is_told_and_survived(self, file: Path) -> None:
        async with await Database.open(file, NODE) as database:
            before = database.books, database.head
            with largest_file(4_096), pytest.raises(LedgerUnavailable, match="space"):
                await database.append(trade(11), time_ms=1, records=signed(11))
            assert (database.books, database.head) == before
            await database.append(trade(12), time_ms=2, records=signed(12))
            books = database.books
        async with await Database.open(file, NODE) as database:
            assert database.books == books
            assert database.head.sequence == 12

    async def test_a_write_whose_answer_was_lost_counts_once(self, written: Ledger) -> None:
        writer, database = await open_by(ForgetfulLane, written)
        async with database:
            writer.losing = 1
            with pytest.raises(LedgerUnavailable):
                await database.append(trade(11), time_ms=1)
            entry = await database.append(trade(12), time_ms=2)
            assert entry.sequence == 13
            assert database.books.account(KEY).owed == 84
            assert replay(NODE, await entries_of(database)) == database.books

    async def test_a_caller_that_gave_up_does_not_stop_the_next(self, written: Ledger) -> None:
        _, database = await open_by(SlowLane, written)
        async with database:
            task = asyncio.ensure_future(database.append(trade(11), time_ms=1))
            await asyncio.sleep(0.005)
            task.cancel()
            assert (await database.append(trade(12), time_ms=2)).sequence == 13
            assert task.cancelled()

    async def test_a_writer_that_gets_past_the_lock_is_refused(self, file: Path) -> None:
        async with await Database.open(file, NODE) as first:
            file.with_name("ledger.db.lock").unlink()
            async with await Database.open(file, NODE) as second:
                await first.append(trade(11), time_ms=1)
                with pytest.raises(LedgerInUse, match="another process"):
                    await second.append(trade(12), time_ms=1)
        async with await Database.open(file, NODE) as database:
            assert database.head.sequence == 12

    async def test_every_connection_is_durable_and_checks_its_keys(self, tmp_path: Path) -> None:
        def pragmas(connection: sa.Connection) -> list[object]:
            names = ("journal_mode", "synchronous", "foreign_keys")
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

        lane = SqliteLane(make_engine(tmp_path / "ledger.db"), writes=True)
        found = await lane.run(pragmas)
        await lane.close()
        assert found == ["wal", 2, 1]


# Ends every connection to this database but the one that asks, as a restart of the server would.
HANG_UP = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
ASLEEP = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'
"""


# The commit of entry 13 takes until nobody holds the lock of that number.
HELD_UP = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
"""
SLOW_COMMIT = [
    """
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(13); RETURN NULL; END'
    """,
    """
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON journal DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.sequence = 13) EXECUTE FUNCTION slow()
    """,
]


class TestSeveralNodesOnOneServer:
    async def test_each_node_has_a_chain_of_its_own(self, served: Ledger) -> None:
        async with served.open() as one, served.open("did:key:other") as other:
            assert (one.head.sequence, other.head.sequence) == (11, 0)
            await fill(other, 3)
            await one.append(trade(11), time_ms=1, records=signed(11))
            assert other.books.account(KEY).owed == 21
            assert [kept.sequence for kept in await other.list_records("order", 9)] == [4, 3, 2]
            assert len(await other.records_of(order(2))) == 2
            assert await other.record(signed(9)[0].digest) is None
            assert await other.nonce_order("did:payer", order(9)) is None
            assert await other.material(order(9)) is None
            await other.expire(99)
            assert await one.material(order(3)) == b"sealed"
            assert await one.nonce_order("did:payer", order(3)) == order(3)
        async with served.open() as one, served.open("did:key:other") as other:
            assert (one.head.sequence, other.head.sequence) == (12, 4)

    async def test_nodes_that_begin_at_the_same_time_get_chains_of_their_own(self, postgres_url: str) -> None:
        nodes = [f"did:key:{n}" for n in range(4)]
        opened = await asyncio.gather(*(Database.open(postgres_url, node) for node in nodes))
        await asyncio.gather(*(fill(database, 2) for database in opened))
        for database, node in zip(opened, nodes, strict=True):
            await database.close()
            async with await Database.open(postgres_url, node) as again:
                assert again.books == database.books


class TestTroubleWithTheServer:
    async def test_a_node_goes_on_after_a_restart(self, served: Ledger) -> None:
        async with served.open() as database:
            await served.alter(HANG_UP)
            assert (await append_at_last(database, 11)).sequence == 12
            assert len(await entries_of(database)) == 12

    @pytest.mark.parametrize("lost", [1, 11])
    async def test_a_server_that_came_back_from_an_old_backup_is_not_written_to(
        self, served: Ledger, lost: int
    ) -> None:
        async with served.open() as database:
            await served.alter(HANG_UP)
            for table in ("records", "journal"):
                await served.alter(f"DELETE FROM {table} WHERE sequence > :kept", kept=11 - lost)
            with pytest.raises(LedgerCorrupt, match="11 entries were written"):
                await append_at_last(database, 12)
            with pytest.raises(LedgerCorrupt):
                await database.append(time_ms=1)

    async def test_a_write_cut_off_by_the_server_is_not_in_the_books(self, served: Ledger) -> None:
        async with served.open() as database:
            before = database.books, database.head
            await served.alter("ALTER TABLE journal ADD CONSTRAINT slow CHECK (sequence <> 12 OR pg_sleep(60) IS NULL)")
            task = asyncio.ensure_future(database.append(trade(11), time_ms=1))
            while await served.ask(ASLEEP) == 0:
                pass
            await served.alter(HANG_UP)
            with pytest.raises(LedgerUnavailable, match="server of ledger"):
                await task
            assert (database.books, database.head) == before
            await served.alter("ALTER TABLE journal DROP CONSTRAINT slow")
            assert (await append_at_last(database, 12)).sequence == 12

    async def test_a_commit_that_outlives_its_connection_counts_once(self, served: Ledger) -> None:
        writer, database = await open_by(lambda lane: lane, served)
        async with database:
            for statement in SLOW_COMMIT:
                await served.alter(statement)
            await database.append(trade(11), time_ms=1)
            assert isinstance(writer, on_postgres.PostgresLane)
            assert writer.driver is not None
            gate = on_postgres.PostgresLane(on_postgres.make_engine(str(served.place), 60))
            await gate.run(lambda connection: connection.execute(sa.text("SELECT pg_advisory_lock(13)")))
            task = asyncio.ensure_future(database.append(trade(12), time_ms=1))
            while await served.ask(HELD_UP) == 0:
                pass
            writer.driver.terminate()
            with pytest.raises(LedgerUnavailable):
                await task
            await gate.close()
            assert (await database.append(trade(13), time_ms=1)).sequence == 14
            assert replay(NODE, await entries_of(database)) == database.books

    async def test_a_server_that_does_not_answer_is_not_waited_for_without_end(self, postgres_url: str) -> None:
        lane = on_postgres.PostgresLane(on_postgres.make_engine(postgres_url, 0.1))
        with pytest.raises(LedgerUnavailable, match="in time"):
            await lane.run(lambda connection: str(connection.execute(sa.text("SELECT pg_sleep(60)"))))
        assert await lane.run(lambda connection: connection.execute(sa.text("SELECT 7")).scalar()) == 7
        await lane.close()

    async def test_no_commit_is_acknowledged_early_whatever_the_servers_default(self, served: Ledger) -> None:
        shown = sa.text("SHOW synchronous_commit")
        writer, reader = await lanes_to(served.place, NODE)
        found = await writer.run(lambda connection: connection.execute(shown).scalar())
        await reader.close()
        await writer.close()
        assert found == "on"

    @pytest.mark.parametrize("query", ["host=/nowhere", "host=127.0.0.1&port=1"])
    async def test_a_server_that_is_not_there_is_told_without_the_password(self, query: str) -> None:
        with pytest.raises(LedgerUnavailable, match="server of ledger") as unavailable:
            await Database.open(f"postgresql+asyncpg://me:geheim@/ledger?{query}", NODE)
        assert "geheim" not in f"{unavailable.value} {unavailable.value!r}"


async def append_at_last(database: Database, n: int) -> Entry:
    """Append, as often as it takes: a connection that was ended may first have to show."""
    for _ in range(4):
        with suppress(LedgerUnavailable):
            return await database.append(trade(n), time_ms=n)
    return await database.append(trade(n), time_ms=n)


class TestTablesOnAServer:
    async def test_a_database_without_tables_is_refused_with_what_to_do(self, bare_postgres_url: str) -> None:
        with pytest.raises(LedgerOutdated, match="idlemesh ledger upgrade"):
            await Database.open(bare_postgres_url, NODE)
        assert (await upgrade_tables(bare_postgres_url)).before is None
        async with await Database.open(bare_postgres_url, NODE) as database:
            await fill(database, 1)

    async def test_tables_of_an_earlier_version_are_refused(self, served: Ledger) -> None:
        await served.alter("UPDATE alembic_version SET version_num = '0001'")
        with pytest.raises(LedgerOutdated, match="0001"):
            await Database.open(served.place, NODE)

    async def test_tables_are_not_changed_under_a_running_node(self, served: Ledger) -> None:
        async with served.open():
            with pytest.raises(LedgerInUse, match="nodes that share it are running"):
                await upgrade_tables(served.place)
        done = await upgrade_tables(served.place)
        assert done.before == done.after

    async def test_a_node_does_not_start_while_the_tables_are_changed(self, served: Ledger) -> None:
        engine = on_postgres.make_engine(str(served.place), 60)
        async with engine.connect() as upgrading:
            await upgrading.execute(sa.text(f"SELECT pg_advisory_lock({presence.TABLES_LOCK})"))
            with pytest.raises(LedgerInUse, match="tables are being changed"):
                await Database.open(served.place, NODE)

    async def test_upgrades_at_the_same_time_are_one_upgrade(self, bare_postgres_url: str) -> None:
        done = await asyncio.gather(*(upgrade_tables(bare_postgres_url) for _ in range(3)))
        assert sorted(one.before is None for one in done) == [False, False, True]
