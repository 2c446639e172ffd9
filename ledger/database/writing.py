"""Rows of a group of appends, written in one transaction; and what of them is there already."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from ledger.database import schema
from ledger.database.grouping import Drafted, Stored
from ledger.journal import Kept, Material, Nonce

# Databases bound how many values one query may have.
_AT_A_TIME: Final = 400

T = TypeVar("T")


def lock_chain(connection: sa.Connection, chain: int) -> None:
    """Wait until no other transaction writes to a chain, and be the only one until this one ends (PostgreSQL)."""
    # Weaker than FOR UPDATE: the keys that refer to the row need not wait.
    row = sa.select(schema.chains.c.number).where(schema.chains.c.number == chain)
    connection.execute(row.with_for_update(key_share=True))


def insert_group(connection: sa.Connection, chain: int, group: Sequence[Drafted]) -> None:
    """Write appends in their order. Raises sqlalchemy's IntegrityError where a key is there already."""
    _insert(connection, schema.journal, [schema.row_of_entry(chain, drafted.entry) for drafted in group])
    kept = [schema.row_of_kept(chain, kept, drafted.entry) for drafted in group for kept in drafted.records]
    _insert(connection, schema.records, kept)
    nonces = [schema.row_of(chain, nonce, schema.nonces) for drafted in group for nonce in drafted.append.nonces]
    _insert(connection, schema.nonces, nonces)
    # Of an order's materials the last one stays.
    laid = {material.order: material for drafted in group for material in drafted.append.materials}
    _replace_materials(connection, chain, list(laid.values()))


def _insert(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, object]]) -> None:
    """One statement, however many rows they are.

    They go to the driver as they are: there is nothing to be converted, and looking at each value takes SQLAlchemy
    longer than SQLite needs to write it. PostgreSQL takes a column at a time, which spares it a call for each row.
    """
    if not rows:
        return
    statement = _statement(table, connection.dialect)
    columns = [[row[column.name] for row in rows] for column in table.columns]
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(statement, tuple(columns))
    else:
        connection.exec_driver_sql(statement, list(zip(*columns, strict=True)))


@lru_cache
def _statement(table: sa.Table, dialect: sa.Dialect) -> str:
    """The statement that inserts whole rows, their values in the order of the table's columns."""
    if dialect.name != "postgresql":
        return str(sa.insert(table).compile(dialect=dialect))
    types = [column.type.compile(dialect) for column in table.columns]
    arrays = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(types, 1))
    names = ", ".join(dialect.identifier_preparer.quote(column.name) for column in table.columns)
    return f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays})"


def _replace_materials(connection: sa.Connection, chain: int, materials: Sequence[Material]) -> None:
    if materials:
        laid = schema.materials
        older = sa.delete(laid).where(laid.c.chain == chain, laid.c.order == sa.bindparam("of"))
        connection.execute(older, [{"of": material.order} for material in materials])
        _insert(connection, laid, [schema.row_of(chain, material, laid) for material in materials])


def look_up(connection: sa.Connection, chain: int, nonces: Iterable[Nonce], records: Iterable[Kept]) -> Stored:
    """Which of these nonces and records a chain has stored."""
    used, kept = schema.nonces, schema.records
    by_buyer = sa.tuple_(used.c.buyer, used.c.nonce)

    def nonces_among(keys: Sequence[Any]) -> sa.Select[Any]:
        return sa.select(used.c.buyer, used.c.nonce).where(used.c.chain == chain, by_buyer.in_(keys))

    def records_among(digests: Sequence[Any]) -> sa.Select[Any]:
        return sa.select(kept.c.digest).where(kept.c.chain == chain, kept.c.digest.in_(digests))

    found_nonces = _found(connection, nonces_among, {(nonce.buyer, nonce.nonce) for nonce in nonces})
    found_records = _found(connection, records_among, {record.digest for record in records})
    return Stored({(buyer, nonce) for buyer, nonce in found_nonces}, {digest for (digest,) in found_records})


def _found(
    connection: sa.Connection, among: Callable[[Sequence[Any]], sa.Select[Any]], keys: Iterable[Any]
) -> Iterator[Any]:
    for some in _batched(keys):
        yield from connection.execute(among(some))


def _batched(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, _AT_A_TIME)):
        yield batch
