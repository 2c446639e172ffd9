"""What was promised to sellers that are paid by x402, in the journal: before it is sent, and once it is known.

Theory of operation. A seller that is no node has an account like any other, whose payee is its wallet (did:pkh): one on
the rail `prepaid` for transfers, one on the rail `stablecoin` for each channel. A payment is an order on it: reserved
before its headers leave, earned by what was charged. Its record holds it as it was sent.

    what happens                       transfer                                 channel
    ---------------------------------  ---------------------------------------  ----------------------------------------
    it is about to be sent             funded + amount; order reserved          order before released; funded + deposit;
                                                                                order reserved
    what was charged is known          order earned, released; authorized and   order earned, released; authorized =
                                       settled = owed                           owed
    its time is over, nothing moved    order released; withdrawn + amount       order released; funded - deposit
    the seller shows a voucher that    -                                        an order that cost the difference
    says more than is known here
    the owner grants what the seller   an order that cost the difference        -
    says that it has charged
    the chain has a channel that is    -                                        funded; an order that cost what was
    not known here                                                              claimed
    it was charged, and not taken:     an order that cost what the balance      -
    a balance has paid                 bears; the rest earned; order open until
                                       the time of what was signed is over

An order that is open and was not answered is a payment of which nothing was heard. An account has one at most. On a
channel the next voucher takes its place: totals grow from what was charged, so what is at risk is the higher of the
two, never both.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Final

from attrs import frozen

from ledger import codec
from ledger.account import Account, AccountKey
from ledger.changes import (
    Authorized,
    Change,
    Earned,
    Funded,
    Granted,
    Recovered,
    Released,
    Reserved,
    Settled,
    Withdrawn,
)
from ledger.events import AccountChanged, Event
from ledger.journal import Kept
from ledger.money import MAX_AMOUNT
from ledger.rails.stablecoin.networks import address
from ledger.statement import DAY_MS
from node.exchange.book import Book
from node.exchange.strangers import (
    CHANNEL_RAIL,
    PREPAID_RAIL,
    HeldVoucher,
    deposited,
    did_of_wallet,
    held,
    is_stranger,
)
from node.ports import Entropy

PAYMENT: Final = "x402-payment"
ANSWERED: Final = "x402-answered"
SELLER: Final = "x402-seller"
_MAX_RECORD: Final = 64 * 1024
# A payment as it is sent: what is written down with it has to be read again.
MAX_PAYMENT: Final = 48 * 1024
# After its end the chain may still show that an authorization was used: blocks, and this machine's clock.
LATE_S: Final = 600
_MOST_SELLERS: Final = 1_000
_UNIT: Final = "uusd"


@frozen
class Pending:
    """A payment that may still be taken: its order, what may have to be sent again, and whether it was answered."""

    order: bytes
    header: str
    heard: bool


class Payments:
    """All that this node has promised to x402's sellers."""

    def __init__(self, book: Book, entropy: Entropy) -> None:
        self._book = book
        self._entropy = entropy
        self._locks: dict[str, asyncio.Lock] = {}
        self._pinned: dict[str, str] = {}

    async def open(self) -> None:
        """Take up what an earlier run left: nobody else closes these orders."""
        for account in self.accounts():
            self._book.under_way.update(order for order, reserved in account.orders.items() if reserved.open)
        for kept in reversed(await self._book.journal.list_records(SELLER, _MOST_SELLERS)):
            said = codec.decode(kept.raw, _MAX_RECORD)
            self._pinned[said["remote"]] = said["pay_to"]

    def lock(self, seller: str) -> asyncio.Lock:
        """One payment to a seller at a time; `seller` is its wallet's did."""
        return self._locks.setdefault(seller, asyncio.Lock())

    def now(self) -> int:
        """Seconds since 1970."""
        return self._book.now()

    def pay_to(self, remote: str) -> str | None:
        """The address that a remote was paid at first."""
        return self._pinned.get(remote)

    async def pin(self, remote: str, pay_to: str) -> None:
        """Remember where a remote's money goes."""
        if self._pinned.get(remote) != pay_to:
            raw = codec.encode({"remote": remote, "pay_to": pay_to, "time": self.now()})
            await self._book.post(records=(Kept(SELLER, raw),))
            self._pinned[remote] = pay_to

    # Accounts

    def accounts(self) -> list[Account]:
        """All accounts with such sellers."""
        return [account for key, account in self._book.journal.books.accounts.items() if self._is_ours(key)]

    def transfers_to(self, network: str, pay_to: str) -> AccountKey:
        """The account of transfers to a seller."""
        return AccountKey(self._book.me, did_of_wallet(network, address(pay_to)), PREPAID_RAIL, _UNIT)

    def channel_to(self, network: str, pay_to: str, channel: bytes) -> AccountKey:
        """The account of a channel to a seller."""
        return AccountKey(self._book.me, did_of_wallet(network, address(pay_to), channel), CHANNEL_RAIL, _UNIT)

    def accounts_with(self, network: str, pay_to: str) -> list[Account]:
        """All accounts with a seller."""
        seller = did_of_wallet(network, address(pay_to))
        return [account for account in self.accounts() if account.key.payee.partition("#")[0] == seller]

    def account(self, key: AccountKey) -> Account:
        """An account as it is now."""
        return self._book.journal.books.account(key)

    def spent_today(self, network: str, pay_to: str) -> int:
        """What a seller was paid since midnight UTC, and what it may still take of what it was promised."""
        midnight = self._book.now_ms() // DAY_MS * DAY_MS // 1000
        return sum(
            order.amount if order.open else order.earned
            for account in self.accounts_with(network, pay_to)
            for order in account.orders.values()
            if order.expires >= midnight
        )

    async def open_payments(self, key: AccountKey) -> list[Pending]:
        """The payments that may still be taken, for all that is known here."""
        found = []
        for order, reserved in self.account(key).orders.items():
            if reserved.open:
                records = {kept.kind: kept.raw for kept in await self._book.journal.records_of(order)}
                sent = records.get(PAYMENT)
                header = "" if sent is None else str(codec.decode(sent, _MAX_RECORD)["payment"])
                found.append(Pending(order, header, ANSWERED in records))
        return found

    async def pending(self, key: AccountKey) -> Pending | None:
        """The payment of which nothing was heard, if there is one."""
        return next((one for one in await self.open_payments(key) if not one.heard), None)

    # What happens

    async def plan(
        self, key: AccountKey, amount: int, funds: int, valid_s: int, header: str, voucher: HeldVoucher | None = None
    ) -> bytes:
        """Write down a payment that is about to be sent, in place of a pending one; returns its order.

        `funds` is what leaves the wallet for it; `header` what may have to be sent again, empty if nothing of it has;
        `voucher` what it promises on a channel. Raises AccountError, LedgerError.
        """
        account = self.account(key)
        order = hashlib.sha256(b"x402 payment" + self._entropy.bytes(32)).digest()
        pending = await self.pending(key)
        before = [pending.order] if pending is not None else []
        changes: list[Change] = [Released(one) for one in before]
        if not account.window:
            # What is promised before it is delivered is bounded by the owner's limits, and by no window.
            changes.append(Granted(0, MAX_AMOUNT, account.grant_sequence + 1))
        if funds:
            changes.append(Funded(account.funded + funds, account.funded_sequence + 1))
        changes.append(Reserved(order, amount, self.now() + valid_s))
        self._book.under_way.add(order)
        records = [Kept(PAYMENT, codec.encode({"order": order, "payment": header}), order)] if header else []
        also = [held(key.payee, voucher)] if voucher is not None else []
        if funds and key.rail == CHANNEL_RAIL:
            also.append(deposited(key.payee, self.now() + valid_s + LATE_S))
        try:
            await self._post(key, changes, *records, also=also)
        except BaseException:
            self._book.under_way.discard(order)
            raise
        self._book.under_way.difference_update(before)
        return order

    async def charge(self, key: AccountKey, order: bytes, amount: int, *, outstanding: bool = False) -> None:
        """So much was charged for an order; `outstanding`: what was signed for it can still be taken besides."""
        account = self.account(key)
        owed = account.owed + amount
        # All of what was signed can still be taken, so it stays reserved but for what no balance has paid.
        borne = min(amount, max(account.available, 0)) if outstanding else 0
        changes: list[Change] = [Earned(order, amount - borne), Authorized(owed)]
        if borne:
            paid = hashlib.sha256(b"x402 charge" + order).digest()
            changes.insert(0, Recovered(paid, borne, self.now(), borne))
        if key.rail == PREPAID_RAIL:
            changes.append(Settled(owed))
        if outstanding:
            await self._post(key, changes, Kept(ANSWERED, codec.encode({"order": order, "charged": amount}), order))
        else:
            await self._close(key, order, [*changes, Released(order)])

    async def void(self, key: AccountKey, order: bytes, funds: int) -> None:
        """An order came to nothing, and `funds` that were to leave for it cannot any more."""
        await self._close(key, order, [Released(order), *self._back(key, funds)])

    def leaving(self, key: AccountKey) -> str | None:
        """What the rail says of money that the owner takes back from a channel; None: none is on its way."""
        tracked = self._book.journal.books.effects.get(key)
        return None if tracked is None or tracked.state == "settled" else tracked.why

    async def found(self, key: AccountKey, balance: int, claimed: int) -> Account:
        """The chain shows more in a channel than is counted here: the journal lost it, or waits until it is deep."""
        account = self.account(key)
        funded = Funded(balance + account.withdrawn, account.funded_sequence + 1)
        await self._post(key, [funded], also=[deposited(key.payee, self.now() + LATE_S)])
        await self.catch_up(key, claimed)
        return self.account(key)

    async def concede(self, key: AccountKey, more: int) -> None:
        """Of what was paid in advance the seller has charged so much more, as it says, and the owner grants that."""
        order, owed = hashlib.sha256(b"x402 charge" + self._entropy.bytes(32)).digest(), self.account(key).owed + more
        await self._post(key, [Recovered(order, more, self.now(), more), Authorized(owed), Settled(owed)])

    async def catch_up(self, key: AccountKey, total: int) -> None:
        """The seller has charged `total` in all, as a signature of ours or the chain shows."""
        account = self.account(key)
        if total > account.owed:
            order, more = hashlib.sha256(b"x402 charge" + self._entropy.bytes(32)).digest(), total - account.owed
            await self._post(key, [Recovered(order, more, self.now(), more), Authorized(total)])

    def _back(self, key: AccountKey, funds: int) -> list[Change]:
        account = self.account(key)
        if not funds:
            return []
        if key.rail == PREPAID_RAIL:
            return [Withdrawn(account.withdrawn + funds, account.withdrawn_sequence + 1)]
        # The chain never showed it, and tells what was in a channel from its deposits.
        return [Funded(account.funded - funds, account.funded_sequence + 1)]

    async def _close(self, key: AccountKey, order: bytes, changes: list[Change]) -> None:
        await self._post(key, changes)
        self._book.under_way.discard(order)

    async def _post(self, key: AccountKey, changes: list[Change], *records: Kept, also: Iterable[Event] = ()) -> None:
        await self._book.post(*also, *(AccountChanged(key, change) for change in changes), records=records)

    def _is_ours(self, key: AccountKey) -> bool:
        return key.payer == self._book.me and is_stranger(key.payee)
