"""Disputes and debts that are let go: what the owner decides, and how the other side learns of it.

Theory of operation. A payee's word is one signed record, kept with its change in one durable entry: a Resolution brings
what it asks for a disputed order down, Forgiveness lets go of what no voucher covers. Few payees can dial their payers,
so nothing is sent. A payer asks: for each of its disputed orders by the order's digest, which nobody else knows, and
now and then for what it was forgiven, by a record that it signs. Both answers only take away from what it owes, in
totals that only fall or only grow, so the same one again changes nothing. A payer that gives way acknowledges more.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from attrs import define, frozen

from ledger import codec
from ledger.account import Account, AccountError, AccountKey
from ledger.changes import Forgiven
from ledger.events import AccountChanged
from ledger.identity import Did
from ledger.money import Amount, Unit
from ledger.records import Acknowledgement, Forgiveness, Order, Resolution, open_record, sign
from ledger.waivers import (
    Dispute,
    LetGoBefore,
    OutsideDispute,
    WaiverRefused,
    answer_forgiveness,
    ask_forgiveness,
    check_resolution,
    disputes,
    forgiveness_key,
    resolve,
    take_forgiveness,
    take_resolution,
)
from node.exchange.book import Book, kept
from node.exchange.promising import Unpayable
from node.wire.messages import Refused, Unreachable

# A peer is asked about so many disputed orders at a time, and for so long.
_ASKED_AT_A_TIME: Final = 16
_ASKING_S: Final = 30.0
# Few debts are ever forgiven: a payer asks at its start, and then so often.
_FORGIVENESS_S: Final = 3600


@define
class NotLetGo(Exception):
    """Nothing was let go; the message says why, and what to do."""

    why: str

    def __str__(self) -> str:
        return self.why


class LetGoTwice(NotLetGo):
    """It was let go before; the owner may insist."""


class Payee(Protocol):
    """A peer that may let go of what this node owes it."""

    async def resolution(self, order: bytes) -> bytes | None:
        """Its signed Resolution of an order, by the order's digest; None where there is none."""

    async def forgiveness(self, raw: bytes) -> bytes:
        """Its signed Forgiveness, for a payer's own. Raises Refused, Unreachable."""


@frozen
class Shown:
    """A dispute as its owner sees it."""

    dispute: Dispute
    reason: str

    @property
    def unit(self) -> Unit:
        """Its account's."""
        return self.dispute.key.unit


@frozen
class Let:
    """What an owner has let go of in a debt: in all by now, and what is left that could be."""

    peer: str
    forgiven: Amount
    left: Amount


class Disputes:
    """Both sides of what is let go: the owner's decisions, the payee's door, and the payer's questions."""

    def __init__(
        self, book: Book, dial: Callable[[Did], Payee | None], give_way: Callable[[Dispute, int], Awaitable[None]]
    ) -> None:
        """`give_way` acknowledges so much in all for a disputed order of this node's own."""
        self._book = book
        self._dial = dial
        self._give_way = give_way
        self._asked: dict[AccountKey, int] = {}  # when forgiveness was asked for last
        self._asked_about: dict[AccountKey, bytes] = {}  # the order of the last dispute that was asked about

    # The owner

    def _all(self) -> list[Dispute]:
        return [dispute for account in self._book.journal.books.accounts.values() for dispute in disputes(account)]

    async def shown(self) -> list[Shown]:
        """All that is in dispute, on either side, with the buyer's reason."""
        return [Shown(dispute, await self._reason(dispute.order)) for dispute in self._all()]

    async def _reason(self, order: bytes) -> str:
        records = await self._book.journal.records_of(order)
        said = [open_record(one.raw, Acknowledgement).record for one in records if one.kind == Acknowledgement.kind]
        return next((one.reason for one in reversed(said) if not one.accepted), "")

    def find(self, prefix: str) -> Dispute:
        """The one dispute whose order begins with these hexadecimal digits. Raises NotLetGo."""
        found = [dispute for dispute in self._all() if dispute.order.hex().startswith(prefix.lower())]
        if len(found) != 1:
            how = "several disputed orders begin" if found else "no disputed order begins"
            raise NotLetGo(f"{how} with {prefix[:64]}: `idlemesh disputes` lists them")
        return found[0]

    async def resolve(self, dispute: Dispute, total: int | None = None, *, twice: bool = False) -> Amount:
        """End a dispute: the order costs `total`; by default what the other side says. Durable on return.

        As payee this asks no more than `total`, as payer it pays as much. Whoever has given way by a part has to say by
        how much more. Raises NotLetGo, LetGoTwice.
        """
        key, order = dispute.key, dispute.order
        asks = key.payee == self._book.me
        if total is None and await self._gave_way(order, asks):
            least, most = Amount(dispute.granted, key.unit), Amount(dispute.asked, key.unit)
            raise NotLetGo(f"you gave way by a part of it before: name what it is to cost, from {least} to {most}")
        amount = (dispute.granted if asks else dispute.asked) if total is None else total
        account = self._book.journal.books.account(key)
        try:
            if asks:
                change = resolve(account, order, amount, twice=twice)
                said = sign(Resolution(order, amount, self._book.now()), self._book.identity)
                await self._book.post(change, records=(kept(said, order),))
            else:
                check_resolution(account, order, amount)
                await self._give_way(dispute, amount)
        except LetGoBefore as error:
            before = Amount(error.amount, key.unit)
            raise LetGoTwice(f"{before} of it was forgiven before, and would be let go of once more") from None
        except OutsideDispute as error:
            least, most = Amount(error.granted, key.unit), Amount(error.asked, key.unit)
            raise NotLetGo(f"so much is granted and so much asked: choose between {least} and {most}") from None
        except (WaiverRefused, AccountError, Unpayable) as error:
            raise NotLetGo(str(error)) from None
        return Amount(amount, key.unit)

    async def _gave_way(self, order: bytes, asks: bool) -> bool:
        """Whether this side has resolved an order before, by a part of what is in dispute."""
        records = await self._book.journal.records_of(order)
        if asks:
            return any(one.kind == Resolution.kind for one in records)
        said = [open_record(one.raw, Acknowledgement).record for one in records if one.kind == Acknowledgement.kind]
        return len([one for one in said if not one.accepted]) > 1

    async def forgive(self, peer: str, amount: Amount) -> Let:
        """Let go of a debt that no voucher covers. Durable on return. Raises NotLetGo."""
        account = self._book.debt_of(peer, amount.unit)
        if not amount.value:
            raise NotLetGo("the amount must be above 0")
        if amount.value > account.forgivable:
            raise NotLetGo(_too_much(account))
        try:
            await self._book.post(AccountChanged(account.key, Forgiven(amount.value)))
        except AccountError as error:
            raise NotLetGo(str(error)) from None
        after = self._book.debt_of(peer, amount.unit)
        return Let(peer, Amount(after.forgiven, amount.unit), Amount(after.forgivable, amount.unit))

    # The payee

    async def resolution(self, order: bytes) -> bytes | None:
        """What this node asks at most for a disputed order; see `Payee.resolution`."""
        records = await self._book.journal.records_of(order)
        return next((one.raw for one in reversed(records) if one.kind == Resolution.kind), None)

    async def forgiveness(self, raw: bytes) -> bytes:
        """Tell a payer what it was forgiven; see `Payee.forgiveness`."""
        try:
            asked = open_record(raw, Forgiveness)
        except codec.Malformed as error:
            raise Refused("malformed", str(error)) from None
        key = forgiveness_key(asked.record)
        if asked.signer != key.payer or key.payee != self._book.me:
            raise Refused("malformed", "forgiveness is asked for by its payer, of its payee")
        account = self._book.journal.books.accounts.get(key)
        if account is None:
            raise Refused("credit", "you owe nothing here in this unit")
        return sign(answer_forgiveness(asked.record, account, self._book.now()), self._book.identity).raw

    # The payer

    async def sweep(self) -> None:
        """Ask those to whom this node owes what they have let go of."""
        accounts = [account for key, account in self._book.journal.books.accounts.items() if key.payer == self._book.me]
        await asyncio.gather(*(self._ask(account) for account in accounts))

    async def _ask(self, account: Account) -> None:
        line = self._dial(Did(account.key.payee))
        if line is None:
            return
        try:
            async with asyncio.timeout(_ASKING_S):
                for dispute in self._next(account):
                    await self._ask_resolution(line, dispute)
                await self._ask_forgiveness(line, account.key)
        except (Refused, Unreachable, codec.Malformed, WaiverRefused, AccountError, TimeoutError):
            return  # asked again at the next sweep

    def _next(self, account: Account) -> list[Dispute]:
        """Some of the disputes, other ones each time, until all were asked about."""
        found, last = disputes(account), self._asked_about.get(account.key, b"")
        chosen = sorted(found, key=lambda one: (one.order <= last, one.order))[:_ASKED_AT_A_TIME]
        if chosen:
            self._asked_about[account.key] = chosen[-1].order
        return chosen

    async def _ask_resolution(self, line: Payee, dispute: Dispute) -> None:
        raw = await line.resolution(dispute.order)
        record = await self._book.journal.record(dispute.order)
        if raw is None or record is None:
            return
        said = open_record(raw, Resolution)
        change = take_resolution(said, open_record(record.raw, Order), dispute.key)
        if said.record.total < dispute.asked:
            await self._book.post(change, records=(kept(said, dispute.order),))

    async def _ask_forgiveness(self, line: Payee, key: AccountKey) -> None:
        now = self._book.now()
        if now < self._asked.get(key, now - _FORGIVENESS_S) + _FORGIVENESS_S:
            return
        self._asked[key] = now
        asked = sign(ask_forgiveness(self._book.journal.books.account(key), now), self._book.identity)
        said = open_record(await line.forgiveness(asked.raw), Forgiveness)
        account = self._book.journal.books.account(key)
        change = take_forgiveness(said, account)
        if said.record.total > account.forgiven:
            await self._book.post(change, records=(kept(said),))


def _too_much(account: Account) -> str:
    left = Amount(account.forgivable, account.key.unit)
    if account.disputed:
        why = "what is in dispute is let go by `idlemesh resolve`"
    else:
        why = "what a voucher covers is paid off by `idlemesh settle` there and `idlemesh confirm` here"
    return f"{left} is owed without a voucher and not in dispute; no more can be forgiven: {why}"
