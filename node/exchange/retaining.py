"""Records past the owner's time are dropped: named in the journal first, so that they never pass for damage."""

from collections.abc import Sequence
from typing import Final

from ledger.codec import Malformed
from ledger.records import Offer, Order, open_record
from ledger.retention import MOST_AT_ONCE, OF_ORDERS, OFFERS_LONGER_MS, Sieve, dropped
from node.exchange.book import Book
from node.exchange.trails import trails_dropped

_DAY_S: Final = 86_400
_EVERY_S: Final = 3_600


class Retention:
    """Drops, by the hour, what is older than the owner wants to keep and nothing needs any more."""

    def __init__(self, book: Book, days: int | None) -> None:
        """Without `days` records are kept for ever."""
        self._book = book
        self._days = days
        self._next = 0

    async def sweep(self) -> None:
        """Drop what is due, if an hour has passed."""
        now = self._book.now()
        if self._days is None or now < self._next or not await self._book.leads():
            return
        before_ms = 1000 * (now - self._days * _DAY_S)
        accounts = self._book.journal.books.accounts.values()
        orders = self._book.under_way.union(*(account.orders for account in accounts))
        old = [
            digest
            for account in accounts
            for digest, order in account.orders.items()
            if 1000 * order.expires < before_ms + OFFERS_LONGER_MS
        ]
        sieve = Sieve(self._book.journal.books, orders, await self._offers_of(old))
        await self._drop(OF_ORDERS, before_ms, sieve)
        await self._drop((Offer.kind,), before_ms - OFFERS_LONGER_MS, sieve)
        self._next = now + _EVERY_S

    async def _drop(self, kinds: Sequence[str], before_ms: int, sieve: Sieve) -> None:
        """Drop what may go, a batch and an entry at a time."""
        journal, after = self._book.journal, (0, b"")
        while old := await journal.records_before(before_ms, kinds, after, MOST_AT_ONCE):
            after = old[-1].sequence, old[-1].digest
            going = [kept.digest for kept in old if sieve.may_go(kept)]
            if going:
                marks = trails_dropped(self._book.me, sieve.marks)
                await self._book.post(dropped(self._book.me, going), *marks)
                await journal.drop_records(going)

    async def _offers_of(self, orders: Sequence[bytes]) -> set[bytes]:
        """The offers that these orders are about."""
        offers = set()
        for digest in orders:
            record = await self._book.journal.record(digest)
            if record is not None and record.kind == Order.kind:
                try:
                    offers.add(open_record(record.raw, Order).record.offer)
                except Malformed:
                    continue
        return offers
