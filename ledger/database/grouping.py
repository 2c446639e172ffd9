"""Many appends as one transaction: which of them can be written together, and what each becomes.

Theory of operation. Appends that wait for their turn are drafted one after another, each against the books that the
ones before it leave. One that breaks a guard, or uses up a nonce twice, is refused alone, and those after it go on from
where the one before it ended. What is drafted is written in one transaction, each append as an entry of its own.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from attrs import field, frozen

from ledger.events import Books, Event
from ledger.journal import Entry, Kept, Material, Nonce, NonceReused, draft

# So many appends are written together at most, and about so many rows and bytes: it bounds how long one that comes
# meanwhile has to wait, and what a look after a failed write has to read.
MAX_APPENDS: Final = 512
_MAX_ROWS: Final = 4_096
_MAX_BYTES: Final = 8 * 2**20
_MOST: Final = 2**63 - 1


@frozen
class Append:
    """What one append is to write; `check` says by an error why it must not be, by the books that it would move."""

    events: Sequence[Event]
    time_ms: int
    records: Sequence[Kept]
    nonces: Sequence[Nonce]
    materials: Sequence[Material]
    check: Callable[[Books], None] | None = None

    @property
    def rows(self) -> int:
        """How many rows it takes at most."""
        return 1 + len(self.records) + len(self.nonces) + len(self.materials)

    @property
    def size(self) -> int:
        """The bytes that it brings along, but for its events."""
        return sum(len(kept.raw) for kept in self.records) + sum(len(laid.sealed) for laid in self.materials)


@frozen
class Drafted:
    """An append that can be written: its entry, the records that are new, and the books after it."""

    append: Append
    entry: Entry
    records: Sequence[Kept]
    books: Books


@frozen
class Stored:
    """What is on the disk already, of that which a group would write."""

    nonces: Collection[tuple[str, bytes]] = field(factory=frozenset)
    records: Collection[bytes] = field(factory=frozenset)


def how_many(waiting: Iterable[Append]) -> int:
    """How many of the first that wait are written together: one at least, where any waits."""
    count = rows = size = 0
    for append in waiting:
        rows, size = rows + append.rows, size + append.size
        if count == MAX_APPENDS or (count and (rows > _MAX_ROWS or size > _MAX_BYTES)):
            break
        count += 1
    return count


def draft_group(head: Entry, books: Books, group: Iterable[Append], stored: Stored) -> list[Drafted | Exception]:
    """What each append becomes: what is to be written, or why it is refused."""
    outcomes: list[Drafted | Exception] = []
    nonces: set[tuple[str, bytes]] = set()
    records: set[bytes] = set()
    size = 0
    for append in group:
        try:
            used = _used(append.nonces, nonces, stored.nonces)
            fresh = {k.digest: k for k in append.records if k.digest not in records and k.digest not in stored.records}
            _check_storable(append)
            if append.check is not None:
                append.check(books)
            entry, after = draft(head, books, append.events, fresh.values(), append.time_ms)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one append is the matter of its caller alone
            outcomes.append(error)
            continue
        outcomes.append(Drafted(append, entry, tuple(fresh.values()), after))
        head, books = entry, after
        nonces |= used
        records |= fresh.keys()
        size += len(entry.payload)
        if size > _MAX_BYTES:
            break
    return outcomes


def _used(
    nonces: Iterable[Nonce], before: Collection[tuple[str, bytes]], stored: Collection[tuple[str, bytes]]
) -> set[tuple[str, bytes]]:
    """The nonces that an append uses up. Raises NonceReused."""
    used: set[tuple[str, bytes]] = set()
    for nonce in nonces:
        key = nonce.buyer, nonce.nonce
        if key in used or key in before or key in stored:
            raise NonceReused(*key)
        used.add(key)
    return used


def _check_storable(append: Append) -> None:
    """Refuse here what a database would only refuse together with the whole group. Raises ValueError."""
    texts = [kept.kind for kept in append.records] + [nonce.buyer for nonce in append.nonces]
    times = [append.time_ms, *(nonce.expires for nonce in append.nonces), *(laid.expires for laid in append.materials)]
    for text in texts:
        if "\0" in text or not _is_utf8(text):
            raise ValueError(f"{text[:80]!r} is no text that can be stored")
    for time in times:
        if not 0 <= time <= _MOST:
            raise ValueError(f"the time {time} is out of range")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
