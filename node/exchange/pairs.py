"""Both signatures under what a node and a peer agreed on, found again for a peer that lost the answer."""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeVar

from ledger.records import KINDS, Netting, Settlement, Signed, open_record
from node.exchange.book import Book
from node.wire.messages import Refused, encode_signatures

# So many of the newest records of a kind are looked through.
_LOOK_BACK: Final = 400
# Checking signatures takes a moment; after so many others have their turn.
_AT_ONCE: Final = 16

Agreed = TypeVar("Agreed", Settlement, Netting)


async def find_pair(
    book: Book, kind: type[Agreed], parties: tuple[str, str], fits: Callable[[Agreed], bool]
) -> tuple[bytes, bytes] | None:
    """The newest records that fit, one of each party in this order; None if there are none."""
    last: dict[str, bytes] = {}
    for number, record in enumerate(await book.journal.list_records(kind.kind, _LOOK_BACK), 1):
        signed = opened(record.raw, kind.kind)
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
        if fits(signed.record):
            last[signed.signer] = signed.raw
    return (last[parties[0]], last[parties[1]]) if last.keys() == set(parties) else None


@lru_cache(2 * 2 * _LOOK_BACK)
def opened(raw: bytes, kind: str) -> Signed[Any]:
    """A record of the journal, its signature checked once: a peer may ask for the same pair as often as it likes."""
    return open_record(raw, KINDS[kind])


async def last_pair(
    book: Book, kind: type[Agreed], parties: tuple[str, str], fits: Callable[[Agreed], bool], why: Exception
) -> bytes:
    """The same as an answer. Raises Refused, which says `why`."""
    pair = await find_pair(book, kind, parties, fits)
    if pair is None:
        raise Refused("expired", str(why))
    return encode_signatures(pair)
