"""The durable ledger's schema, one change per version; `ledger.database` runs them when it opens."""
