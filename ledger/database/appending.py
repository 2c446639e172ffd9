"""The writer of a chain in this process: it takes all appends that wait and makes them durable together.

Theory of operation. Callers put their appends into a queue. Whoever finds no one at work there starts the work, which
takes a group from the front of the queue, checks its guards against the books in memory, writes it as one transaction,
moves the books when the disk has it, and answers everybody in the group; then the next group. So while the disk is busy
with one group, the next one gathers. If a write fails, what reached the disk is unknown: before the next group, the
writer looks. A caller that is cancelled does not stop its append.

A chain in PostgreSQL may have several writers, one in each of several processes. Each transaction first takes the lock
on the chain's row, and so is alone until it ends. Under that lock it reads what others have written behind the head
that it knows, checks it as a replay does, and moves its books by it. Where there was something, the group is judged
once more, by those books: so every guard holds for all processes together, and a group is refused only by what is on
the disk. What is read so may be a group of our own whose answer was lost: nothing more is to be found out about that,
since a server that was still at work on it held the lock. Between groups `refresh` reads on without the lock.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, TypeVar

import sqlalchemy as sa
from attrs import field, frozen

from ledger.account import AccountError
from ledger.database import schema
from ledger.database.errors import Conflict, LedgerCorrupt, LedgerInUse
from ledger.database.grouping import MAX_APPENDS, Append, Drafted, Stored, draft_group, how_many
from ledger.database.lane import Lane
from ledger.database.opening import BATCH, Opened, entries_after
from ledger.database.writing import insert_group, lock_chain, look_up
from ledger.events import Event, InvalidEvents, RecordKept
from ledger.journal import Accounts, BrokenChain, Entry, check_link
from ledger.payload import decode_events
from ledger.retention import digests_dropped

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
        # Told of each entry that was written, here or elsewhere, in order and before anybody is answered: its time,
        # what it says, and the accounts after it; and then that head and books are behind them all.
        self.took: Callable[[int, Iterable[Event], Accounts], None] = lambda *_: None
        self.moved: Callable[[], None] = lambda: None
        self._lane = lane
        self._chain = opened.chain
        self._queue: deque[_Waiting] = deque()
        self._at_work: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._next_look: asyncio.Task[None] | None = None  # one that has not begun yet
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

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do another piece of work between two groups, as one transaction, and alone. Raises LedgerError."""

        def checked(connection: sa.Connection) -> T:
            self._begin(connection)
            return work(connection)

        async with self._turn:
            await self._resolve_doubt()
            return await self._lane.run(checked)

    async def refresh(self) -> None:
        """Take in all that other processes have written until now. Raises LedgerError."""
        if self._lane.shared:
            if self._next_look is None:
                self._next_look = asyncio.ensure_future(self._look())
                # Whoever asked may have gone away before it fails.
                self._next_look.add_done_callback(lambda look: look.cancelled() or look.exception())
            await asyncio.shield(self._next_look)

    async def _look(self) -> None:
        async with self._turn:
            self._next_look = None  # whoever comes from now on may ask for something later
            while await self._lane.run(self._read_on):
                pass

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
        try:
            outcomes = await self._commit(group)
        except Conflict:
            # Rare, so nobody looks beforehand: a used nonce is an error of its append, a kept record is none.
            try:
                outcomes = await self._commit(group, look=True)
            except Conflict as error:
                raise LedgerInUse("another process writes to it") from error
        return [outcome.entry if isinstance(outcome, Drafted) else outcome for outcome in outcomes]

    async def _commit(self, group: Sequence[Append], *, look: bool = False) -> list[Drafted | Exception]:
        """What becomes of a group, written; with `look`, what is on the disk already is looked up before.

        Raises Conflict where something is that nobody looked for.
        """
        outcomes = self._draft(group, Stored(records=self._lately.keys()))
        if not self._lane.shared and not look and not _drafted(outcomes):
            return outcomes

        def work(connection: sa.Connection) -> None:
            nonlocal outcomes
            moved = self._begin(connection)
            if look:
                outcomes = self._draft(group, self._look_up(connection, group))
            elif moved:
                outcomes = self._draft(group, Stored(records=self._lately.keys()))
            insert_group(connection, self._chain, _drafted(outcomes))

        try:
            await self._lane.run(work)
        except Conflict:
            raise
        except BaseException:
            if not self._lane.shared:
                self._in_doubt = _drafted(outcomes)
            raise
        self._move_on(_drafted(outcomes))
        return outcomes

    def _draft(self, group: Sequence[Append], stored: Stored) -> list[Drafted | Exception]:
        return draft_group(self.head, self.books, group, stored)

    def _look_up(self, connection: sa.Connection, group: Sequence[Append]) -> Stored:
        nonces = [nonce for append in group for nonce in append.nonces]
        records = [kept for append in group for kept in append.records]
        return look_up(connection, self._chain, nonces, records)

    def _move_on(self, group: Sequence[Drafted]) -> None:
        if not group:
            return
        self.head, self.books = group[-1].entry, group[-1].books
        # Known without a look: one offer comes along with each of its orders.
        self._remember(kept.digest for drafted in group for kept in drafted.records)
        for drafted in group:
            self.took(drafted.entry.time_ms, drafted.append.events, drafted.books)
        self.moved()

    def _remember(self, digests: Iterable[bytes]) -> None:
        self._lately.update((digest, None) for digest in digests)
        while len(self._lately) > _REMEMBERED:
            self._lately.popitem(last=False)

    # What others write

    def _begin(self, connection: sa.Connection) -> bool:
        """Be alone until the transaction ends, and know all that is written; whether anything of it was news.

        Raises LedgerError.
        """
        if not self._lane.shared:
            self._check_head(connection)
            return False
        before = self.head
        lock_chain(connection, self._chain)
        while self._read_on(connection):
            pass
        return self.head is not before

    def _read_on(self, connection: sa.Connection) -> bool:
        """Take in what others have written, a batch of it; whether there may be more. Raises LedgerError."""
        self._check_head(connection)
        rows = connection.execute(entries_after(self._chain, self.head.sequence, BATCH)).all()
        # From here on nothing is awaited: whoever looks sees all of these entries, or none.
        for row in rows:
            entry = schema.entry_of(row)
            try:
                check_link(self.head, entry)
                events = decode_events(entry.payload)
                books = self.books.apply(events)
            except (BrokenChain, InvalidEvents, AccountError) as error:
                raise LedgerCorrupt(entry.sequence, str(error)) from error
            self.head, self.books = entry, books
            self.forget(digests_dropped(events))
            self._remember(event.digest for event in events if isinstance(event, RecordKept))
            self.took(entry.time_ms, events, books)
        if rows:
            self.moved()
        return len(rows) == BATCH

    def _check_head(self, connection: sa.Connection) -> None:
        """Check once for each connection that the chain goes as far as this process knows it to.

        The server behind a new one may be another, or restored from a backup. Raises LedgerCorrupt, LedgerInUse.
        """
        driver = connection.connection.dbapi_connection
        if driver is self._checked:
            return
        last = schema.select_entries(self._chain).order_by(schema.journal.c.sequence.desc()).limit(1)
        if self._lane.shared:
            last = last.where(schema.journal.c.sequence <= self.head.sequence)
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
        following = entries_after(self._chain, self.head.sequence, MAX_APPENDS + 1)
        rows = await self._lane.run(lambda connection: list(connection.execute(following)))
        found = [schema.entry_of(row) for row in rows]
        if found and found != [drafted.entry for drafted in group]:
            raise LedgerInUse("another process has written to it")
        self._in_doubt = ()
        self._move_on(group if found else ())


def _drafted(outcomes: Iterable[Drafted | Exception]) -> list[Drafted]:
    return [outcome for outcome in outcomes if isinstance(outcome, Drafted)]
