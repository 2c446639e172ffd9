"""Both signatures under what a node and a peer agreed on, found again for a peer that lost the answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Any, Final, TypeVar

from ledger.journal import Kept
from ledger.records import KINDS, Netting, Settlement, Signed, open_record
from node.exchange.book import Book
from node.wire.messages import Refused, encode_signatures

# So many of the newest records of a kind are looked through, whosever they are, page by page.
LOOK_THROUGH: Final = 40_000
# Where a peer asks for it as often as it likes.
_LOOK_BACK: Final = 4_000
_PAGE: Final = 400
_REMEMBERED: Final = 2_000
# Checking signatures takes a moment; after so many others have their turn.
_AT_ONCE: Final = 16

Agreed = TypeVar("Agreed", Settlement, Netting)


async def find_pair(
    book: Book,
    kind: type[Agreed],
    parties: tuple[str, str],
    fits: Callable[[Agreed], bool],
    most: int = LOOK_THROUGH,
    told: Callable[[int], None] | None = None,
) -> tuple[bytes, bytes] | None:
    """The newest records that fit, one of each party in this order; None if there are none.

    `most` and `told` as for `records_between`.
    """
    last: dict[str, bytes] = {}
    number = 0
    async for record in records_between(book, kind.kind, parties, most, told):
        signed = opened(record.raw, kind.kind)
        number += 1
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
        if fits(signed.record):
            last.setdefault(signed.signer, signed.raw)
        if last.keys() == set(parties):
            return last[parties[0]], last[parties[1]]
    return None


async def records_between(
    book: Book, kind: str, parties: tuple[str, str], most: int, told: Callable[[int], None] | None = None
) -> AsyncIterator[Kept]:
    """Records of a kind that name both parties, newest first, among the `most` newest of all; `told` hears how many
    were looked at.

    Those of others are passed over by a look at their bytes: so that nobody's records, however many, hide another's.
    """
    names = [did.encode() for did in parties]
    seen, before = 0, None
    while seen < most:
        page = await book.journal.list_records(kind, min(_PAGE, most - seen), before)
        if not page:
            return
        before, seen = page[-1].sequence, seen + len(page)
        if told is not None:
            told(len(page))
        for record in page:
            if all(name in record.raw for name in names):
                yield record


@lru_cache(_REMEMBERED)
def opened(raw: bytes, kind: str) -> Signed[Any]:
    """A record of the journal, its signature checked once: a peer may ask for the same pair as often as it likes."""
    return open_record(raw, KINDS[kind])


async def last_pair(
    book: Book, kind: type[Agreed], parties: tuple[str, str], fits: Callable[[Agreed], bool], why: Exception
) -> bytes:
    """The same as an answer. Raises Refused, which says `why`."""
    pair = await find_pair(book, kind, parties, fits, _LOOK_BACK)
    if pair is None:
        raise Refused("expired", str(why))
    return encode_signatures(pair)
