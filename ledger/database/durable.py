"""The durable journal: SQLAlchemy Core, on SQLite or PostgreSQL.

Theory of operation. All appends go through the chain's one writer (`ledger.database.appending`), which writes those
that wait together. Reads go through a connection of their own and see what is committed.

A file of SQLite holds one chain, that of the home folder that it lies in, and has a lock beside it: one process has it
open. A database of PostgreSQL holds the chains of many nodes, and several processes of one node may write to its chain:
each has a `Database` of its own, whose books are behind the others' by what it has not taken in yet. Appends and
`refresh` take it in; guards are judged by all of it. Who does what only one of them may do at a time (`leads`), and
whose work is left (`gone`), is found out by locks that the server lets go with a process (`ledger.database.presence`).

At opening the schema is brought up to date (SQLite) or looked at (PostgreSQL). Then the books are taken from the stored
snapshot, and the entries after it checked, with every record's bytes against the digest that the chain holds; without
a usable snapshot, the whole chain. Damage before the snapshot shows when it is read, or when all is verified.
"""

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import sqlalchemy as sa

from ledger.database import retention, schema, snapshots, waypoints
from ledger.database.appending import Appender
from ledger.database.errors import LedgerError
from ledger.database.grouping import Append
from ledger.database.keeping import Keeper
from ledger.database.lane import Lane
from ledger.database.opening import Opened, enter, entries_after, resume, verify_all
from ledger.database.places import Place, lanes_to
from ledger.database.presence import Part, gone, lead, steady
from ledger.events import Books, Event
from ledger.journal import Entry, Follower, Kept, Material, Nonce, Remembered, StoredSnapshot
from ledger.snapshot import BadSnapshot

_OF_MANY: Final = Part()

_log = logging.getLogger(__name__)


class Database:
    """A Journal on disk. Made by `Database.open`; given back by `close`, or as an async context manager."""

    def __init__(self, writer: Lane, reader: Lane, opened: Opened, name: bytes = b"") -> None:
        """`name` is under what others know this process, where they do."""
        self.name = name
        self._writer, self._reader = writer, reader
        self._chain, self._chain_id = opened.chain, opened.chain_id
        self._appender = Appender(writer, opened)
        self._keeper = Keeper(self._appender, opened)
        self._remembered = opened.remembered
        self.verified: Final = opened.verified  # what was found at the opening, where all was read
        self._closed = False

    @classmethod
    async def open(cls, place: Place, chain_id: str, *, whole: bool = False, part: Part = _OF_MANY) -> Self:
        """Open the journal of the node `chain_id` (its did:key), begun if it is not there.

        What was written since the last snapshot is verified, and everything where none is usable. With `whole` it is
        everything in any case, the snapshot too; that remains if it is right, but nothing is `remembered` from it.
        `place` is a path of SQLite, made if it is not there, or a URL of PostgreSQL, where this has a `part` in it.
        Raises LedgerCorrupt, LedgerUnavailable, LedgerInUse, LedgerTooNew, LedgerOutdated (PostgreSQL alone).
        """
        writer, reader = await lanes_to(place, chain_id, part)
        try:
            chain = await writer.run(lambda connection: enter(connection, chain_id))
            check = verify_all if whole else resume
            opened = await reader.run(lambda connection: check(steady(connection), chain_id, chain))
            if opened.left is not None:
                await _store(writer, chain, opened.left)
        except BaseException:
            await reader.close()
            await writer.close()
            raise
        return cls(writer, reader, opened, part.name if writer.shared else b"")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish the appends under way and close the file."""
        await self._appender.finish()
        if not self._closed:
            self._closed = True
            await self._keeper.finish()
        try:
            await self._reader.close()
        finally:
            await self._appender.close()

    @property
    def head(self) -> Entry:
        """The last entry, or the genesis."""
        return self._appender.head

    @property
    def books(self) -> Books:
        """The books after the last entry."""
        return self._appender.books

    @property
    def remembered(self) -> Remembered | None:
        """What the last follower had stored with the snapshot from which this was opened."""
        return self._remembered

    async def snapshot(self) -> StoredSnapshot | None:
        """The snapshot that is stored now, unchecked. See `Journal.snapshot`."""
        try:
            return await self._reader.run(lambda connection: snapshots.read(connection, self._chain))
        except BadSnapshot:
            return None

    def follow(self, follower: Follower, resumed: bool = False) -> None:
        """Have each entry from now on taken. See `Journal.follow`."""
        self._keeper.follow(follower, resumed)
        self._remembered = None  # it may be large, and has served

    async def append(
        self,
        events: Iterable[Event] = (),
        *,
        time_ms: int,
        records: Sequence[Kept] = (),
        nonces: Sequence[Nonce] = (),
        materials: Sequence[Material] = (),
        check: Callable[[Books], None] | None = None,
    ) -> Entry:
        """Write all of this, or nothing; returns when it is on the disk. See `Journal.append`.

        Raises LedgerUnavailable too: whether it was written is then found out before the next append.
        """
        return await self._appender.append(Append(tuple(events), time_ms, records, nonces, materials, check))

    async def refresh(self) -> None:
        """Take in what other processes have written. See `Journal.refresh`. Raises LedgerError."""
        await self._appender.refresh()

    async def leads(self) -> bool:
        """Whether this is the process that does what only one may do. See `Journal.leads`. Raises LedgerError."""
        return not self._writer.shared or await self._appender.run(lambda connection: lead(connection, self._chain_id))

    async def gone(self, names: Collection[bytes]) -> Collection[bytes]:
        """Which of these processes have ended. See `Journal.gone`. Raises LedgerError."""
        others = set(names) - {self.name}
        if not others or not self._writer.shared:
            return others
        return await self._appender.run(lambda connection: gone(connection, self._chain_id, others))

    async def entries(self, after: int = 0) -> AsyncIterator[Entry]:
        """The entries that follow a sequence number, in order."""
        while rows := await self._read(entries_after(self._chain, after)):
            for row in rows:
                entry = schema.entry_of(row)
                yield entry
                after = entry.sequence

    async def record(self, digest: bytes) -> Kept | None:
        """A record by its digest."""
        rows = await self._read(schema.select_kept(self._chain).where(schema.records.c.digest == digest))
        return schema.kept_of(rows[0]) if rows else None

    async def records_of(self, order: bytes) -> Sequence[Kept]:
        """All records of an order, oldest first."""
        records = schema.records
        of_order = schema.select_kept(self._chain).where(records.c.order == order)
        rows = await self._read(of_order.order_by(records.c.sequence))
        return [schema.kept_of(row) for row in rows]

    async def records_between(self, first: int, last: int) -> Sequence[Kept]:
        """The records under entries from one sequence number up to another, in no order."""
        rows = await self._read(schema.select_kept_between(self._chain, first, last))
        return [schema.kept_of(row) for row in rows]

    async def list_records(self, kind: str, limit: int, before: int | None = None) -> Sequence[Kept]:
        """The latest records of a kind, newest first. See `Journal.list_records`."""
        records = schema.records
        of_kind = schema.select_kept(self._chain).where(records.c.kind == kind)
        latest = of_kind.order_by(records.c.sequence.desc())
        if before is not None:
            latest = latest.where(records.c.sequence < before)
        rows = await self._read(latest.limit(limit))
        if rows:
            last = rows[-1].sequence
            rows = [row for row in rows if row.sequence != last]
            rows += await self._read(latest.where(records.c.sequence == last))
        return [schema.kept_of(row) for row in rows]

    async def nonce_order(self, buyer: str, nonce: bytes) -> bytes | None:
        """The order for which a buyer has used a nonce."""
        used = schema.nonces
        key = used.c.chain == self._chain, used.c.buyer == buyer, used.c.nonce == nonce
        rows = await self._read(sa.select(used.c.order).where(*key))
        return rows[0].order if rows else None

    async def material(self, order: bytes) -> bytes | None:
        """The sealed material of an order, while it is kept."""
        laid = schema.materials
        rows = await self._read(sa.select(laid.c.sealed).where(laid.c.chain == self._chain, laid.c.order == order))
        return rows[0].sealed if rows else None

    async def expire(self, now: int) -> None:
        """Drop the nonces and materials that expired before `now` (seconds since 1970)."""

        def drop(connection: sa.Connection) -> None:
            for table in (schema.nonces, schema.materials):
                connection.execute(sa.delete(table).where(table.c.chain == self._chain, table.c.expires < now))

        await self._appender.run(drop)

    async def records_before(
        self, time_ms: int, kinds: Sequence[str], after: tuple[int, bytes], limit: int
    ) -> Sequence[Kept]:
        """Records of entries from before a time. See `Journal.records_before`."""
        rows = await self._read(retention.records_before(self._chain, time_ms, kinds, after, limit))
        return [schema.kept_of(row) for row in rows]

    async def drop_records(self, digests: Sequence[bytes]) -> None:
        """Drop records. See `Journal.drop_records`."""
        self._appender.forget(digests)
        await self._appender.run(lambda connection: retention.drop_records(connection, self._chain, digests))

    async def _read(self, query: sa.Select[Any]) -> list[Any]:
        return await self._reader.run(lambda connection: list(connection.execute(query)))


async def _store(writer: Lane, chain: int, left: Iterable[tuple[int, bytes]]) -> None:
    """Store waypoints. Where they cannot be they are done without: the chain has everything."""
    try:
        await writer.run(partial(waypoints.replace, chain=chain, left=left))
    except LedgerError as error:
        _log.warning("no waypoints of the ledger were stored, so that one process verifies all of it: %s", error)
