"""What the rail has to know from the node's books, and a deposit as it travels to whoever brings it to the chain."""

from typing import Final, Protocol

from attrs import frozen

from ledger import codec
from ledger.account import AccountKey
from ledger.money import MAX_AMOUNT
from ledger.rails.stablecoin.digests import ChannelConfig
from ledger.records import DIGEST_BYTES, SIGNATURE_BYTES

MAX_DEPOSIT_BYTES: Final = 256
_MAX_SECONDS: Final = 2**40


@frozen
class Promise:
    """The best voucher held of an account: its total, and the channel key's signature over it (65 bytes)."""

    total: int
    signature: bytes


@frozen
class Deposit:
    """A payer's authorization (EIP-3009) to bring `amount` into a channel, between two times; anyone may relay it.

    It is bound to the channel and moves money once, however often it is relayed. Amounts in the token's units, times
    in seconds since 1970; `salt` makes the nonce.
    """

    channel: bytes
    amount: int
    valid_after: int
    valid_before: int
    salt: bytes
    signature: bytes

    def encode(self) -> bytes:
        """As it travels: a CBOR array of its fields."""
        return codec.encode([self.channel, self.amount, self.valid_after, self.valid_before, self.salt, self.signature])


def decode_deposit(raw: bytes) -> Deposit:
    """A deposit from a stranger; its signature is not checked yet. Raises codec.Malformed."""
    match codec.decode(raw, MAX_DEPOSIT_BYTES):
        case [bytes(channel), int(amount), int(after), int(before), bytes(salt), bytes(signature)] if (
            (len(channel), len(salt), len(signature)) == (DIGEST_BYTES, DIGEST_BYTES, SIGNATURE_BYTES)
            and bool not in {type(amount), type(after), type(before)}
            and 0 < amount <= MAX_AMOUNT
            and 0 <= after < before <= _MAX_SECONDS
        ):
            return Deposit(channel, amount, after, before, salt, signature)
    raise codec.Malformed("a deposit is [channel, amount, valid after, valid before, salt, signature]")


class Books(Protocol):
    """What a node keeps of its channels, by account: from its journal, or of those who pay by x402 alone."""

    def channel(self, key: AccountKey) -> ChannelConfig | None:
        """The account's channel, which never changes; None: it has none yet."""

    async def promise(self, key: AccountKey) -> Promise | None:
        """The voucher of the highest total that the payee holds; None: it holds none."""

    async def relay(self, key: AccountKey, deposit: Deposit) -> bool:
        """Hand a signed deposit to the payee, who brings it to the chain; whether it said that it does."""
