"""Ledgers for benchmarks: what a node's journal tells of its sales, written as fast as the disk takes it."""

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from ledger import snapshot
from ledger.account import AccountKey
from ledger.changes import Acknowledged, Earned, Forgotten, Granted, Released, Reserved, VoucherReceived
from ledger.database import snapshots, waypoints
from ledger.database.grouping import Append, Drafted, Stored, draft_group
from ledger.database.opening import enter
from ledger.database.places import lanes_to
from ledger.database.waypoints import Left
from ledger.database.writing import insert_group
from ledger.events import AccountChanged, Books, Event
from ledger.identity import Identity
from ledger.journal import Kept, StoredSnapshot, genesis
from node.exchange.experience import delivered
from node.exchange.recollection import Recollection

OWNER: Final = Identity(bytes(32))
ME: Final = OWNER.did
BUYERS: Final = [Identity(bytes([n + 1]) * 32).did for n in range(8)]
KEYS: Final = [AccountKey(buyer, ME, "credit", "uusd") for buyer in BUYERS]
RECEIPT_BYTES: Final = 420
# So many orders are remembered, and at most so many entries made at a time.
REMEMBERED: Final = 400
BATCH: Final = 2_000
GRANTED: Final[list[Event]] = [AccountChanged(key, Granted(10**12, 10**12, 1)) for key in KEYS]


def order_of(n: int) -> bytes:
    return hashlib.sha256(n.to_bytes(8, "big")).digest()


def record_of(n: int, kind: str) -> Kept:
    """As many bytes as a receipt has, different for each."""
    raw = kind.encode() + order_of(n) * (RECEIPT_BYTES // 32)
    return Kept(kind, raw, order_of(n))


def sale(n: int) -> Iterator[Append]:
    """What the entries of one sale hold, from the order to its payment."""
    key, order = KEYS[n % len(KEYS)], order_of(n)

    def entry(kind: str, *events: Event) -> Append:
        return Append(events, n, (record_of(n, kind),), (), ())

    yield entry("order", AccountChanged(key, Reserved(order, 500, n)))
    yield entry("checkpoint", AccountChanged(key, Earned(order, 100)))
    yield entry("receipt", AccountChanged(key, Earned(order, 300)), AccountChanged(key, Released(order)))
    paid = VoucherReceived(300 * (n // len(KEYS) + 1))
    acknowledged = AccountChanged(key, Acknowledged(order, 300)), AccountChanged(key, paid)
    yield entry("acknowledgement", *acknowledged, delivered(key.payer, 64, 300, 2_000))
    if n % REMEMBERED == REMEMBERED - 1:
        yield Append([AccountChanged(each, Forgotten(max(n - REMEMBERED, 0))) for each in KEYS], n, (), (), ())


def _sales() -> Iterator[Append]:
    yield Append(GRANTED, 0, (), (), ())
    n = 0
    while True:
        yield from sale(n)
        n += 1


async def build(file: Path, entries: int, after: int = 0) -> None:
    """Write a ledger with a snapshot and `after` entries behind it, as a process that was killed leaves it."""
    writer, reader = await lanes_to(file, ME)
    chain = await writer.run(lambda connection: enter(connection, ME))
    head, books, recollection, sales, left = genesis(ME), Books(), Recollection(ME), _sales(), Left(ME)
    for last in (entries - after, entries):
        while batch := list(islice(sales, min(BATCH, last - head.sequence))):
            group = [drafted for drafted in draft_group(head, books, batch, Stored()) if isinstance(drafted, Drafted)]
            head, books = group[-1].entry, group[-1].books
            for drafted in group:
                recollection.take(drafted.entry.time_ms, drafted.append.events, drafted.books)
            await writer.run(partial(insert_group, chain=chain, group=group))
            left.pass_by(head, books)
        if last < entries:
            memory = recollection.freeze()()
            stored = StoredSnapshot(last, snapshot.encode(snapshot.take(ME, head, books)), memory)
            await writer.run(partial(snapshots.write, chain=chain, stored=stored))
    await writer.run(partial(waypoints.replace, chain=chain, left=left.of))
    await reader.close()
    await writer.close()
