"""What processes that write to one chain in PostgreSQL show of themselves to each other: advisory locks.

Theory of operation. A lock belongs to the connection of a process that writes, and the server lets it go when that
ends, however it does. All processes hold the chain's lock together, so that nobody fills the chain under them; each
holds one under its own name, so that the others see that it is there; the one that leads holds the leader's, and the
next one that asks for it gets it; and the one that moves money on a chain of blocks holds that lock from its start to
its end, so that there is no other. Whoever lost its connection takes its locks again with the next one. A process that
lost it and does not know yet may believe for a moment that it still leads: what leaders do is safe to be done twice.
"""

import hashlib
from collections.abc import Collection
from typing import Final

import sqlalchemy as sa
from attrs import frozen

from ledger.database.errors import LedgerInUse
from ledger.journal import genesis

# Seconds, for a lock of a process that is just ending.
_LOCK_S: Final = 1
_LOCK_NOT_AVAILABLE: Final = "55P03"
# 64 bits of what no other program's lock is likely to be.
TABLES_LOCK: Final = int.from_bytes(hashlib.sha256(b"idlemesh ledger tables").digest()[:8], "big", signed=True)

_HELD: Final = """
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32 | objid::bigint) = key
"""
# The server counts how often a lock is taken by its holder: once is enough.
_LEAD: Final = sa.text(f"""
    SELECT CASE WHEN EXISTS ({_HELD} AND pid = pg_backend_pid()) THEN true ELSE pg_try_advisory_lock(key) END
    FROM CAST(:key AS bigint) AS key
""")
_GONE: Final = sa.text(f"SELECT key FROM unnest(CAST(:keys AS bigint[])) AS key WHERE NOT EXISTS ({_HELD})")


@frozen
class Part:
    """A process's part among those that write to a chain.

    Others know it by its name, if it has one; one alone `moves_money`; and who is `alone` lets no other in at all.
    """

    name: bytes = b""
    moves_money: bool = False
    alone: bool = False


def take_part(connection: sa.Connection, chain_id: str, part: Part) -> None:
    """Take the locks of a process that writes to a chain. Raises LedgerInUse."""
    used = LedgerInUse(f"another process has the ledger of {chain_id} open", "Stop it, and start it again afterwards")
    _lock(connection, _key(chain_id), used, shared=not part.alone)
    if part.name:
        twin = LedgerInUse(
            "a process is there under this one's name: its home was copied, or the server has not noticed yet that it"
            " was cut off",
            "Delete process.id in the copied home, or try again in a minute",
        )
        _lock(connection, _key(chain_id, part.name), twin)
    if part.moves_money:
        moves = LedgerInUse(
            f"another process of {chain_id} has [stablecoin], and one alone may move its money",
            "Leave [stablecoin] and [paid] out here, or stop the other one",
        )
        _lock(connection, _key(chain_id, b"moves money"), moves)


def share_tables(connection: sa.Connection) -> None:
    """Let nobody change the tables. Raises LedgerInUse."""
    _lock(
        connection, TABLES_LOCK, LedgerInUse("its tables are being changed", "Try again when that is done"), shared=True
    )


def take_tables(connection: sa.Connection) -> None:
    """Have the tables alone. Raises LedgerInUse."""
    _lock(connection, TABLES_LOCK, LedgerInUse("nodes that share it are running", "Stop all of them first"))


def lead(connection: sa.Connection, chain_id: str) -> bool:
    """Whether this connection leads, from now on if nobody else does."""
    return bool(connection.execute(_LEAD, {"key": _key(chain_id, b"leads")}).scalar_one())


def gone(connection: sa.Connection, chain_id: str, names: Collection[bytes]) -> set[bytes]:
    """Which of these processes hold no lock under their name any more."""
    keys = {_key(chain_id, name): name for name in names}
    rows = connection.execute(_GONE, {"keys": list(keys)}).all()
    return {keys[row.key] for row in rows}


def steady(connection: sa.Connection) -> sa.Connection:
    """Have all that a transaction reads be of one moment, whatever is written meanwhile."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    return connection


def _key(chain_id: str, of: bytes = b"") -> int:
    root = genesis(chain_id).hash
    return int.from_bytes((hashlib.sha256(root + of).digest() if of else root)[:8], "big", signed=True)


def _lock(connection: sa.Connection, key: int, refused: LedgerInUse, *, shared: bool = False) -> None:
    """Take an advisory lock until the connection ends. Raises `refused` if another process has it."""
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_S}s'"))
    kind = "_shared" if shared else ""
    try:
        connection.execute(sa.text(f"SELECT pg_advisory_lock{kind}(:key)"), {"key": key})
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise refused from error
