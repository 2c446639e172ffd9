"""Alembic's entry: run the versions on the connection that `ledger.database` hands over in the configuration.

There is no ini file, and nothing is read from the environment: the caller has the connection, and commits.
"""

from alembic import context

from ledger.database.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # All versions of one upgrade stand or fall together, on SQLite too: a crash leaves no half-made schema.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
