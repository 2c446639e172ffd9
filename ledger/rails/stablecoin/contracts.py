"""What the contracts are asked and what they say, in bytes: calls, answers and events (`contracts/src/I*.sol`).

The functions and structs of the channels are x402's `batch-settlement`. Nothing here talks to anybody.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import Attribute, astuple, field, frozen
from eth_abi.exceptions import DecodingError
from web3 import Web3

from ledger.rails.stablecoin.digests import ChannelConfig, keccak
from ledger.rails.stablecoin.networks import ADDRESS_BYTES

CODEC: Final = Web3().codec  # strict: bytes are as long as their type says
WORD: Final = 32
MAX_ROWS: Final = 50  # of one claim: more cost hardly less each
CONFIG: Final = "(address,address,address,address,address,uint40,bytes32)"
_CLAIM: Final = f"(({CONFIG},uint128),bytes,uint128)"
BOND_TERMS: Final = "(address,address,address,uint40,uint40,uint8,address[],bytes32)"
_JUDGEMENT: Final = "(bytes32,address,uint128,uint128,uint40)"
_ARBITERS: Final = "(uint8,bytes)[]"

_SETTLE_GAS: Final = 150_000  # 45,800 with a plain token; one behind a proxy that keeps lists, as USDC, takes more

# What is called: name -> the types of its arguments, and of its answer.
FUNCTIONS: Final[Mapping[str, tuple[list[str], list[str]]]] = {
    "deposit": ([CONFIG, "uint128", "address", "bytes"], []),
    "claim": ([f"{_CLAIM}[]"], []),
    "settle": (["address", "address"], []),
    "refund": ([CONFIG, "uint128"], []),
    "refundWithSignature": ([CONFIG, "uint128", "uint256", "bytes"], []),
    "initiateWithdraw": ([CONFIG, "uint128"], []),
    "finalizeWithdraw": ([CONFIG], []),
    "channels": (["bytes32"], ["uint128", "uint128"]),
    "pendingWithdrawals": (["bytes32"], ["uint128", "uint40"]),
    "receivers": (["address", "address"], ["uint128", "uint128"]),
    "refundNonce": (["bytes32"], ["uint256"]),
    "bond": ([BOND_TERMS, "uint128"], []),
    "requestUnlock": ([BOND_TERMS, "uint128"], []),
    "cancelUnlock": ([BOND_TERMS], []),
    "unlock": ([BOND_TERMS], []),
    "proposeSlash": ([BOND_TERMS, _JUDGEMENT, _ARBITERS], []),
    "answerSlash": ([BOND_TERMS, "bytes32", "bytes32"], []),
    "executeSlash": ([BOND_TERMS, "bytes32"], []),
    "upholdSlash": ([BOND_TERMS, "bytes32", _ARBITERS], []),
    "dismissSlash": ([BOND_TERMS, "bytes32", _ARBITERS], []),
    "lapseSlash": ([BOND_TERMS, "bytes32"], []),
    "slashes": (["bytes32", "bytes32"], ["uint8", "uint40", "address", "uint128", "uint128", "bytes32"]),
    "credits": (["address", "address"], ["uint256"]),
    "bonds": (["bytes32"], ["uint128", "uint128", "uint128", "uint40"]),
    "payOut": (["address", "address"], []),
    "approve": (["address", "uint256"], ["bool"]),
    "allowance": (["address", "address"], ["uint256"]),
    "balanceOf": (["address"], ["uint256"]),
    "decimals": ([], ["uint8"]),
    "authorizationState": (["address", "bytes32"], ["bool"]),
    "getL1FeeUpperBound": (["uint256"], ["uint256"]),
    "tryAggregate": (["bool", "(address,bytes)[]"], ["(bool,bytes)[]"]),
}

# Events, of x402's own contract as well; that of a claim has other fields there, and is not read.
CREATED: Final = keccak(f"ChannelCreated(bytes32,{CONFIG})".encode())
DEPOSITED: Final = keccak(b"Deposited(bytes32,address,uint128,uint128)")
REFUNDED: Final = keccak(b"Refunded(bytes32,address,uint128)")
WITHDRAWN: Final = keccak(b"WithdrawFinalized(bytes32,address,uint128)")


class Malformed(Exception):
    """An answer that no such contract gives."""


def _is_address(_: Any, attribute: "Attribute[bytes]", value: object) -> None:
    if not isinstance(value, bytes) or len(value) != ADDRESS_BYTES:
        raise ValueError(f"{attribute.name} has {ADDRESS_BYTES} bytes")


@frozen
class Row:
    """One channel's part of a claim: the best voucher, and up to which total to claim."""

    config: ChannelConfig
    most: int
    signature: bytes
    total: int


@frozen
class Call:
    """A transaction's content: what is called with which bytes. `gas` is the least limit that it gets."""

    to: bytes = field(validator=_is_address)
    data: bytes = field(repr=False)
    value: int = 0
    gas: int = 0


def encoded(name: str, *values: Any) -> bytes:
    """The data of a call."""
    arguments, _ = FUNCTIONS[name]
    selector = keccak(f"{name}({','.join(arguments)})".encode())[:4]
    return bytes(selector + CODEC.encode(arguments, list(values)))


def answered(name: str, found: bytes) -> tuple[Any, ...]:
    """What a call returned. Raises Malformed."""
    return decoded(FUNCTIONS[name][1], found)


def decoded(types: Sequence[str], found: bytes) -> tuple[Any, ...]:
    """Values of these types; addresses as hexadecimal text. Raises Malformed."""
    try:
        return tuple(CODEC.decode(types, found))
    except (DecodingError, OverflowError, ValueError):
        raise Malformed(f"{len(found)} bytes are no ({','.join(types)})") from None


def collector_data(valid_after: int, valid_before: int, salt: bytes, signature: bytes) -> bytes:
    """What the EIP-3009 collector needs to know, besides channel and amount. The salt has 32 bytes."""
    return bytes(CODEC.encode(["uint256", "uint256", "bytes32", "bytes"], [valid_after, valid_before, salt, signature]))


def config_read(found: Sequence[Any]) -> ChannelConfig:
    """A channel's config, from what a contract or event says. Raises Malformed."""
    payer, by, receiver, for_, token = (bytes.fromhex(each[2:]) for each in found[:5])
    try:
        return ChannelConfig(payer, by, receiver, for_, token, found[5], found[6])
    except ValueError:
        raise Malformed("no config of a channel") from None


# Calls


def deposit(channels: bytes, config: ChannelConfig, amount: int, collector: bytes, data: bytes = b"") -> Call:
    """Put tokens of the payer into a channel."""
    return Call(channels, encoded("deposit", astuple(config), amount, collector, data))


def claim(channels: bytes, rows: Sequence[Row]) -> Call:
    """Claim from channels of one receiver, by it or its authorizer."""
    if not 0 < len(rows) <= MAX_ROWS:
        raise ValueError(f"a claim has 1 to {MAX_ROWS} rows, not {len(rows)}")
    plain = [((astuple(row.config), row.most), row.signature, row.total) for row in rows]
    return Call(channels, encoded("claim", plain))


def settle(channels: bytes, receiver: bytes, token: bytes) -> Call:
    """Pay a receiver what was claimed for it."""
    # Simulated before the claim that goes ahead of it is mined, it would seem to cost nothing.
    return Call(channels, encoded("settle", receiver, token), gas=_SETTLE_GAS)


def refund(channels: bytes, config: ChannelConfig, amount: int) -> Call:
    """Give unclaimed tokens back, by the receiver or its authorizer. Happens as often as it is called."""
    return Call(channels, encoded("refund", astuple(config), amount))


def refund_with_signature(channels: bytes, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> Call:
    """The same as the receiver's authorizer signed it: once at most for a nonce."""
    return Call(channels, encoded("refundWithSignature", astuple(config), amount, nonce, signature))


def initiate_withdraw(channels: bytes, config: ChannelConfig, amount: int) -> Call:
    """Begin the payer's notice."""
    return Call(channels, encoded("initiateWithdraw", astuple(config), amount))


def finalize_withdraw(channels: bytes, config: ChannelConfig) -> Call:
    """End a notice that is over."""
    return Call(channels, encoded("finalizeWithdraw", astuple(config)))


def approve(token: bytes, spender: bytes, amount: int) -> Call:
    """Let a contract take so much of the token."""
    return Call(token, encoded("approve", spender, amount))
