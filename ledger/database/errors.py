"""What can be wrong with a ledger on disk, and the one place that turns the libraries' errors into it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import alembic.util
import sqlalchemy as sa
from attrs import define

# SQLite's verdicts on the file itself (https://www.sqlite.org/rescode.html), not on the means to reach it.
# ERROR is what a missing table gives, or a schema that cannot be read.
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR}
# PostgreSQL's (https://www.postgresql.org/docs/current/errcodes-appendix.html): a missing table or column,
# damaged data, a damaged index.
_SQLSTATES_OF_DAMAGE: Final = {"42P01", "42703", "XX001", "XX002"}
_ADVICE: Final = "Check the disk's space and permissions, then try again"


class LedgerError(Exception):
    """The ledger cannot be used as it is."""


@define
class LedgerCorrupt(LedgerError):
    """What is on the disk is not what was written there; `sequence` is the entry where it shows, if known."""

    sequence: int | None
    why: str

    def __str__(self) -> str:
        where = "" if self.sequence is None else f" at entry {self.sequence}"
        return (
            f"the ledger is damaged{where}: {self.why}. Keep the file as evidence, put a backup in its place"
            " and start again; counterparties hold signed copies of what the backup lacks"
        )


@define
class LedgerUnavailable(LedgerError):
    """The ledger cannot be read or written now: disk, permissions, the database server."""

    why: str
    advice: str = _ADVICE

    def __str__(self) -> str:
        return f"the ledger cannot be used: {self.why}. {self.advice}"


@define
class LedgerInUse(LedgerUnavailable):
    """Another process writes to this chain, or changes the tables."""

    advice: str = "Stop the other one: several processes of one identity share a ledger in PostgreSQL alone"


@define
class LedgerOutdated(LedgerError):
    """The ledger's schema is of an earlier version of this program, or was never made."""

    why: str

    def __str__(self) -> str:
        return (
            f"the ledger's tables are not those of this version: {self.why}. Stop all nodes that share the"
            " database, then run: idlemesh ledger upgrade"
        )


@define
class LedgerTooNew(LedgerError):
    """The ledger's schema is of a later version of this program."""

    why: str

    def __str__(self) -> str:
        return f"the ledger was written by a newer version ({self.why}): upgrade idlemesh to use it"


class LedgerNotEmpty(LedgerError):
    """The node has a chain there already."""

    def __str__(self) -> str:
        return "the ledger holds entries of this node already, and two chains cannot be joined"


class Conflict(Exception):
    """A row with this key is there already; never leaves this package."""


def _is_damage(cause: BaseException) -> bool:
    if getattr(cause, "sqlstate", None) in _SQLSTATES_OF_DAMAGE:
        return True
    code: int | None = getattr(cause, "sqlite_errorcode", None)
    if code is None:
        # The driver's own verdict, on text that is not UTF-8.
        return isinstance(cause, sqlite3.OperationalError)
    # The low byte is the verdict, the rest its detail.
    return code & 0xFF in _DAMAGE


def _said(cause: BaseException) -> str:
    # What SQLAlchemy makes of asyncpg's errors names their class first; the server's own words are the cause.
    return str(cause.__cause__ or cause) or type(cause).__name__


@contextmanager
def translated() -> Iterator[None]:
    """Turn what SQLAlchemy, Alembic and the driver raise into errors of the ledger."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise Conflict from error
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause = getattr(error, "orig", None) or error
        if _is_damage(cause):
            raise LedgerCorrupt(None, _said(cause)) from error
        raise LedgerUnavailable(_said(cause)) from error
    except UnicodeDecodeError as error:
        # SQLite quotes what it cannot parse, and the driver cannot read the quotation.
        raise LedgerCorrupt(None, "text in it is not UTF-8") from error
    except alembic.util.CommandError as error:
        raise LedgerTooNew(str(error)) from error
