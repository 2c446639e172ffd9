"""One network as the rail sees it: what channels hold, and transactions that arrive once.

Everything here may take as long as its bounds allow (a few endpoints, `rpc.ANSWER_S` each) and raises ChainError. An
error of `submit` other than Unreachable says that nothing was sent. After `Unreachable` ask `outcome`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from attrs import frozen

from ledger.rails.stablecoin.books import Deposit
from ledger.rails.stablecoin.contracts import Call
from ledger.rails.stablecoin.digests import ChannelConfig, Place
from ledger.rails.stablecoin.keys import Signer
from ledger.rails.stablecoin.networks import Deployment, Network

State = Literal["absent", "waiting", "mined", "settled", "failed"]


@frozen
class ChannelView:
    """A channel at one moment, amounts in units of the token.

    `block` is the head that was looked at, `deep` the last block with enough confirmations. `deposited` counts to
    `deep`, so it stays; `gone` (refunds and withdrawals) and `withdrawing` (under way) count to the head: money that
    may leave never counts. `claimed` is the total at `deep`, `claimed_at_head` and `balance` (less what is gone, claims
    do not lower it) those at the head. `withdraw_began` is in seconds since 1970, 0 if nothing is under way.
    """

    channel: bytes
    block: int
    deep: int
    deposited: int
    gone: int
    withdrawing: int
    withdraw_began: int
    claimed: int
    claimed_at_head: int
    balance: int
    refund_nonce: int


@frozen
class Outcome:
    """What became of a transaction.

    `absent` was never sent from here; `waiting` is sent and in no block; `mined` is in a block that may still go;
    `settled` and `failed` (reverted: it did nothing) have enough confirmations. `fee` is what it cost in wei.
    """

    state: State
    hash: bytes | None = None
    block: int | None = None
    gas: int = 0
    fee: int = 0


@frozen
class GasPrice:
    """What gas costs now in wei: `expected` by the next block's base fee and tip; `most` is what is offered.

    `l1_byte` is what a byte of a transaction costs besides, where the network pays another for its data (OP stack).
    """

    expected: int
    most: int
    l1_byte: int = 0

    def cost(self, gas: int, size: int) -> int:
        """Of a transaction of so much gas and so many bytes, in wei."""
        return gas * self.expected + size * self.l1_byte


class Chain:
    """The facade. Make one by `open`, end it by `close`."""

    network: Network
    deployment: Deployment
    place: Place

    @classmethod
    async def open(
        cls,
        network: Network,
        rpc: Sequence[str],
        folder: Path,
        signer: Signer | None = None,
        *,
        contract: bytes | None = None,
        max_gas_price: int = 50 * 10**9,
    ) -> Self:
        """Without asking anything: a node starts while the chain is down. `folder` keeps outbox and sights.

        `max_gas_price` is in wei. Raises UnknownDeployment.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Stop tending; what waits is sent on after the next `open`."""
        raise NotImplementedError

    async def check(self) -> None:
        """That endpoints serve this chain, with the contract and a token of 6 decimals. Raises ChainError."""
        raise NotImplementedError

    # Keys

    @property
    def address(self) -> bytes:
        """The wallet's. Raises NoWallet."""
        raise NotImplementedError

    async def sign_typed(self, typed: Mapping[str, Any]) -> bytes:
        """The wallet's signature (65 bytes) of a whole EIP-712 message: domain, types, primaryType, message."""
        raise NotImplementedError

    async def sign_digest(self, digest: bytes, shown: Mapping[str, Any]) -> bytes:
        """The wallet's signature of a digest; `shown` says what it is, for an external signer's eyes."""
        raise NotImplementedError

    # Channels

    async def look(self, config: ChannelConfig) -> ChannelView:
        """A channel now; asked of every endpoint, and only what adds up. Raises Unreachable, Disagreement,
        ChannelUnknown."""
        raise NotImplementedError

    async def find(self, channel: bytes) -> ChannelConfig:
        """A channel's config from the chain alone. Raises ChannelUnknown."""
        raise NotImplementedError

    async def find_all(self, party: bytes) -> list[ChannelConfig]:
        """Every channel that an address pays, is paid or authorizes by, from the chain alone (slow: all blocks)."""
        raise NotImplementedError

    async def unsettled(self, receiver: bytes | None = None) -> int:
        """What was claimed for a receiver (the wallet) and not paid out, at the head."""
        raise NotImplementedError

    async def authorize(self, config: ChannelConfig, amount: int, salt: bytes, before: int) -> Deposit:
        """A deposit signed by the wallet, which must be the payer, valid until `before`. Once at most for a salt."""
        raise NotImplementedError

    def bring(self, config: ChannelConfig, deposit: Deposit) -> Call:
        """The call that brings a signed deposit into its channel; anyone may submit it."""
        raise NotImplementedError

    async def deposited(self, config: ChannelConfig, salt: bytes, *, deep: bool = True) -> bool:
        """Whether the deposit of this salt happened (at depth, or at the head)."""
        raise NotImplementedError

    # Anything else

    async def read(self, to: bytes, name: str, *values: Any, deep: bool = False) -> tuple[Any, ...]:
        """A function of `contracts.FUNCTIONS`; endpoints that are asked must agree. Raises Disagreement."""
        raise NotImplementedError

    async def tokens(self, address: bytes | None = None) -> int:
        """How many units of the token an address (the wallet) has."""
        raise NotImplementedError

    async def ether(self, address: bytes | None = None) -> int:
        """How many wei."""
        raise NotImplementedError

    async def block(self) -> tuple[int, int]:
        """The head's number, and its time in seconds since 1970."""
        raise NotImplementedError

    async def gas_price(self) -> GasPrice:
        """What gas costs now."""
        raise NotImplementedError

    # Transactions

    async def submit(self, key: bytes, call: Call) -> Outcome:
        """Send a transaction, once for each key whatever happens; of one that was sent before, its outcome.

        It is simulated first. Raises Refused, TooDear, NoEther, NoWallet, SignerFailed, OutboxFull, Unreachable.
        """
        raise NotImplementedError

    async def outcome(self, key: bytes) -> Outcome:
        """What became of what was submitted under a key. Raises Unreachable."""
        raise NotImplementedError

    async def settled(self, key: bytes) -> Outcome:
        """Wait until it is settled or failed; the caller bounds the wait."""
        raise NotImplementedError

    async def tend(self) -> None:
        """Once: find receipts, send lost ones again, replace stuck ones. A task does so every few seconds."""
        raise NotImplementedError
