"""Vouchers on channels: signed by a key of the node's own, checked before they count.

Theory of operation. A channel names two keys of its payer: the wallet, whose money it is, and the authorizer, which
signs vouchers. A node's authorizer is derived from its identity, so it pays without its wallet, at the speed of its
orders, and can find it again from nothing else. What the contract would not take must not count here: its rules for
signatures (65 bytes, v of 27 or 28, the lower s) are checked here as there.
"""

from functools import lru_cache
from typing import Final

from attrs import define
from coincurve import PrivateKey, PublicKey

from ledger.account import Account
from ledger.changes import VoucherReceived
from ledger.identity import Identity
from ledger.rails import vouchers
from ledger.rails.port import VoucherRefused
from ledger.rails.stablecoin.digests import NOBODY, ChannelConfig, Place, keccak
from ledger.records import ADDRESS_BYTES, SIGNATURE_BYTES, Signed, Voucher

NAME: Final = "stablecoin"
UNIT: Final = "uusd"
_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


@define
class NoChannel(VoucherRefused):
    """The account has no channel, so nothing can be promised on it."""

    payer: str
    payee: str

    def __str__(self) -> str:
        return f"{self.payer} has no payment channel to {self.payee}: it is opened by the first deposit"


@define
class NotTheAuthorizers(VoucherRefused):
    """The channel's contract would not take this signature."""

    channel: bytes
    authorizer: bytes

    def __str__(self) -> str:
        return (
            f"the voucher's signature is not that of 0x{self.authorizer.hex()} over its total on the channel"
            f" 0x{self.channel.hex()}: the channel's key signs each total"
        )


@define
class AboveDeposit(VoucherRefused):
    """The voucher promises more than the channel can pay."""

    covered: int
    found: int

    def __str__(self) -> str:
        return f"the voucher's total is {self.found}, and the channel bears {self.covered}: deposit more first"


@lru_cache(maxsize=16)
def voucher_key(identity: Identity) -> PrivateKey:
    """The key that signs this node's vouchers on every channel; found again from the identity alone."""
    return PrivateKey(identity.secret(b"voucher key"))


def address_of(key: PublicKey) -> bytes:
    """The address of a secp256k1 key: 20 bytes."""
    return keccak(key.format(compressed=False)[1:])[-ADDRESS_BYTES:]


def signed(key: PrivateKey, digest: bytes) -> bytes:
    """An Ethereum signature over a digest: r, s, v in 65 bytes, s in the lower half, v of 27 or 28."""
    raw = key.sign_recoverable(digest, hasher=None)
    return raw[:64] + bytes((27 + raw[64],))


def signer_of(digest: bytes, signature: bytes) -> bytes | None:
    """The address whose key signed a digest; None where the contracts would not take the signature."""
    key = _recovered(digest, signature)
    return None if key is None else _address_of_point(key.format())


def _recovered(digest: bytes, signature: bytes) -> PublicKey | None:
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        return None
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        return None
    try:
        # Recovered and not only verified: the contracts recover as well, and a wrong v gives them another key.
        return PublicKey.from_signature_and_message(signature[:64] + bytes((signature[64] - 27,)), digest, hasher=None)
    except Exception:  # noqa: BLE001 - libsecp256k1's door raises bare ones for what is no signature
        return None


@lru_cache(maxsize=4096)
def _address_of_point(compressed: bytes) -> bytes:
    """Counterparties pay again and again: their key's address is hashed once."""
    return address_of(PublicKey(compressed))


def is_promised(place: Place, config: ChannelConfig, channel_id: bytes, total: int, signature: bytes) -> bool:
    """Whether the channel's contract would take this signature for a voucher of `total`.

    A channel without an authorizer of its own is signed for by its payer's wallet, which may be a contract or become
    one (EIP-7702) and take its word back: nothing counts on such a channel.
    """
    if config.payer_authorizer == NOBODY:
        return False
    return signer_of(place.voucher(channel_id, total), signature) == config.payer_authorizer


def account_name(channel_id: bytes) -> str:
    """A channel as vouchers name it."""
    return f"0x{channel_id.hex()}"


def make_voucher(
    place: Place, config: ChannelConfig, identity: Identity, account: Account, total: int
) -> Signed[Voucher]:
    """The payer's promise of a growing total, good on the chain as well.

    Raises AuthorizedFell, AboveOwed (guards of `Authorized`), WrongSigner, NotTheAuthorizers (another key's channel).
    """
    channel_id, key = place.channel_id(config), voucher_key(identity)
    if _address_of_point(key.public_key.format()) != config.payer_authorizer:
        raise NotTheAuthorizers(channel_id, config.payer_authorizer)
    signature = signed(key, place.voucher(channel_id, total))
    where = (place.network, account_name(channel_id))
    return vouchers.make_voucher(NAME, where, identity, account, total, signature)


def check_voucher(
    place: Place, config: ChannelConfig, voucher: Signed[Voucher], account: Account, at_least: int, covered: int
) -> VoucherReceived:
    """The fact that a voucher is to the payee's account; `covered` is all that can be claimed from the channel.

    Raises WrongSigner, WrongParties, WrongRail, WrongNetwork (another chain or channel), WrongUnit, TotalTooLow,
    AboveDeposit, NotTheAuthorizers.
    """
    channel_id, said = place.channel_id(config), voucher.record
    fact = vouchers.check_voucher(NAME, (place.network, account_name(channel_id)), voucher, account, at_least)
    if said.total > covered:
        raise AboveDeposit(covered, said.total)
    if not is_promised(place, config, channel_id, said.total, said.signature or b""):
        raise NotTheAuthorizers(channel_id, config.payer_authorizer)
    return fact
