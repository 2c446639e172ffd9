"""The append-only, hash-chained log of everything that changed; replaying it rebuilds every account.

Theory of operation. A journal is one chain of entries per node, whichever of its processes writes. Each entry's hash
covers the hash before it, and the first one builds on a genesis that is bound to the node's id, so no entry can be
altered, dropped, reordered or moved into another node's chain without every later hash telling. (Cutting off the tail
cannot show in the chain itself: heads are exchanged with counterparties for that.) An entry's payload is a list of
events in deterministic CBOR.

An append is one durable transaction: the entry, the raw bytes of the records it mentions, the nonces it uses
up and the sealed materials it lays aside. Its guards are checked against the books as they are at that
moment, one append after another, so of two orders that race for the last credit only one gets it.
`MemoryJournal` does all of that without a disk, `ledger.database` with one.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from attrs import define, evolve, field, frozen

from ledger.account import Account, AccountError, AccountKey
from ledger.effects import Tracked
from ledger.events import Books, Event, InvalidEvents, PlainMove, RecordKept, advance, advance_account
from ledger.payload import decode_events, encode_events
from ledger.records import digest_of

# Named in what is hashed, so that no other hash of this project can stand in for one of the chain.
_GENESIS: Final = b"idlemesh journal 1 genesis\x00"
_LINK: Final = b"idlemesh journal 1 entry\x00"
_LATEST_TIME_MS: Final = 2**63 - 1


@define
class BrokenChain(Exception):
    """An entry that does not follow from the one before it."""

    sequence: int
    why: str

    def __str__(self) -> str:
        return f"the journal is broken at entry {self.sequence}: {self.why}"


@define
class NonceReused(Exception):
    """The buyer has used this nonce before; nothing of the append that met it was written."""

    buyer: str
    nonce: bytes

    def __str__(self) -> str:
        return f"{self.buyer} has used nonce {self.nonce.hex()} before: take a fresh one for each order"


class Entry(NamedTuple):
    """One link of the chain. `time_ms` is the writer's clock: milliseconds since 1970, may step back."""

    sequence: int
    time_ms: int
    payload: bytes
    previous: bytes
    hash: bytes


def genesis(chain_id: str) -> Entry:
    """Where the chain of a node (its did:key) begins: entry 0, known to everybody and stored by nobody."""
    return Entry(0, 0, b"", b"", hashlib.sha256(_GENESIS + chain_id.encode()).digest())


def link(previous: Entry, time_ms: int, payload: bytes) -> Entry:
    """The entry that follows `previous`."""
    sequence = previous.sequence + 1
    return Entry(sequence, time_ms, payload, previous.hash, _hash(previous.hash, sequence, time_ms, payload))


def _hash(previous: bytes, sequence: int, time_ms: int, payload: bytes) -> bytes:
    # Unambiguous: all parts but the last have fixed lengths (32, 8 and 8 bytes, big-endian).
    fixed = previous + sequence.to_bytes(8, "big") + time_ms.to_bytes(8, "big")
    return hashlib.sha256(_LINK + fixed + payload).digest()


def check_link(previous: Entry, entry: Entry) -> None:
    """Check that `entry` follows `previous`. Raises BrokenChain."""
    if entry.sequence != previous.sequence + 1:
        raise BrokenChain(previous.sequence + 1, f"found entry {entry.sequence} in its place")
    if entry.previous != previous.hash:
        raise BrokenChain(entry.sequence, "it does not name the hash of the entry before it")
    if not 0 <= entry.time_ms <= _LATEST_TIME_MS:
        raise BrokenChain(entry.sequence, f"its time {entry.time_ms} is out of range")
    if entry.hash != _hash(entry.previous, entry.sequence, entry.time_ms, entry.payload):
        raise BrokenChain(entry.sequence, "its content does not match its hash")


def check_content(entry: Entry) -> None:
    """Check that an entry is what its own hash says, whatever it follows. Raises BrokenChain."""
    check_link(entry._replace(sequence=entry.sequence - 1, hash=entry.previous), entry)


def verify(head: Entry, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Pass on entries that follow `head`, a `genesis` or an entry verified before. Raises BrokenChain."""
    for entry in entries:
        check_link(head, entry)
        yield entry
        head = entry


class Replay:
    """Rebuilds the books from entries that come one after another, checking the chain on the way."""

    def __init__(self, chain_id: str) -> None:
        self.head = genesis(chain_id)
        self._accounts: dict[AccountKey, Account] = {}
        self._effects: dict[AccountKey, Tracked] = {}

    @classmethod
    def after(cls, head: Entry, books: Books) -> "Replay":
        """One that goes on from an entry after which the books are known, for instance from a snapshot."""
        resumed = cls("")
        resumed.head, resumed._accounts = head, dict(books.accounts)
        resumed._effects = dict(books.effects)
        return resumed

    def add(self, entry: Entry) -> tuple[Event, ...]:
        """Take the next entry; returns its events. Raises BrokenChain."""
        check_link(self.head, entry)
        try:
            events = decode_events(entry.payload)
            advance(self._accounts, self._effects, events)
        except (InvalidEvents, AccountError) as error:
            raise BrokenChain(entry.sequence, str(error)) from error
        self.head = entry
        return events

    def pass_over(self, previous: bytes, head: Entry, moves: Mapping[AccountKey, Iterable[PlainMove]]) -> None:
        """Take the next entries up to `head`, which were checked but for what they do: `moves`, account by account.

        `previous` is the hash that the first of them names. Raises BrokenChain.
        """
        if previous != self.head.hash:
            raise BrokenChain(self.head.sequence + 1, "it does not name the hash of the entry before it")
        try:
            for key, of_account in moves.items():
                advance_account(self._accounts, self._effects, key, of_account)
        except AccountError as error:
            raise BrokenChain(head.sequence, f"one of the entries up to it cannot be: {error}") from error
        self.head = head

    def account(self, key: AccountKey) -> Account:
        """An account after the entries so far."""
        return self._accounts.get(key) or Account(key)

    @property
    def books(self) -> Books:
        """The books after the entries so far."""
        return Books(self._accounts, self._effects)


def replay(chain_id: str, entries: Iterable[Entry]) -> Books:
    """The books that follow from a whole chain. Raises BrokenChain."""
    replayed = Replay(chain_id)
    for entry in entries:
        replayed.add(entry)
    return replayed.books


@frozen
class Kept:
    """A signed record: its bytes as received, and the digest of the order it belongs to (an Order's own).

    `sequence` is the entry that mentions it; 0 until it is appended.
    """

    kind: str
    raw: bytes = field(repr=False)
    order: bytes | None = None
    sequence: int = 0
    digest: bytes = field(init=False)

    @digest.default
    def _digest_of_raw(self) -> bytes:
        return digest_of(self.raw)


@frozen
class Nonce:
    """A nonce used up by a buyer for one order, to be remembered until `expires` (seconds since 1970)."""

    buyer: str
    nonce: bytes
    order: bytes
    expires: int


@frozen
class Material:
    """Encrypted token ids of one order, laid aside for an audit until `expires` (seconds since 1970)."""

    order: bytes
    sealed: bytes = field(repr=False)
    expires: int


class Accounts(Protocol):
    """Every account as it is after some entry: Books, or a Replay that has come there."""

    def account(self, key: AccountKey) -> Account:
        """An account; one that nothing has happened to yet is empty."""


class Follower(Protocol):
    """Something that follows from a journal and is kept in step with it, as experience is."""

    def take(self, time_ms: int, events: Iterable[Event], accounts: Accounts) -> None:
        """Take what the next entry says but for the records that it keeps, and the accounts after it."""

    def freeze(self) -> Callable[[], bytes]:
        """Hold on to all of it as it is now; what comes back writes that down, in any thread."""


@frozen
class Remembered:
    """What a follower had written down when a snapshot was taken, after the entry `head` and with these books."""

    head: Entry
    books: Books
    raw: bytes = field(repr=False)


@frozen
class StoredSnapshot:
    """A snapshot as it is stored: bytes of the books (`ledger.snapshot`), and what the follower wrote down, if any."""

    sequence: int
    books: bytes = field(repr=False)
    memory: bytes | None = field(default=None, repr=False)


class Journal(Protocol):
    """One node's durable memory, which several of its processes may share."""

    @property
    def name(self) -> bytes:
        """Under what other processes know this one; empty where there can be no others."""

    @property
    def remembered(self) -> Remembered | None:
        """What the last follower had made of the journal up to some entry; None where nothing of it is usable."""

    async def snapshot(self) -> StoredSnapshot | None:
        """The snapshot that is stored now, unchecked; None where it cannot even be read."""

    def follow(self, follower: Follower, resumed: bool = False) -> None:
        """Have each entry from now on taken, in order, before its append returns. There is one follower.

        It has taken all entries so far, from `remembered` on if it is `resumed`.
        """

    @property
    def head(self) -> Entry:
        """The last entry, or the genesis."""

    @property
    def books(self) -> Books:
        """The books after the last entry."""

    async def append(
        self,
        events: Iterable[Event] = (),
        *,
        time_ms: int,
        records: Sequence[Kept] = (),
        nonces: Sequence[Nonce] = (),
        materials: Sequence[Material] = (),
        check: Callable[[Books], None] | None = None,
    ) -> Entry:
        """Write all of this, or nothing; returns when it is durable.

        A record that is kept already is passed over, a material replaces the one laid aside for the same
        order. Raises AccountError when a change breaks a guard, NonceReused, InvalidEvents, and what `check` raises of
        the books that all of this is about to move.
        """

    async def refresh(self) -> None:
        """Take in what other processes have written until now, as `append` does, too."""

    async def leads(self) -> bool:
        """Whether this process is the one that does what only one may do at a time; others follow when it ends."""

    async def gone(self, names: Collection[bytes]) -> Collection[bytes]:
        """Which of these processes, by their names, have ended or lost touch. This one never has."""

    def entries(self, after: int = 0) -> AsyncIterator[Entry]:
        """The entries that follow a sequence number, in order."""

    async def record(self, digest: bytes) -> Kept | None:
        """A record by its digest."""

    async def records_of(self, order: bytes) -> Sequence[Kept]:
        """All records of an order, oldest first."""

    async def records_between(self, first: int, last: int) -> Sequence[Kept]:
        """The records under entries from one sequence number up to another, in no order."""

    async def list_records(self, kind: str, limit: int, before: int | None = None) -> Sequence[Kept]:
        """The latest records of a kind, newest first; `before` an entry's sequence continues an earlier list.

        Records of one entry are never torn apart, so that there may be a few more than `limit`.
        """

    async def nonce_order(self, buyer: str, nonce: bytes) -> bytes | None:
        """The order for which a buyer has used a nonce."""

    async def material(self, order: bytes) -> bytes | None:
        """The sealed material of an order, while it is kept."""

    async def expire(self, now: int) -> None:
        """Drop the nonces and materials that expired before `now` (seconds since 1970)."""

    async def records_before(
        self, time_ms: int, kinds: Sequence[str], after: tuple[int, bytes], limit: int
    ) -> Sequence[Kept]:
        """Records of these kinds from before a time, by entry and digest; `after` is where an earlier call ended."""

    async def drop_records(self, digests: Sequence[bytes]) -> None:
        """Drop records that an entry names as dropped, or they count as damage; see `ledger.retention`."""

    async def close(self) -> None:
        """Give back what the journal holds open."""


def draft(
    head: Entry, books: Books, events: Iterable[Event], records: Iterable[Kept], time_ms: int
) -> tuple[Entry, Books]:
    """The entry that an append would write, and the books after it. Raises AccountError, InvalidEvents."""
    kept = (RecordKept(record.kind, record.digest, record.order) for record in records)
    whole = (*kept, *events)
    return link(head, time_ms, encode_events(whole)), books.apply(whole)


class MemoryJournal:
    """A Journal that lasts as long as its process: for simulations and tests."""

    name: Final = b""

    def __init__(self, chain_id: str) -> None:
        self.head = genesis(chain_id)
        self.books = Books()
        self._entries: list[Entry] = []
        self._records: dict[bytes, Kept] = {}
        self._nonces: dict[tuple[str, bytes], Nonce] = {}
        self._materials: dict[bytes, Material] = {}
        self._follower: Follower | None = None

    @property
    def remembered(self) -> Remembered | None:
        """Nothing: there are no snapshots."""
        return None

    async def snapshot(self) -> StoredSnapshot | None:
        """None."""
        return None

    def follow(self, follower: Follower, resumed: bool = False) -> None:
        """Have each entry from now on taken. See `Journal.follow`."""
        self._follower = follower

    async def append(
        self,
        events: Iterable[Event] = (),
        *,
        time_ms: int,
        records: Sequence[Kept] = (),
        nonces: Sequence[Nonce] = (),
        materials: Sequence[Material] = (),
        check: Callable[[Books], None] | None = None,
    ) -> Entry:
        """Write all of this, or nothing. See `Journal.append`."""
        if check is not None:
            check(self.books)
        fresh = {record.digest: record for record in records if record.digest not in self._records}
        events = tuple(events)
        entry, books = draft(self.head, self.books, events, fresh.values(), time_ms)
        used = dict(self._nonces)
        for nonce in nonces:
            if (nonce.buyer, nonce.nonce) in used:
                raise NonceReused(nonce.buyer, nonce.nonce)
            used[nonce.buyer, nonce.nonce] = nonce
        self.head, self.books, self._nonces = entry, books, used
        self._entries.append(entry)
        self._records |= {digest: evolve(kept, sequence=entry.sequence) for digest, kept in fresh.items()}
        self._materials |= {material.order: material for material in materials}
        if self._follower is not None:
            self._follower.take(time_ms, events, books)
        return entry

    async def refresh(self) -> None:
        """There are no others."""

    async def leads(self) -> bool:
        """Always."""
        return True

    async def gone(self, names: Collection[bytes]) -> Collection[bytes]:
        """All of them."""
        return set(names)

    async def entries(self, after: int = 0) -> AsyncIterator[Entry]:
        """The entries that follow a sequence number, in order."""
        for entry in self._entries[after:]:
            yield entry

    async def record(self, digest: bytes) -> Kept | None:
        """A record by its digest."""
        return self._records.get(digest)

    async def records_of(self, order: bytes) -> Sequence[Kept]:
        """All records of an order, oldest first."""
        return [kept for kept in self._records.values() if kept.order == order]

    async def records_between(self, first: int, last: int) -> Sequence[Kept]:
        """The records under entries from one sequence number up to another, in no order."""
        return [kept for kept in self._records.values() if first <= kept.sequence <= last]

    async def list_records(self, kind: str, limit: int, before: int | None = None) -> Sequence[Kept]:
        """The latest records of a kind, newest first. See `Journal.list_records`."""
        found: list[Kept] = []
        for kept in reversed(self._records.values()):
            if kept.kind == kind and (before is None or kept.sequence < before):
                if len(found) >= limit and found[-1].sequence != kept.sequence:
                    break
                found.append(kept)
        return found

    async def nonce_order(self, buyer: str, nonce: bytes) -> bytes | None:
        """The order for which a buyer has used a nonce."""
        used = self._nonces.get((buyer, nonce))
        return used.order if used else None

    async def material(self, order: bytes) -> bytes | None:
        """The sealed material of an order, while it is kept."""
        material = self._materials.get(order)
        return material.sealed if material else None

    async def expire(self, now: int) -> None:
        """Drop the nonces and materials that expired before `now` (seconds since 1970)."""
        self._nonces = {key: nonce for key, nonce in self._nonces.items() if nonce.expires >= now}
        self._materials = {key: sealed for key, sealed in self._materials.items() if sealed.expires >= now}

    async def records_before(
        self, time_ms: int, kinds: Sequence[str], after: tuple[int, bytes], limit: int
    ) -> Sequence[Kept]:
        """Records of entries from before a time. See `Journal.records_before`."""
        old = [
            kept
            for kept in self._records.values()
            if kept.kind in kinds
            and self._entries[kept.sequence - 1].time_ms < time_ms
            and (kept.sequence, kept.digest) > after
        ]
        return sorted(old, key=lambda kept: (kept.sequence, kept.digest))[:limit]

    async def drop_records(self, digests: Sequence[bytes]) -> None:
        """Drop records. See `Journal.drop_records`."""
        for digest in digests:
            self._records.pop(digest, None)

    async def close(self) -> None:
        """Nothing is held open."""
