"""The versions of the tables: pytest-alembic's stock tests, and what a version keeps of the one before."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy as sa
from pytest_alembic import Config, MigrationContext, runner
from pytest_alembic import tests as stock

from ledger.database import Database, LedgerCorrupt, LedgerUnavailable, Place, Upgraded, upgrade_tables
from ledger.database import postgres as on_postgres
from ledger.database.lane import Lane, SqliteLane, make_engine
from ledger.database.opening import migrations
from ledger.events import Books, Event, Observed
from ledger.journal import Entry, Kept, Material, Nonce

NODE = "did:key:node"
ORDER = b"o" * 32
EVENTS: list[Event] = [Observed("did:payee", "delivered", {"tokens": 3})]
# As version 0001 had them.
OLD_TABLES = ("journal", "records", "nonces", "materials")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A database without tables."""
    if request.param == "sqlite":
        return tmp_path / "ledger.db"
    return str(request.getfixturevalue("bare_postgres_url"))


@pytest.fixture
async def lane(place: Place) -> AsyncIterator[Lane]:
    """A way to it that nobody prepares."""
    if isinstance(place, Path):
        opened: Lane = SqliteLane(make_engine(place), writes=True)
    else:
        opened = on_postgres.PostgresLane(on_postgres.make_engine(place, 60))
    yield opened
    await opened.close()


def move(command: Callable[..., None], version: str) -> Callable[[sa.Connection], None]:
    """The work of going up or down to a version."""

    def work(connection: sa.Connection) -> None:
        configuration = migrations()
        configuration.attributes["connection"] = connection
        command(configuration, version)

    return work


down = alembic.command.downgrade
up = alembic.command.upgrade


async def fill(place: Place) -> tuple[Entry, Books]:
    """A ledger with something in every table; returns where it ends."""
    await upgrade_tables(place)
    async with await Database.open(place, NODE) as database:
        for n in range(3):
            order = bytes([n]) * 32
            await database.append(
                EVENTS,
                time_ms=n,
                records=[Kept("order", b"order %d" % n, order)],
                nonces=[Nonce("did:payer", b"nonce %d" % n, order, 99)],
                materials=[Material(order, b"sealed", 99)],
            )
        return database.head, database.books


async def tables_of(lane: Lane) -> set[str]:
    return set(await lane.run(lambda connection: sa.inspect(connection).get_table_names()))


@pytest.mark.parametrize(
    "test",
    [
        stock.test_single_head_revision,
        stock.test_upgrade,
        stock.test_model_definitions_match_ddl,
        stock.test_up_down_consistency,
    ],
    ids=lambda test: test.__name__,
)
async def test_the_stock_test_of_pytest_alembic_passes(test: Callable[[MigrationContext], None], lane: Lane) -> None:
    def work(connection: sa.Connection) -> None:
        with runner(config=Config(alembic_config=migrations()), engine=connection) as context:
            test(context)

    await lane.run(work)


async def test_a_version_back_and_forth_keeps_everything(place: Place, lane: Lane) -> None:
    before = await fill(place)
    await lane.run(move(down, "0001"))
    assert await tables_of(lane) == {*OLD_TABLES, "alembic_version"}
    assert (await upgrade_tables(place)).before == "0001"
    async with await Database.open(place, NODE) as database:
        assert (database.head, database.books) == before
        order = bytes(32)
        assert [kept.raw for kept in await database.records_of(order)] == [b"order 0"]
        assert await database.nonce_order("did:payer", b"nonce 0") == order
        assert await database.material(order) == b"sealed"
        assert (await database.append(time_ms=9)).sequence == 4


async def test_all_the_way_down_and_up_again_is_a_new_ledger(place: Place, lane: Lane) -> None:
    await fill(place)
    await lane.run(move(down, "base"))
    assert await tables_of(lane) == {"alembic_version"}
    await upgrade_tables(place)
    async with await Database.open(place, NODE) as database:
        assert database.books == Books()


async def test_a_database_that_nodes_share_does_not_go_back_to_one_node(bare_postgres_url: str) -> None:
    await fill(bare_postgres_url)
    async with await Database.open(bare_postgres_url, "did:key:other") as other:
        await other.append(time_ms=1)
    lane = on_postgres.PostgresLane(on_postgres.make_engine(bare_postgres_url, 60))
    with pytest.raises(RuntimeError, match="2 nodes"):
        await lane.run(move(down, "0001"))
    await lane.close()
    async with await Database.open(bare_postgres_url, NODE) as database:
        assert database.head.sequence == 3


class TestTheCopyBeforeAnUpgrade:
    @pytest.fixture
    async def old(self, tmp_path: Path) -> Path:
        """A file with the tables of version 0001."""
        file = tmp_path / "ledger.db"
        await fill(file)
        await go(file, move(down, "0001"))
        return file

    async def test_opening_an_older_ledger_copies_it_first(self, old: Path) -> None:
        rows = rows_of(old)
        async with await Database.open(old, NODE) as database:
            assert database.head.sequence == 3
        copy = old.with_name("ledger.db.0001.backup")
        assert rows_of(copy) == rows
        assert copy.stat().st_mode & 0o777 == 0o600
        assert found_in(old.parent, "*.new") == []

    async def test_the_copy_is_a_ledger_that_can_be_put_back(self, old: Path, tmp_path: Path) -> None:
        done = await upgrade_tables(old)
        assert done == Upgraded("0001", "0004", old.with_name("ledger.db.0001.backup"))
        restored = tmp_path / "restored.db"
        restored.write_bytes(old.with_name("ledger.db.0001.backup").read_bytes())
        async with await Database.open(restored, NODE) as database:
            assert database.head.sequence == 3

    async def test_what_is_new_or_up_to_date_is_not_copied(self, tmp_path: Path) -> None:
        for _ in range(2):
            async with await Database.open(tmp_path / "ledger.db", NODE):
                pass
        assert found_in(tmp_path, "*.backup*") == []

    async def test_without_a_copy_there_is_no_upgrade(self, old: Path) -> None:
        old.with_name("ledger.db.0001.backup.new").mkdir()
        with pytest.raises(LedgerUnavailable):
            await Database.open(old, NODE)
        assert len(rows_of(old)) == 4

    async def test_rows_that_do_not_fit_together_are_told_and_left(self, old: Path) -> None:
        with closing(sqlite3.connect(old)) as connection, connection:
            connection.execute("DELETE FROM journal WHERE sequence = 1")
        rows = rows_of(old)
        with pytest.raises(LedgerCorrupt, match="upgrade from 0001"):
            await Database.open(old, NODE)
        assert rows_of(old) == rows


async def go(file: Path, work: Callable[[sa.Connection], None]) -> None:
    lane = SqliteLane(make_engine(file), writes=True)
    await lane.run(work)
    await lane.close()


def found_in(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


def rows_of(file: Path) -> dict[str, list[object]]:
    """All that a file with the tables of version 0001 holds."""
    with closing(sqlite3.connect(file)) as connection:
        return {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in OLD_TABLES}
