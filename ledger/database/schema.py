"""The tables as this version reads and writes them (migrations make them), rows to values and back."""

from typing import Any, Final

import sqlalchemy as sa
from attrs import evolve

from ledger.database.errors import LedgerCorrupt
from ledger.journal import Entry, Kept

_metadata: Final = sa.MetaData()

journal: Final = sa.Table(
    "journal",
    _metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time_ms", sa.BigInteger),
    sa.Column("payload", sa.LargeBinary),
    sa.Column("previous", sa.LargeBinary),
    sa.Column("hash", sa.LargeBinary),
)
# `raw` is the COSE object as it was received; `order` is null for what belongs to none, such as an offer.
records: Final = sa.Table(
    "records",
    _metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("kind", sa.Text),
    sa.Column("order", sa.LargeBinary),
    sa.Column("sequence", sa.BigInteger),
    sa.Column("raw", sa.LargeBinary),
)
nonces: Final = sa.Table(
    "nonces",
    _metadata,
    sa.Column("buyer", sa.Text, primary_key=True),
    sa.Column("nonce", sa.LargeBinary, primary_key=True),
    sa.Column("order", sa.LargeBinary),
    sa.Column("expires", sa.BigInteger),
)
# Not in the chain: dropping them when their window closes leaves it whole.
materials: Final = sa.Table(
    "materials",
    _metadata,
    sa.Column("order", sa.LargeBinary, primary_key=True),
    sa.Column("sealed", sa.LargeBinary),
    sa.Column("expires", sa.BigInteger),
)


def row_of(value: object, table: sa.Table) -> dict[str, object]:
    """A value's attributes, as the columns of a table that are named after them."""
    return {column.name: getattr(value, column.name) for column in table.columns}


def row_of_kept(kept: Kept, entry: Entry) -> dict[str, object]:
    """A record's row, under the entry that mentions it."""
    return row_of(evolve(kept, sequence=entry.sequence), records)


def entry_of(row: Any) -> Entry:
    """A row of the journal. Raises LedgerCorrupt: SQLite gives back what it finds, of whatever type."""
    match tuple(row):
        case (int(sequence), int(time_ms), bytes(payload), bytes(previous), bytes(hash_)):
            return Entry(sequence, time_ms, payload, previous, hash_)
    raise LedgerCorrupt(None, "a row of the journal has columns of other types than were written")


def kept_of(row: Any) -> Kept:
    """A row of the records. Raises LedgerCorrupt, also when the bytes do not match their digest."""
    match tuple(row):
        case (bytes(digest), str(kind), bytes() | None as order, int(sequence), bytes(raw)):
            kept = Kept(kind, raw, order, sequence)
            if kept.digest == digest:
                return kept
            raise LedgerCorrupt(sequence, f"the bytes of {kind} {digest.hex()[:16]} do not match its digest")
    raise LedgerCorrupt(None, "a row of the records has columns of other types than were written")
