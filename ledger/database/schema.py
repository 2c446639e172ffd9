"""The tables as this version reads and writes them (migrations make them), rows to values and back.

Several chains may share one database: every row belongs to one, by its number in `chains`.
"""

from typing import Any, Final

import sqlalchemy as sa

from ledger.database.errors import LedgerCorrupt
from ledger.events import RecordKept
from ledger.journal import Entry, Kept
from ledger.orders import unchecked
from ledger.records import digest_of
from ledger.stretch import ENTRY_TYPES, RECORD_TYPES

metadata: Final = sa.MetaData()

# A chain is known by the hash of its genesis, which is bound to its node's id.
chains: Final = sa.Table(
    "chains",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("genesis", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("genesis", name="chains_by_genesis"),
)


def _chain() -> sa.Column[int]:
    return sa.Column("chain", sa.Integer, sa.ForeignKey("chains.number"), primary_key=True, autoincrement=False)


journal: Final = sa.Table(
    "journal",
    metadata,
    _chain(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time_ms", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
# `raw` is the COSE object as it was received; `order` is null for what belongs to none, such as an offer.
records: Final = sa.Table(
    "records",
    metadata,
    _chain(),
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("order", sa.LargeBinary),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("raw", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["chain", "sequence"], ["journal.chain", "journal.sequence"]),
    sa.Index("records_by_order", "chain", "order"),
    sa.Index("records_by_sequence", "chain", "sequence"),
)
nonces: Final = sa.Table(
    "nonces",
    metadata,
    _chain(),
    sa.Column("buyer", sa.Text, primary_key=True),
    sa.Column("nonce", sa.LargeBinary, primary_key=True),
    sa.Column("order", sa.LargeBinary, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Index("nonces_by_expiry", "chain", "expires"),
)
# Not in the chain: dropping them when their window closes leaves it whole.
materials: Final = sa.Table(
    "materials",
    metadata,
    _chain(),
    sa.Column("order", sa.LargeBinary, primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Index("materials_by_expiry", "chain", "expires"),
)

# A copy of what follows from the journal, one for each chain: `ledger.database.snapshots` reads and writes it.
snapshots: Final = sa.Table(
    "snapshots",
    metadata,
    _chain(),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("books", sa.LargeBinary, nullable=False),
    sa.Column("memory", sa.LargeBinary),
)

# Copies too, of the books after some earlier entries: `ledger.database.waypoints` reads and writes them.
waypoints: Final = sa.Table(
    "waypoints",
    metadata,
    _chain(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("books", sa.LargeBinary, nullable=False),
)

_ENTRY: Final = (journal.c.sequence, journal.c.time_ms, journal.c.payload, journal.c.previous, journal.c.hash)
_KEPT: Final = (records.c.digest, records.c.kind, records.c.order, records.c.sequence, records.c.raw)


def select_entries(chain: int) -> sa.Select[Any]:
    """The journal of a chain, for `entry_of`."""
    return sa.select(*_ENTRY).where(journal.c.chain == chain)


def select_kept(chain: int) -> sa.Select[Any]:
    """The records of a chain, for `kept_of`."""
    return sa.select(*_KEPT).where(records.c.chain == chain)


def select_kept_between(chain: int, first: int, last: int) -> sa.Select[Any]:
    """The records under entries from one sequence number up to another, for `kept_of`."""
    return select_kept(chain).where(records.c.sequence.between(first, last))


def row_of(chain: int, value: object, table: sa.Table) -> dict[str, object]:
    """A value's attributes, as the columns of a table that are named after them."""
    columns = (column.name for column in table.columns if column.name != "chain")
    return {"chain": chain, **{name: getattr(value, name) for name in columns}}


def row_of_entry(chain: int, entry: Entry) -> dict[str, object]:
    """An entry's row."""
    return {
        "chain": chain,
        "sequence": entry.sequence,
        "time_ms": entry.time_ms,
        "payload": entry.payload,
        "previous": entry.previous,
        "hash": entry.hash,
    }


def row_of_kept(chain: int, kept: Kept, entry: Entry) -> dict[str, object]:
    """A record's row, under the entry that mentions it."""
    return {
        "chain": chain,
        "digest": kept.digest,
        "kind": kept.kind,
        "order": kept.order,
        "sequence": entry.sequence,
        "raw": kept.raw,
    }


def entry_of(row: Any) -> Entry:
    """A row of the journal. Raises LedgerCorrupt where its types are not those that were written."""
    if tuple(map(type, row)) != ENTRY_TYPES:
        raise LedgerCorrupt(None, "a row of the journal has columns of other types than were written")
    return Entry(*row)


def kept_of(row: Any) -> Kept:
    """A row of the records. Raises LedgerCorrupt, also when the bytes do not match their digest."""
    told = told_of(row)
    return Kept(told.kind, row[4], told.order, row[3])


def told_of(row: Any) -> RecordKept:
    """What an entry of the journal tells of a row of the records. Raises LedgerCorrupt as `kept_of` does."""
    if tuple(map(type, row)) not in RECORD_TYPES:
        raise LedgerCorrupt(None, "a row of the records has columns of other types than were written")
    digest, kind, order, sequence, raw = row
    if digest_of(raw) != digest:
        raise LedgerCorrupt(sequence, f"the bytes of {kind} {digest.hex()[:16]} do not match its digest")
    return unchecked(RecordKept, {"kind": kind, "digest": digest, "order": order})
