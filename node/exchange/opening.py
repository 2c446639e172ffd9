"""A buyer's channels: opened by the seller's terms, and each deposit made known to the seller.

Theory of operation. Opening a channel is a record and no transaction: it is in the journal before money goes into it,
so what was deposited is always found again. The money goes by an effect like any other. A seller hears of it once this
node has seen it on the chain, and again until it has taken it; then its window is asked for, and orders are paid so.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

from attrs import define

from ledger.account import AccountKey
from ledger.codec import Malformed
from ledger.identity import Did
from ledger.money import Amount
from ledger.rails.stablecoin.channels import ChannelRefused, check_terms, open_channel
from ledger.rails.stablecoin.digests import Place
from ledger.records import ChannelTerms, Expired, Grant, Offer, Signed, check_time, open_record
from node.exchange.book import Book
from node.exchange.channels import UNIT, Channels, Teller
from node.exchange.moving import EffectRefused
from node.exchange.strangers import CHANNEL_RAIL
from node.wire.messages import Refused, Unreachable

_ROUND_S: Final = 2.0
_FIRST_RETRY_S: Final = 2.0
_LAST_RETRY_S: Final = 300.0

# The offers that are open, and what puts money into an account's channel.
Offers = Callable[[], Iterable[Signed[Offer]]]
Deposit = Callable[[AccountKey, int], Awaitable[object]]

_log = logging.getLogger(__name__)


class OpeningError(Exception):
    """A channel that cannot be opened; the message says what to do."""


@define
class NotAPeer(OpeningError):
    """Channels are opened to named peers."""

    peer: str

    def __str__(self) -> str:
        return f"{self.peer} is none of the named peers: name it with `idlemesh up --peer`"


@define
class NoTerms(OpeningError):
    """The peer does not say how it is paid by a channel, or says what cannot be used here."""

    peer: str
    why: str

    def __str__(self) -> str:
        return f"no channel can be opened to {self.peer}: {self.why}"


@define
class TooLittleForPeer(OpeningError):
    """The peer takes no channel with less in it."""

    peer: str
    least: Amount

    def __str__(self) -> str:
        return f"{self.peer} takes channels from {self.least} on: deposit as much"


class Seller(Teller, Protocol):
    """A peer that is paid by channels, and grants a window."""

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        """See `wire.peer.Peer.grant`."""


class Opening:
    """The payer's side of channels; `run` it in the background."""

    def __init__(
        self,
        book: Book,
        channels: Channels,
        dial: Callable[[Did], Seller | None],
        place: Place,
        token: bytes,
        wallet: bytes,
        take_grant: Callable[[Did, Grant], Awaitable[None]],
    ) -> None:
        """`wallet` is whose money goes into channels."""
        self._book = book
        self._channels = channels
        self._dial = dial
        self._place, self._token, self._wallet = place, token, wallet
        self._take_grant = take_grant
        self._told: dict[AccountKey, int] = {}  # what had been deposited when the seller last took it
        self._pauses: dict[AccountKey, tuple[float, float]] = {}  # until when, and how long
        self._locks: dict[Did, asyncio.Lock] = {}
        self._begun: set[AccountKey] = set()  # by themselves, in this run

    async def open(self, peer: Did, amount: int | None = None) -> AccountKey:
        """The account with a peer whose channel money can go into; opened, if there is none. Durable on return.

        `amount` is what is to go into it: of a new one no less than its payee takes. Raises OpeningError.
        """
        key = AccountKey(self._book.me, peer, CHANNEL_RAIL, UNIT)
        async with self._locks.setdefault(peer, asyncio.Lock()):
            if self._channels.record(key) is None:
                terms = await self._terms(peer)
                if amount is not None and amount < terms.min_deposit:
                    raise TooLittleForPeer(peer, Amount(terms.min_deposit, UNIT))
                channel = open_channel(self._book.identity, peer, terms, self._place, self._wallet)
                await self._channels.keep(channel)
        return key

    async def _terms(self, peer: Did) -> ChannelTerms:
        line = self._dial(peer)
        if line is None:
            raise NotAPeer(peer)
        try:
            signed: Signed[ChannelTerms] = open_record(await line.channel_terms(), ChannelTerms)
            check_time(signed.record, self._book.now())
            if signed.signer != peer:
                raise NoTerms(peer, "the terms that it gives are another node's")
            check_terms(signed.record, self._place, self._token)
        except (Refused, Unreachable, Malformed, Expired, ChannelRefused) as error:
            raise NoTerms(peer, str(error)) from None
        return signed.record

    async def run(self, offers: Offers, deposit: Deposit, amount: int) -> None:
        """Tell sellers of deposits, until cancelled; also put `amount`, if it is any, into channels to new ones."""
        while True:
            try:
                await self.step()
                if amount:
                    await self.begin(offers(), deposit, amount)
            except Exception:  # noqa: BLE001 - one peer's trouble, or the disk's, must not end it
                _log.exception("opening channels failed; it is tried again")
            await asyncio.sleep(_ROUND_S)

    async def step(self) -> None:
        """Tell each seller of what it has not taken yet."""
        due = [key for key in self._channels.paid_by(self._book.me) if self._is_due(key)]
        await asyncio.gather(*(self._tell(key) for key in due))

    def _is_due(self, key: AccountKey) -> bool:
        account, (until, _) = self._book.journal.books.account(key), self._pauses.get(key, (0.0, 0.0))
        # A seller that grants no window on a channel with money in it does not know of it any more.
        news = account.funded > self._told.get(key, 0) or (account.backed > 0 and not account.window)
        return news and self._book.now() >= until

    async def show(self, peer: Did) -> None:
        """Hand a peer the channel to it, before accounts are compared: it may have lost it, and knows no voucher then.

        What it does not take now is handed over again later.
        """
        key = AccountKey(self._book.me, peer, CHANNEL_RAIL, UNIT)
        line, channel = self._dial(peer), self._channels.record(key)
        if line is not None and channel is not None and self._book.journal.books.account(key).funded:
            with contextlib.suppress(Refused, Unreachable):
                await line.channel(channel.raw)

    async def _tell(self, key: AccountKey) -> None:
        """Say that there is money in a channel, and ask for the window that goes with it."""
        peer, funded = Did(key.payee), self._book.journal.books.account(key).funded
        line, channel = self._dial(peer), self._channels.record(key)
        if line is None or channel is None:
            return
        try:
            await line.channel(channel.raw)
            grant = open_record(await line.grant(self._book.me, UNIT, CHANNEL_RAIL), Grant)
            check_time(grant.record, self._book.now())
            said = grant.record
            if (grant.signer, said.buyer, said.unit, said.rail) != (peer, self._book.me, UNIT, CHANNEL_RAIL):
                raise Malformed("the grant is not this seller's for this node")
            await self._take_grant(peer, said)
        except (Refused, Unreachable, Malformed) as error:
            _, last = self._pauses.get(key, (0.0, _FIRST_RETRY_S / 2))
            pause = min(2 * last, _LAST_RETRY_S)
            self._pauses[key] = self._book.now() + pause, pause
            _log.info("%s has not taken the channel to it yet: %s", peer, error)
        else:
            self._told[key] = funded
            self._pauses.pop(key, None)

    # Deposits that nobody asks for

    async def begin(self, offers: Iterable[Signed[Offer]], deposit: Deposit, amount: int) -> None:
        """Open a channel to each seller that is paid so and has none yet, and have `deposit` fill it."""
        sellers = {
            offer.signer for offer in offers if CHANNEL_RAIL in offer.record.rails and offer.record.price.unit == UNIT
        }
        for seller in sorted(sellers):
            key = AccountKey(self._book.me, seller, CHANNEL_RAIL, UNIT)
            books = self._book.journal.books
            if books.account(key).funded or key in books.effects or key in self._begun:
                continue
            self._begun.add(key)
            try:
                await deposit(await self.open(seller, amount), amount)
            except (OpeningError, EffectRefused) as error:
                _log.warning("nothing was deposited by itself for %s: %s", seller, error)
