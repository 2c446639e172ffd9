"""Snapshots, taken while appends go on: every so many entries, and at the end.

Theory of operation. When a group is on the disk, of this process or another, the follower takes its entries, and then
everything is as it was after one entry: head, books, follower. Books never change, and the follower holds on to what it
has; so the bytes are made in another thread, and written between two later groups.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

import sqlalchemy as sa
from attrs import frozen

from ledger import snapshot
from ledger.database import snapshots, waypoints
from ledger.database.appending import Appender
from ledger.database.errors import LedgerError
from ledger.database.opening import Opened
from ledger.events import Books, Event
from ledger.journal import Accounts, Entry, Follower, StoredSnapshot
from ledger.snapshot import BadSnapshot

# After a crash so many entries, and those of a few groups, are read again.
EVERY: Final = 2_000

_log = logging.getLogger(__name__)


@frozen
class _Moment:
    """All that a snapshot holds, after the entry `head`."""

    head: Entry
    books: Books
    memory: Callable[[], bytes] | None


class Keeper:
    """Hands a chain's entries to its follower, and takes its snapshots."""

    def __init__(self, appender: Appender, opened: Opened) -> None:
        self._appender = appender
        self._opened = opened
        self._follower: Follower | None = None
        self._taken = opened.snapshot  # the entry of the last one, or of the last try
        self._taking: asyncio.Task[None] | None = None
        appender.took, appender.moved = self._took, self._moved

    def follow(self, follower: Follower, resumed: bool) -> None:
        """Have entries taken from now on."""
        self._follower = follower
        if not resumed:
            self._taken = 0  # the stored one does not tell what this follower knows

    async def finish(self) -> None:
        """Take the last snapshot, if the stored one is not of the last entry."""
        if self._taking is not None:
            await self._taking
        if self._is_stale():
            await self._take(self._moment())

    def _is_stale(self) -> bool:
        head = self._appender.head
        # One without a follower knows less than the stored one may: it only writes where there is none.
        may = self._follower is not None or self._opened.snapshot == 0
        return may and self._taken != head.sequence

    def _took(self, time_ms: int, events: Iterable[Event], accounts: Accounts) -> None:
        if self._follower is not None:
            self._follower.take(time_ms, events, accounts)

    def _moved(self) -> None:
        if self._taking is None and self._is_due():
            self._taking = asyncio.create_task(self._take(self._moment()))
            self._taking.add_done_callback(self._done)

    def _is_due(self) -> bool:
        since = self._appender.head.sequence - self._taken
        # Large books are written more rarely: a snapshot shall cost no more than the entries that it spares a start.
        return since >= EVERY and since >= self._appender.books.orders

    def _done(self, _: object) -> None:
        self._taking = None

    def _moment(self) -> _Moment:
        memory = None if self._follower is None else self._follower.freeze()
        return _Moment(self._appender.head, self._appender.books, memory)

    async def _take(self, moment: _Moment) -> None:
        """Write a snapshot. One that cannot be is done without: the chain has everything."""
        self._taken = moment.head.sequence
        try:
            stored = await asyncio.to_thread(self._stored, moment)
            await self._appender.run(lambda connection: self._write(connection, stored, moment.books.orders))
        except (BadSnapshot, LedgerError) as error:
            _log.warning("no snapshot of the ledger was taken, so that the next start may take longer: %s", error)

    def _write(self, connection: sa.Connection, stored: StoredSnapshot, orders: int) -> None:
        # Another process may have taken a later one meanwhile.
        later = snapshots.sequence_of(connection, self._opened.chain)
        if not stored.sequence < later <= self._appender.head.sequence:
            snapshots.write(connection, self._opened.chain, stored)
            waypoints.leave(connection, self._opened.chain, stored.sequence, stored.books, orders)

    def _stored(self, moment: _Moment) -> StoredSnapshot:
        books = snapshot.encode(snapshot.take(self._opened.chain_id, moment.head, moment.books))
        memory = None if moment.memory is None else moment.memory()
        if memory is not None and len(memory) > snapshots.MAX_MEMORY_BYTES:
            _log.warning("%d bytes are remembered, too many for a snapshot: the next start takes longer", len(memory))
            memory = None
        return StoredSnapshot(moment.head.sequence, books, memory)
