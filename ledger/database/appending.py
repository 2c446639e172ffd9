"""The one writer of a chain: it takes all appends that wait and makes them durable together.

Theory of operation. Callers put their appends into a queue. Whoever finds no one at work there starts the work, which
takes a group from the front of the queue, checks its guards against the books in memory, writes it as one transaction,
moves the books when the disk has it, and answers everybody in the group; then the next group. So while the disk is busy
with one group, the next one gathers. If a write fails, what reached the disk is unknown: before the next group, the
writer looks. A caller that is cancelled does not stop its append.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, TypeVar

import sqlalchemy as sa
from attrs import field, frozen

from ledger.database import schema
from ledger.database.errors import Conflict, LedgerCorrupt, LedgerInUse
from ledger.database.grouping import MAX_APPENDS, Append, Drafted, Stored, draft_group, how_many
from ledger.database.lane import Lane
from ledger.database.opening import Opened, entries_after
from ledger.database.writing import insert_group, look_up
from ledger.journal import Entry

# So many digests of the records kept last are held in memory.
_REMEMBERED: Final = 4_096

T = TypeVar("T")


@frozen(eq=False)
class _Waiting:
    """An append, and where its caller waits for the answer."""

    append: Append
    answer: "asyncio.Future[Entry]" = field(repr=False)

    def give(self, outcome: Entry | Exception) -> None:
        """Answer, if the caller still waits."""
        if self.answer.done():
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


class Appender:
    """The writer of one chain through a lane of its own."""

    def __init__(self, lane: Lane, opened: Opened) -> None:
        self.head = opened.head
        self.books = opened.books
        # Told of what was written, in order, before anybody is answered.
        self.written: Callable[[Sequence[Drafted]], None] = lambda _: None
        self._lane = lane
        self._chain = opened.chain
        self._queue: deque[_Waiting] = deque()
        self._at_work: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._in_doubt: Sequence[Drafted] = ()
        self._checked: object = None  # the driver's connection that was seen to have our head
        self._lately: OrderedDict[bytes, None] = OrderedDict()

    async def append(self, append: Append) -> Entry:
        """Have an append written; returns when it is durable. Raises as `Database.append` does."""
        waiting = _Waiting(append, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._at_work is None:
            self._at_work = asyncio.create_task(self._work())
        return await waiting.answer

    async def finish(self) -> None:
        """Wait until all that waits is answered."""
        while self._at_work is not None:
            await asyncio.wait([self._at_work])

    async def close(self) -> None:
        """Close the lane, when what is under way is done."""
        async with self._turn:
            await self._lane.close()

    async def run(self, work: Callable[[sa.Connection], None]) -> None:
        """Do another piece of work between two groups, as one transaction. Raises LedgerError."""

        def checked(connection: sa.Connection) -> None:
            self._check_head(connection)
            work(connection)

        async with self._turn:
            await self._resolve_doubt()
            await self._lane.run(checked)

    def forget(self, digests: Iterable[bytes]) -> None:
        """These records are about to be dropped: if they come again, they are kept again."""
        for digest in digests:
            self._lately.pop(digest, None)

    async def _work(self) -> None:
        try:
            while self._queue:
                # Let go after each group: others have their turn also while appends never cease.
                async with self._turn:
                    await self._take_group()
        finally:
            self._at_work = None
            # There are some only where this task was cancelled, with its loop.
            for waiting in self._queue:
                waiting.answer.cancel()
            self._queue.clear()

    async def _take_group(self) -> None:
        group = list(islice(self._queue, how_many(waiting.append for waiting in self._queue)))
        outcomes: Sequence[Entry | Exception]
        try:
            await self._resolve_doubt()
            outcomes = await self._write([waiting.append for waiting in group])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be told
            outcomes = [error] * len(group)
        for waiting, outcome in zip(group, outcomes, strict=False):
            self._queue.popleft()
            waiting.give(outcome)

    async def _write(self, group: Sequence[Append]) -> list[Entry | Exception]:
        """Write as many of a group as fit; what became of each of them. Raises LedgerError for all of them."""
        outcomes = draft_group(self.head, self.books, group, Stored(records=self._lately.keys()))
        try:
            await self._commit(outcomes)
        except Conflict:
            # Rare, so nobody looks beforehand: a used nonce is an error of its append, a kept record is none.
            group = group[: len(outcomes)]
            outcomes = draft_group(self.head, self.books, group, await self._look_up(group))
            try:
                await self._commit(outcomes)
            except Conflict as error:
                raise LedgerInUse("another process writes to it") from error
        return [outcome.entry if isinstance(outcome, Drafted) else outcome for outcome in outcomes]

    async def _look_up(self, group: Sequence[Append]) -> Stored:
        nonces = [nonce for append in group for nonce in append.nonces]
        records = [kept for append in group for kept in append.records]
        return await self._lane.run(lambda connection: look_up(connection, self._chain, nonces, records))

    async def _commit(self, outcomes: Sequence[Drafted | Exception]) -> None:
        group = [outcome for outcome in outcomes if isinstance(outcome, Drafted)]
        if not group:
            return

        def work(connection: sa.Connection) -> None:
            self._check_head(connection)
            insert_group(connection, self._chain, group)

        try:
            await self._lane.run(work)
        except Conflict:
            raise
        except BaseException:
            self._in_doubt = group
            raise
        self._move_on(group)

    def _move_on(self, group: Sequence[Drafted]) -> None:
        self.head, self.books = group[-1].entry, group[-1].books
        # Known without a look: one offer comes along with each of its orders.
        self._lately.update((kept.digest, None) for drafted in group for kept in drafted.records)
        while len(self._lately) > _REMEMBERED:
            self._lately.popitem(last=False)
        self.written(group)

    def _check_head(self, connection: sa.Connection) -> None:
        """Check once for each connection that the chain ends where this process knows it to.

        The server behind a new one may be another, or restored from a backup. Raises LedgerCorrupt, LedgerInUse.
        """
        driver = connection.connection.dbapi_connection
        if driver is self._checked:
            return
        last = schema.select_entries(self._chain).order_by(schema.journal.c.sequence.desc()).limit(1)
        row = connection.execute(last).first()
        sequence, digest = (row.sequence, row.hash) if row else (0, self.head.hash)
        if sequence > self.head.sequence:
            raise LedgerInUse("another process has written to it")
        if (sequence, digest) != (self.head.sequence, self.head.hash):
            raise LedgerCorrupt(sequence, f"it ends here, and {self.head.sequence} entries were written")
        self._checked = driver

    async def _resolve_doubt(self) -> None:
        """Find out whether the group whose write failed is on the disk. Raises LedgerError."""
        group = self._in_doubt
        if not group:
            return
        # By the lane that writes: a server may still be at work on what we hold for lost, and keeps us waiting for
        # the chain's lock until it is done.
        following = entries_after(self._chain, self.head.sequence, MAX_APPENDS + 1)
        rows = await self._lane.run(lambda connection: list(connection.execute(following)))
        found = [schema.entry_of(row) for row in rows]
        if found and found != [drafted.entry for drafted in group]:
            raise LedgerInUse("another process has written to it")
        self._in_doubt = ()
        if found:
            self._move_on(group)
