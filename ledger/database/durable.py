"""The durable journal: SQLAlchemy Core, on SQLite or PostgreSQL.

Theory of operation. One append at a time has its turn: it checks the guards against the books in memory,
writes one transaction, and moves the books when the disk has it. Reads go through a connection of their own
and see what is committed. If a write fails, what reached the disk is unknown; the next append looks before it
writes. A caller that is cancelled does not stop its append half-way.

One process writes to a chain at a time. A file of SQLite holds one chain, that of the home folder that it lies
in; a database of PostgreSQL holds those of many nodes, and a lock for each of them.

Opening reads everything once: the schema is brought up to date (SQLite) or looked at (PostgreSQL), the whole
chain checked, every record's bytes compared with the digest that the chain holds, and the books rebuilt. So
damage is found at start, and not by a counterparty.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import sqlalchemy as sa
from attrs import evolve, frozen

from ledger.database import retention, schema
from ledger.database.errors import Conflict, LedgerCorrupt, LedgerInUse
from ledger.database.lane import Lane
from ledger.database.opening import Opened, enter, entries_after, verify
from ledger.database.places import Place, lanes_to
from ledger.events import Books, Event
from ledger.journal import Entry, Kept, Material, Nonce, NonceReused, draft

# So many digests of the records kept last are held in memory.
_REMEMBERED: Final = 4_096


@frozen
class _Append:
    """What one append is to write."""

    events: Sequence[Event]
    time_ms: int
    records: Sequence[Kept]
    nonces: Sequence[Nonce]
    materials: Sequence[Material]


class Database:
    """A Journal on disk. Made by `Database.open`; given back by `close`, or as an async context manager."""

    def __init__(self, writer: Lane, reader: Lane, opened: Opened) -> None:
        self._writer = writer
        self._reader = reader
        self._chain = opened.chain
        self._head = opened.head
        self._books = opened.books
        self._turn = asyncio.Lock()
        self._in_doubt: tuple[Entry, Books] | None = None
        self._checked: object = None  # the driver's connection that was seen to have our head
        self._lately: OrderedDict[bytes, None] = OrderedDict()

    @classmethod
    async def open(cls, place: Place, chain_id: str) -> Self:
        """Open the journal of the node `chain_id` (its did:key), begun if it is not there, and verify it.

        `place` is a path of SQLite, made if it is not there, or a URL of PostgreSQL. Raises LedgerCorrupt,
        LedgerUnavailable, LedgerInUse, LedgerTooNew, LedgerOutdated (PostgreSQL alone).
        """
        writer, reader = await lanes_to(place, chain_id)
        try:
            chain = await writer.run(lambda connection: enter(connection, chain_id))
            opened = await reader.run(lambda connection: verify(connection, chain_id, chain))
        except BaseException:
            await reader.close()
            await writer.close()
            raise
        return cls(writer, reader, opened)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish the append under way and close the file."""
        async with self._turn:
            await self._reader.close()
            await self._writer.close()

    @property
    def head(self) -> Entry:
        """The last entry, or the genesis."""
        return self._head

    @property
    def books(self) -> Books:
        """The books after the last entry."""
        return self._books

    async def append(
        self,
        events: Iterable[Event] = (),
        *,
        time_ms: int,
        records: Sequence[Kept] = (),
        nonces: Sequence[Nonce] = (),
        materials: Sequence[Material] = (),
    ) -> Entry:
        """Write all of this, or nothing; returns when it is on the disk. See `Journal.append`.

        Raises LedgerUnavailable too: whether it was written is then found out before the next append.
        """
        distinct = tuple({kept.digest: kept for kept in records if kept.digest not in self._lately}.values())
        wanted = _Append(tuple(events), time_ms, distinct, nonces, materials)
        return await asyncio.shield(asyncio.ensure_future(self._append(wanted)))

    async def _append(self, wanted: _Append) -> Entry:
        async with self._turn:
            await self._resolve_doubt()
            try:
                return await self._write(wanted)
            except Conflict:
                # Rare, so nobody looks beforehand: a used nonce is an error, a kept record is not.
                await self._refuse_used(wanted.nonces)
                new = [kept for kept in wanted.records if await self.record(kept.digest) is None]
            try:
                return await self._write(evolve(wanted, records=new))
            except Conflict as error:
                raise LedgerInUse("another process writes to it") from error

    async def _write(self, wanted: _Append) -> Entry:
        entry, books = draft(self._head, self._books, wanted.events, wanted.records, wanted.time_ms)

        def work(connection: sa.Connection) -> None:
            self._check_head(connection)
            _insert(connection, self._chain, entry, wanted)

        try:
            await self._writer.run(work)
        except Conflict:
            raise
        except BaseException:
            self._in_doubt = entry, books
            raise
        self._head, self._books = entry, books
        self._remember(wanted.records)
        return entry

    def _check_head(self, connection: sa.Connection) -> None:
        """Check once for each connection that the chain ends where this process knows it to.

        The server behind a new one may be another, or restored from a backup. Raises LedgerCorrupt, LedgerInUse.
        """
        driver = connection.connection.dbapi_connection
        if driver is self._checked:
            return
        last = schema.select_entries(self._chain).order_by(schema.journal.c.sequence.desc()).limit(1)
        row = connection.execute(last).first()
        sequence, digest = (row.sequence, row.hash) if row else (0, self._head.hash)
        if sequence > self._head.sequence:
            raise LedgerInUse("another process has written to it")
        if (sequence, digest) != (self._head.sequence, self._head.hash):
            raise LedgerCorrupt(sequence, f"it ends here, and {self._head.sequence} entries were written")
        self._checked = driver

    def _remember(self, records: Sequence[Kept]) -> None:
        """Know without a look what was kept a moment ago: one offer comes along with each of its orders."""
        self._lately.update((kept.digest, None) for kept in records)
        while len(self._lately) > _REMEMBERED:
            self._lately.popitem(last=False)

    async def _resolve_doubt(self) -> None:
        if self._in_doubt is None:
            return
        entry, books = self._in_doubt
        # By the lane that writes: a server may still be at work on what we hold for lost, and keeps us waiting for
        # the chain's lock until it is done.
        following = entries_after(self._chain, self._head.sequence)
        rows = await self._writer.run(lambda connection: list(connection.execute(following)))
        found = [schema.entry_of(row) for row in rows]
        if found == [entry]:
            self._head, self._books = entry, books
        elif found:
            raise LedgerInUse("another process has written to it")
        self._in_doubt = None

    async def _refuse_used(self, nonces: Sequence[Nonce]) -> None:
        seen: set[tuple[str, bytes]] = set()
        for nonce in nonces:
            key = nonce.buyer, nonce.nonce
            if key in seen or await self.nonce_order(*key) is not None:
                raise NonceReused(*key)
            seen.add(key)

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

        async with self._turn:
            await self._writer.run(drop)

    async def records_before(
        self, time_ms: int, kinds: Sequence[str], after: tuple[int, bytes], limit: int
    ) -> Sequence[Kept]:
        """Records of entries from before a time. See `Journal.records_before`."""
        rows = await self._read(retention.records_before(self._chain, time_ms, kinds, after, limit))
        return [schema.kept_of(row) for row in rows]

    async def drop_records(self, digests: Sequence[bytes]) -> None:
        """Drop records. See `Journal.drop_records`."""
        async with self._turn:
            await self._writer.run(lambda connection: retention.drop_records(connection, self._chain, digests))
            for digest in digests:
                self._lately.pop(digest, None)

    async def _read(self, query: sa.Select[Any]) -> list[Any]:
        return await self._reader.run(lambda connection: list(connection.execute(query)))


def _insert(connection: sa.Connection, chain: int, entry: Entry, wanted: _Append) -> None:
    # Lists of rows throughout: one prepared statement each, however many rows.
    connection.execute(sa.insert(schema.journal), [schema.row_of(chain, entry, schema.journal)])
    if wanted.records:
        rows = [schema.row_of_kept(chain, kept, entry) for kept in wanted.records]
        connection.execute(sa.insert(schema.records), rows)
    if wanted.nonces:
        rows = [schema.row_of(chain, nonce, schema.nonces) for nonce in wanted.nonces]
        connection.execute(sa.insert(schema.nonces), rows)
    for material in wanted.materials:
        laid = schema.materials
        connection.execute(sa.delete(laid).where(laid.c.chain == chain, laid.c.order == material.order))
        connection.execute(sa.insert(laid), [schema.row_of(chain, material, laid)])
