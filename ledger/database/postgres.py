"""A ledger in PostgreSQL, which several node processes share; the one door to asyncpg.

The connection that writes holds locks for as long as it lives: the tables', together with all other nodes, so that
nobody changes the tables under a node that runs, and those of its part in its chain (`ledger.database.presence`). The
server lets them go with the connection, however that ends. When a connection is lost, the next piece of work opens
another one, which must get the locks again.

Session locks do not survive a pooler that gives each transaction another connection (PgBouncer's transaction
mode): nodes connect to the server itself.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ledger.database.errors import LedgerInUse, LedgerUnavailable, translated
from ledger.database.lane import Lane
from ledger.database.opening import Upgraded, require_current, upgrade
from ledger.database.presence import Part, share_tables, take_part, take_tables

# Seconds: for a connection, and for one statement.
_CONNECT_S: Final = 10
_STATEMENT_S: Final = 120
# The server finds out within a minute that a node's machine is gone, and frees its locks.
_SETTINGS: Final = {
    "application_name": "idlemesh",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # A process that stands still in the middle of a transaction must not keep the others from their chain.
    "idle_in_transaction_session_timeout": "60s",
    # What others wrote while a lock was waited for is to be seen.
    "default_transaction_isolation": "read committed",
}
_ADVICE: Final = "Check that the server of ledger.url runs, has space and lets this user in, then try again"

T = TypeVar("T")


async def lanes_to(url: str, chain_id: str, part: Part) -> tuple[Lane, Lane]:
    """A lane that writes to a node's chain, and one that reads. See `places.lanes_to`."""

    def prepare(connection: sa.Connection) -> None:
        share_tables(connection)
        require_current(connection)
        take_part(connection, chain_id, part)
        _be_durable(connection)

    engine = make_engine(url, _STATEMENT_S)
    writer, reader = PostgresLane(engine, prepare), PostgresLane(engine)
    try:
        await writer.run(_nothing)
    except BaseException:
        await writer.close()
        raise
    return writer, reader


async def upgrade_tables(url: str) -> Upgraded:
    """Bring the tables up to date. See `places.upgrade_tables`."""

    def work(connection: sa.Connection) -> Upgraded:
        take_tables(connection)
        return upgrade(connection)

    async def run() -> Upgraded:
        lane = PostgresLane(make_engine(url, None))
        try:
            return await lane.run(work)
        finally:
            await lane.close()

    # A thread and a loop of its own: Alembic lets one upgrade run at a time, and waiting for it must not stop others.
    return await asyncio.to_thread(lambda: asyncio.run(run()))


def make_engine(url: str, statement_s: float | None) -> AsyncEngine:
    """An engine for a URL; `statement_s` seconds are the longest that a statement may take."""
    with translated():
        return create_async_engine(
            url,
            poolclass=sa.NullPool,
            hide_parameters=True,
            connect_args={"timeout": _CONNECT_S, "command_timeout": statement_s, "server_settings": _SETTINGS},
        )


def _nothing(_: sa.Connection) -> None:
    """The first piece of work: it opens the connection."""


def _be_durable(connection: sa.Connection) -> None:
    # A stronger setting than "on" is the owner's, and stays.
    is_off = "current_setting('synchronous_commit') = 'off'"
    connection.execute(sa.text(f"SELECT set_config('synchronous_commit', 'on', false) WHERE {is_off}"))


class PostgresLane:
    """One connection, opened at the first piece of work and again when it was lost. See `Lane`.

    `prepare` is run on each connection before anything else.
    """

    shared: Final = True

    def __init__(self, engine: AsyncEngine, prepare: Callable[[sa.Connection], None] = _nothing) -> None:
        self._engine = engine
        self._prepare = prepare
        self._connection: AsyncConnection | None = None
        self.driver: Any = None  # asyncpg's own connection, while there is one
        self._turn = asyncio.Lock()
        self._closed = False

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do a piece of work as one transaction, and return when it is committed. See `Lane.run`."""
        return await asyncio.shield(asyncio.ensure_future(self._run(work)))

    async def _run(self, work: Callable[[sa.Connection], T]) -> T:
        async with self._turn:
            if self._closed:
                raise LedgerUnavailable("it was closed")
            with _translated():
                # Found out before work begins, a server that has hung up (a restart) costs nobody anything.
                if self.driver is not None and self.driver.is_closed():
                    await self._drop()
                if self._connection is None:
                    await self._connect()
                return await self._transaction(work)

    async def _connect(self) -> None:
        self._connection = await self._engine.connect()
        self.driver = (await self._connection.get_raw_connection()).driver_connection
        try:
            await self._transaction(self._prepare)
        except BaseException:
            await self._drop()
            raise

    async def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        assert self._connection is not None
        try:
            async with self._connection.begin():
                return await self._connection.run_sync(work)
        except sa.exc.IntegrityError:
            raise
        except (sa.exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            # What state it is in is not worth finding out.
            await self._drop()
            raise

    async def _drop(self) -> None:
        connection, self._connection, self.driver = self._connection, None, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()

    async def close(self) -> None:
        """Finish the work under way and close the connection."""
        async with self._turn:
            self._closed = True
            connection, self._connection, self.driver = self._connection, None, None
            if connection is not None:
                with _translated():
                    await connection.close()


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what goes wrong with a server into errors of the ledger."""
    try:
        with translated():
            try:
                yield
            except TimeoutError as error:
                raise LedgerUnavailable("the server does not answer in time") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # A connection that is refused reaches us as the driver made it.
        raise LedgerUnavailable(str(error), _ADVICE) from error
    except LedgerInUse:
        raise
    except LedgerUnavailable as error:
        raise LedgerUnavailable(error.why, _ADVICE) from error.__cause__
