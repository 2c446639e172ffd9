"""The networks that the rail knows, as data: `networks.json`.

Addresses of USDC are Circle's (developers.circle.com/stablecoins/usdc-contract-addresses), those of the contracts are
x402's, which are the same on every chain. `anvil` is a chain of one's own: its addresses are those that anvil's first
account gives to what it deploys first.

`max_gas_price` (gwei) is far above what the network asks, and below what would hurt. Base asks for 0.002 at least (its
docs, network-fees), Arbitrum for 0.02 (since ArbOS 51): the bound is a thousand and a hundred times that. Polygon
asks for tips of 25 to 30 and has had hundreds for hours, of a coin that costs less than a dollar.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any, Final, Self

from attrs import define, evolve, frozen

from ledger.rails.stablecoin.digests import keccak

ADDRESS_BYTES: Final = 20
DECIMALS: Final = 6  # one unit of the token is a millionth of a dollar, as the ledger counts
_GWEI: Final = 10**9
# x402's `batch-settlement` contract and its collector of EIP-3009 deposits.
_X402: Final = {
    "contract": "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003",
    "erc3009_collector": "0x4020806089470a89826cB9fB1f4059150b550004",
    "approve_collector": None,
}


class NetworkError(Exception):
    """Settings that name no usable network; each subclass is one broken rule, with its values."""


@define
class UnknownNetwork(NetworkError):
    """No network of this name."""

    name: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"no network is called {self.name!r}: [stablecoin] network is one of {', '.join(self.known)}"


@define
class UnknownDeployment(NetworkError):
    """A contract whose collectors are not known."""

    contract: str

    def __str__(self) -> str:
        return f"the collectors of the channels contract {self.contract} are not known: write [stablecoin] collector"


def address(text: str) -> bytes:
    """An address of 20 bytes, from its text. Raises ValueError."""
    raw = bytes.fromhex(text.removeprefix("0x"))
    if len(raw) != ADDRESS_BYTES:
        raise ValueError(f"{text} is no address: it has 40 hexadecimal digits")
    return raw


def typed_address(text: str) -> bytes:
    """An address that somebody typed: in mixed case its checksum (EIP-55) has to fit. Raises ValueError."""
    raw = address(text)
    digits = text.removeprefix("0x")
    if digits not in (digits.lower(), digits.upper()) and digits != checksummed(raw).removeprefix("0x"):
        raise ValueError(f"the checksum of {text} is wrong (EIP-55): a digit was mistyped, copy it again")
    return raw


def checksummed(raw: bytes) -> str:
    """An address as people and wallets write it (EIP-55)."""
    digits = raw.hex()
    cased = (
        digit.upper() if int(mask, 16) >= 8 else digit
        for digit, mask in zip(digits, keccak(digits.encode()).hex(), strict=False)
    )
    return f"0x{''.join(cased)}"


@frozen
class Token:
    """A dollar of 6 decimals, with its EIP-712 domain. `eip3009`: whether deposits can be signed."""

    address: bytes
    name: str
    version: str
    eip3009: bool = True


@frozen
class Deployment:
    """A channels contract with its collectors; None: it has none of that kind."""

    contract: bytes
    erc3009_collector: bytes | None
    approve_collector: bytes | None

    @classmethod
    def read(cls, from_: dict[str, str | None]) -> Self:
        found = (from_[name] for name in ("contract", "erc3009_collector", "approve_collector"))
        contract, erc3009, approve = (address(text) if text else None for text in found)
        assert contract is not None
        return cls(contract, erc3009, approve)


@frozen
class Network:
    """One chain. `confirmations` are blocks on top after which a block counts as staying, `logs` the most blocks that
    one question for events may span, `since` the block before which no channel was opened; `coin` is what gas is paid
    in, `max_gas_price` the most that is offered for a gas, in wei, unless the owner says otherwise; `l1_fees` is the OP
    stack's GasPriceOracle, None where gas is all that a transaction costs.
    """

    name: str
    chain_id: int
    block_s: float
    confirmations: int
    logs: int
    since: int
    coin: str
    max_gas_price: int
    token: Token
    l1_fees: bytes | None
    rpc: tuple[str, ...]
    deployments: tuple[Deployment, ...]

    @property
    def caip2(self) -> str:
        """The name by which records and x402 call it, like `eip155:8453`."""
        return f"eip155:{self.chain_id}"

    def deployment(self, contract: bytes | None = None) -> Deployment:
        """The channels contract and its collectors; None: x402's. Raises UnknownDeployment."""
        for each in self.deployments:
            if contract in (None, each.contract):
                return each
        assert contract is not None
        raise UnknownDeployment(checksummed(contract))

    def deployed(self, contract: bytes, collector: bytes | None, approve_collector: bytes | None) -> Self:
        """The same with one more contract and its collectors; those that are None: as far as they are known."""
        known = next((each for each in self.deployments if each.contract == contract), Deployment(contract, None, None))
        more = Deployment(contract, collector or known.erc3009_collector, approve_collector or known.approve_collector)
        others = (each for each in self.deployments if each.contract != contract)
        return evolve(self, deployments=(*others, more))

    def with_(self, **changes: Any) -> Self:
        """The same with other fields: the owner's."""
        return evolve(self, **changes)


def in_coins(wei: int, caip2: str) -> str:
    """So much of a network's coin for people to read: with nine decimals, and the coin's name where it is known."""
    coin = next((each.coin for each in networks() if each.caip2 == caip2), "coins")
    gwei = (abs(wei) + _GWEI // 2) // _GWEI
    whole, rest = divmod(gwei, _GWEI)
    written = f"{whole}.{rest:09}".rstrip("0") + ("0" if not rest else "") if gwei or not wei else "<0.000000001"
    return f"{'-' if wei < 0 else ''}{written} {coin}"


def network(name: str) -> Network:
    """By its short name or CAIP-2. Raises UnknownNetwork."""
    for each in networks():
        if name in (each.name, each.caip2):
            return each
    raise UnknownNetwork(name, tuple(each.name for each in networks()))


@cache
def networks() -> tuple[Network, ...]:
    """All that are known."""
    kept = json.loads(files(__package__).joinpath("networks.json").read_text(encoding="utf-8"))
    return tuple(_read(each) for each in kept)


def _read(kept: dict[str, Any]) -> Network:
    token = Token(address(kept["token"]["address"]), kept["token"]["name"], kept["token"]["version"])
    return Network(
        name=kept["name"],
        chain_id=int(kept["network"].removeprefix("eip155:")),
        block_s=kept["block_s"],
        confirmations=kept["confirmations"],
        logs=kept["logs"],
        since=kept["since"],
        coin=kept["coin"],
        max_gas_price=kept["max_gas_price"] * _GWEI,
        token=token,
        l1_fees=address(kept["l1_fees"]) if kept["l1_fees"] else None,
        rpc=tuple(kept["rpc"]),
        deployments=tuple(Deployment.read(each) for each in (_X402, *kept.get("deployments", ()))),
    )
