"""Several nodes may share one database: every row belongs to a chain.

The tables are made anew and filled from the old ones, because SQLite cannot change a primary key. What is in
the database when this runs is the one chain that the tables could hold so far; the first entry names its genesis.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TABLES = ("journal", "records", "nonces", "materials")
_COLUMNS = {
    "journal": "sequence, time_ms, payload, previous, hash",
    "records": 'digest, kind, "order", sequence, raw',
    "nonces": 'buyer, nonce, "order", expires',
    "materials": '"order", sealed, expires',
}
_INDEXES = {
    "records_by_order": ("records", "order"),
    "records_by_sequence": ("records", "sequence"),
    "nonces_by_expiry": ("nonces", "expires"),
    "materials_by_expiry": ("materials", "expires"),
}
_OLD_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Give every table a chain, and all rows the first one."""
    op.create_table(
        "chains",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("genesis", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("genesis", name="chains_by_genesis"),
    )
    # PostgreSQL counts on from here by itself: the number is not named.
    op.execute("INSERT INTO chains (genesis) SELECT previous FROM journal WHERE sequence = 1")
    _put_aside()
    _make_tables_of_chains()
    for table in _TABLES:
        columns = _COLUMNS[table]
        op.execute(f"INSERT INTO {table} (chain, {columns}) SELECT 1, {columns} FROM {table}_before")
    _drop_what_was_put_aside()
    for name, (table, column) in _INDEXES.items():
        op.create_index(name, table, ["chain", column])


def downgrade() -> None:
    """Take the chain out again; only a database of one chain can go back."""
    numbers = op.get_bind().execute(sa.text("SELECT number FROM chains")).scalars().all()
    if len(numbers) > 1:
        raise RuntimeError(f"{len(numbers)} nodes share this ledger, and the version before knows of one alone")
    _put_aside()
    _make_tables_of_one()
    for table in _TABLES:
        op.execute(f"INSERT INTO {table} ({_COLUMNS[table]}) SELECT {_COLUMNS[table]} FROM {table}_before")
    _drop_what_was_put_aside()
    op.drop_table("chains")
    for name, (table, column) in _INDEXES.items():
        op.create_index(name, table, [column])


def _put_aside() -> None:
    for table in _TABLES:
        op.rename_table(table, f"{table}_before")


def _drop_what_was_put_aside() -> None:
    for table in reversed(_TABLES):  # the records refer to the journal
        op.drop_table(f"{table}_before")


def _chain() -> sa.Column[int]:
    return sa.Column("chain", sa.Integer, sa.ForeignKey("chains.number"), nullable=False)


def _make_tables_of_chains() -> None:
    # The keys are named: the tables that were put aside still hold the names that PostgreSQL would choose.
    op.create_table(
        "journal",
        _chain(),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("previous", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("chain", "sequence", name="journal_key"),
        # On SQLite the key is the table itself, not a second tree beside it.
        sqlite_with_rowid=False,
    )
    op.create_table(
        "records",
        _chain(),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("order", sa.LargeBinary),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("chain", "digest", name="records_key"),
        sa.ForeignKeyConstraint(["chain", "sequence"], ["journal.chain", "journal.sequence"]),
    )
    op.create_table(
        "nonces",
        _chain(),
        sa.Column("buyer", sa.Text, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("order", sa.LargeBinary, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("chain", "buyer", "nonce", name="nonces_key"),
    )
    op.create_table(
        "materials",
        _chain(),
        sa.Column("order", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("chain", "order", name="materials_key"),
    )


def _make_tables_of_one() -> None:
    op.create_table(
        "journal",
        sa.Column("sequence", _OLD_SEQUENCE, primary_key=True, autoincrement=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("previous", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "records",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("order", sa.LargeBinary),
        sa.Column("sequence", _OLD_SEQUENCE, sa.ForeignKey("journal.sequence"), nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "nonces",
        sa.Column("buyer", sa.Text, primary_key=True),
        sa.Column("nonce", sa.LargeBinary, primary_key=True),
        sa.Column("order", sa.LargeBinary, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "materials",
        sa.Column("order", sa.LargeBinary, primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )
