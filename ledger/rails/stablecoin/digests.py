"""What is signed for a payment channel: EIP-712 digests, as x402's `batch-settlement` scheme and EIP-3009 have them.

A digest is keccak256(0x1901 || domain separator || struct hash) (EIP-712). A voucher's is on the way of every payment,
so all of it that does not change within a channel is prepared once. Addresses are 20 bytes, ids and salts 32, amounts
in the token's units.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Self

from attrs import field, frozen, validators
from Crypto.Hash import keccak as _keccak

from ledger.records import ADDRESS_BYTES, MAX_WITHDRAW_DELAY_S, MIN_WITHDRAW_DELAY_S, Channel

CHANNELS: Final = ("x402 Batch Settlement", "1")  # the domain of channels contracts: its name and version
MAX_UINT128: Final = 2**128 - 1
NOBODY: Final = bytes(ADDRESS_BYTES)


def keccak(data: bytes) -> bytes:
    """Keccak-256, as Ethereum has it (not SHA3-256)."""
    return _keccak.new(digest_bits=256, data=data).digest()


_DOMAIN: Final = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_CONFIG: Final = keccak(
    b"ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,"
    b"address token,uint40 withdrawDelay,bytes32 salt)"
)
_VOUCHER: Final = keccak(b"Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND: Final = "Refund(bytes32 channelId,uint256 nonce,uint128 amount)"
_REFUND: Final = keccak(REFUND.encode())
_ENTRY_TYPE: Final = b"ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
_ENTRY: Final = keccak(_ENTRY_TYPE)
_BATCH: Final = keccak(b"ClaimBatch(ClaimEntry[] claims)" + _ENTRY_TYPE)
_OWNER: Final = keccak(b"ChannelOwner(string did,bytes32 channelId)")
_FIELDS: Final = "address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce"
RECEIVE: Final = f"ReceiveWithAuthorization({_FIELDS})"
TRANSFER: Final = f"TransferWithAuthorization({_FIELDS})"
_RECEIVE: Final = keccak(RECEIVE.encode())


def _of_bytes(length: int) -> list[Any]:
    return [validators.instance_of(bytes), validators.min_len(length), validators.max_len(length)]


@frozen
class ChannelConfig:
    """What a channel is: the contract's struct of the same name. Its digest is the channel's id.

    `payer` gets back what is left, `payer_authorizer` signs vouchers; `withdraw_delay` in seconds.
    """

    payer: bytes = field(validator=_of_bytes(20))
    payer_authorizer: bytes = field(validator=_of_bytes(20))
    receiver: bytes = field(validator=_of_bytes(20))
    receiver_authorizer: bytes = field(validator=_of_bytes(20))
    token: bytes = field(validator=_of_bytes(20))
    withdraw_delay: int = field(
        validator=[
            validators.instance_of(int),
            validators.ge(MIN_WITHDRAW_DELAY_S),
            validators.le(MAX_WITHDRAW_DELAY_S),
        ]
    )
    salt: bytes = field(validator=_of_bytes(32))

    @classmethod
    def of_words(cls, words: bytes) -> Self:
        """What `words` gave. Raises ValueError."""
        payer, by, receiver, for_, token, delay, salt = (words[at : at + 32] for at in range(0, len(words), 32))
        return cls(payer[12:], by[12:], receiver[12:], for_[12:], token[12:], int.from_bytes(delay, "big"), salt)

    def words(self) -> bytes:
        """Its seven words of 32 bytes, as the ABI encodes them."""
        return b"".join(
            (
                _word(self.payer),
                _word(self.payer_authorizer),
                _word(self.receiver),
                _word(self.receiver_authorizer),
                _word(self.token),
                _number(self.withdraw_delay),
                self.salt,
            )
        )


def config_of(channel: Channel) -> ChannelConfig:
    """The config that a signed channel names."""
    return ChannelConfig(
        channel.wallet,
        channel.payer_authorizer,
        channel.receiver,
        channel.receiver_authorizer,
        channel.token,
        channel.withdraw_delay,
        channel.salt,
    )


def domain(name: str, version: str, chain_id: int, contract: bytes) -> bytes:
    """The separator of an EIP-712 domain: who is to take a signature, and where."""
    return keccak(_DOMAIN + keccak(name.encode()) + keccak(version.encode()) + _number(chain_id) + _word(contract))


class Place:
    """One channels contract on one chain: all that is signed for it binds both."""

    def __init__(self, chain_id: int, contract: bytes) -> None:
        """`contract` is its address. Its domain is the one that x402 gave the scheme."""
        self.chain_id: Final = chain_id
        self.contract: Final = contract
        self.network: Final = f"eip155:{chain_id}"
        self._prefix = b"\x19\x01" + domain(*CHANNELS, chain_id, contract)
        self._owner = b"\x19\x01" + domain("idlemesh", "1", chain_id, contract)
        self._ids = lru_cache(maxsize=4096)(self._new_id)

    def channel_id(self, config: ChannelConfig) -> bytes:
        """The channel's id."""
        return self._ids(config)

    def _new_id(self, config: ChannelConfig) -> bytes:
        return keccak(self._prefix + keccak(_CONFIG + config.words()))

    def voucher(self, channel_id: bytes, total: int) -> bytes:
        """What a payer signs: the receiver may claim up to `total` from the channel."""
        return keccak(self._prefix + keccak(_VOUCHER + channel_id + total.to_bytes(32, "big")))

    def refund(self, channel_id: bytes, nonce: int, amount: int) -> bytes:
        """What a receiver's authorizer signs to give unclaimed money back."""
        return keccak(self._prefix + keccak(_REFUND + channel_id + _number(nonce) + _number(amount)))

    def claims(self, rows: Sequence[tuple[bytes, int, int]]) -> bytes:
        """What a receiver's authorizer signs to claim rows of (channel, voucher's total, total claimed)."""
        entries = (keccak(_ENTRY + channel + _number(most) + _number(total)) for channel, most, total in rows)
        return keccak(self._prefix + keccak(_BATCH + keccak(b"".join(entries))))

    def owner(self, did: str, channel_id: bytes) -> bytes:
        """What a channel's key signs to say whose it is: this did's and nobody else's, here and nowhere else."""
        return keccak(self._owner + keccak(_OWNER + keccak(did.encode()) + channel_id))


def deposit_nonce(channel_id: bytes, salt: bytes) -> bytes:
    """The nonce of a deposit by EIP-3009: it binds the authorization to one channel, and moves money once."""
    return keccak(channel_id + salt)


def authorization(
    token_domain: bytes, payer: bytes, collector: bytes, amount: int, after: int, before: int, nonce: bytes
) -> bytes:
    """What a payer signs so that a collector may fetch `amount` (EIP-3009), between two times in seconds since 1970."""
    return keccak(
        b"\x19\x01"
        + token_domain
        + keccak(
            _RECEIVE + _word(payer) + _word(collector) + _number(amount) + _number(after) + _number(before) + nonce
        )
    )


def _word(address: bytes) -> bytes:
    return address.rjust(32, b"\0")


def _number(value: int) -> bytes:
    return value.to_bytes(32, "big")
