"""Entries that follow one another, checked with their records for all but what they do to the books.

Theory of operation. Whether an entry is whole, follows from the one before and tells of the records that are stored
under it can be said of any stretch of a chain alone; so several processes can check several stretches. What their
entries do to the books depends on all entries before: `Replay.pass_over` takes the stretches in order, sees that each
goes on from where the one before ended, and moves the accounts. One account knows nothing of another, so the moves of a
stretch are told account by account.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Final

from attrs import frozen

from ledger.account import AccountKey
from ledger.events import InvalidEvents
from ledger.journal import BrokenChain, Entry, check_link
from ledger.payload import PlainMove, RecordTold, read_content
from ledger.records import digest_of
from ledger.retention import Gaps, digests_dropped

# What the columns of a row must be: SQLite gives what it finds, of whatever type.
ENTRY_TYPES: Final = (int, int, bytes, bytes, bytes)
RECORD_TYPES: Final = ((bytes, str, bytes, int, bytes), (bytes, str, NoneType, int, bytes))


@frozen
class Stretch:
    """What was found in entries that follow one another.

    `previous` is the hash that the first of them names, `head` the last one; `moves` is what happens to each account,
    in order and in plain values. `records` says how many are stored, `missing` in which entries those are told of that
    are not, `dropped` the digests that entries name as dropped.
    """

    previous: bytes
    head: Entry
    moves: Mapping[AccountKey, Sequence[PlainMove]]
    records: int
    missing: Mapping[bytes, int]
    dropped: Sequence[bytes]


def check_stretch(after: int, entries: Sequence[tuple[Any, ...]], records: Iterable[tuple[Any, ...]]) -> Stretch:
    """Check the entries that follow the one of a sequence number, and the records stored under them.

    Entries are rows of (sequence, time_ms, payload, previous, hash), at least one; records of (digest, kind, order,
    sequence, raw). Raises BrokenChain.
    """
    stored = _by_sequence(records)
    moves: dict[AccountKey, list[PlainMove]] = {}
    dropped: list[bytes] = []
    gaps = Gaps()
    head = _entry(after + 1, entries[0])
    previous, head = head.previous, Entry(after, 0, b"", b"", head.previous)
    for row in entries:
        entry = _entry(head.sequence + 1, row)
        check_link(head, entry)
        head = entry
        try:
            content = read_content(entry.payload)
        except InvalidEvents as error:
            raise BrokenChain(entry.sequence, str(error)) from error
        for key, move in content.moves:
            moves.setdefault(key, []).append(move)
        found = stored.get(entry.sequence, [])
        if content.records != found:
            _compare(entry.sequence, set(content.records), set(found), gaps)
        if content.observed:
            named = list(digests_dropped(content.observed))
            gaps.account_for(named)
            dropped += named
    count = sum(len(set(found)) for found in stored.values())
    return Stretch(previous, head, moves, count, gaps.missing, dropped)


def _entry(sequence: int, row: tuple[Any, ...]) -> Entry:
    if tuple(map(type, row)) != ENTRY_TYPES:
        raise BrokenChain(sequence, "its row has columns of other types than were written")
    return Entry(*row)


def _by_sequence(records: Iterable[tuple[Any, ...]]) -> dict[int, list[RecordTold]]:
    """What the journal should tell of stored records, by entry."""
    stored: dict[int, list[RecordTold]] = {}
    for row in records:
        if tuple(map(type, row)) not in RECORD_TYPES:
            raise BrokenChain(0, "a row of the records has columns of other types than were written")
        digest, kind, order, sequence, raw = row
        if digest_of(raw) != digest:
            raise BrokenChain(sequence, f"the bytes of {kind} {digest.hex()[:16]} do not match its digest")
        stored.setdefault(sequence, []).append((kind, digest, order))
    return stored


def _compare(sequence: int, told: set[RecordTold], found: set[RecordTold], gaps: Gaps) -> None:
    for kind, digest, _ in found - told:
        raise BrokenChain(sequence, f"{kind} {digest.hex()[:16]} is not stored as the journal tells")
    for _, digest, _ in told - found:
        gaps.miss(sequence, digest)
