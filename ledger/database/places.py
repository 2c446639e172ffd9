"""Where a ledger can be: in a file of SQLite, or in a database of PostgreSQL."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from ledger.database.filelock import FileLock
from ledger.database.lane import Lane, SqliteLane, make_engine
from ledger.database.opening import Upgraded, upgrade
from ledger.database.presence import Part

# A path of SQLite, or a URL of PostgreSQL; the URL may hold a password and is never shown.
Place = str | Path

POSTGRES: Final = "postgresql+asyncpg://"
_OF_MANY: Final = Part()


def check_place(url: str) -> None:
    """Check that a URL names a database of PostgreSQL. Raises ValueError, which does not repeat the URL."""
    try:
        named = is_postgres(url) and bool(sa.make_url(url).database)
    except (sa.exc.ArgumentError, ValueError):
        named = False
    if not named:
        raise ValueError(f"name a database of PostgreSQL, as {POSTGRES}user@localhost/idlemesh") from None


def is_postgres(place: Place) -> bool:
    """Whether a ledger's place is a database of PostgreSQL."""
    return isinstance(place, str) and place.startswith(POSTGRES)


async def lanes_to(place: Place, chain_id: str, part: Part = _OF_MANY) -> tuple[Lane, Lane]:
    """A lane that writes to a node's chain, and one that reads. Raises LedgerError.

    On SQLite no other process writes meanwhile; on PostgreSQL that is as this one's `part` says.
    """
    if is_postgres(place):
        # Its driver takes a while to import, and few nodes need it.
        from ledger.database import postgres

        return await postgres.lanes_to(str(place), chain_id, part)
    writer = await _writer(place)
    try:
        await writer.run(upgrade)
    except BaseException:
        await writer.close()
        raise
    return writer, SqliteLane(make_engine(place), writes=False)


async def upgrade_tables(place: Place) -> Upgraded:
    """Bring a ledger's tables up to date, while no node uses it. Raises LedgerError."""
    if is_postgres(place):
        from ledger.database import postgres

        return await postgres.upgrade_tables(str(place))
    lane = await _writer(place)
    try:
        return await lane.run(upgrade)
    finally:
        await lane.close()


async def _writer(file: str | Path) -> Lane:
    """The lane that alone writes to a file of SQLite."""
    lock = await FileLock.take(file)
    try:
        return SqliteLane(make_engine(file), writes=True, lock=lock)
    except BaseException:
        lock.release()
        raise
