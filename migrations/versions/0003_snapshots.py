"""The books after some entry, so that a start need not replay the whole journal."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table; it fills by itself."""
    op.create_table(
        "snapshots",
        sa.Column("chain", sa.Integer, sa.ForeignKey("chains.number"), primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("books", sa.LargeBinary, nullable=False),
        sa.Column("memory", sa.LargeBinary),
    )


def downgrade() -> None:
    """Drop it: snapshots are copies."""
    op.drop_table("snapshots")
