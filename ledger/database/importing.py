"""A whole chain is written into a ledger that has none of this node: all of it, or nothing."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import sqlalchemy as sa

from ledger.chainfile import Told
from ledger.database import schema
from ledger.database.errors import LedgerNotEmpty
from ledger.database.opening import enter
from ledger.database.places import Place, lanes_to
from ledger.database.presence import Part
from ledger.journal import Entry, genesis

# So many entries are held in memory at a time.
_AT_A_TIME: Final = 64


async def import_chain(place: Place, chain_id: str, told: Iterable[Told]) -> Entry:
    """Write the entries of a node's chain as they were, with their records, in one transaction; returns the last.

    `told` comes from a `ChainReader`, which checks it; what that raises leaves the ledger as it was. Raises
    LedgerNotEmpty where the node has entries there, and as `Database.open` does.
    """
    writer, reader = await lanes_to(place, chain_id, Part(alone=True))
    try:
        return await writer.run(lambda connection: _fill(connection, chain_id, told))
    finally:
        await reader.close()
        await writer.close()


def _fill(connection: sa.Connection, chain_id: str, told: Iterable[Told]) -> Entry:
    chain, head = enter(connection, chain_id), genesis(chain_id)
    if connection.execute(schema.select_entries(chain).limit(1)).first() is not None:
        raise LedgerNotEmpty
    for some in _batches(told):
        head = some[-1].entry
        connection.execute(sa.insert(schema.journal), [schema.row_of(chain, one.entry, schema.journal) for one in some])
        records = [row for one in some for row in _rows(chain, one)]
        if records:
            connection.execute(sa.insert(schema.records), records)
    return head


def _batches(told: Iterable[Told]) -> Iterator[list[Told]]:
    following = iter(told)
    while some := list(islice(following, _AT_A_TIME)):
        yield some


def _rows(chain: int, told: Told) -> list[dict[str, Any]]:
    return [schema.row_of_kept(chain, kept, told.entry) for kept in told.records]
