"""Waypoints: the books after some entries of a long chain in a file of SQLite, from which parts of it can be verified.

Theory of operation. One is left with a snapshot, or on the way when a whole chain is read, each time that so many
entries have passed; in a longer chain they are farther apart, so that there are a few hundred at most, and their bytes
are few beside those of the entries. They are copies and never the truth: what they say is found out from the chain each
time (`ledger.stretch`). Where any of them is wrong, the whole chain is read without them, and leaves others.
"""

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from attrs import define, field

from ledger import snapshot
from ledger.database.schema import waypoints
from ledger.events import Books
from ledger.journal import Entry
from ledger.snapshot import BadSnapshot

# From one to the next so many entries at least, or the chain's length by so much if that is more.
_EVERY: Final = 10_000
_SHARE: Final = 64
# An order takes some 100 bytes there, and an entry with its record 500 and more: so they add 2% at most.
_ENTRIES_PER_ORDER: Final = 10
# What one reading of a chain holds in memory of them at most.
_MAX_BYTES: Final = 256 * 2**20


def is_due(last: int, sequence: int, orders: int) -> bool:
    """Whether there is to be one after the entry `sequence`, where so many orders are known, `last` being the last."""
    return sequence - last >= max(_EVERY, sequence // _SHARE, _ENTRIES_PER_ORDER * orders)


def sequences(connection: sa.Connection, chain: int) -> list[int]:
    """The entries of a chain after which there is one, ascending."""
    rows = connection.execute(sa.select(waypoints.c.sequence).where(waypoints.c.chain == chain)).scalars()
    return sorted(sequence for sequence in rows if isinstance(sequence, int) and sequence > 0)


def read(connection: sa.Connection, chain: int, sequence: int) -> bytes:
    """The bytes of the snapshot that one is. Raises BadSnapshot where there is none of a possible size."""
    within = sa.func.length(waypoints.c.books) <= snapshot.MAX_BYTES
    query = sa.select(waypoints.c.books).where(waypoints.c.chain == chain, waypoints.c.sequence == sequence, within)
    books = connection.execute(query).scalar()
    if not isinstance(books, bytes):
        raise BadSnapshot(f"there is no waypoint after entry {sequence}")
    return books


def leave(connection: sa.Connection, chain: int, sequence: int, books: bytes, orders: int) -> None:
    """Leave one with a snapshot of these bytes, if it is due. PostgreSQL's chains are verified without."""
    if connection.dialect.name != "sqlite":
        return
    # Of a later entry there is none but by damage, and the next reading of the whole chain may pass it by.
    earlier = [last for last in sequences(connection, chain) if last <= sequence]
    if is_due(earlier[-1] if earlier else 0, sequence, orders):
        connection.execute(sa.insert(waypoints), [{"chain": chain, "sequence": sequence, "books": books}])


def replace(connection: sa.Connection, chain: int, left: Iterable[tuple[int, bytes]]) -> None:
    """Put others, by their entries, in the place of all that a chain has."""
    connection.execute(sa.delete(waypoints).where(waypoints.c.chain == chain))
    rows = [{"chain": chain, "sequence": sequence, "books": books} for sequence, books in left]
    if rows:
        connection.execute(sa.insert(waypoints), rows)


@define
class Left:
    """Those that one reading of a whole chain leaves: of which entry, and a snapshot's bytes."""

    chain_id: str
    of: list[tuple[int, bytes]] = field(factory=list)
    _bytes: int = 0

    def pass_by(self, head: Entry, books: Books) -> None:
        """Leave one here, if it is due."""
        last = self.of[-1][0] if self.of else 0
        if is_due(last, head.sequence, books.orders) and self._bytes <= _MAX_BYTES:
            try:
                raw = snapshot.encode(snapshot.take(self.chain_id, head, books))
            except BadSnapshot:  # too many bytes, and so it will be from now on
                self._bytes = _MAX_BYTES + 1
                return
            self.of.append((head.sequence, raw))
            self._bytes += len(raw)
