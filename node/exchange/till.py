"""Where a seller's payment channels come in: its terms, its buyers' channels, and deposits that it brings to the chain.

Theory of operation. Anyone may name a channel, so nothing is kept of one until the chain says that there is money in
it. Whoever tops one up says so again, and the chain is looked at. A deposit that a buyer signed is brought to the chain
at our expense, so that buyers need no gas: only of so much that it is worth it, and no more often than so. Looking at
the chain costs us requests to somebody's endpoint: each buyer may ask for it so often, each address of those that are
not known yet, and all of these together, in turns, so that nobody who asks much keeps a new buyer waiting.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol
from weakref import WeakValueDictionary

from attrs import frozen

from ledger.account import Account, AccountKey
from ledger.changes import Change, Funded, Withdrawn
from ledger.codec import Malformed
from ledger.events import AccountChanged
from ledger.rails.port import Sight
from ledger.rails.stablecoin.books import Deposit, decode_deposit
from ledger.rails.stablecoin.channels import ChannelRefused, check_channel
from ledger.rails.stablecoin.digests import Place, config_of
from ledger.records import Channel, ChannelTerms, Signed, open_record, sign
from node.exchange.book import Book
from node.exchange.channels import Channels, key_of
from node.exchange.rates import Rates, Turns
from node.exchange.strangers import did_of_wallet
from node.wire.messages import Refused, decode_bringing

TERMS_LIFETIME_S: Final = 3_600
# So many looks a second for each buyer, or for the address of one whose channel is not known here yet, after a first
# burst; and for all of these together.
_LOOKS_PER_S: Final = 0.5
_LOOKS_AT_FIRST: Final = 6.0
_STRANGE_LOOKS_PER_S: Final = 2.0
_STRANGE_LOOKS_AT_FIRST: Final = 20.0
# A deposit costs us gas: so many a second in the same way.
_DEPOSITS_PER_S: Final = 1 / 30
_DEPOSITS_AT_FIRST: Final = 3.0
_STRANGE_DEPOSITS_PER_S: Final = 1 / 10
_STRANGE_DEPOSITS_AT_FIRST: Final = 10.0
# How long a stranger waits for its turn, in seconds: less than what asks it waits for an answer.
_PATIENCE_S: Final = 10.0
# So many questions to the chain at a time.
_AT_ONCE: Final = 4
_LOOK_S: Final = 20.0
_RETRY_S: Final = 5


class Paid(Protocol):
    """The rail, as the till needs it: see `ledger.rails.stablecoin.rail.Stablecoin`."""

    async def collateral(self, account: Account) -> Sight | None:
        """What the channel holds."""

    async def bring(self, key: AccountKey, deposit: Deposit) -> None:
        """Bring a signed deposit to the chain. Raises what says why not."""


@frozen
class Wanted:
    """What this seller wants of a channel: where, in which token, to which wallet; seconds, and the account's unit."""

    place: Place
    token: bytes
    receiver: bytes
    withdraw_delay: int
    min_deposit: int


class Till:
    """The payee's side of channels: what `Teller` is for other nodes."""

    def __init__(
        self,
        book: Book,
        channels: Channels,
        rail: Paid,
        wanted: Wanted,
        look: Callable[[AccountKey], Awaitable[object]],
    ) -> None:
        """`look` has the collateral of an account of ours looked at soon."""
        self._book = book
        self._channels = channels
        self._rail = rail
        self._wanted = wanted
        self._look = look
        self._looks = Rates(book.now, _LOOKS_PER_S, _LOOKS_AT_FIRST)
        self._deposits = Rates(book.now, _DEPOSITS_PER_S, _DEPOSITS_AT_FIRST)
        self._strange_looks = Turns(book.now, _STRANGE_LOOKS_PER_S, _STRANGE_LOOKS_AT_FIRST, _PATIENCE_S)
        self._strange_deposits = Turns(book.now, _STRANGE_DEPOSITS_PER_S, _STRANGE_DEPOSITS_AT_FIRST, _PATIENCE_S)
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._locks: WeakValueDictionary[AccountKey, asyncio.Lock] = WeakValueDictionary()

    async def channel_terms(self) -> bytes:
        """See `Teller.channel_terms`."""
        return sign(self._terms(), self._book.identity).raw

    def _terms(self) -> ChannelTerms:
        wanted, now = self._wanted, self._book.now()
        return ChannelTerms(
            network=wanted.place.network,
            contract=wanted.place.contract,
            token=wanted.token,
            receiver=wanted.receiver,
            receiver_authorizer=wanted.receiver,
            withdraw_delay=wanted.withdraw_delay,
            min_deposit=wanted.min_deposit,
            issued=now,
            expires=now + TERMS_LIFETIME_S,
        )

    async def channel(self, raw: bytes, address: str) -> None:
        """See `Teller.channel`; `address` is who asks, by where it is. Raises Refused."""
        channel = self._opened(raw)
        if not await self._may(self._looks, self._strange_looks, channel, address):
            raise Refused("too_many_requests", "channels were looked at often enough: wait a moment", 2)
        # Not cut short where who asks goes away: a channel on disk that is not remembered would get a second one.
        await asyncio.shield(asyncio.ensure_future(self._taken_in(channel)))

    async def _taken_in(self, channel: Signed[Channel]) -> None:
        key = key_of(channel.record)
        async with self._at_once, self._lock(key):
            if self._channels.record(key) is None:
                await self._take_in(channel)
            else:
                await self._look(key)

    async def deposit(self, raw: bytes, address: str) -> None:
        """See `Teller.deposit`; `address` as for `channel`. Raises Refused."""
        try:
            said, signed = decode_bringing(raw)
            deposit = decode_deposit(signed)
        except Malformed as error:
            raise Refused("malformed", str(error)) from None
        channel = self._opened(said)
        if deposit.amount < self._wanted.min_deposit:
            raise Refused(
                "credit", f"deposits of less than {self._wanted.min_deposit} are not brought: send it yourself"
            )
        if not await self._may(self._deposits, self._strange_deposits, channel, address):
            raise Refused("too_many_requests", "deposits were brought often enough: wait, or send it yourself", 30)
        await asyncio.shield(asyncio.ensure_future(self._brought(channel, deposit)))

    async def _brought(self, channel: Signed[Channel], deposit: Deposit) -> None:
        async with self._at_once, self._lock(key_of(channel.record)):
            with self._channels.looking_at(channel) as key:
                self._check_apart(channel.record)
                try:
                    await self._rail.bring(key, deposit)
                except Exception as error:  # noqa: BLE001 - whatever it was, the buyer can bring it itself
                    raise Refused("failed", f"the deposit cannot be brought: {_words(error)}") from None
                # What was brought counts once the chain has it for good: from now on it is looked for.
                await self._channels.keep(channel)

    def _opened(self, raw: bytes) -> Signed[Channel]:
        """A channel that may be one of this node's accounts. Raises Refused."""
        try:
            channel = open_record(raw, Channel)
            known = self._channels.record(key_of(channel.record))
            if known is None or known.digest != channel.digest:
                check_channel(channel, self._book.me, self._terms(), self._wanted.place)
        except (Malformed, ChannelRefused) as error:
            raise Refused("malformed", str(error)) from None
        if known is not None and not _is_same(known.record, channel.record):
            raise Refused("malformed", "your account here has another channel, and keeps it: top that one up")
        return channel

    async def _take_in(self, channel: Signed[Channel]) -> None:
        """Make it an account's channel, if there is money in it. Raises Refused."""
        with self._channels.looking_at(channel) as key:
            self._check_apart(channel.record)
            sight: Sight | None = None
            try:
                async with asyncio.timeout(_LOOK_S):
                    sight = await self._rail.collateral(self._book.journal.books.account(key))
            except Exception:  # noqa: BLE001 - a rail may fail in any way, and has then said nothing
                raise Refused("busy", "the chain cannot be looked at now: try again", _RETRY_S) from None
            if sight is None or sight.funded < self._wanted.min_deposit:
                seen = 0 if sight is None else sight.funded
                least = self._wanted.min_deposit
                raise Refused("credit", f"the channel holds {seen} by now, and {least} is the least", _RETRY_S)
            facts: tuple[Change, ...] = Funded(sight.funded, sight.sequence), Withdrawn(sight.withdrawn, sight.sequence)
            await self._channels.keep(channel, *(AccountChanged(key, fact) for fact in facts))

    def _check_apart(self, channel: Channel) -> None:
        """Money stands behind one account: of a channel that pays by x402 nothing is left for a node. Raises Refused.

        The door for strangers asks the same the other way round. Either is told first who comes, and asks then.
        """
        config, place = config_of(channel), self._wanted.place
        if did_of_wallet(place.network, config.payer, place.channel_id(config)) in self._book.strangers.vouchers:
            raise Refused("malformed", "this channel pays here by x402: open another one, by another wallet")

    async def _may(self, rates: Rates, strange: Turns, channel: Signed[Channel], address: str) -> bool:
        """Whether a buyer may cause one more; where no channel of its is known here, its address may, in its turn."""
        if self._channels.record(key_of(channel.record)) is not None:
            return rates.charge(channel.signer) >= 0
        return rates.charge(address) >= 0 and await strange.take(address)

    def _lock(self, key: AccountKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())


def _is_same(one: Channel, other: Channel) -> bool:
    """Whether two records name one channel; their proofs may differ."""
    same_place = (one.network, one.contract) == (other.network, other.contract)
    return same_place and config_of(one) == config_of(other)


def _words(error: Exception) -> str:
    """Why, where it is a word of the rail's own; a vendor's text may hold an endpoint's key."""
    return str(error) if type(error).__module__.startswith("ledger.") else type(error).__name__
