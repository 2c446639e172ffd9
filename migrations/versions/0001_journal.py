"""The journal, the records it mentions, the nonces used up, and the materials kept for audits."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# 64 bits everywhere; on SQLite only a column of type INTEGER is the row's own key.
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the four tables."""
    op.create_table(
        "journal",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=False),
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
        sa.Column("sequence", _SEQUENCE, sa.ForeignKey("journal.sequence"), nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
    )
    op.create_index("records_by_order", "records", ["order"])
    op.create_index("records_by_sequence", "records", ["sequence"])
    op.create_table(
        "nonces",
        sa.Column("buyer", sa.Text, primary_key=True),
        sa.Column("nonce", sa.LargeBinary, primary_key=True),
        sa.Column("order", sa.LargeBinary, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )
    op.create_index("nonces_by_expiry", "nonces", ["expires"])
    op.create_table(
        "materials",
        sa.Column("order", sa.LargeBinary, primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )
    op.create_index("materials_by_expiry", "materials", ["expires"])


def downgrade() -> None:
    """Drop them, and with them the whole ledger."""
    for table in ("materials", "nonces", "records", "journal"):
        op.drop_table(table)
