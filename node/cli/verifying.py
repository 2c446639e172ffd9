"""What `idlemesh ledger verify` checks of a journal beside chain, records and guards, as it is read from its beginning.

Those a chain file's reader checks on the way. A database has checked them when it was opened whole, on all cores; it is
not asked for its records again.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, Protocol

from ledger import snapshot
from ledger.chainfile import ChainReader
from ledger.database import Database
from ledger.events import Books, Event, RecordKept
from ledger.journal import Accounts, Entry, Replay, StoredSnapshot
from ledger.snapshot import BadSnapshot
from ledger.statement import Statement
from node.cli.output import Advance, CommandFailed
from node.exchange.recollection import Recollection

# So many entries are told of at a time.
_TOLD: Final = 1_000


class Reader(Accounts, Protocol):
    """A chain as far as it was read."""

    @property
    def head(self) -> Entry:
        """The last entry."""

    @property
    def books(self) -> Books:
        """The books after it."""


class Verification:
    """One reading of a whole chain, with the snapshot that its node would start from."""

    def __init__(self, me: str, stored: StoredSnapshot | None) -> None:
        self.recollection = Recollection(me)
        self.wrong: str | None = None  # what is wrong with the snapshot
        self._me, self._stored = me, stored
        self._statement = Statement(me)

    async def of_file(self, chain: AsyncIterator[bytes]) -> dict[str, Any]:
        """Check a chain file; returns what was found, for a person or a script.

        Raises BrokenChain, NotAChainFile, CommandFailed; a bad snapshot is noted in `wrong`.
        """
        reader, records = ChainReader(self._me), 0
        async for chunk in chain:
            for told in reader.feed(chunk):
                records += len(told.records)
                self._take(told.entry, told.events, reader)
        reader.finish()
        return self._result(reader.head, records, reader.dropped)

    async def of_database(self, database: Database, advance: Advance) -> dict[str, Any]:
        """Check a database that was opened whole, as `of_file`; `advance` is told how many entries were read."""
        verified = database.verified
        assert verified is not None
        replayed, records = Replay(self._me), verified.records
        async for entry in database.entries():
            events = replayed.add(entry)
            self._take(entry, events, replayed)
            if entry.sequence > verified.head.sequence:  # of another process, meanwhile
                records += sum(type(event) is RecordKept for event in events)
            if entry.sequence % _TOLD == 0:
                advance(entry.sequence)
        return self._result(replayed.head, records, verified.dropped)

    def _take(self, entry: Entry, events: Iterable[Event], reader: Reader) -> None:
        self._statement.add(entry.sequence, entry.time_ms, events)
        self.recollection.take(entry.time_ms, events, reader)
        if self._stored is not None and entry.sequence == self._stored.sequence:
            self.wrong = self._difference(self._stored, reader)

    def _difference(self, stored: StoredSnapshot, reader: Reader) -> str | None:
        """How a snapshot differs from what was read so far."""
        try:
            snapshot.check(snapshot.decode(stored.books, self._me), reader.head, reader.books)
        except BadSnapshot as error:
            return error.why
        if stored.memory is not None and stored.memory != self.recollection.freeze()():
            return "what the node remembers beside its accounts is not what they and the observations give"
        return None

    def _result(self, head: Entry, records: int, dropped: int) -> dict[str, Any]:
        if not self._statement.balanced:
            raise CommandFailed("the postings do not sum to zero: this is a fault of the program, please report it")
        if self._stored is not None and self._stored.sequence > head.sequence:
            self.wrong = "it is of an entry that the journal does not have"
        found = None if self._stored is None else {"sequence": self._stored.sequence, "why": self.wrong}
        return {
            "entries": head.sequence,
            "records": records,
            "dropped": dropped,
            "head": head.hash.hex(),
            "balanced": True,
            "snapshot": found,
        }
