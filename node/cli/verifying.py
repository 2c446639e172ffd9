"""What `idlemesh ledger verify` checks of a journal as it is read from its beginning."""

from collections.abc import AsyncIterator
from typing import Any

from ledger import snapshot
from ledger.chainfile import ChainReader, Told
from ledger.journal import Entry, StoredSnapshot
from ledger.snapshot import BadSnapshot
from ledger.statement import Statement
from node.cli.output import CommandFailed
from node.exchange.recollection import Recollection


class Verification:
    """One reading of a whole chain file, with the snapshot that its node would start from."""

    def __init__(self, me: str) -> None:
        self.me = me
        self.recollection = Recollection(me)
        self.wrong: str | None = None  # what is wrong with the snapshot
        self._reader = ChainReader(me)
        self._statement = Statement(me)
        self._records = 0
        self._stored: StoredSnapshot | None = None

    async def run(self, chain: AsyncIterator[bytes], stored: StoredSnapshot | None) -> None:
        """Check a chain file. Raises BrokenChain, NotAChainFile, CommandFailed; a bad snapshot is noted in `wrong`."""
        self._stored = stored
        async for chunk in chain:
            for told in self._reader.feed(chunk):
                self._take(told)
        self._reader.finish()
        if not self._statement.balanced:
            raise CommandFailed("the postings do not sum to zero: this is a fault of the program, please report it")
        if stored is not None and stored.sequence > self._reader.head.sequence:
            self.wrong = "it is of an entry that the journal does not have"

    @property
    def head(self) -> Entry:
        """The last entry that was read."""
        return self._reader.head

    def result(self) -> dict[str, Any]:
        """What was found, for a person or a script."""
        found = None if self._stored is None else {"sequence": self._stored.sequence, "why": self.wrong}
        head = self._reader.head
        return {
            "entries": head.sequence,
            "records": self._records,
            "dropped": self._reader.dropped,
            "head": head.hash.hex(),
            "balanced": True,
            "snapshot": found,
        }

    def _take(self, told: Told) -> None:
        self._records += len(told.records)
        self._statement.add(told.entry.sequence, told.entry.time_ms, told.events)
        self.recollection.take(told.entry.time_ms, told.events, self._reader)
        if self._stored is not None and told.entry.sequence == self._stored.sequence:
            self.wrong = self._difference(self._stored)

    def _difference(self, stored: StoredSnapshot) -> str | None:
        """How a snapshot differs from what was read so far."""
        try:
            snapshot.check(snapshot.decode(stored.books, self.me), self._reader.head, self._reader.books)
        except BadSnapshot as error:
            return error.why
        if stored.memory is not None and stored.memory != self.recollection.freeze()():
            return "what the node remembers beside its accounts is not what they and the observations give"
        return None
