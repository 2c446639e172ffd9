"""Before a ledger is used, its schema is brought up to date, and all of it is read and checked."""

from collections.abc import Iterable
from importlib import resources
from threading import Lock
from typing import Any, Final

import alembic.command
import alembic.config
import sqlalchemy as sa

from ledger.database.errors import LedgerCorrupt
from ledger.database.schema import entry_of, journal, kept_of, records
from ledger.events import Event, RecordKept
from ledger.journal import BrokenChain, Kept, Replay

# Entries read at a time, so that memory stays flat however long the journal is.
BATCH: Final = 1_000

# Alembic keeps the upgrade under way in a module's globals: one at a time in a process.
_UPGRADING: Final = Lock()


def upgrade(connection: sa.Connection) -> None:
    """Run the migrations that this database has not seen.

    Raises CommandError for a later version's database, LedgerCorrupt for that of another program.
    """
    tables = sa.inspect(connection).get_table_names()
    if tables and "alembic_version" not in tables:
        raise LedgerCorrupt(None, f"it is a database of something else, with the table {tables[0]!r}")
    configuration = alembic.config.Config()
    configuration.set_main_option("script_location", str(resources.files("migrations")))
    configuration.attributes["connection"] = connection
    with _UPGRADING:
        alembic.command.upgrade(configuration, "head")


def entries_after(sequence: int) -> sa.Select[Any]:
    """The next batch of the journal's rows."""
    following = sa.select(journal).where(journal.c.sequence > sequence)
    return following.order_by(journal.c.sequence).limit(BATCH)


def verify(connection: sa.Connection, chain_id: str) -> Replay:
    """Check the whole chain, and every record against it; rebuild the books. Raises LedgerCorrupt."""
    replayed, told = Replay(chain_id), 0
    while rows := connection.execute(entries_after(replayed.head.sequence)).all():
        entries = [entry_of(row) for row in rows]
        stored = _records_between(connection, entries[0].sequence, entries[-1].sequence)
        for entry in entries:
            try:
                events = replayed.add(entry)
            except BrokenChain as error:
                raise LedgerCorrupt(error.sequence, error.why) from error
            told += _compare(entry.sequence, events, stored.get(entry.sequence, []))
    count = connection.execute(sa.select(sa.func.count()).select_from(records)).scalar_one()
    if count != told:
        raise LedgerCorrupt(None, f"{count} records are stored, and the journal tells of {told}")
    return replayed


def _records_between(connection: sa.Connection, first: int, last: int) -> dict[int, list[Kept]]:
    found: dict[int, list[Kept]] = {}
    for row in connection.execute(sa.select(records).where(records.c.sequence.between(first, last))):
        kept = kept_of(row)
        found.setdefault(kept.sequence, []).append(kept)
    return found


def _compare(sequence: int, events: Iterable[Event], stored: Iterable[Kept]) -> int:
    """Compare an entry's records with those stored under it; returns how many there are."""
    told = {event for event in events if isinstance(event, RecordKept)}
    differences = told ^ {RecordKept(kept.kind, kept.digest, kept.order) for kept in stored}
    for odd in differences:
        raise LedgerCorrupt(sequence, f"{odd.kind} {odd.digest.hex()[:16]} is not stored as the journal tells")
    return len(told)
