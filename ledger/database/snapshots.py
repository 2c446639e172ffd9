"""The stored snapshot of a chain: the books after some entry, and what the journal's follower made of it until there.

    memory  = the follower's own bytes, then SHA-256(snapshot's sequence, 8 bytes big-endian; those bytes)

It is a copy and never the truth. Whoever finds it damaged says so in the log and goes back to the chain.
"""

import hashlib
import logging
from typing import Final

import sqlalchemy as sa

from ledger import snapshot
from ledger.database.schema import snapshots
from ledger.journal import StoredSnapshot
from ledger.snapshot import BadSnapshot

# Of a follower's bytes; one that needs more is made from the chain at each start.
MAX_MEMORY_BYTES: Final = 128 * 2**20
_DIGEST_BYTES: Final = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


def read(connection: sa.Connection, chain: int) -> StoredSnapshot | None:
    """The snapshot of a chain. Raises BadSnapshot; bytes beyond all bounds are not even fetched."""
    within = sa.func.length(snapshots.c.books) <= snapshot.MAX_BYTES
    memory = sa.case((sa.func.length(snapshots.c.memory) <= MAX_MEMORY_BYTES + _DIGEST_BYTES, snapshots.c.memory))
    query = sa.select(snapshots.c.sequence, snapshots.c.books, memory).where(snapshots.c.chain == chain, within)
    row = connection.execute(query).first()
    if row is None:
        return None
    match tuple(row):
        case (int(sequence), bytes(books), bytes() | None as sealed) if 0 < sequence < 2**63:
            return StoredSnapshot(sequence, books, _opened(sequence, sealed))
    raise BadSnapshot("its columns are of other types than were written")


def sequence_of(connection: sa.Connection, chain: int) -> int:
    """The entry of the snapshot that is stored, usable or not; 0 where there is none."""
    found = connection.execute(sa.select(snapshots.c.sequence).where(snapshots.c.chain == chain)).scalar()
    return found if isinstance(found, int) else 0


def write(connection: sa.Connection, chain: int, stored: StoredSnapshot) -> None:
    """Put a snapshot in the place of the one before."""
    row = {
        "chain": chain,
        "sequence": stored.sequence,
        "books": stored.books,
        "memory": None if stored.memory is None else stored.memory + _digest(stored.sequence, stored.memory),
    }
    connection.execute(sa.delete(snapshots).where(snapshots.c.chain == chain))
    connection.execute(sa.insert(snapshots), [row])


def _opened(sequence: int, sealed: bytes | None) -> bytes | None:
    """The follower's bytes; None where they are damaged."""
    if sealed is None:
        return None
    memory, digest = sealed[:-_DIGEST_BYTES], sealed[-_DIGEST_BYTES:]
    if digest != _digest(sequence, memory):
        _log.warning("what was remembered with the ledger's snapshot is damaged: it is made again from the journal")
        return None
    return memory


def _digest(sequence: int, memory: bytes) -> bytes:
    return hashlib.sha256(sequence.to_bytes(8, "big") + memory).digest()
