"""(io) The durable journal, and what can be wrong with it."""

from ledger.database.durable import Database
from ledger.database.errors import (
    LedgerCorrupt,
    LedgerError,
    LedgerInUse,
    LedgerOutdated,
    LedgerTooNew,
    LedgerUnavailable,
)
from ledger.database.opening import Upgraded
from ledger.database.places import POSTGRES, Place, check_place, is_postgres, upgrade_tables

__all__ = [
    "POSTGRES",
    "Database",
    "LedgerCorrupt",
    "LedgerError",
    "LedgerInUse",
    "LedgerOutdated",
    "LedgerTooNew",
    "LedgerUnavailable",
    "Place",
    "Upgraded",
    "check_place",
    "is_postgres",
    "upgrade_tables",
]
