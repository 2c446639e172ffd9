"""A part of a chain, verified with its records from the books that it begins with to those that it ends with.

Theory of operation. A part is read in stretches of entries that follow one another. First each is checked for what can
be said of it alone: whether its entries are whole, follow from one another and tell of the records that are stored
under them. Then it moves the books: one account knows nothing of another, so that is done account by account, far
faster than entry by entry.

Where the books after some entries are written down, several processes can verify a part each. What is written there is
not believed: a part begins with it, and the part before has to end with the same bytes (`Passage.ends_with`), back to
the first, which begins with nothing. What is missing in one part may be dropped in a later one: `join` looks at that.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Final

from attrs import frozen

from ledger import snapshot
from ledger.account import AccountKey
from ledger.events import InvalidEvents, PlainMove
from ledger.journal import BrokenChain, Entry, Replay, check_link
from ledger.payload import RecordTold, read_content
from ledger.records import digest_of
from ledger.retention import Gaps, digests_dropped

# What the columns of a row must be: SQLite gives what it finds, of whatever type.
ENTRY_TYPES: Final = (int, int, bytes, bytes, bytes)
RECORD_TYPES: Final = ((bytes, str, bytes, int, bytes), (bytes, str, NoneType, int, bytes))


@frozen
class Found:
    """What was found of records: how many are stored, how many were `dropped` in good order, in which entries those are
    told of that are `missing`, and the digests that entries name as dropped of what was told of earlier, if at all.
    """

    records: int
    dropped: int
    missing: Mapping[bytes, int]
    named: Sequence[bytes]


@frozen
class Stretch:
    """What entries that follow one another hold.

    `previous` is the hash that the first of them names, `head` the last one; `moves` is what happens to each account,
    in order and in plain values.
    """

    previous: bytes
    head: Entry
    moves: Mapping[AccountKey, Sequence[PlainMove]]
    found: Found


class Passage:
    """A part of a chain, read from its beginning."""

    def __init__(self, chain_id: str, replayed: Replay) -> None:
        """Use `begin`."""
        self._chain_id, self._replayed = chain_id, replayed
        self._gaps = Gaps()
        self._records = 0
        self._named: list[bytes] = []

    @classmethod
    def begin(cls, chain_id: str, books: bytes | None = None) -> "Passage":
        """One that begins with the books of a snapshot's bytes, or at the genesis. Raises BadSnapshot."""
        if books is None:
            return cls(chain_id, Replay(chain_id))
        taken = snapshot.decode(books, chain_id)
        return cls(chain_id, Replay.after(Entry(taken.sequence, 0, b"", b"", taken.hash), taken.books))

    def next(self) -> "Passage":
        """The one that begins where this one ends."""
        return Passage(self._chain_id, self._replayed)

    def take(self, entries: Sequence[tuple[Any, ...]], records: Iterable[tuple[Any, ...]]) -> None:
        """Take the next entries, at least one, and the records stored under them; rows as `check_stretch` takes them.

        Raises BrokenChain.
        """
        stretch = check_stretch(self._replayed.head.sequence, entries, records)
        self._replayed.pass_over(stretch.previous, stretch.head, stretch.moves)
        found = stretch.found
        self._records += found.records
        self._named += self._gaps.go_on(found.dropped, found.named, found.missing)

    @property
    def replayed(self) -> Replay:
        """The books after what was taken, and its last entry."""
        return self._replayed

    @property
    def found(self) -> Found:
        """What was found of records so far."""
        return Found(self._records, self._gaps.dropped, self._gaps.missing, self._named)

    def ends_with(self, end: bytes) -> bool:
        """Whether these are the bytes of a snapshot taken now."""
        return snapshot.encode(snapshot.take(self._chain_id, self._replayed.head, self._replayed.books)) == end


def join(parts: Iterable[Found]) -> tuple[int, Gaps]:
    """How many records are stored in all parts, from the first on, and what is missing or was dropped."""
    records, gaps = 0, Gaps()
    for part in parts:
        records += part.records
        gaps.go_on(part.dropped, part.named, part.missing)
    return records, gaps


def check_stretch(after: int, entries: Sequence[tuple[Any, ...]], records: Iterable[tuple[Any, ...]]) -> Stretch:
    """Check the entries that follow the one of a sequence number, and the records stored under them.

    Entries are rows of (sequence, time_ms, payload, previous, hash), at least one; records of (digest, kind, order,
    sequence, raw). Raises BrokenChain.
    """
    stored = _by_sequence(records)
    moves: dict[AccountKey, list[PlainMove]] = {}
    named: list[bytes] = []
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
            _compare(entry.sequence, content.records, found, gaps)
        if content.observed:
            named += gaps.account_for(digests_dropped(content.observed))
    count = sum(map(len, stored.values()))
    return Stretch(previous, head, moves, Found(count, gaps.dropped, gaps.missing, named))


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


def _compare(sequence: int, told: Collection[RecordTold], found: Collection[RecordTold], gaps: Gaps) -> None:
    known, stored = set(told), set(found)
    for kind, digest, _ in stored - known:
        raise BrokenChain(sequence, f"{kind} {digest.hex()[:16]} is not stored as the journal tells")
    if len(stored) < len(found):
        raise BrokenChain(sequence, "a record is stored twice")
    for _, digest, _ in known - stored:
        gaps.miss(sequence, digest)
