"""What this node grants for an order, signed: one durable entry with the acknowledgement that says so and its voucher.

Acknowledgements of one account name each other, so those of one seller are made one after the other.
"""

import asyncio
import functools
from collections.abc import Sequence

from attrs import define, evolve, frozen

from ledger.account import Account, AccountKey, apply
from ledger.changes import Acknowledged, Authorized, Change
from ledger.events import AccountChanged
from ledger.identity import Did, parse_did
from ledger.journal import Kept
from ledger.records import Acknowledgement, Signed, Voucher, open_record, sign
from ledger.waivers import Dispute
from node.exchange.book import Book, kept
from node.exchange.delivery import Terms
from node.exchange.outbox import Outbox


@define
class Unpayable(Exception):
    """What was acknowledged of the order is not kept here any more, and there is nothing to add to."""

    order: bytes

    def __str__(self) -> str:
        return f"the records of order {self.order.hex()[:16]} are not kept here any more: settle it by other means"


@frozen
class Answer:
    """What is said of a receipt or checkpoint, named by its digest: how much is granted, and why no more."""

    of: bytes
    granted: int
    objection: str | None


class Promising:
    """Makes acknowledgements, and puts them into the outbox."""

    def __init__(self, book: Book, outbox: Outbox) -> None:
        self._book = book
        self._outbox = outbox
        self._turns: dict[Did, asyncio.Lock] = {}
        self._latest: dict[AccountKey, bytes] = {}  # the acknowledgement before the next one, by its account

    def turn(self, seller: Did) -> asyncio.Lock:
        """To be held, for a moment only, while something is promised to a seller."""
        return self._turns.setdefault(seller, asyncio.Lock())

    def follow(self, key: AccountKey, acknowledgement: bytes) -> None:
        """The next acknowledgement of an account names this one, by its digest."""
        self._latest[key] = acknowledgement

    def account_of(self, terms: Terms) -> Account:
        """The account from which an order is paid."""
        return self._book.journal.books.account(terms.account(self._book.me))

    async def promise(self, terms: Terms, answer: Answer, changes: list[Change], *records: Kept) -> None:
        """Write changes of one order, with the acknowledgement that says so and its voucher, to be handed over."""
        account, order = self.account_of(terms), terms.order.digest
        after = functools.reduce(apply, changes, account)
        acknowledgement = Acknowledgement(
            order=order,
            of=answer.of,
            accepted=answer.objection is None,
            reason=(answer.objection or "")[:256],
            amount=answer.granted,
            previous=self._latest.get(account.key),
            voucher=self._voucher_after(after).raw,
        )
        await self._post(terms.seller, acknowledgement, [*changes, *_authorized(after)], records, after.key)

    async def give_way(self, dispute: Dispute, amount: int) -> None:
        """Acknowledge `amount` in all for a disputed order. Durable on return. Raises AccountError, Unpayable."""
        key, order = dispute.key, dispute.order
        last = await self._last_word(order)
        granted = Acknowledged(order, amount)
        after = apply(self._book.journal.books.account(key), granted)
        whole = amount == after.orders[order].asked
        said = evolve(
            last,
            accepted=whole,
            reason="" if whole else last.reason,
            amount=amount,
            previous=self._latest.get(key),
            voucher=self._voucher_after(after).raw,
        )
        await self._post(parse_did(key.payee), said, [granted, *_authorized(after)], (), key)

    def _voucher_after(self, after: Account) -> Signed[Voucher]:
        return self._book.rails.make_voucher(self._book.identity, after, _total(after))

    async def _post(
        self, seller: Did, said: Acknowledgement, changes: Sequence[Change], records: Sequence[Kept], key: AccountKey
    ) -> None:
        acknowledgement = sign(said, self._book.identity)
        await self._book.post(
            *(AccountChanged(key, change) for change in changes),
            records=(*records, kept(acknowledgement, said.order)),
        )
        self._latest[key] = acknowledgement.digest
        self._outbox.add(seller, acknowledgement)

    async def _last_word(self, order: bytes) -> Acknowledgement:
        """What this node said last of an order. Raises Unpayable."""
        for record in reversed(await self._book.journal.records_of(order)):
            if record.kind == Acknowledgement.kind:
                return open_record(record.raw, Acknowledgement).record
        raise Unpayable(order)


def _total(after: Account) -> int:
    """What is promised in all: no promise is taken back, though vouchers that a restored ledger had lost, and that came
    back, may promise more than is owed."""
    return max(after.owed, after.authorized)


def _authorized(after: Account) -> list[Change]:
    return [Authorized(_total(after))] if _total(after) > after.authorized else []
