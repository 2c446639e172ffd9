"""(io) The durable journal, and what can be wrong with it."""

from ledger.database.durable import Database
from ledger.database.errors import LedgerCorrupt, LedgerError, LedgerTooNew, LedgerUnavailable

__all__ = ["Database", "LedgerCorrupt", "LedgerError", "LedgerTooNew", "LedgerUnavailable"]
