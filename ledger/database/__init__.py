"""(io) The durable journal, and what can be wrong with it."""

from ledger.database.durable import Database
from ledger.database.errors import (
    LedgerCorrupt,
    LedgerError,
    LedgerInUse,
    LedgerNotEmpty,
    LedgerOutdated,
    LedgerTooNew,
    LedgerUnavailable,
)
from ledger.database.importing import import_chain
from ledger.database.opening import Upgraded
from ledger.database.places import POSTGRES, Place, check_place, is_postgres, upgrade_tables
from ledger.database.presence import Part

__all__ = [
    "POSTGRES",
    "Database",
    "LedgerCorrupt",
    "LedgerError",
    "LedgerInUse",
    "LedgerNotEmpty",
    "LedgerOutdated",
    "LedgerTooNew",
    "LedgerUnavailable",
    "Part",
    "Place",
    "Upgraded",
    "check_place",
    "import_chain",
    "is_postgres",
    "upgrade_tables",
]
