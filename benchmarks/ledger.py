"""How fast the ledger is: durable receipts per second, start from a snapshot, full verification, and their memory.

    python -m benchmarks.ledger [--json] [--receipts N] [--entries N] [--folder PATH] [--syncs N]

Durable means SQLite with synchronous=FULL, on the disk of `--folder`, and PostgreSQL with its own defaults, on the disk
of the system's temporary folder; it is left out where this machine has none. The receipts of 1, 16 and 256 concurrent
callers are held against one commit per row of the same size, by the driver alone, on the same disk and in the same run.
How often the disks can sync is told first: the goals suppose 200 per second. With `--syncs 200` receipts alone are
measured, and each sync, of our own as well as of the driver alone, is lengthened to what it takes on such a disk
(`benchmarks.slow_disk`). Ledgers are opened in processes of their own, so that nothing is warm and memory is theirs and
their helpers' alone (Linux tells it).
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil
import sqlalchemy as sa
import uvloop
from attrs import frozen

from benchmarks.ledgers import GRANTED, KEYS, ME, OWNER, build, order_of, record_of
from benchmarks.report import Row, report
from benchmarks.slow_disk import run_on_slow_disk
from ledger.changes import Earned, Released, Reserved
from ledger.database import Database, Place, upgrade_tables
from ledger.events import AccountChanged
from node.exchange.book import Book
from node.ports import SystemClock
from tests.postgres import NotInstalled, running

CALLERS: Final = (1, 16, 256)
BATCH: Final = 2_000
# A ledger so many times shorter is verified whole too: what memory does shows between them.
SHORTER: Final = 10
LOOK_S: Final = 0.05
# So many entries have come since the last snapshot when the long ledger is opened: half of what may.
BEHIND: Final = 1_000
SYNC_S: Final = 1.0

TIMES_GOAL: Final = 20.0
PER_SECOND_GOAL: Final = 2_000.0
DISK_COMMITS: Final = 200.0  # of a disk that is as fast as the goal per second supposes
VERIFY_GOAL: Final = 50_000.0
START_GOAL_MS: Final = 1_000.0
MEMORY_GOAL_MIB: Final = 16.0


@frozen
class Appends:
    """What one number of callers had: receipts per second, and milliseconds that single appends took."""

    per_second: float
    p50: float
    p99: float


@frozen
class Durability:
    """One database: how often its disk can sync, rows per second committed one by one, and what callers had."""

    name: str
    syncs: float
    alone: float
    appends: dict[int, Appends]


@frozen
class Opening:
    """How long it took to open a ledger, for a whole node's book or to verify it, and what the process grew by."""

    ms: float
    mib: float


def syncs_of(folder: Path) -> float:
    """How often in a second a disk takes a block and says that it is durable."""
    handle = os.open(folder / "sync", os.O_CREAT | os.O_WRONLY)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SYNC_S:
        os.write(handle, bytes(4_096))
        os.fsync(handle)
        count += 1
    os.close(handle)
    return count / elapsed


async def durable(place: Place, callers: int, receipts: int) -> Appends:
    """Callers that each wait for their own receipt to be durable before they bring the next."""
    took: list[float] = []
    async with await Database.open(place, ME) as database:
        await database.append(GRANTED, time_ms=0)
        for first in range(0, receipts, BATCH):
            wanted = range(first, min(first + BATCH, receipts))
            reserved = [AccountChanged(KEYS[n % len(KEYS)], Reserved(order_of(n), 500, n)) for n in wanted]
            await database.append(reserved, time_ms=0)
        waiting = iter(range(receipts))

        async def call() -> None:
            for n in waiting:
                key, order = KEYS[n % len(KEYS)], order_of(n)
                started = time.perf_counter()
                events = [AccountChanged(key, Earned(order, 300)), AccountChanged(key, Released(order))]
                await database.append(events, time_ms=n, records=[record_of(n, "receipt")])
                took.append(1000 * (time.perf_counter() - started))

        started = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        elapsed = time.perf_counter() - started
    return Appends(receipts / elapsed, statistics.median(took), statistics.quantiles(took, n=100)[98])


def receipts_of(callers: int, most: int) -> int:
    """Few callers take longer for each."""
    return most if callers == CALLERS[-1] else max(most // 4, 100)


def on_sqlite(folder: Path, receipts: int) -> Durability:
    """SQLite in a folder."""
    alone = sqlite_alone(folder / "rows.db", receipts_of(1, receipts))
    appends = {n: uvloop.run(durable(folder / f"{n}.db", n, receipts_of(n, receipts))) for n in CALLERS}
    return Durability("SQLite", syncs_of(folder), alone, appends)


def sqlite_alone(file: Path, rows: int) -> float:
    """Rows per second of the driver alone, each committed by itself."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE rows (digest BLOB PRIMARY KEY, raw BLOB)")
        started = time.perf_counter()
        for n in range(rows):
            connection.execute("INSERT INTO rows VALUES (?, ?)", (order_of(n), record_of(n, "receipt").raw))
        return rows / (time.perf_counter() - started)


def on_postgres(receipts: int) -> Durability | None:
    """PostgreSQL with its own settings; None where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running(()))
        except NotInstalled:
            return None
        appends = {}
        for callers in CALLERS:
            url = server.url(stack.enter_context(server.database()))
            asyncio.run(upgrade_tables(url))
            appends[callers] = uvloop.run(durable(url, callers, receipts_of(callers, receipts)))
        alone = uvloop.run(postgres_alone(server.url("postgres"), receipts_of(1, receipts)))
        return Durability("PostgreSQL", syncs_of(Path(tempfile.gettempdir())), alone, appends)


async def postgres_alone(url: str, rows: int) -> float:
    """Rows per second of the driver alone, each committed by itself."""
    place = sa.make_url(url)
    connection = await asyncpg.connect(host=place.query["host"], user=place.username, database=place.database)
    await connection.execute("CREATE TABLE rows (digest BYTEA PRIMARY KEY, raw BYTEA)")
    statement = await connection.prepare("INSERT INTO rows VALUES ($1, $2)")
    started = time.perf_counter()
    for n in range(rows):
        await statement.fetch(order_of(n), record_of(n, "receipt").raw)
    elapsed = time.perf_counter() - started
    await connection.close()
    return rows / elapsed


async def verify_whole(file: Path) -> float:
    """Seconds to check chain, guards and every record of a ledger."""
    started = time.perf_counter()
    async with await Database.open(file, ME, whole=True):
        return time.perf_counter() - started


async def start(file: Path) -> float:
    """Seconds that a node needs for its ledger before it can serve."""
    started = time.perf_counter()
    async with await Database.open(file, ME) as database:
        await Book.open(database, OWNER, SystemClock())
        return time.perf_counter() - started


def opened(work: Callable[[Path], Coroutine[Any, Any, float]], file: Path) -> Opening:
    """Do it in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, file))


def _measured(work: Callable[[Path], Coroutine[Any, Any, float]], file: Path) -> Opening:
    before = _memory_mib()
    seconds, after = uvloop.run(_watched(work(file)))
    return Opening(1000 * seconds, after - before)


async def _watched(work: Coroutine[Any, Any, float]) -> tuple[float, float]:
    """What the work returns, and the memory of this process and those that it starts meanwhile."""
    task, most = asyncio.ensure_future(work), 0.0
    while not task.done():
        await asyncio.wait([task], timeout=LOOK_S)
        most = max(most, _memory_mib())
    return task.result(), most


def _memory_mib() -> float:
    """The most that this process ever had, and those that it has started and that still run."""
    me = psutil.Process()
    return sum(_peak_mib(process.pid) for process in (me, *me.children()))


def _peak_mib(process: int) -> float:
    # Not getrusage: a new process is told its parent's peak.
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0  # it has just ended
    peak = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peak[0].split()[1]) / 1024 if peak else 0.0


def append_rows(had: Durability, lengthened: float | None) -> Iterator[Row]:
    """What callers of one database had, against one commit per row; `lengthened` is to what syncs per second."""
    name = had.name if lengthened is None else f"{had.name}, syncs lengthened to {1000 / lengthened:g} ms"
    alone = f"{name}, one commit per row"
    yield Row(f"{name}: syncs of its disk", round(had.syncs, 1), "1/s", "itself", 1.0, "reported", True)
    yield Row(f"{alone}, by the driver alone", round(had.alone, 1), "1/s", "itself", 1.0, "reported", True)
    for callers, appends in had.appends.items():
        times = appends.per_second / had.alone
        judged = callers == CALLERS[-1]
        enough = appends.per_second >= PER_SECOND_GOAL or had.syncs < DISK_COMMITS
        goal = f">= {TIMES_GOAL:g} x, and >= {PER_SECOND_GOAL:g}/s" if judged else "reported"
        met = not judged or (times >= TIMES_GOAL and enough)
        yield Row(f"{name}: receipts, {callers} callers", round(appends.per_second, 1), "1/s", alone, times, goal, met)
        for quantile, value in (("p50", appends.p50), ("p99", appends.p99)):
            measure, ratio = f"{name}: one append, {callers} callers, {quantile}", value * had.alone / 1000
            yield Row(measure, round(value, 3), "ms", alone, ratio, "reported", True)


def opening_rows(started: Opening, verified: dict[int, Opening]) -> Iterator[Row]:
    """What opening ledgers took: the longest from its snapshot, and all of them to be verified."""
    few, many = min(verified), max(verified)
    ratio = started.ms / START_GOAL_MS
    measure = f"start from a snapshot, {many} entries"
    yield Row(measure, round(started.ms, 1), "ms", "the goal", ratio, "< 1 s", ratio < 1)
    goal, ratio = f"< {MEMORY_GOAL_MIB:g} MiB", started.mib / MEMORY_GOAL_MIB
    yield Row("memory that it takes", round(started.mib, 1), "MiB", "the goal", ratio, goal, ratio < 1)
    per_second = 1000 * many / verified[many].ms
    ratio, speed = per_second / VERIFY_GOAL, f"> {VERIFY_GOAL:g}/s"
    measure = f"full verification, {many} entries, {psutil.cpu_count()} cores"
    yield Row(measure, round(per_second, 1), "1/s", "the goal", ratio, speed, ratio > 1)
    growth = max(verified[many].mib - verified[few].mib, 0.0)
    measure, ratio = f"more memory than for {few} entries", growth / MEMORY_GOAL_MIB
    yield Row(measure, round(growth, 1), "MiB", "the goal", ratio, goal, ratio < 1)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--receipts", type=int, default=8_000, help="receipts of the most callers")
    parser.add_argument("--entries", type=int, default=1_000_000, help="entries of the ledger that is started from")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured; else the system's own choice")
    parser.add_argument("--syncs", type=float, help="measure receipts on a disk slowed to so many syncs per second")
    parser.add_argument("--lengthened", type=float, help=argparse.SUPPRESS)  # the same, where it is slowed already
    arguments = parser.parse_args()
    if arguments.syncs is not None and arguments.lengthened is None:
        command = [sys.executable, "-m", "benchmarks.ledger", *sys.argv[1:], "--lengthened", str(arguments.syncs)]
        sys.exit(run_on_slow_disk(command, arguments.syncs))
    with tempfile.TemporaryDirectory(prefix="idlemesh-ledger-", dir=arguments.folder) as name:
        folder = Path(name)
        found = [on_sqlite(folder, arguments.receipts), on_postgres(arguments.receipts)]
        rows = [row for had in found if had is not None for row in append_rows(had, arguments.lengthened)]
        if arguments.lengthened is not None:
            report("ledger", rows, arguments.json)
        uvloop.run(build(folder / "long.ledger", arguments.entries, BEHIND))
        started = opened(start, folder / "long.ledger")
        verified = {arguments.entries: opened(verify_whole, folder / "long.ledger")}
        short = arguments.entries // SHORTER
        uvloop.run(build(folder / "short.ledger", short))
        verified[short] = opened(verify_whole, folder / "short.ledger")
    report("ledger", [*rows, *opening_rows(started, verified)], arguments.json)


if __name__ == "__main__":
    main()
