"""Both signatures under what a node and a peer agreed on, found again for a peer that lost the answer."""

from collections.abc import Callable
from typing import Final, TypeVar

from ledger.records import Netting, Settlement, open_record
from node.exchange.book import Book
from node.wire.messages import Refused, encode_signatures

# So many of the newest records of a kind are looked through.
_LOOK_BACK: Final = 400

Agreed = TypeVar("Agreed", Settlement, Netting)


async def find_pair(
    book: Book, kind: type[Agreed], parties: tuple[str, str], fits: Callable[[Agreed], bool]
) -> tuple[bytes, bytes] | None:
    """The newest records that fit, one of each party in this order; None if there are none."""
    last: dict[str, bytes] = {}
    for record in await book.journal.list_records(kind.kind, _LOOK_BACK):
        signed = open_record(record.raw, kind)
        if fits(signed.record):
            last[signed.signer] = signed.raw
    return (last[parties[0]], last[parties[1]]) if last.keys() == set(parties) else None


async def last_pair(
    book: Book, kind: type[Agreed], parties: tuple[str, str], fits: Callable[[Agreed], bool], why: Exception
) -> bytes:
    """The same as an answer. Raises Refused, which says `why`."""
    pair = await find_pair(book, kind, parties, fits)
    if pair is None:
        raise Refused("expired", str(why))
    return encode_signatures(pair)
