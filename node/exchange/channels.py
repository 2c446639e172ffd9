"""The channels of a node, by account, with the best vouchers on them: what the stablecoin rail asks the node's books.

Theory of operation. A channel is its payer's signed record, kept in the journal by both sides; an account has one for
good, so the first that was kept is the one. Vouchers come with acknowledgements, which are kept anyway. Strangers that
pay by x402 sign neither: their channels and vouchers are in what they have presented.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from ledger.account import AccountKey
from ledger.codec import Malformed
from ledger.events import AccountChanged
from ledger.identity import Did
from ledger.rails.stablecoin.books import Deposit, Promise
from ledger.rails.stablecoin.digests import ChannelConfig, config_of
from ledger.records import Acknowledgement, Channel, Signed, Voucher, open_record
from node.exchange.book import Book, kept
from node.exchange.strangers import CHANNEL_RAIL, is_stranger
from node.wire.messages import Refused, Unreachable, encode_bringing

# What this rail counts in: one unit of a token with 6 decimals.
UNIT: Final = "uusd"
_PAGE: Final = 500


class Teller(Protocol):
    """A peer that is paid by channels. Every call may raise `Refused` or `Unreachable`."""

    async def channel_terms(self) -> bytes:
        """What a channel to it has to be, as it signed it."""

    async def channel(self, raw: bytes) -> None:
        """Hand over a signed Channel, or say that more was deposited: it looks at the chain."""

    async def deposit(self, raw: bytes) -> None:
        """Hand over a Channel with a signed deposit, which it brings to the chain at its own expense."""


def key_of(channel: Channel) -> AccountKey:
    """The account that a channel stands behind."""
    return AccountKey(channel.payer, channel.payee, CHANNEL_RAIL, UNIT)


class Channels:
    """All channels that this node pays and is paid by. A `ledger.rails.stablecoin.books.Books`."""

    def __init__(
        self,
        book: Book,
        dial: Callable[[Did], Teller | None],
        strangers: Callable[[AccountKey], ChannelConfig | None] = lambda _: None,
    ) -> None:
        """`strangers` knows the channels of those who pay, or are paid, by x402."""
        self._book = book
        self._dial = dial
        self._strangers = strangers
        self._records: dict[AccountKey, Signed[Channel]] = {}
        self._salts: set[bytes] = set()
        self._looked_at: dict[AccountKey, Signed[Channel]] = {}

    @staticmethod
    async def open(
        book: Book,
        dial: Callable[[Did], Teller | None],
        strangers: Callable[[AccountKey], ChannelConfig | None] = lambda _: None,
    ) -> "Channels":
        """Those that the journal has."""
        channels = Channels(book, dial, strangers)
        before: int | None = None
        while page := await book.journal.list_records(Channel.kind, _PAGE, before):
            before = page[-1].sequence
            for record in page:
                channels._take(open_record(record.raw, Channel))  # the oldest stays
        return channels

    def record(self, key: AccountKey) -> Signed[Channel] | None:
        """An account's channel as its payer signed it."""
        return self._records.get(key)

    def all(self) -> list[Channel]:
        """Those that this node pays and is paid by, but for strangers'."""
        return [signed.record for signed in self._records.values()]

    def has(self, config: ChannelConfig) -> bool:
        """Whether a channel is between nodes, or is about to be: its salt follows from the two."""
        return config.salt in self._salts or any(one.record.salt == config.salt for one in self._looked_at.values())

    def paid_by(self, payer: str) -> list[AccountKey]:
        """The accounts with a channel of one payer."""
        return [key for key in self._records if key.payer == payer]

    async def keep(self, channel: Signed[Channel], *events: AccountChanged) -> None:
        """Make a channel its account's, for good. Durable on return."""
        key = key_of(channel.record)
        if key not in self._records:
            await self._book.post(*events, records=(kept(channel),))
            self._take(self._records.get(key, channel))

    def _take(self, channel: Signed[Channel]) -> None:
        self._records[key_of(channel.record)] = channel
        self._salts.add(channel.record.salt)

    @contextlib.contextmanager
    def looking_at(self, channel: Signed[Channel]) -> Iterator[AccountKey]:
        """While the context lasts, the rail can be asked about a channel that is none of this node's yet."""
        key = key_of(channel.record)
        self._looked_at[key] = channel
        try:
            yield key
        finally:
            self._looked_at.pop(key, None)

    # What the rail asks

    def channel(self, key: AccountKey) -> ChannelConfig | None:
        """See `Books.channel`."""
        if is_stranger(key.payer) or is_stranger(key.payee):
            return self._strangers(key)
        found = self._records.get(key) or self._looked_at.get(key)
        return None if found is None else config_of(found.record)

    async def promise(self, key: AccountKey) -> Promise | None:
        """See `Books.promise`."""
        stranger = self._book.strangers.voucher(key)
        if stranger is not None:
            return Promise(stranger.total, stranger.signature)
        _, digest = self._book.promised.best.get(key, (0, b""))
        record = await self._book.journal.record(digest) if digest else None
        if record is None:
            return None
        try:
            said = open_record(open_record(record.raw, Acknowledgement).record.voucher, Voucher).record
        except Malformed:
            return None
        return Promise(said.total, said.signature) if said.signature is not None else None

    async def relay(self, key: AccountKey, deposit: Deposit) -> bool:
        """See `Books.relay`. What is not answered may be brought all the same: it moves money once at most."""
        line, channel = self._dial(Did(key.payee)), self._records.get(key)
        if line is None or channel is None:
            return False
        try:
            await line.deposit(encode_bringing(channel.raw, deposit.encode()))
        except (Refused, Unreachable):
            return False
        return True
