"""What an earlier run of this node has left: deliveries not acknowledged yet, and acknowledgements on their way."""

from collections.abc import Callable
from typing import Final

from ledger import codec
from ledger.account import AccountKey
from ledger.identity import Did
from ledger.records import Acknowledgement, Receipt, Signed, Voucher, open_record
from node.exchange import experience
from node.exchange.book import Book, kept
from node.exchange.bought import load_bought
from node.exchange.delivery import Delivery, Terms, sums_fit
from node.exchange.experience import Due
from node.exchange.strangers import is_stranger
from node.wire.messages import Refused, Unreachable
from node.wire.peer import Peer

# So many of the newest acknowledgements are looked through at a time for the latest of each seller.
_LOOK_BACK: Final = 1_000
# More cannot have been on their way when this node stopped: a seller that is not reached gets no new orders.
_SENT_AGAIN: Final = 16
# Of so many of the newest one is looked for that another process has just given.
_LATELY: Final = 50


async def delivery_left(book: Book, dial: Callable[[Did], Peer | None], digest: bytes) -> Delivery | None:
    """What had come of an order before this node stopped; the seller is asked for a receipt that is not here."""
    bought = await load_bought(book, digest)
    if bought is None:
        return None
    terms, answer, receipt, checkpoint = bought
    due = book.experience.due(digest)
    if due is None:
        receipt = await _fetch_receipt(dial, terms)
        if receipt is None:
            return None
        due = Due(receipt.record.cost, None)
        found = experience.due(terms.seller, digest, due.owed, due.objection)
        await book.post(found, records=(kept(receipt, digest),))
    return Delivery(terms, answer, receipt, checkpoint, due.owed, due.objection, cancelled=True)


async def _fetch_receipt(dial: Callable[[Did], Peer | None], terms: Terms) -> Signed[Receipt] | None:
    """A receipt for an answer that this node lost: its tokens cannot be checked any more, but its sums can."""
    peer = dial(terms.seller)
    if peer is None:
        return None
    try:
        raw = await peer.receipt(terms.order.digest)
        receipt = open_record(raw, Receipt) if raw is not None else None
    except (Refused, Unreachable, codec.Malformed):
        return None
    return receipt if receipt is not None and sums_fit(terms, receipt) else None


async def latest_acknowledgements(book: Book) -> list[tuple[Signed[Acknowledgement], AccountKey]]:
    """The last one of each of the latest few orders, for each seller, oldest first; sent again it does no harm."""
    latest: dict[AccountKey, dict[bytes, Signed[Acknowledgement]]] = {
        key: {}
        for key, account in book.journal.books.accounts.items()
        if key.payer == book.me and account.authorized and not is_stranger(key.payee)
    }
    before: int | None = None
    # Those of our own buyers lie between: it is looked on until there is one of ours for each seller.
    while not all(latest.values()):
        page = await book.journal.list_records(Acknowledgement.kind, _LOOK_BACK, before)
        if not page:
            break
        before = page[-1].sequence
        for record in page:
            acknowledgement = open_record(record.raw, Acknowledgement)
            ours = latest.get(_account_of(open_record(acknowledgement.record.voucher, Voucher).record), {})
            if acknowledgement.signer == book.me and len(ours) < _SENT_AGAIN:
                ours.setdefault(acknowledgement.record.order, acknowledgement)
    return [(one, key) for key, ours in latest.items() for one in reversed(ours.values())]


async def last_acknowledgement(book: Book, key: AccountKey) -> bytes | None:
    """The digest of the newest one that this node has given on an account, if it is among its newest."""
    for record in await book.journal.list_records(Acknowledgement.kind, _LATELY):
        acknowledgement = open_record(record.raw, Acknowledgement)
        voucher = open_record(acknowledgement.record.voucher, Voucher).record
        if acknowledgement.signer == book.me and _account_of(voucher) == key:
            return acknowledgement.digest
    return None


def _account_of(voucher: Voucher) -> AccountKey:
    return AccountKey(voucher.payer, voucher.payee, voucher.rail, voucher.unit)
