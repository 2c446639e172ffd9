"""Before a ledger is used, its schema is brought up to date, and it is read and checked.

Where a snapshot of the books is there that the chain bears out, reading goes on from its entry; else the whole chain is
read, and every record compared with it.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Any, Final

import alembic.command
import alembic.config
import alembic.script
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from attrs import evolve, frozen

from ledger import snapshot
from ledger.database import helpers, snapshots, waypoints
from ledger.database.backup import back_up
from ledger.database.errors import LedgerCorrupt, LedgerOutdated
from ledger.database.schema import chains, entry_of, journal, records, select_entries, select_kept_between, told_of
from ledger.database.waypoints import Left
from ledger.events import Books, Event, RecordKept
from ledger.journal import BrokenChain, Entry, Remembered, Replay, check_content, genesis
from ledger.retention import Gaps
from ledger.snapshot import BadSnapshot, Snapshot
from ledger.stretch import Passage, join

# Entries read at a time, so that memory stays flat however long the journal is.
BATCH: Final = 1_000
_MOST: Final = 2**63 - 1

_log = logging.getLogger(__name__)

# Alembic keeps the upgrade under way in a module's globals: one at a time in a process.
_UPGRADING: Final = Lock()


@frozen
class Upgraded:
    """What an upgrade did: the versions before (None: no tables) and after, and the copy of what was before."""

    before: str | None
    after: str
    backup: Path | None = None


@frozen
class Verified:
    """A whole chain up to `head`, with so many records; so many more were dropped in good order."""

    head: Entry
    records: int
    dropped: int


@frozen
class Opened:
    """A chain that was checked: its number in the database, its last entry, and the books after it.

    `snapshot` is the entry of the snapshot that this began from, 0 for none; `remembered` is what came with it.
    Where all was read, `verified` says what it was found to be; where that was done entry by entry, `left` are the
    waypoints to be stored in the place of others.
    """

    chain_id: str
    chain: int
    head: Entry
    books: Books
    snapshot: int = 0
    remembered: Remembered | None = None
    verified: Verified | None = None
    left: Sequence[tuple[int, bytes]] | None = None


def upgrade(connection: sa.Connection) -> Upgraded:
    """Run the migrations that this database has not seen; a file of SQLite is copied before, if it needs any.

    Raises CommandError for a later version's database, LedgerCorrupt for that of another program.
    """
    configuration = migrations()
    before, after = _versions(connection, configuration)
    backup = None
    if before not in (None, after) and connection.dialect.name == "sqlite":
        backup = back_up(Path(str(connection.engine.url.database)), str(before))
    configuration.attributes["connection"] = connection
    with _UPGRADING:
        try:
            alembic.command.upgrade(configuration, "head")
        except sa.exc.IntegrityError as error:
            raise LedgerCorrupt(None, f"its rows do not fit together, found at the upgrade from {before}") from error
    return Upgraded(before, after, backup)


def require_current(connection: sa.Connection) -> None:
    """Check that no migration is due. Raises LedgerOutdated, and as `upgrade` does."""
    before, after = _versions(connection, migrations())
    if before is None:
        raise LedgerOutdated("they were not made yet")
    if before != after:
        raise LedgerOutdated(f"they are of version {before}, and this is {after}")


def migrations() -> alembic.config.Config:
    """Alembic's configuration, but for the connection."""
    configuration = alembic.config.Config()
    configuration.set_main_option("script_location", str(resources.files("migrations")))
    return configuration


def _versions(connection: sa.Connection, configuration: alembic.config.Config) -> tuple[str | None, str]:
    """The schema's version in the database and the one that this program needs."""
    tables = set(sa.inspect(connection).get_table_names())
    known = {"alembic_version", journal.name}
    if tables and not known <= tables and tables != {"alembic_version"}:
        other = min(tables - known, default=journal.name)
        raise LedgerCorrupt(None, f"it is a database of something else, with the table {other!r}")
    script = alembic.script.ScriptDirectory.from_config(configuration)
    before = MigrationContext.configure(connection).get_current_revision()
    if before is not None:
        script.get_revision(before)
    return before, str(script.get_current_head())


def enter(connection: sa.Connection, chain_id: str) -> int:
    """The number of a node's chain, begun if it is new. Raises LedgerCorrupt for another node's file."""
    root = genesis(chain_id).hash
    number = connection.execute(sa.select(chains.c.number).where(chains.c.genesis == root)).scalar_one_or_none()
    if number is not None:
        return int(number)
    if _is_of_one(connection) and connection.execute(sa.select(chains.c.number)).first() is not None:
        raise LedgerCorrupt(None, "it is the ledger of another node")
    # Another process of the node may begin it at the same time.
    begin = sa.text("INSERT INTO chains (genesis) VALUES (:root) ON CONFLICT DO NOTHING")
    connection.execute(begin, {"root": root})
    return int(connection.execute(sa.select(chains.c.number).where(chains.c.genesis == root)).scalar_one())


def entries_after(chain: int, sequence: int, limit: int = BATCH) -> sa.Select[Any]:
    """The next batch of a chain's rows in the journal."""
    following = select_entries(chain).where(journal.c.sequence > sequence)
    return following.order_by(journal.c.sequence).limit(limit)


def resume(connection: sa.Connection, chain_id: str, chain: int) -> Opened:
    """Go on from the stored snapshot, or else verify everything. Raises LedgerCorrupt."""
    found = _snapshot(connection, chain_id, chain)
    if found is None:
        return verify(connection, chain_id, chain)
    taken, memory = found
    start = _entry_at(connection, chain, taken.sequence)
    if not taken.follows(start):
        _pass_over(BadSnapshot(f"it follows another entry {taken.sequence} than the journal has"))
        return verify(connection, chain_id, chain)
    _check_content(start)
    reading = _Reading(connection, chain, Replay.after(start, taken.books))
    reading.read_on()
    _check_no_gap(reading.gaps)
    remembered = None if memory is None else Remembered(start, taken.books, memory)
    return Opened(chain_id, chain, reading.replayed.head, reading.replayed.books, taken.sequence, remembered)


def verify_all(connection: sa.Connection, chain_id: str, chain: int) -> Opened:
    """Check the whole chain, and the stored snapshot against it. Raises LedgerCorrupt; a wrong snapshot is dropped."""
    found = _snapshot(connection, chain_id, chain)
    return verify(connection, chain_id, chain, found[0] if found else None)


def _snapshot(connection: sa.Connection, chain_id: str, chain: int) -> tuple[Snapshot, bytes | None] | None:
    """The stored snapshot, and what was remembered with it; None where nothing of it is usable."""
    try:
        stored = snapshots.read(connection, chain)
        if stored is None:
            return None
        taken = snapshot.decode(stored.books, chain_id)
        if taken.sequence != stored.sequence:
            raise BadSnapshot("it is stored under another entry than it names")
    except BadSnapshot as error:
        _pass_over(error)
        return None
    return taken, stored.memory


def _pass_over(error: BadSnapshot) -> None:
    _log.warning("the ledger's snapshot is passed over, and everything read instead: %s", error.why)


def _entry_at(connection: sa.Connection, chain: int, sequence: int) -> Entry:
    row = connection.execute(entries_after(chain, sequence - 1, 1)).first()
    entry = entry_of(row) if row else genesis("")
    _check_reaches(entry, sequence)
    return entry


def _check_reaches(found: Entry, sequence: int) -> None:
    # The snapshot was written when its entry was on the disk: what is missing now was taken away.
    if found.sequence < sequence:
        raise LedgerCorrupt(None, f"it ends before entry {sequence}, which it had")


def _check_content(entry: Entry) -> None:
    """Check that an entry is what its own hash says. Raises LedgerCorrupt."""
    try:
        check_content(entry)
    except BrokenChain as error:
        raise LedgerCorrupt(error.sequence, error.why) from error


def verify(connection: sa.Connection, chain_id: str, chain: int, taken: Snapshot | None = None) -> Opened:
    """Check the whole chain, every record against it, and a snapshot; rebuild the books. Raises LedgerCorrupt.

    Other processes help with a long one in a file of SQLite. They never have the last word on what is wrong.
    """
    if not _is_of_one(connection):
        return _verify(connection, chain_id, chain, taken)
    last = _MOST if taken is None else taken.sequence
    along = [sequence for sequence in waypoints.sequences(connection, chain) if sequence <= last]
    if count := helpers.how_many(along):
        try:
            return _verify_in_parts(connection, chain_id, chain, taken, along, count)
        except (helpers.NotAgreed, BadSnapshot, BrokenChain, LedgerCorrupt):
            _log.warning("checking the ledger on several cores did not go through: it is read again on one")
    left = Left(chain_id)
    return evolve(_verify(connection, chain_id, chain, taken, left.pass_by), left=left.of)


def _verify(
    connection: sa.Connection,
    chain_id: str,
    chain: int,
    taken: Snapshot | None,
    pass_by: Callable[[Entry, Books], None] | None = None,
) -> Opened:
    reading = _Reading(connection, chain, Replay(chain_id), pass_by)
    agreed = _read_past(taken, reading.replayed, reading.read_on)
    rows = _rows(connection, chain)
    return _whole(rows, chain_id, chain, reading.replayed, agreed, reading.records, reading.gaps)


def _verify_in_parts(
    connection: sa.Connection, chain_id: str, chain: int, taken: Snapshot | None, along: Sequence[int], count: int
) -> Opened:
    """Have all up to the last waypoint verified by so many processes, and verify the rest.

    Raises NotAgreed, BadSnapshot, BrokenChain, LedgerCorrupt.
    """
    with helpers.helping(str(connection.engine.url.database), chain, chain_id, along, count) as helped:
        rest = Passage.begin(chain_id, waypoints.read(connection, chain, along[-1]))
        if rest.replayed.head.sequence != along[-1]:
            raise BadSnapshot("a waypoint lies under another entry than it names")

        def read_on(until: int) -> None:
            while rows := _following(connection, chain, rest.replayed.head.sequence, until):
                rest.take(
                    rows, connection.execute(select_kept_between(chain, rows[0].sequence, rows[-1].sequence)).all()
                )

        agreed = _read_past(taken, rest.replayed, read_on)
        rows = _rows(connection, chain)  # while the others are at work
        found = helped.found()
    # All of it: where nothing follows the last waypoint, that knows the hash alone.
    rest.replayed.head = _entry_at(connection, chain, rest.replayed.head.sequence)
    return _whole(rows, chain_id, chain, rest.replayed, agreed, *join([*found, rest.found]))


def _read_past(taken: Snapshot | None, replayed: Replay, read_on: Callable[[int], None]) -> int:
    """Read all that follows, and see on the way whether it gives a snapshot: returns that one's entry, or 0."""
    agreed = 0
    if taken is not None:
        read_on(taken.sequence)
        _check_reaches(replayed.head, taken.sequence)
        try:
            snapshot.check(taken, replayed.head, replayed.books)
            agreed = taken.sequence
        except BadSnapshot as error:
            _pass_over(error)
    read_on(_MOST)
    return agreed


def _rows(connection: sa.Connection, chain: int) -> Mapping[str, int]:
    """How many rows the tables have."""
    return {table.name: _count(connection, chain, table) for table in (journal, records)}


def _whole(
    rows: Mapping[str, int], chain_id: str, chain: int, replayed: Replay, agreed: int, stored: int, gaps: Gaps
) -> Opened:
    """A chain of which all was read, with so many records, after a last look at what is missing and what is extra."""
    _check_no_gap(gaps)
    for table, expected in ((journal.name, replayed.head.sequence), (records.name, stored)):
        if rows[table] != expected:
            raise LedgerCorrupt(None, f"{rows[table]} rows are in the {table}, and the chain tells of {expected}")
    verified = Verified(replayed.head, stored, gaps.dropped)
    return Opened(chain_id, chain, replayed.head, replayed.books, agreed, verified=verified)


class _Reading:
    """A chain that is read entry by entry, with its records, so that what is wrong is told of the very entry."""

    def __init__(
        self,
        connection: sa.Connection,
        chain: int,
        replayed: Replay,
        pass_by: Callable[[Entry, Books], None] | None = None,
    ) -> None:
        """`pass_by` is called on the way, now and then."""
        self._connection, self._chain, self._pass_by = connection, chain, pass_by
        self.replayed = replayed
        self.gaps = Gaps()
        self.records = 0  # that are stored

    def read_on(self, until: int = _MOST) -> None:
        """Check what follows in the chain up to an entry, and its records. Raises LedgerCorrupt."""
        while rows := _following(self._connection, self._chain, self.replayed.head.sequence, until):
            entries = [entry_of(row) for row in rows]
            stored = _records_between(self._connection, self._chain, entries[0].sequence, entries[-1].sequence)
            for entry in entries:
                events = _add(self.replayed, entry)
                self.records += _compare(entry.sequence, events, stored.get(entry.sequence, []), self.gaps)
                self.gaps.take(events)
            if self._pass_by is not None:
                self._pass_by(self.replayed.head, self.replayed.books)


def _following(connection: sa.Connection, chain: int, after: int, until: int) -> Sequence[Any]:
    """The next rows of a chain's entries, up to one."""
    return connection.execute(entries_after(chain, after, min(BATCH, until - after))).all()


def _check_no_gap(gaps: Gaps) -> None:
    if (gap := gaps.first) is not None:
        raise LedgerCorrupt(gap.sequence, str(gap))


def _add(replayed: Replay, entry: Entry) -> tuple[Event, ...]:
    try:
        return replayed.add(entry)
    except BrokenChain as error:
        raise LedgerCorrupt(error.sequence, error.why) from error


def _is_of_one(connection: sa.Connection) -> bool:
    """Whether the database can hold one chain alone."""
    return connection.dialect.name == "sqlite"


def _count(connection: sa.Connection, chain: int, table: sa.Table) -> int:
    rows = sa.select(sa.func.count()).select_from(table)
    # Where there is one chain, a row of any other is damage.
    mine = rows if _is_of_one(connection) else rows.where(table.c.chain == chain)
    return int(connection.execute(mine).scalar_one())


def _records_between(connection: sa.Connection, chain: int, first: int, last: int) -> dict[int, list[RecordKept]]:
    found: dict[int, list[RecordKept]] = {}
    for row in connection.execute(select_kept_between(chain, first, last)).all():
        found.setdefault(row[3], []).append(told_of(row))
    return found


def _compare(sequence: int, events: Iterable[Event], found: Sequence[RecordKept], gaps: Gaps) -> int:
    """Compare an entry's records with those stored under it; returns how many are stored."""
    kept = [event for event in events if type(event) is RecordKept]
    if kept == found and len(kept) < 2:
        return len(kept)
    told, stored = set(kept), set(found)
    for odd in stored - told:
        raise LedgerCorrupt(sequence, f"{odd.kind} {odd.digest.hex()[:16]} is not stored as the journal tells")
    for missing in told - stored:
        gaps.miss(sequence, missing.digest)
    return len(stored)
