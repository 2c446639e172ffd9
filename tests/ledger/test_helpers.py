"""A ledger that is checked with the help of other processes: the same books, the same errors, and nobody left over."""

import asyncio
import logging
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.account import AccountKey
from ledger.changes import Earned, Granted, Released, Reserved
from ledger.database import Database, LedgerCorrupt, helpers, opening, waypoints
from ledger.database.lane import make_engine
from ledger.database.opening import Opened, enter, verify
from ledger.events import AccountChanged, Event
from ledger.journal import Accounts, Kept
from ledger.retention import dropped

NODE = "did:key:node"
KEY = AccountKey("did:payer", "did:payee", "credit", "msat")


def order(n: int) -> bytes:
    return bytes([n]) * 32


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes help, also with a short ledger on one core."""
    monkeypatch.setattr(helpers, "how_many", lambda along: min(2, len(along)))


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """No helper outlives what it was started for."""
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of thirteen entries and twelve records, with a waypoint after every second entry."""
    file = tmp_path_factory.mktemp("whole") / "ledger.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waypoints, "_EVERY", 2)
        patch.setattr(waypoints, "_ENTRIES_PER_ORDER", 0)
        patch.setattr(opening, "BATCH", 2)
        asyncio.run(fill(file))
        asyncio.run(verified(file))
    return file


async def fill(file: Path) -> None:
    async with await Database.open(file, NODE) as database:
        await database.append([AccountChanged(KEY, Granted(10**6, 10**6, 1))], time_ms=0)
        for n in range(1, 7):
            receipts = [Kept("receipt", b"receipt %d %d" % (n, more), order(n) if more else None) for more in range(2)]
            await database.append([AccountChanged(KEY, Reserved(order(n), 10, n))], time_ms=n, records=receipts)
            earned = [AccountChanged(KEY, Earned(order(n), 7)), AccountChanged(KEY, Released(order(n)))]
            await database.append(earned, time_ms=n)


async def verified(file: Path) -> None:
    async with await Database.open(file, NODE, whole=True):
        pass


def check(file: Path) -> Opened:
    engine = make_engine(file)
    with engine.connect() as connection, connection.begin():
        return verify(connection, NODE, enter(connection, NODE))


def outcome(file: Path) -> object:
    try:
        opened = check(file)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        return type(error), str(error)
    return opened.head, opened.books, opened.verified


def alone(file: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "how_many", lambda _: 0)
        return outcome(file)


def alter(file: Path, statement: str, values: tuple[Any, ...] = ()) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement, values)


def test_a_whole_ledger_has_the_same_books(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(whole.read_bytes())
    with caplog.at_level(logging.WARNING):
        opened = check(file)
    assert (opened.head, opened.books, opened.verified) == alone(file)
    assert (opened.head.sequence, opened.left) == (13, None)
    assert caplog.records == []


def test_a_whole_chain_that_is_read_without_help_leaves_waypoints(whole: Path) -> None:
    assert sequences(whole) == [2, 4, 6, 8, 10, 12]


async def test_what_was_dropped_and_the_last_entry_are_as_one_process_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waypoints, "_EVERY", 2)
    monkeypatch.setattr(waypoints, "_ENTRIES_PER_ORDER", 0)
    monkeypatch.setattr(opening, "BATCH", 2)
    file = tmp_path / "ledger.db"
    await fill(file)
    gone = [Kept("receipt", b"receipt %d 0" % n).digest for n in (2, 6)]
    async with await Database.open(file, NODE) as database:
        await database.append([dropped(NODE, gone)], time_ms=14)
        await database.drop_records(gone)
    alter(file, "DELETE FROM waypoints")
    await verified(file)
    for left in ([2, 4, 6, 8, 10, 12, 14], [12, 14]):
        alter(file, f"DELETE FROM waypoints WHERE sequence < {left[0]}")
        assert sequences(file) == left
        found = check(file).verified
        assert found is not None
        assert (found.head.time_ms, found.records, found.dropped) == (14, 10, 2)
        assert outcome(file) == alone(file)
    assert caplog.records == []


def sequences(file: Path) -> list[int]:
    with closing(sqlite3.connect(file)) as connection:
        return [row[0] for row in connection.execute("SELECT sequence FROM waypoints ORDER BY sequence")]


WRONG = {
    "books of another entry": "UPDATE waypoints SET books = (SELECT books FROM waypoints WHERE sequence = 6) WHERE"
    " sequence = 8",
    "a bit": "UPDATE waypoints SET books = CAST(substr(books, 1, 60) || x'ff' || substr(books, 62) AS BLOB)",
    "a torn one": "UPDATE waypoints SET books = substr(books, 1, 80) WHERE sequence = 12",
    "a text": "UPDATE waypoints SET books = 'books' WHERE sequence = 2",
    "another entry's": "UPDATE waypoints SET sequence = 7 WHERE sequence = 6",
}


@pytest.mark.parametrize("statement", WRONG.values(), ids=WRONG.keys())
def test_wrong_waypoints_cost_the_help_alone_and_are_replaced(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(whole.read_bytes())
    alter(file, statement)
    assert outcome(file) == alone(file)
    assert "read again on one" in caplog.text
    asyncio.run(verified(file))
    caplog.clear()
    assert outcome(file) == alone(file)
    assert caplog.records == []
    assert sequences(file) == []  # so short a chain needs none


class Unimpressed:
    """A follower, so that each closing takes a snapshot."""

    def take(self, time_ms: int, events: Iterable[Event], accounts: Accounts) -> None:
        pass

    def freeze(self) -> Callable[[], bytes]:
        return bytes


async def test_snapshots_leave_waypoints_so_far_apart_that_they_stay_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waypoints, "_EVERY", 4)
    monkeypatch.setattr(waypoints, "_SHARE", 2)
    file = tmp_path / "ledger.db"
    for n in range(20):
        async with await Database.open(file, NODE) as database:
            database.follow(Unimpressed())
            for m in range(2):
                await database.append([AccountChanged(KEY, Granted(10**6, 10**6, 2 * n + m + 1))], time_ms=0)
    assert sequences(file) == [4, 8, 16, 32]
    await verified(file)
    assert caplog.records == []


async def followed(file: Path, *appends: list[Event]) -> None:
    async with await Database.open(file, NODE) as database:
        database.follow(Unimpressed())
        for events in appends:
            await database.append(events, time_ms=0)


@pytest.mark.parametrize("wrong", ["text", 2**63 - 1], ids=["of no entry", "of a later entry"])
def test_snapshots_leave_no_more_waypoints_where_one_is_wrong(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: object
) -> None:
    monkeypatch.setattr(waypoints, "_EVERY", 4)
    monkeypatch.setattr(waypoints, "_ENTRIES_PER_ORDER", 0)
    file = tmp_path / "ledger.db"
    file.write_bytes(whole.read_bytes())
    alter(file, "INSERT INTO waypoints VALUES (1, ?, x'00')", (wrong,))
    for n in range(8):
        asyncio.run(followed(file, [AccountChanged(KEY, Granted(10**6, 10**6, n + 2))]))
        asyncio.run(followed(file))  # the same snapshot is taken again
    assert sequences(file) == [2, 4, 6, 8, 10, 12, 16, 20, wrong]
    assert caplog.records == []


def test_a_waypoint_beyond_the_snapshot_does_not_have_everything_read_at_once(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(whole.read_bytes())
    alter(file, "UPDATE snapshots SET sequence = 10, books = (SELECT books FROM waypoints WHERE sequence = 10)")
    alter(file, "UPDATE waypoints SET books = (SELECT books FROM waypoints WHERE sequence = 12) WHERE sequence = 10")
    asked = []

    def after(chain: int, sequence: int, limit: int) -> Any:
        asked.append(limit)
        return AFTER(chain, sequence, limit)

    monkeypatch.setattr(opening, "entries_after", after)
    asyncio.run(verified(file))
    assert min(asked) >= 0  # below that is no limit
    assert "read again on one" in caplog.text


def test_with_fewer_waypoints_parts_are_longer(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(whole.read_bytes())
    alter(file, "DELETE FROM waypoints WHERE sequence NOT IN (4, 10)")
    assert outcome(file) == alone(file)
    assert caplog.records == []


COLUMNS = {
    "journal": ("sequence", "time_ms", "payload", "previous", "hash"),
    "records": ("digest", "kind", "order", "sequence", "raw"),
}
changed = st.sampled_from([(table, column) for table, columns in COLUMNS.items() for column in columns])


@settings(max_examples=20, deadline=None)
@given(changed, st.integers(0, 11), st.integers(0, 4_000), st.sampled_from(["change", "type", "delete"]))
def test_damage_is_reported_as_one_process_reports_it(
    whole: Path, place: tuple[str, str], row: int, at: int, how: str
) -> None:
    table, column = place
    with TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        file.write_bytes(whole.read_bytes())
        with closing(sqlite3.connect(file)) as connection:
            key = "digest" if table == "records" else "sequence"
            rows = connection.execute(f'SELECT {key}, "{column}" FROM {table} ORDER BY {key}').fetchall()
        found, value = rows[row % (len(rows) - 1)]  # that the last entry is gone cannot show
        if how == "delete":
            alter(file, f"DELETE FROM {table} WHERE {key} = ?", (found,))
        else:
            wrong = "text" if how == "type" else damaged(value, at)
            alter(file, f'UPDATE {table} SET "{column}" = ? WHERE {key} = ?', (wrong, found))
        error = outcome(file)
        assert error == alone(file)
        assert isinstance(error, tuple)
        assert error[0] is LedgerCorrupt


def damaged(value: Any, at: int) -> object:
    match value:
        case int():
            return value + 100 + at
        case str():
            return value + "x"
        case None:
            return order(77)
    return value[: at % len(value)] + bytes([value[at % len(value)] ^ 1 << at % 8]) + value[at % len(value) + 1 :]


AFTER: Final = opening.entries_after
START: Final = helpers._start


def not_started(_: list[str]) -> Any:
    raise OSError("no more processes")


def ending(_: list[str]) -> Any:
    return START([sys.executable, "-c", ""])


def babbling(_: list[str]) -> Any:
    return START([sys.executable, "-c", 'input(); print("no answer")'])


class NoThreads(ThreadPoolExecutor):
    """Threads of which none starts."""

    def submit(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("can't start new thread")


def test_without_threads_one_process_verifies(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(whole.read_bytes())
    monkeypatch.setattr(helpers, "ThreadPoolExecutor", NoThreads)
    assert outcome(file) == alone(file)
    assert "read again on one" in caplog.text


def hanging(_: list[str]) -> Any:
    return START([sys.executable, "-c", "import time; time.sleep(3_600)"])


@pytest.mark.parametrize("starting", [not_started, ending, babbling, hanging])
def test_helpers_that_fail_are_done_without(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    starting: Callable[[list[str]], object],
) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(whole.read_bytes())
    monkeypatch.setattr(helpers, "_start", starting)
    monkeypatch.setattr(helpers, "_PATIENCE_S", 0.5 if starting is hanging else 300.0)
    assert outcome(file) == alone(file)
    assert "read again on one" in caplog.text


def test_a_short_ledger_and_one_core_need_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    long = [10_000, 20_000, 30_000]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    assert helpers.how_many([]) == 0
    assert helpers.how_many(long[:2]) == 0
    assert helpers.how_many(long) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert helpers.how_many(long) == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert helpers.how_many(long) == 0
