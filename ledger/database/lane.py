"""A lane to the database: one connection that takes one piece of work after another, each a whole transaction.

On SQLite a thread owns the connection, so that a transaction costs the event loop one hand-over to the thread
and back. (An asynchronous driver hands over several times for each statement: measured, an append took three
to five times as long.) The lane to PostgreSQL is in `ledger.database.postgres`.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa

from ledger.database.errors import LedgerUnavailable, translated
from ledger.database.filelock import FileLock

# How long SQLite waits for another process (a backup, a shell) that holds the file.
_BUSY_MS: Final = 5_000
_PRAGMAS: Final = (
    f"busy_timeout = {_BUSY_MS}",
    "journal_mode = WAL",
    "synchronous = FULL",  # durable means: on the disk when the append returns, power cut or not
    "foreign_keys = ON",
)

T = TypeVar("T")


class Lane(Protocol):
    """One connection, and the pieces of work that take turns on it."""

    @property
    def shared(self) -> bool:
        """Whether other processes may write to the same chain."""

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do a piece of work as one transaction, and return when it is committed.

        Work that has begun is finished, also when its caller is cancelled. Raises what the work raises,
        Conflict, LedgerCorrupt, LedgerUnavailable, LedgerTooNew.
        """

    async def close(self) -> None:
        """Finish the work under way and close the connection."""


def make_engine(path: str | Path) -> sa.Engine:
    """An engine for a file of SQLite, which is made if it is not there."""
    with translated():
        url = sa.URL.create("sqlite", database=str(path))
        engine = sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
        # SQLite gives its side files the rights of the main one.
        Path(path).touch(mode=0o600, exist_ok=True)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver would begin transactions by itself, and none for schema changes: `_begin_sqlite` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class SqliteLane:
    """One thread with one connection of an engine, opened at the first piece of work. See `Lane`.

    `lock` is let go when the lane is closed.
    """

    shared: Final = False

    def __init__(self, engine: sa.Engine, *, writes: bool, lock: FileLock | None = None) -> None:
        self._engine = engine
        self._lock = lock
        self._writes = writes
        self._connection: sa.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "ledger-writer" if writes else "ledger-reader")
        self._closed = False

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do a piece of work as one transaction, and return when it is committed. See `Lane.run`."""
        if self._closed:
            raise LedgerUnavailable("it was closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        with translated():
            if self._connection is None:
                self._connection = self._engine.connect().execution_options(writes=self._writes)
            with self._connection.begin():
                return work(self._connection)

    async def close(self) -> None:
        """Finish the work under way and close the connection."""
        if not self._closed:
            self._closed = True
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            finally:
                self._thread.shutdown()
                if self._lock is not None:
                    self._lock.release()

    def _disconnect(self) -> None:
        if self._connection is not None:
            with translated():
                self._connection.close()
