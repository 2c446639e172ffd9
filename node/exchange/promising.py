"""What this node grants for an order, signed: one durable entry with the acknowledgement that says so and its voucher.

Acknowledgements of one account name each other, so those of one seller are made one after the other. Where another
process of this node has promised on the account in between, the entry is refused, and made anew on top of that: so no
promise takes another back, and each names the one before it.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from attrs import define, evolve, frozen

from ledger.account import Account, AccountError, AccountKey, apply
from ledger.changes import Acknowledged, Authorized, Change
from ledger.events import AccountChanged, Books
from ledger.identity import Did, parse_did
from ledger.journal import Kept
from ledger.records import Acknowledgement, Signed, Voucher, open_record, sign
from ledger.waivers import Dispute
from node.exchange.book import Book, kept
from node.exchange.delivery import Terms
from node.exchange.left_behind import last_acknowledgement
from node.exchange.outbox import Outbox

# An account on which several processes promise at once lets each of them through soon.
_TRIES: Final = 32


@define
class Unpayable(Exception):
    """What was acknowledged of the order is not kept here any more, and there is nothing to add to."""

    order: bytes

    def __str__(self) -> str:
        return f"the records of order {self.order.hex()[:16]} are not kept here any more: settle it by other means"


class _Moved(AccountError):
    """More was promised on the account in between."""


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
        # The acknowledgement before the next one, and what was promised with it, by its account.
        self._latest: dict[AccountKey, tuple[bytes, int]] = {}

    def turn(self, seller: Did) -> asyncio.Lock:
        """To be held, for a moment only, while something is promised to a seller."""
        return self._turns.setdefault(seller, asyncio.Lock())

    def follow(self, key: AccountKey, acknowledgement: bytes) -> None:
        """The next acknowledgement of an account names this one, by its digest."""
        self._latest[key] = acknowledgement, self._book.journal.books.account(key).authorized

    def account_of(self, terms: Terms) -> Account:
        """The account from which an order is paid."""
        return self._book.journal.books.account(terms.account(self._book.me))

    async def promise(self, terms: Terms, answer: Answer, changes: list[Change], *records: Kept) -> None:
        """Write changes of one order, with the acknowledgement that says so and its voucher, to be handed over."""

        async def said(account: Account) -> tuple[Acknowledgement, Account]:
            after = functools.reduce(apply, changes, account)
            acknowledgement = Acknowledgement(
                order=terms.order.digest,
                of=answer.of,
                accepted=answer.objection is None,
                reason=(answer.objection or "")[:256],
                amount=answer.granted,
                previous=await self._previous(account),
                voucher=self._voucher_after(after).raw,
            )
            return acknowledgement, after

        await self._promise(terms.seller, terms.account(self._book.me), changes, records, said)

    async def give_way(self, dispute: Dispute, amount: int) -> None:
        """Acknowledge `amount` in all for a disputed order. Durable on return. Raises AccountError, Unpayable."""
        key, order = dispute.key, dispute.order
        last = await self._last_word(order)
        granted = Acknowledged(order, amount)

        async def said(account: Account) -> tuple[Acknowledgement, Account]:
            after = apply(account, granted)
            whole = amount == after.orders[order].asked
            acknowledgement = evolve(
                last,
                accepted=whole,
                reason="" if whole else last.reason,
                amount=amount,
                previous=await self._previous(account),
                voucher=self._voucher_after(after).raw,
            )
            return acknowledgement, after

        await self._promise(parse_did(key.payee), key, [granted], (), said)

    async def _promise(
        self,
        seller: Did,
        key: AccountKey,
        changes: Sequence[Change],
        records: Sequence[Kept],
        say: Callable[[Account], Awaitable[tuple[Acknowledgement, Account]]],
    ) -> None:
        """Write what is to be said of an account as it is, and say it again of what it has become in between."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(_Moved):
                return await self._post(seller, key, changes, records, say)
        return await self._post(seller, key, changes, records, say)

    def _voucher_after(self, after: Account) -> Signed[Voucher]:
        return self._book.rails.make_voucher(self._book.identity, after, _total(after))

    async def _post(
        self,
        seller: Did,
        key: AccountKey,
        changes: Sequence[Change],
        records: Sequence[Kept],
        say: Callable[[Account], Awaitable[tuple[Acknowledgement, Account]]],
    ) -> None:
        account = self._book.journal.books.account(key)
        said, after = await say(account)
        acknowledgement = sign(said, self._book.identity)

        def check(books: Books) -> None:
            if books.account(key).authorized != account.authorized:
                raise _Moved

        await self._book.post(
            *(AccountChanged(key, change) for change in (*changes, *_authorized(after))),
            records=(*records, kept(acknowledgement, said.order)),
            check=check,
        )
        self._latest[key] = acknowledgement.digest, _total(after)
        self._outbox.add(seller, acknowledgement)

    async def _previous(self, account: Account) -> bytes | None:
        """The last acknowledgement on an account, whichever process of this node has given it."""
        digest, total = self._latest.get(account.key, (None, 0))
        if self._book.journal.name and total != account.authorized:
            return await last_acknowledgement(self._book, account.key) or digest
        return digest

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
