"""A stranger's tab: what it may spend here is authorized before the work, and charged by what came of it.

Theory of operation. A request is admitted in one durable entry: its order, with all that it may cost as reservation,
and what the stranger signed for it. Then it is worked on, and charged once, durably, before its payer hears the amount.
What is charged is promised by the payer's signature already, so `authorized` follows `owed`. A request that ended in
any other way is charged for what was delivered, and one that a crash has ended for nothing.

A channel has one request at a time: the next voucher builds on what the last request has cost. Transfers are prepaid,
so that several requests may spend of them at once; their orders are named by what was signed, and come but once.
"""

import asyncio
import hashlib
from typing import Final
from weakref import WeakValueDictionary

from attrs import define, field

from ledger.account import Account, AccountError, AccountKey
from ledger.changes import Admitted, Change, Earned, Funded, Granted, Recovered, Released, Settled, VoucherReceived
from ledger.events import AccountChanged, Event
from ledger.money import MAX_AMOUNT
from ledger.rails.stablecoin.digests import ChannelConfig
from ledger.records import DIGEST_BYTES
from node.exchange.book import Book
from node.exchange.strangers import CHANNEL_RAIL, PREPAID_RAIL, Strangers, is_stranger
from node.ports import Entropy

# An order that is open for longer is nobody's any more.
ORDER_LIFE_S: Final = 3_600
_EARLIER: Final = b"idlemesh claimed earlier\x00"


class TabRefused(Exception):
    """A request that its payer's tab does not bear; each subclass is one reason, with its values."""


@define
class TabBusy(TabRefused):
    """The channel has a request under way."""

    def __str__(self) -> str:
        return "this channel has a request under way: wait for its answer, or open another channel (with another salt)"


@define
class TabUsedUp(TabRefused):
    """The balance does not cover the request."""

    needed: int
    left: int

    def __str__(self) -> str:
        return f"the request may cost {self.needed}, and {self.left} is left: pay more in, or ask for less"


@define
class PaymentUsed(TabRefused):
    """What was signed has paid for a request before."""

    def __str__(self) -> str:
        return "this payment was used for another request: sign a new one"


class Tabs:
    """The tabs of all strangers, in the node's book."""

    def __init__(self, book: Book, entropy: Entropy) -> None:
        self._book = book
        self._entropy = entropy
        self._busy: set[AccountKey] = set()
        self._running: set[bytes] = set()
        self._charging: WeakValueDictionary[AccountKey, asyncio.Lock] = WeakValueDictionary()

    def key(self, payer: str, rail: str) -> AccountKey:
        """The account of a stranger's tab."""
        return AccountKey(payer, self._book.me, rail, "uusd")

    def account(self, key: AccountKey) -> Account:
        """What the tab says now."""
        return self._book.journal.books.account(key)

    def take_turn(self, key: AccountKey) -> None:
        """Take the channel's only turn, until `give_back`. Raises TabBusy."""
        if key in self._busy or any(order.open for order in self.account(key).orders.values()):
            raise TabBusy
        self._busy.add(key)

    def give_back(self, key: AccountKey) -> None:
        """The channel's turn is over."""
        self._busy.discard(key)

    async def open_channel(self, key: AccountKey, claimed: int, *with_it: Event) -> None:
        """Open the tab of a channel that this node does not know (any more), of which so much was claimed before."""
        changes: list[Change] = []
        if claimed > self.account(key).owed:
            order = hashlib.sha256(_EARLIER + key.payer.encode()).digest()
            changes = [Recovered(order, claimed, self._book.now(), claimed), VoucherReceived(claimed), Settled(claimed)]
        await self._book.post(*with_it, *(AccountChanged(key, change) for change in changes))

    async def pay_in(self, key: AccountKey, amount: int, *with_it: Event) -> None:
        """Count money that came by a transfer. Durable on return."""
        async with self._lock(key):
            account = self.account(key)
            funded = Funded(account.funded + amount, account.funded_sequence + 1)
            await self._book.post(*with_it, *([AccountChanged(key, funded)] if amount else []))

    def _lock(self, key: AccountKey) -> asyncio.Lock:
        return self._charging.setdefault(key, asyncio.Lock())

    async def admit(self, key: AccountKey, most: int, *with_it: Event, order: bytes | None = None) -> "Tab":
        """Admit a request that may cost `most`, with what else is to be durable with it; `order` names it, if given.

        Raises PaymentUsed, TabUsedUp.
        """
        account, digest = self.account(key), order or self._entropy.bytes(DIGEST_BYTES)
        if digest in account.orders or digest in self._running:
            raise PaymentUsed
        expires = self._book.now() + ORDER_LIFE_S
        changes: list[Change] = [Admitted(digest, most, most, expires)]
        if not account.window:
            # What is authorized before it is delivered needs no other window than its collateral.
            changes.insert(0, Granted(0, MAX_AMOUNT, account.grant_sequence + 1))
        self._running.add(digest)
        try:
            await self._book.post(*with_it, *(AccountChanged(key, change) for change in changes))
        except AccountError:
            self._running.discard(digest)
            raise TabUsedUp(most, self.account(key).available) from None
        except BaseException:
            self._running.discard(digest)
            raise
        return Tab(self, key, digest, most)

    async def charge(self, tab: "Tab", cost: int) -> None:
        """End a request at its cost; durable on return, and once only. A cost that cannot be written is let go."""
        async with self._lock(tab.key):
            if tab.charged is not None:
                return
            try:
                await self._write(tab, cost)
            finally:
                self._running.discard(tab.order)
                self.give_back(tab.key)
            tab.charged = cost

    async def _write(self, tab: "Tab", cost: int) -> None:
        total = self.account(tab.key).owed + cost
        changes: list[Change] = [Earned(tab.order, cost), VoucherReceived(total), Released(tab.order)]
        if tab.key.rail == PREPAID_RAIL:
            changes.append(Settled(total))
        await self._book.post(*(AccountChanged(tab.key, change) for change in changes))

    async def sweep(self) -> None:
        """Close what an earlier run has left open."""
        for key, account in list(self._book.journal.books.accounts.items()):
            if key.payee == self._book.me and is_stranger(key.payer) and key.rail in (CHANNEL_RAIL, PREPAID_RAIL):
                left = {digest for digest, order in account.orders.items() if order.open} - self._running
                for digest in left:
                    await self._book.post(AccountChanged(key, Released(digest)))


@define(eq=False)
class Tab:
    """A request that was admitted: `charged` is what it cost, once that is known."""

    _tabs: Tabs
    key: AccountKey
    order: bytes
    most: int
    charged: int | None = field(default=None)

    async def charge(self, cost: int) -> None:
        """End it at its cost, also where whoever asked is gone; the first word counts."""
        await asyncio.shield(asyncio.ensure_future(self._tabs.charge(self, min(cost, self.most))))

    @property
    def account(self) -> Account:
        """The tab as it stands."""
        return self._tabs.account(self.key)


def stranger_config(strangers: Strangers, key: AccountKey) -> ChannelConfig | None:
    """The channel of an account with a stranger, for the rail."""
    voucher = strangers.voucher(key)
    return None if voucher is None else ChannelConfig.of_words(voucher.config)
