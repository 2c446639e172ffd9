"""The tables' side of retention: which records are old, and how they go."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ledger.database.schema import journal, records, select_kept


def records_before(
    chain: int, time_ms: int, kinds: Sequence[str], after: tuple[int, bytes], limit: int
) -> sa.Select[Any]:
    """Records of these kinds from before a time, by entry and digest; `after` is a place in this order."""
    sequence, digest = after
    entry = sa.and_(journal.c.chain == records.c.chain, journal.c.sequence == records.c.sequence)
    follows = sa.or_(records.c.sequence > sequence, sa.and_(records.c.sequence == sequence, records.c.digest > digest))
    old = select_kept(chain).join(journal, entry).where(journal.c.time_ms < time_ms, records.c.kind.in_(kinds), follows)
    return old.order_by(records.c.sequence, records.c.digest).limit(limit)


def drop_records(connection: sa.Connection, chain: int, digests: Sequence[bytes]) -> None:
    """Delete these records."""
    gone = sa.delete(records).where(records.c.chain == chain, records.c.digest == sa.bindparam("gone"))
    if digests:
        connection.execute(gone, [{"gone": digest} for digest in digests])
