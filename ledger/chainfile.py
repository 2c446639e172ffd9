"""A whole chain in one file: every entry and every record that it tells of, to be moved, kept or checked elsewhere.

    file   = "idlemesh ledger 1" LF, then frames
    frame  = length (4 bytes, big-endian), then so many bytes of deterministic CBOR
    frames = {"chain": did:key}
             for each entry, in order:  {"time": ms, "payload": bytes, "hash": bytes}
               for each record it keeps:  {"raw": bytes}   in the order in which the payload tells of them,
                                        or {"gone": its digest}   where a later entry says that it was dropped
             {"end": sequence of the last entry, "hash": its hash}

Theory of operation. The hash of the last entry covers all entries before it, and each record is covered by the digest
that its entry tells; so whatever is altered, dropped, reordered or cut off shows, and nothing has to be believed but
that last hash, which counterparties hold too. Reading takes chunks as they come, and holds one entry at a time.

Nonces (they live ten minutes) and the sealed materials of audits (they are meant to be dropped) are not in the file.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from attrs import define, frozen

from ledger import codec
from ledger.account import Account, AccountKey
from ledger.events import Books, Event, RecordKept
from ledger.journal import BrokenChain, Entry, Kept, Replay, link
from ledger.payload import MAX_PAYLOAD_BYTES
from ledger.retention import Gaps

MAGIC: Final = b"idlemesh ledger 1\n"
# An entry's payload and a little around it; records are far smaller.
MAX_FRAME: Final = MAX_PAYLOAD_BYTES + 256
_LENGTH_BYTES: Final = 4
_FRAME_ITEMS: Final = 16


@define
class NotAChainFile(Exception):
    """Bytes that are no chain file, or not the one that is wanted."""

    why: str

    def __str__(self) -> str:
        return f"not a whole ledger: {self.why}. Take a file that `idlemesh ledger export` wrote to its end"


@define
class OtherChain(NotAChainFile):
    """The chain of another node."""

    def __str__(self) -> str:
        return f"{self.why}. To move a node, put its identity.key here first, and never run both copies"


@frozen
class Told:
    """One entry with what it says, and the records that it keeps."""

    entry: Entry
    events: tuple[Event, ...]
    records: tuple[Kept, ...]


def _frame(body: dict[str, Any]) -> bytes:
    raw = codec.encode(body)
    return len(raw).to_bytes(_LENGTH_BYTES, "big") + raw


def write_start(chain_id: str) -> bytes:
    """How the file of a node's chain begins."""
    return MAGIC + _frame({"chain": chain_id})


def write_entry(entry: Entry, records: Sequence[Kept | RecordKept]) -> bytes:
    """The next entry, with its records in the order in which it tells of them; for one that is gone, what is told."""
    own = _frame({"time": entry.time_ms, "payload": entry.payload, "hash": entry.hash})
    return own + b"".join(
        _frame({"raw": record.raw} if isinstance(record, Kept) else {"gone": record.digest}) for record in records
    )


def write_end(head: Entry) -> bytes:
    """How the file ends: with its last entry, or the genesis."""
    return _frame({"end": head.sequence, "hash": head.hash})


def records_told(events: Sequence[Event]) -> list[RecordKept]:
    """The records that an entry keeps, in its order."""
    return [event for event in events if isinstance(event, RecordKept)]


class ChainReader:
    """Reads a chain file piece by piece, and checks all of it: chain, guards of the accounts, records, end."""

    def __init__(self, chain_id: str) -> None:
        """`chain_id` is the did:key of the node whose chain is wanted; another one's is refused."""
        self._chain_id = chain_id
        self._replay = Replay(chain_id)
        self._buffer = bytearray()
        self._part: Literal["magic", "owner", "entries", "end"] = "magic"
        # The entry that waits for its records.
        self._entry: Entry | None = None
        self._events: tuple[Event, ...] = ()
        self._awaited: deque[RecordKept] = deque()
        self._records: list[Kept] = []
        self._gaps = Gaps()

    @property
    def dropped(self) -> int:
        """How many records were dropped in good order so far."""
        return self._gaps.dropped

    @property
    def head(self) -> Entry:
        """The last entry that was checked."""
        return self._replay.head

    @property
    def books(self) -> Books:
        """The books after it."""
        return self._replay.books

    def account(self, key: AccountKey) -> Account:
        """An account after it."""
        return self._replay.account(key)

    def feed(self, chunk: bytes) -> Iterator[Told]:
        """Take the next bytes; returns the entries that are complete. Raises NotAChainFile, BrokenChain."""
        self._buffer += chunk
        for raw in self._frames():
            told = self._take(raw)
            if told is not None:
                yield told

    def finish(self) -> None:
        """There are no more bytes. Raises NotAChainFile where some are missing."""
        if self._part != "end" or self._buffer:
            raise NotAChainFile(f"it was cut off after entry {self.head.sequence}")

    def _frames(self) -> Iterator[bytes]:
        at = 0
        try:
            if self._part == "magic" and len(self._buffer) >= len(MAGIC):
                at = self._begin()
            while self._part != "magic" and len(self._buffer) >= at + _LENGTH_BYTES:
                start = at + _LENGTH_BYTES
                size = int.from_bytes(self._buffer[at:start], "big")
                if size > MAX_FRAME:
                    raise NotAChainFile(f"a frame of {size} bytes, of at most {MAX_FRAME}")
                if len(self._buffer) < start + size:
                    return
                at = start + size
                yield bytes(self._buffer[start:at])
        finally:
            del self._buffer[:at]

    def _begin(self) -> int:
        if bytes(self._buffer[: len(MAGIC)]) != MAGIC:
            raise NotAChainFile("it begins like another kind of file, or another version of this one")
        self._part = "owner"
        return len(MAGIC)

    def _take(self, raw: bytes) -> Told | None:
        try:
            body = codec.decode(raw, MAX_FRAME, _FRAME_ITEMS)
        except codec.Malformed as error:
            raise NotAChainFile(f"after entry {self.head.sequence}: {error}") from None
        match self._part, body:
            case "owner", {"chain": str(chain_id), **rest} if not rest:
                if chain_id != self._chain_id:
                    raise OtherChain(f"it is the chain of {chain_id[:80]}, and this node is {self._chain_id}")
                self._part = "entries"
                return None
            case "entries", {"time": int(time_ms), "payload": bytes(payload), "hash": bytes(hash_), **rest} if not rest:
                return self._take_entry(time_ms, payload, hash_)
            case "entries", {"raw": bytes(record), **rest} if not rest and self._awaited:
                return self._take_record(record)
            case "entries", {"gone": bytes(digest), **rest} if not rest and self._awaited:
                return self._miss_record(digest)
            case "entries", {"end": int(sequence), "hash": bytes(hash_), **rest} if not rest and self._entry is None:
                if (sequence, hash_) != (self.head.sequence, self.head.hash):
                    raise BrokenChain(self.head.sequence, "the file ends with another entry than it names")
                if (gap := self._gaps.first) is not None:
                    raise BrokenChain(gap.sequence, str(gap))
                self._part = "end"
                return None
        raise NotAChainFile(f"something that has no place there follows entry {self.head.sequence}")

    def _take_entry(self, time_ms: int, payload: bytes, hash_: bytes) -> Told | None:
        previous = self.head
        if self._entry is not None:
            raise BrokenChain(self._entry.sequence, "records that it tells of are missing")
        if type(time_ms) is not int or not 0 <= time_ms < 2**63:
            raise BrokenChain(previous.sequence + 1, f"its time {time_ms} is out of range")
        entry = link(previous, time_ms, payload)
        if entry.hash != hash_:
            raise BrokenChain(entry.sequence, "its content does not match its hash")
        self._events = self._replay.add(entry)
        self._gaps.take(self._events)
        self._entry, self._awaited, self._records = entry, deque(records_told(self._events)), []
        return self._complete()

    def _take_record(self, raw: bytes) -> Told | None:
        told = self._awaited.popleft()
        kept = Kept(told.kind, raw, told.order, self.head.sequence)
        if kept.digest != told.digest:
            raise BrokenChain(self.head.sequence, f"{told.kind} {told.digest.hex()[:16]} does not match its digest")
        self._records.append(kept)
        return self._complete()

    def _miss_record(self, digest: bytes) -> Told | None:
        told = self._awaited.popleft()
        if told.digest != digest:
            raise BrokenChain(self.head.sequence, f"{told.kind} {told.digest.hex()[:16]} is another one than is gone")
        self._gaps.miss(self.head.sequence, digest)
        return self._complete()

    def _complete(self) -> Told | None:
        if self._awaited or self._entry is None:
            return None
        told = Told(self._entry, self._events, tuple(self._records))
        self._entry = None
        return told
