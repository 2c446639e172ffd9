"""The books after some entries of a long chain, so that several processes can verify it, each a part."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table; it fills by itself."""
    op.create_table(
        "waypoints",
        sa.Column("chain", sa.Integer, sa.ForeignKey("chains.number"), primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("books", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Drop it: waypoints are copies."""
    op.drop_table("waypoints")
