"""The ledger on disk: reopened, damaged, killed, cut off from its disk."""

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa

from ledger.account import AccountKey
from ledger.changes import Earned, Granted, Released, Reserved
from ledger.database import Database, LedgerCorrupt, LedgerError, LedgerTooNew, LedgerUnavailable, schema
from ledger.database.lane import Lane, make_engine
from ledger.database.opening import upgrade, verify
from ledger.events import AccountChanged, Books, Event, Observed
from ledger.journal import Entry, Kept, Material, Nonce, NonceReused, genesis, link, replay

NODE = "did:key:node"
KEY = AccountKey("did:payer", "did:payee", "credit", "msat")
T = TypeVar("T")


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


@pytest.fixture
async def written(tmp_path: Path) -> Path:
    """A closed ledger of eleven entries and twenty records."""
    path = tmp_path / "ledger.db"
    async with await Database.open(path, NODE) as database:
        await fill(database, 10)
    return path


async def entries_of(database: Database) -> list[Entry]:
    return [entry async for entry in database.entries()]


def contents(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, raw: bytes | bytearray) -> None:
    path.write_bytes(raw)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def alter(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement, values).rowcount != 0


class TestReopening:
    async def test_it_has_the_same_books_and_the_same_head(self, written: Path) -> None:
        async with await Database.open(written, NODE) as database:
            before = database.books, database.head
            assert database.books.account(KEY).owed == 70
            assert replay(NODE, await entries_of(database)) == database.books
        async with await Database.open(written, NODE) as database:
            assert (database.books, database.head) == before

    async def test_it_goes_on_where_it_ended(self, written: Path) -> None:
        async with await Database.open(written, NODE) as database:
            assert (await database.append(trade(11), time_ms=1)).sequence == 12
        async with await Database.open(written, NODE) as database:
            assert database.books.account(KEY).owed == 77

    async def test_it_remembers_records_nonces_and_materials(self, written: Path) -> None:
        async with await Database.open(written, NODE) as database:
            assert [kept.raw for kept in await database.records_of(order(3))] == [k.raw for k in signed(3)]
            assert await database.material(order(3)) == b"sealed"
            with pytest.raises(NonceReused):
                await database.append(time_ms=1, nonces=[Nonce("did:payer", order(3), order(99), 1)])

    async def test_more_entries_than_are_read_at_a_time(self, tmp_path: Path) -> None:
        engine = make_engine(tmp_path / "ledger.db")
        lane = Lane(engine, writes=True)
        await lane.run(upgrade)
        entries = [genesis(NODE)]
        for n in range(2_500):
            entries.append(link(entries[-1], n, b"\x80"))
        rows = [schema.row_of(entry, schema.journal) for entry in entries[1:]]
        await lane.run(lambda connection: connection.execute(sa.insert(schema.journal), rows))
        await lane.close()
        async with await Database.open(tmp_path / "ledger.db", NODE) as database:
            assert database.head == entries[-1]
            assert await entries_of(database) == entries[1:]

    async def test_only_the_owner_may_read_the_file(self, written: Path) -> None:
        assert mode_of(written) == 0o600

    async def test_two_ledgers_open_at_once(self, tmp_path: Path) -> None:
        opened = await asyncio.gather(*(Database.open(tmp_path / f"{n}.db", NODE) for n in range(3)))
        for database in opened:
            await database.append(time_ms=1)
            await database.close()

    async def test_closing_twice_is_closing_once(self, tmp_path: Path) -> None:
        database = await Database.open(tmp_path / "ledger.db", NODE)
        await database.close()
        await database.close()
        with pytest.raises(LedgerUnavailable, match="closed"):
            await database.append(time_ms=1)


class TestTampering:
    @pytest.mark.parametrize("column", ["sequence", "time_ms", "payload", "previous", "hash"])
    async def test_a_flipped_byte_in_a_row_of_the_journal_is_found(self, written: Path, column: str) -> None:
        if column in ("sequence", "time_ms"):
            alter(written, "DELETE FROM records WHERE sequence = 5")  # else its foreign key would show
            alter(written, f"UPDATE journal SET {column} = {column} + 4096 WHERE sequence = 5")
        else:
            with closing(sqlite3.connect(written)) as connection:
                (raw,) = connection.execute(f"SELECT {column} FROM journal WHERE sequence = 5").fetchone()
            alter(written, f"UPDATE journal SET {column} = ? WHERE sequence = 5", flipped(raw))
        with pytest.raises(LedgerCorrupt) as corrupt:
            await Database.open(written, NODE)
        assert corrupt.value.sequence in (5, 6)
        assert "backup" in str(corrupt.value)

    async def test_a_flipped_byte_in_a_record_is_found(self, written: Path) -> None:
        raw = signed(4)[1].raw
        alter(written, "UPDATE records SET raw = ? WHERE raw = ?", flipped(raw), raw)
        with pytest.raises(LedgerCorrupt) as corrupt:
            await Database.open(written, NODE)
        assert corrupt.value.sequence == 5

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM records WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET kind = 'offer' WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET \"order\" = NULL WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET sequence = 6 WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET digest = zeroblob(32) WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET raw = 'text' WHERE sequence = 5 AND kind = 'receipt'",
            "UPDATE records SET sequence = 99 WHERE sequence = 11 AND kind = 'receipt'",
            "DELETE FROM journal WHERE sequence = 5",
            "DELETE FROM journal WHERE sequence = 11",
            "UPDATE journal SET payload = 'text' WHERE sequence = 5",
            "UPDATE journal SET payload = zeroblob(9) WHERE sequence = 5",
            "UPDATE records SET kind = CAST(x'ff' AS TEXT) WHERE sequence = 5 AND kind = 'receipt'",
            "DROP TABLE records",
            "DROP TABLE alembic_version",
        ],
    )
    async def test_a_row_that_was_changed_or_taken_is_found(self, written: Path, statement: str) -> None:
        alter(written, statement)
        with pytest.raises(LedgerCorrupt):
            await Database.open(written, NODE)

    async def test_a_record_that_the_journal_does_not_tell_of_is_found(self, written: Path) -> None:
        forged = Kept("receipt", b"forged", order(5), 3)
        values = forged.digest, forged.kind, forged.order, forged.sequence, forged.raw
        alter(written, 'INSERT INTO records (digest, kind, "order", sequence, raw) VALUES (?,?,?,?,?)', *values)
        with pytest.raises(LedgerCorrupt):
            await Database.open(written, NODE)

    async def test_a_record_damaged_while_the_ledger_is_open_is_not_given_out(self, written: Path) -> None:
        kept = signed(4)[0]
        async with await Database.open(written, NODE) as database:
            alter(written, "UPDATE records SET raw = ? WHERE digest = ?", flipped(kept.raw), kept.digest)
            with pytest.raises(LedgerCorrupt):
                await database.record(kept.digest)

    async def test_the_ledger_of_another_node_is_refused(self, written: Path) -> None:
        with pytest.raises(LedgerCorrupt):
            await Database.open(written, "did:key:other")

    async def test_a_flipped_byte_anywhere_in_the_file_is_found_or_harmless(self, written: Path) -> None:
        async with await Database.open(written, NODE) as database:
            books, head = database.books, database.head
        whole, random = contents(written), Random(3)
        found = 0
        for _ in range(150):
            raw = bytearray(whole)
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
            overwrite(written, raw)
            try:
                async with await Database.open(written, NODE) as database:
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

    async def test_a_file_cut_in_half(self, written: Path) -> None:
        whole = contents(written)
        overwrite(written, whole[: len(whole) // 2])
        with pytest.raises(LedgerCorrupt):
            await Database.open(written, NODE)

    async def test_an_overwritten_page(self, written: Path) -> None:
        raw = bytearray(contents(written))
        raw[4096 : 2 * 4096] = b"\xff" * 4096
        overwrite(written, raw)
        with pytest.raises(LedgerCorrupt):
            await Database.open(written, NODE)

    async def test_a_ledger_of_a_later_version(self, written: Path) -> None:
        alter(written, "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(LedgerTooNew, match="upgrade idlemesh"):
            await Database.open(written, NODE)

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


class TestCrashes:
    async def test_killed_at_any_moment_nothing_acknowledged_is_missing(self, tmp_path: Path) -> None:
        path, random = tmp_path / "ledger.db", Random(5)
        acknowledged: dict[int, str] = {}
        for _ in range(4):
            lines = await asyncio.to_thread(write_and_kill, path, random.randint(5, 60))
            acknowledged |= {int(sequence): hash_ for sequence, hash_ in map(str.split, lines)}
            async with await Database.open(path, NODE) as database:
                written = {entry.sequence: entry.hash.hex() for entry in await entries_of(database)}
                assert acknowledged.items() <= written.items()
                assert database.books.account(KEY).owed == 7 * (database.head.sequence - 1)

    async def test_a_cancelled_caller_leaves_a_whole_journal(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.db"
        async with await Database.open(path, NODE) as database:
            await fill(database, 0)
            for n in range(1, 30):
                task = asyncio.ensure_future(database.append(trade(n), time_ms=n, records=signed(n)))
                for _ in range(n % 4):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await database.append(trade(99), time_ms=99)
            books, head = database.books, database.head
        async with await Database.open(path, NODE) as database:
            assert (database.books, database.head) == (books, head)


def write_and_kill(path: Path, after: int) -> list[str]:
    """Start a writer, kill it when it has acknowledged so many appends, and return what it acknowledged."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", WRITER, str(path)]
    environment = {"PYTHONPATH": f"{here}:{here.parent.parent}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(after)]
        writer.send_signal(signal.SIGKILL)
        lines += [line for line in writer.stdout if line.endswith("\n")]
    return lines


class SlowLane(Lane):
    """A lane to a slow disk: every piece of work takes a while before it begins."""

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        def slow(connection: sa.Connection) -> T:
            time.sleep(0.02)
            return work(connection)

        return await super().run(slow)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """While inside, no file of this process grows beyond `size` bytes: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class ForgetfulLane(Lane):
    """A lane whose answers get lost on the way back, as often as told: it committed, and nobody knows."""

    losing = 0

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        answer = await super().run(work)
        if self.losing:
            self.losing -= 1
            raise LedgerUnavailable("the answer was lost")
        return answer


class TestTroubleWithTheDisk:
    async def test_a_full_disk_is_told_and_survived(self, written: Path) -> None:
        async with await Database.open(written, NODE) as database:
            before = database.books, database.head
            with largest_file(4_096), pytest.raises(LedgerUnavailable, match="space"):
                await database.append(trade(11), time_ms=1, records=signed(11))
            assert (database.books, database.head) == before
            await database.append(trade(12), time_ms=2, records=signed(12))
            books = database.books
        async with await Database.open(written, NODE) as database:
            assert database.books == books
            assert database.head.sequence == 12

    async def test_a_write_whose_answer_was_lost_counts_once(self, written: Path) -> None:
        engine = make_engine(written)
        writer, reader = ForgetfulLane(engine, writes=True), Lane(engine, writes=False)
        verified = await reader.run(lambda connection: verify(connection, NODE))
        async with Database(writer, reader, verified) as database:
            writer.losing = 1
            with pytest.raises(LedgerUnavailable):
                await database.append(trade(11), time_ms=1)
            entry = await database.append(trade(12), time_ms=2)
            assert entry.sequence == 13
            assert database.books.account(KEY).owed == 84
            assert replay(NODE, await entries_of(database)) == database.books

    async def test_a_caller_that_gave_up_does_not_stop_the_next(self, written: Path) -> None:
        engine = make_engine(written)
        writer, reader = SlowLane(engine, writes=True), Lane(engine, writes=False)
        verified = await reader.run(lambda connection: verify(connection, NODE))
        async with Database(writer, reader, verified) as database:
            task = asyncio.ensure_future(database.append(trade(11), time_ms=1))
            await asyncio.sleep(0.005)
            task.cancel()
            assert (await database.append(trade(12), time_ms=2)).sequence == 13
            assert task.cancelled()

    async def test_a_second_writer_on_the_same_file_is_refused(self, written: Path) -> None:
        async with await Database.open(written, NODE) as first, await Database.open(written, NODE) as second:
            await first.append(trade(11), time_ms=1)
            with pytest.raises(LedgerUnavailable, match="another process"):
                await second.append(trade(12), time_ms=1)
        async with await Database.open(written, NODE) as database:
            assert database.head.sequence == 12

    async def test_every_connection_is_durable_and_checks_its_keys(self, tmp_path: Path) -> None:
        def pragmas(connection: sa.Connection) -> list[object]:
            names = ("journal_mode", "synchronous", "foreign_keys")
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

        lane = Lane(make_engine(tmp_path / "ledger.db"), writes=True)
        found = await lane.run(pragmas)
        await lane.close()
        assert found == ["wal", 2, 1]


class TestMigrations:
    async def test_the_migrations_make_the_tables_that_are_used(self, tmp_path: Path) -> None:
        def columns(connection: sa.Connection) -> dict[str, set[str]]:
            inspector = sa.inspect(connection)
            return {
                table: {column["name"] for column in inspector.get_columns(table)}
                for table in inspector.get_table_names()
                if table != "alembic_version"
            }

        lane = Lane(make_engine(tmp_path / "ledger.db"), writes=True)
        await lane.run(upgrade)
        found = await lane.run(columns)
        await lane.close()
        tables = (schema.journal, schema.records, schema.nonces, schema.materials)
        assert found == {table.name: set(table.columns.keys()) for table in tables}

    async def test_they_go_down_and_up_again(self, tmp_path: Path) -> None:
        def downgrade(connection: sa.Connection) -> None:
            root = Path(__file__).parent.parent.parent
            configuration = alembic.config.Config()
            configuration.set_main_option("script_location", str(root / "migrations"))
            configuration.attributes["connection"] = connection
            alembic.command.downgrade(configuration, "base")

        lane = Lane(make_engine(tmp_path / "ledger.db"), writes=True)
        await lane.run(upgrade)
        await lane.run(downgrade)
        tables = await lane.run(lambda connection: sa.inspect(connection).get_table_names())
        await lane.close()
        assert tables == ["alembic_version"]
        async with await Database.open(tmp_path / "ledger.db", NODE) as database:
            assert database.books == Books()
