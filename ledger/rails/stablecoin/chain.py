"""One network as the rail sees it: what channels hold, and transactions that arrive once.

Everything here may take as long as its bounds allow (a few endpoints, `rpc.ANSWER_S` each) and raises ChainError. An
error of `submit` other than Unreachable says that nothing was sent. After `Unreachable` ask `outcome`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from ledger.rails.stablecoin import contracts
from ledger.rails.stablecoin.bond_finding import BondFinding
from ledger.rails.stablecoin.bond_terms import BondPlace, BondTerms
from ledger.rails.stablecoin.books import Deposit
from ledger.rails.stablecoin.contracts import Call, collector_data
from ledger.rails.stablecoin.digests import RECEIVE, ChannelConfig, Place, authorization, deposit_nonce, domain
from ledger.rails.stablecoin.errors import (
    ChainError,
    NoContract,
    NoWallet,
    Unreachable,
    WrongDecimals,
)
from ledger.rails.stablecoin.fees import GasPrice
from ledger.rails.stablecoin.finding import Finding, Found
from ledger.rails.stablecoin.keys import Signer
from ledger.rails.stablecoin.networks import DECIMALS, Deployment, Network, checksummed
from ledger.rails.stablecoin.outbox import Outbox, Outcome, State
from ledger.rails.stablecoin.prices import Prices
from ledger.rails.stablecoin.reading import Reading
from ledger.rails.stablecoin.rpc import ANSWER_S, Endpoints, hexed, octets, quantity
from ledger.rails.stablecoin.sights import Sights
from ledger.rails.stablecoin.transactions import STUCK_S, Transactions
from ledger.rails.stablecoin.typed import digest_of, domain_of_token, message
from ledger.rails.stablecoin.watch import ChannelView, Watch

__all__ = ["Chain", "ChannelView", "GasPrice", "Outcome", "State"]

_log = logging.getLogger(__name__)


class Chain:
    """The facade. Make one by `open`, end it by `close`."""

    def __init__(
        self,
        network: Network,
        deployment: Deployment,
        endpoints: Endpoints,
        sights: Sights,
        signer: Signer | None,
        prices: Prices,
        transactions: Transactions | None,
        poll_s: float,
    ) -> None:
        """Use `open`."""
        self.network: Final = network
        self.deployment: Final = deployment
        self.place: Final = sights.place
        self.endpoints: Final = endpoints  # for questions that are not asked here
        self.unseen_s: Final = sights.unseen_s  # for how long nobody had looked when it was opened
        self._reading = Reading(endpoints, network)
        self._watch = Watch(self._reading, network, sights.place, sights)
        self._finding = Finding(self._reading, network, sights.place)
        self._signer = signer
        self._prices = prices
        self._transactions = transactions
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self._tending = asyncio.create_task(self._tend_always()) if transactions is not None else None

    @classmethod
    async def open(
        cls,
        network: Network,
        rpc: Sequence[str],
        folder: Path,
        signer: Signer | None = None,
        *,
        contract: bytes | None = None,
        max_gas_price: int | None = None,
        answer_s: float = ANSWER_S,
        stuck_s: float = STUCK_S,
        poll_s: float | None = None,
    ) -> Self:
        """Without asking anything: a node starts while the chain is down. `folder` keeps outbox and sights.

        `rpc` empty: the network's public endpoints. `max_gas_price` is in wei (None: the network's bound); after
        `stuck_s` without a block a transaction is replaced; it is tended every `poll_s` (None: as blocks come).
        Raises UnknownDeployment, OutboxUnreadable.
        """
        deployment = network.deployment(contract)
        sights, outbox = _kept(folder, Place(network.chain_id, deployment.contract), signer)
        endpoints = Endpoints(rpc or network.rpc, network.chain_id, answer_s)
        most = network.max_gas_price if max_gas_price is None else max_gas_price
        prices = Prices(endpoints, network, most, folder / f"prices-{network.chain_id}.json")
        transactions = None
        if signer is not None and outbox is not None:
            transactions = Transactions(endpoints, network, signer, outbox, prices, stuck_s)
        wait_s = max(network.block_s, 1.0) if poll_s is None else poll_s
        return cls(network, deployment, endpoints, sights, signer, prices, transactions, wait_s)

    async def close(self) -> None:
        """Stop tending; what waits is sent on after the next `open`."""
        if self._tending is not None:
            self._tending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tending
        if self._transactions is not None:
            await self._transactions.close()
        await self._watch.close()
        await self.endpoints.close()

    async def check(self) -> None:
        """That endpoints serve this chain, with the contract and a token of 6 decimals. Raises ChainError."""
        token, contract = self.network.token.address, self.deployment.contract
        for what, address in (("channels contract", contract), ("token", token)):
            if not await self._reading.agreed("eth_getCode", hexed(address), parse=octets, what=f"the {what}'s code"):
                raise NoContract(what, checksummed(address))
        (decimals,) = await self.read(token, "decimals")
        if decimals != DECIMALS:
            raise WrongDecimals(decimals)

    # Keys

    @property
    def address(self) -> bytes:
        """The wallet's. Raises NoWallet."""
        return self._wallet().address

    async def sign_typed(self, typed: Mapping[str, Any]) -> bytes:
        """The wallet's signature (65 bytes) of a whole EIP-712 message: domain, types, primaryType, message."""
        return await self.sign_digest(digest_of(typed), {"typed_data": typed})

    async def sign_digest(self, digest: bytes, shown: Mapping[str, Any]) -> bytes:
        """The wallet's signature of a digest; `shown` says what it is, for an external signer's eyes."""
        return await self._wallet().sign(digest, shown)

    def _wallet(self) -> Signer:
        if self._signer is None:
            raise NoWallet
        return self._signer

    # Channels

    async def look(self, config: ChannelConfig, opened: int | None = None) -> ChannelView:
        """A channel now; asked of every endpoint, and only what adds up.

        `opened` is the block from which its past is added up, where that is not known yet; None: its last opening.
        Raises Unreachable, Disagreement, ChannelUnknown (never opened, or emptied without ever having paid).
        """
        return await self._watch.look(config, opened)

    async def find_all(self, party: bytes) -> list[Found]:
        """Every channel that an address pays, is paid or authorizes by, from the chain alone (slow: all blocks)."""
        return await self._finding.find_all(party)

    async def find_bonds(self, place: BondPlace, seller: bytes) -> list[BondTerms]:
        """The bonds that an address has ever locked in a contract, from the chain alone (slow: all blocks)."""
        return await BondFinding(self._reading, self.network).find(place, seller)

    async def find_bond(self, place: BondPlace, bond: bytes) -> BondTerms | None:
        """The terms of a bond in a contract, from the chain alone (slow: blocks back to where it was locked)."""
        return await BondFinding(self._reading, self.network).terms(place, bond)

    async def search_slashes(
        self, place: BondPlace, bond: bytes, for_s: int, enough: Callable[[set[bytes]], Awaitable[bool]]
    ) -> None:
        """Tell `enough` of the evidence that was brought against a bond in so many seconds, until it says so."""
        await BondFinding(self._reading, self.network).slashes(place, bond, for_s, enough)

    async def unsettled(self) -> int:
        """What was claimed for the wallet and not paid out, at the head."""
        token = self.network.token.address
        claimed, settled = await self.read(self.deployment.contract, "receivers", self.address, token)
        return int(claimed - settled)

    async def authorize(self, config: ChannelConfig, amount: int, salt: bytes, before: int) -> Deposit:
        """A deposit signed by the wallet, which must be the payer, valid until `before`. Once at most for a salt.

        Raises NoWallet, SignerFailed, NoContract (the deployment has no collector of these).
        """
        token, collector = self.network.token, self._collector()
        channel = self.place.channel_id(config)
        nonce = deposit_nonce(channel, salt)
        separator = domain(token.name, token.version, self.network.chain_id, token.address)
        digest = authorization(separator, config.payer, collector, amount, 0, before, nonce)
        shown = message(
            domain_of_token(token, self.network.chain_id), RECEIVE, config.payer, collector, amount, 0, before, nonce
        )
        return Deposit(channel, amount, 0, before, salt, await self.sign_digest(digest, {"typed_data": shown}))

    def bring(self, config: ChannelConfig, deposit: Deposit) -> Call:
        """The call that brings a signed deposit into its channel; anyone may submit it. Raises NoContract."""
        data = collector_data(deposit.valid_after, deposit.valid_before, deposit.salt, deposit.signature)
        return contracts.deposit(self.deployment.contract, config, deposit.amount, self._collector(), data)

    async def deposited(self, config: ChannelConfig, salt: bytes, *, deep: bool = True) -> bool:
        """Whether the deposit of this salt happened (at depth, or at the head)."""
        nonce = deposit_nonce(self.place.channel_id(config), salt)
        (used,) = await self.read(self.network.token.address, "authorizationState", config.payer, nonce, deep=deep)
        return bool(used)

    def _collector(self) -> bytes:
        if self.deployment.erc3009_collector is None:
            raise NoContract("collector of signed deposits", checksummed(self.deployment.contract))
        return self.deployment.erc3009_collector

    # Anything else

    async def read(self, to: bytes, name: str, *values: Any, deep: bool = False) -> tuple[Any, ...]:
        """A function of `contracts.FUNCTIONS`; endpoints that answer must agree. Raises Unreachable, Disagreement."""
        return await self._reading.read(to, name, *values, deep=deep)

    async def tokens(self, address: bytes | None = None) -> int:
        """How many units of the token an address (the wallet) has."""
        (found,) = await self.read(self.network.token.address, "balanceOf", address or self.address)
        return int(found)

    async def ether(self) -> int:
        """How many wei the wallet has."""
        return await self._reading.agreed("eth_getBalance", hexed(self.address), parse=quantity, what="a balance")

    async def block(self) -> tuple[int, int]:
        """The head's number, and its time in seconds since 1970."""
        found = await self._reading.head()
        return found.number, found.time

    async def gas_price(self) -> GasPrice:
        """What gas costs now. Raises Unreachable."""
        return await self._prices.said()

    # Transactions

    async def submit(self, key: bytes, call: Call) -> Outcome:
        """Send a transaction, once for each key whatever happens; of one that was sent before, its outcome.

        It is simulated first. What is raised says that nothing was sent: Refused, TooDear, NoEther, NoWallet,
        SignerFailed, OutboxFull, Unreachable.
        """
        found = await self._sending().submit(key, call)
        self._wake.set()
        return found

    async def outcome(self, key: bytes) -> Outcome:
        """What became of what was submitted under a key, as of now if the chain can be asked."""
        sending = self._sending()
        if sending.outcome(key).state in ("waiting", "mined"):
            with contextlib.suppress(Unreachable):
                await sending.tend(key)
        return sending.outcome(key)

    @property
    def over(self) -> list[Outcome]:
        """What became of the wallet's transactions that are final, the latest of them."""
        return [] if self._transactions is None else self._transactions.over

    async def settled(self, key: bytes) -> Outcome:
        """Wait until it is settled or failed (or was never sent); the caller bounds the wait."""
        return await self._sending().settled(key)

    async def tend(self) -> None:
        """Once: find receipts, send lost ones again, replace stuck ones. A task does so as blocks come."""
        await self._sending().tend()

    def _sending(self) -> Transactions:
        if self._transactions is None:
            raise NoWallet
        return self._transactions

    async def _tend_always(self) -> None:
        sending = self._sending()
        while True:
            if not sending.waiting:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(self._poll_s)
            try:
                await sending.tend()
            except ChainError as error:
                _log.info("transactions wait: %s", error)
            except Exception:  # noqa: BLE001 - a full disk, for one: what waits is in the outbox
                _log.exception("transactions could not be tended; it is tried again")


def _kept(folder: Path, place: Place, signer: Signer | None) -> tuple[Sights, Outbox | None]:
    """What earlier runs left."""
    folder.mkdir(parents=True, exist_ok=True)
    sights = Sights(folder / f"channels-{place.chain_id}-{place.contract.hex()}.json", place)
    sights.load()
    if signer is None:
        return sights, None
    name = f"outbox-{place.chain_id}-{signer.address.hex()}.json"
    return sights, Outbox.open(folder / name, place.chain_id, signer.address)
