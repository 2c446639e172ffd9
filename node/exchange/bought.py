"""An order of ours as the journal keeps it: for audits and exports long after, and for going on after a restart."""

from typing import NamedTuple

from ledger.records import Checkpoint, Offer, Order, Receipt, Signed, open_record
from node.exchange.book import Book
from node.exchange.delivery import Terms


class Bought(NamedTuple):
    """What is on disk of one order."""

    terms: Terms
    answer: tuple[int, ...]
    receipt: Signed[Receipt] | None
    checkpoint: Signed[Checkpoint] | None


async def load_bought(book: Book, order: bytes) -> Bought | None:
    """An order of this node by its digest; None if it is unknown, or its token ids are not kept any more."""
    kept = {record.kind: record.raw for record in await book.journal.records_of(order)}
    material = await book.material(order)
    if Order.kind not in kept or material is None:
        return None
    signed = open_record(kept[Order.kind], Order)
    offer = await book.journal.record(signed.record.offer)
    if offer is None:
        return None
    request, answer = material
    return Bought(
        terms=Terms(signed, open_record(offer.raw, Offer), request),
        answer=answer,
        receipt=open_record(kept[Receipt.kind], Receipt) if Receipt.kind in kept else None,
        checkpoint=open_record(kept[Checkpoint.kind], Checkpoint) if Checkpoint.kind in kept else None,
    )
