"""A journal with its records, written as a chain file."""

from collections.abc import AsyncIterator
from typing import Final

from ledger.chainfile import records_told, write_end, write_entry, write_start
from ledger.events import Event, InvalidEvents, RecordKept
from ledger.journal import BrokenChain, Entry, Journal
from ledger.payload import decode_events
from ledger.retention import Gaps

# Entries whose records are read at a time.
_AT_A_TIME: Final = 200


async def chain_file(journal: Journal, me: str) -> AsyncIterator[bytes]:
    """The whole journal with its records as a chain file, in pieces, at least up to what is its head now.

    Records that are gone are named; whoever reads the file finds out whether they were dropped in good order. Raises
    BrokenChain where an entry cannot be read.
    """
    head, gaps = journal.head, Gaps()
    yield write_start(me)
    async for some in _stretches(journal):
        stored = {
            (kept.sequence, kept.digest): kept
            for kept in await journal.records_between(some[0].sequence, some[-1].sequence)
        }
        pieces = []
        for entry in some:
            if entry.sequence > head.sequence and gaps.first is None:
                break
            events = _events_of(entry)
            # One that is gone may have come back with a later entry.
            records = [stored.get((entry.sequence, told.digest), told) for told in records_told(events)]
            for record in records:
                if isinstance(record, RecordKept):
                    gaps.miss(entry.sequence, record.digest)
            gaps.take(events)
            pieces.append(write_entry(entry, records))
            # What is dropped while this is written is accounted for by an entry beyond what was the head.
            head = max(head, entry, key=lambda one: one.sequence)
        yield b"".join(pieces)
        if len(pieces) < len(some):
            break
    yield write_end(head)


async def _stretches(journal: Journal) -> AsyncIterator[list[Entry]]:
    """The entries, some at a time, up to one that was the last after the records of those before it were read."""
    some: list[Entry] = []
    while True:
        after = some[-1].sequence if some else 0
        some = []
        async for entry in journal.entries(after):
            if len(some) == _AT_A_TIME:
                yield some
                some = []
            some.append(entry)
        if not some:
            return
        yield some


def _events_of(entry: Entry) -> tuple[Event, ...]:
    try:
        return decode_events(entry.payload)
    except InvalidEvents as error:
        raise BrokenChain(entry.sequence, str(error)) from error
