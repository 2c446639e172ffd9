"""How fast the ledger is: durable receipts per second, replay of a long journal, full verification, start of the books.

    python -m benchmarks.ledger [--json] [--receipts N] [--entries N] [--folder PATH]

Durable means SQLite with synchronous=FULL, on the disk of `--folder`. The receipts of 1, 16 and 256 concurrent callers
are held against one commit per row of the same size, by the driver alone, on the same disk and in the same run. The
long journal is made and replayed in batches, so that it never lies in memory as a whole; only replaying is timed.
"""

import argparse
import asyncio
import hashlib
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import uvloop
from attrs import frozen

from benchmarks.report import Row, report
from ledger.account import AccountKey
from ledger.changes import Acknowledged, Earned, Forgotten, Granted, Released, Reserved, VoucherReceived
from ledger.database import Database
from ledger.events import AccountChanged, Event, Observed, RecordKept, encode_events
from ledger.identity import Identity
from ledger.journal import Entry, Kept, Replay, genesis, link
from ledger.snapshot import decode, encode, take

ME: Final = Identity(bytes(32)).did
BUYERS: Final = [Identity(bytes([n + 1]) * 32).did for n in range(8)]
KEYS: Final = [AccountKey(buyer, ME, "credit", "uusd") for buyer in BUYERS]
CALLERS: Final = (1, 16, 256)
RECEIPT_BYTES: Final = 420
# Of the long journal: so many orders are remembered, and so many entries made at a time.
REMEMBERED: Final = 400
BATCH: Final = 2_000

TIMES_GOAL: Final = 20.0
PER_SECOND_GOAL: Final = 2_000.0
DISK_COMMITS: Final = 200.0  # of a disk that is as fast as the goal per second supposes
REPLAY_GOAL: Final = 50_000.0
SNAPSHOT_GOAL_MS: Final = 1_000.0
MEMORY_GOAL_MIB: Final = 16.0


@frozen
class Appends:
    """What one number of callers had: receipts per second, and milliseconds that single appends took."""

    per_second: float
    p50: float
    p99: float


def order_of(n: int) -> bytes:
    return hashlib.sha256(n.to_bytes(8, "big")).digest()


def receipt_of(n: int) -> Kept:
    """As many bytes as a receipt has, different for each."""
    return Kept("receipt", order_of(n) * (RECEIPT_BYTES // 32), order_of(n))


async def durable(folder: Path, callers: int, receipts: int) -> Appends:
    """Callers that each wait for their own receipt to be durable before they bring the next."""
    took: list[float] = []
    async with await Database.open(folder / f"{callers}.db", ME) as database:
        await database.append([AccountChanged(key, Granted(10**12, 10**12, 1)) for key in KEYS], time_ms=0)
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
                await database.append(events, time_ms=n, records=[receipt_of(n)])
                took.append(1000 * (time.perf_counter() - started))

        started = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        elapsed = time.perf_counter() - started
    cuts = statistics.quantiles(took, n=100)
    return Appends(receipts / elapsed, statistics.median(took), cuts[98])


def one_commit_per_row(folder: Path, rows: int) -> float:
    """Rows per second of the driver alone, each committed by itself."""
    with closing(sqlite3.connect(folder / "rows.db", isolation_level=None)) as connection:
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE rows (digest BLOB PRIMARY KEY, raw BLOB)")
        started = time.perf_counter()
        for n in range(rows):
            connection.execute("INSERT INTO rows VALUES (?, ?)", (order_of(n), receipt_of(n).raw))
        return rows / (time.perf_counter() - started)


async def verified(folder: Path) -> float:
    """Entries per second of opening the ledger that most callers have written: chain, guards and records."""
    started = time.perf_counter()
    async with await Database.open(folder / f"{CALLERS[-1]}.db", ME) as database:
        return database.head.sequence / (time.perf_counter() - started)


def sale(n: int) -> Iterator[list[Event]]:
    """What the entries of one sale tell, from the order to its payment."""
    key, order = KEYS[n % len(KEYS)], order_of(n)

    def record(kind: str) -> RecordKept:
        return RecordKept(kind, hashlib.sha256(order + kind.encode()).digest(), order)

    yield [record("order"), AccountChanged(key, Reserved(order, 500, n))]
    yield [record("checkpoint"), AccountChanged(key, Earned(order, 100))]
    yield [record("receipt"), AccountChanged(key, Earned(order, 300)), AccountChanged(key, Released(order))]
    paid = VoucherReceived(300 * (n // len(KEYS) + 1))
    facts: dict[str, int | str | bytes] = {"order": order, "amount": 300}
    yield [
        record("acknowledgement"),
        AccountChanged(key, Acknowledged(order, 300)),
        AccountChanged(key, paid),
        Observed(key.payer, "paid", facts),
    ]
    if n % REMEMBERED == REMEMBERED - 1:
        yield [AccountChanged(each, Forgotten(max(n - REMEMBERED, 0))) for each in KEYS]


def long_journal(entries: int) -> Iterator[list[Entry]]:
    """A journal of many sales, in batches."""

    def told() -> Iterator[list[Event]]:
        yield [AccountChanged(key, Granted(10**12, 10**12, 1)) for key in KEYS]
        n = 0
        while True:
            yield from sale(n)
            n += 1

    last, batch = genesis(ME), []
    for events in told():
        last = link(last, last.sequence, encode_events(events))
        batch.append(last)
        if len(batch) == BATCH or last.sequence == entries:
            yield batch
            batch = []
        if last.sequence == entries:
            return


def timed(work: Callable[[], None]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def replayed(entries: int) -> tuple[Replay, float, float]:
    """The replay of a long journal, its entries per second, and by how many MiB the process grew in its second half."""
    replay, took, memory = Replay(ME), 0.0, 0.0
    for batch in long_journal(entries):

        def add(batch: list[Entry] = batch) -> None:
            for entry in batch:
                replay.add(entry)

        took += timed(add)
        if replay.head.sequence <= max(entries // 2, BATCH):
            memory = _memory_mib()
    return replay, entries / took, _memory_mib() - memory


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def restarted(replay: Replay) -> float:
    """Milliseconds to read a snapshot of the books and go on from it."""
    raw = encode(take(ME, replay.head, replay.books))
    return 1000 * timed(lambda: _resume(raw, replay.head))


def _resume(raw: bytes, head: Entry) -> None:
    snapshot = decode(raw, ME)
    if not snapshot.follows(head):
        raise SystemExit("the snapshot follows another entry")
    Replay.after(head, snapshot.books)


def rows(
    alone: float, appends: dict[int, Appends], verify: float, replay: float, memory: float, snapshot: float
) -> list[Row]:
    """All measures, against their peers or goals."""
    against = "one commit per row"
    out = [Row("one commit per row, by the driver alone", round(alone, 1), "1/s", "itself", 1.0, "reported", True)]
    for callers, had in appends.items():
        times = had.per_second / alone
        judged = callers == CALLERS[-1]
        goal = f">= {TIMES_GOAL:g} x, and >= {PER_SECOND_GOAL:g}/s" if judged else "reported"
        enough = had.per_second >= PER_SECOND_GOAL or alone < DISK_COMMITS
        met = not judged or (times >= TIMES_GOAL and enough)
        out.append(Row(f"receipts, {callers} callers", round(had.per_second, 1), "1/s", against, times, goal, met))
        for name, value in (("p50", had.p50), ("p99", had.p99)):
            ratio = value * alone / 1000
            out.append(
                Row(f"one append, {callers} callers, {name}", round(value, 3), "ms", against, ratio, "reported", True)
            )
    for name, value in (("replay of a long journal", replay), ("full verification at the start", verify)):
        ratio = value / REPLAY_GOAL
        met = value > REPLAY_GOAL
        out.append(Row(name, round(value, 1), "1/s", "the goal", ratio, f"> {REPLAY_GOAL:g}/s", met))
    ratio = snapshot / SNAPSHOT_GOAL_MS
    out.append(Row("books from a snapshot", round(snapshot, 3), "ms", "the goal", ratio, "< 1 s", ratio < 1))
    ratio = memory / MEMORY_GOAL_MIB
    goal = f"< {MEMORY_GOAL_MIB:g} MiB"
    out.append(Row("growth in the replay's second half", round(memory, 3), "MiB", "the goal", ratio, goal, ratio < 1))
    return out


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--receipts", type=int, default=4_000, help="receipts of each number of callers")
    parser.add_argument("--entries", type=int, default=1_000_000, help="entries of the long journal")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured; else the system's own choice")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idlemesh-ledger-", dir=arguments.folder) as name:
        folder = Path(name)
        alone = one_commit_per_row(folder, arguments.receipts)
        appends = {callers: uvloop.run(durable(folder, callers, arguments.receipts)) for callers in CALLERS}
        verify = uvloop.run(verified(folder))
    replay, speed, memory = replayed(arguments.entries)
    report("ledger", rows(alone, appends, verify, speed, memory, restarted(replay)), arguments.json)


if __name__ == "__main__":
    main()
