"""What the chain moves for strangers: deposits into their channels, and transfers to this node's wallet.

Theory of operation. The node is its own facilitator: it brings what was signed to the chain, by transactions that have
the name of what was signed and so are sent once, whatever happens. A facilitator of somebody else may do that instead;
what counts is never its word, but what the chain has at depth. A transfer is in the journal before it is tried, and
stays there until it is known what became of it: a timeout is unknown, and its money is counted when it shows. So is the
money of transfers that this node has seen and not sent: whoever else has seen one can bring it to the chain.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Final, Protocol

from attrs import frozen
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.mechanisms.evm.batch_settlement.errors import (
    ERR_DEPOSIT_TRANSACTION_FAILED,
    ERR_INVALID_RECEIVE_AUTHORIZATION_SIGNATURE,
    ERR_RPC_READ_FAILED,
    ERR_VALID_BEFORE_EXPIRED,
)
from x402.mechanisms.evm.constants import (
    ERR_INSUFFICIENT_BALANCE,
    ERR_NONCE_ALREADY_USED,
    ERR_SETTLEMENT_PENDING,
    ERR_TRANSACTION_FAILED,
)
from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse

from ledger.money import Amount
from ledger.rails.stablecoin.books import Deposit
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.digests import ChannelConfig, authorization, deposit_nonce, domain
from ledger.rails.stablecoin.errors import ChainError, ChannelUnknown, Refused, Unreachable
from ledger.rails.stablecoin.networks import Token
from ledger.rails.stablecoin.sending import TriedOften, sent
from ledger.rails.stablecoin.transfers import MOST_NONCES, happened, used_among
from ledger.rails.stablecoin.vouchers import signer_of
from node.exchange.book import Book
from node.exchange.strangers import PREPAID_RAIL, Transfer, ended, presented, wallet_of
from node.exchange.tabs import PaymentUsed, Tabs
from node.paid.gas import Gas
from node.paid.presented import SignedTransfer
from node.paid.terms import BELOW_GAS, TIMEOUT_S, PaymentRefused
from node.paid.watched import Watched
from node.paid.worth import Least, Worth

# How long a request waits for the chain; what it waited for goes on without it.
WAIT_S: Final = 120.0
_POLL_S: Final = 1.0
# A facilitator answers once its transaction is mined; what it has not said by then is asked of the chain.
_FACILITATOR_S: Final = 60.0
# A block's time may lie behind the clock, and one that is not deep yet may still hold a transfer.
_LATE_S: Final = 600
# A transfer was presented no longer before its end than this, and was not used then.
_EARLIEST_S: Final = 2 * TIMEOUT_S + _LATE_S
_PENDING: Final = "the chain has not confirmed the payment yet: it is counted when it does; try again in a minute"

_log = logging.getLogger(__name__)


@frozen
class Moved:
    """What the chain moved: `amount` units of the token, by a transaction if that is known."""

    amount: int
    transaction: bytes | None


class Facilitator(Protocol):
    """Somebody who brings signed payments to the chain: x402's clients of facilitators are of this kind."""

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """Carry a payment out, once."""
        ...


def facilitator_at(url: str) -> HTTPFacilitatorClient:
    """x402's client of a facilitator; a context that closes it."""
    # It writes each address that it asks into the log, and this one may hold a key.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return HTTPFacilitatorClient(FacilitatorConfig(url, _FACILITATOR_S))


class Bank:
    """The chain, for payments of strangers."""

    def __init__(
        self,
        book: Book,
        tabs: Tabs,
        chain: Chain,
        worth: Worth,
        watched: Watched,
        facilitator: Facilitator | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        """`worth` says what is worth its gas; `watched` are the transfers that were shown and not taken."""
        self._book = book
        self._tabs = tabs
        self._chain = chain
        self._worth = worth
        self._facilitator = facilitator
        self._wait_s = wait_s
        self._under_way: set[bytes] = set()
        self._moving: Counter[bytes] = Counter()  # by wallet, units of the token
        self.watched: Final = watched
        self.gas: Final = Gas(book.now)

    @property
    def token(self) -> Token:
        """The dollar of the network."""
        return self._chain.network.token

    async def channel(self, config: ChannelConfig) -> tuple[int, int]:
        """What was claimed of a channel, and what can be claimed of it in all. Raises PaymentRefused."""
        try:
            view = await self._chain.look(config)
        except ChannelUnknown:
            return 0, 0
        except ChainError as error:
            raise unread(error) from None
        return view.claimed_at_head, max(view.deposited - view.gone - view.withdrawing, 0)

    # Deposits

    async def deposit(
        self, config: ChannelConfig, deposit: Deposit, whole: PaymentPayload, asked: PaymentRequirements
    ) -> Moved:
        """Bring a deposit into its channel, and return when it is deep enough. Raises PaymentRefused."""
        self._check_deposit(config, deposit)
        self.gas.check(config.payer, ERR_DEPOSIT_TRANSACTION_FAILED)
        key = deposit_nonce(deposit.channel, deposit.salt)
        try:
            async with asyncio.timeout(self._wait_s):
                transaction = await self._bring(key, config, deposit, whole, asked)
        except (TimeoutError, Unreachable):
            raise PaymentRefused(ERR_SETTLEMENT_PENDING, _PENDING) from None
        except (ChainError, TriedOften) as error:
            _log.warning("a stranger's deposit was not brought to the chain: %s", error)
            raise PaymentRefused(ERR_DEPOSIT_TRANSACTION_FAILED, _why_not(error)) from None
        return Moved(deposit.amount, transaction)

    def _check_deposit(self, config: ChannelConfig, deposit: Deposit) -> None:
        now, token, collector = self._book.now(), self.token, self._chain.deployment.erc3009_collector
        if not deposit.valid_after <= now < deposit.valid_before:
            raise PaymentRefused(ERR_VALID_BEFORE_EXPIRED, "the deposit's authorization is not valid now")
        digest = authorization(
            domain(token.name, token.version, self._chain.place.chain_id, token.address),
            config.payer,
            collector or b"",
            deposit.amount,
            deposit.valid_after,
            deposit.valid_before,
            deposit_nonce(deposit.channel, deposit.salt),
        )
        if collector is None or signer_of(digest, deposit.signature) != config.payer:
            why = "the deposit is not signed by its payer's key, for x402's collector"
            raise PaymentRefused(ERR_INVALID_RECEIVE_AUTHORIZATION_SIGNATURE, why)

    async def _bring(
        self,
        key: bytes,
        config: ChannelConfig,
        deposit: Deposit,
        whole: PaymentPayload,
        asked: PaymentRequirements,
    ) -> bytes | None:
        if self._facilitator is not None:
            found = await self._settled_elsewhere(self._facilitator, whole, asked, ERR_DEPOSIT_TRANSACTION_FAILED)
            while not await self._chain.deposited(config, deposit.salt):  # noqa: ASYNC110 - only the chain knows
                await asyncio.sleep(_POLL_S)
            return found
        if await self._chain.deposited(config, deposit.salt):
            return None  # it was presented before
        transaction = await sent(self._chain, key, "stranger's deposit")
        with self._set_aside(config.payer, deposit.amount, await self._chain.tokens(config.payer)):
            await _check_least(self._worth.deposits, deposit.amount)
            with self.gas.spending(config.payer, ERR_DEPOSIT_TRANSACTION_FAILED):
                await self._chain.submit(transaction.key, self._chain.bring(config, deposit))
            outcome = await self._chain.settled(transaction.key)
        if outcome.state == "failed" and not await self._chain.deposited(config, deposit.salt):
            raise Refused("the deposit was reverted", by_contract=True)
        return outcome.hash

    async def _settled_elsewhere(
        self, facilitator: Facilitator, whole: PaymentPayload, asked: PaymentRequirements, code: str
    ) -> bytes | None:
        try:
            said = await facilitator.settle(whole, asked)
        except Exception as error:  # noqa: BLE001 - it may fail in any way, and may have settled all the same
            _log.warning("the facilitator failed to answer: %s", type(error).__name__)
            raise Unreachable("the facilitator failed to answer") from None
        if not said.success and said.error_reason != ERR_SETTLEMENT_PENDING:
            raise PaymentRefused(said.error_reason or code, "the facilitator does not take this payment")
        text = said.transaction.removeprefix("0x")
        return bytes.fromhex(text) if len(text) == 64 and set(text.lower()) <= set("0123456789abcdef") else None

    async def has_paid(self, nonce: bytes) -> bool:
        """Whether this node's wallet has made the transfer with this nonce. Raises PaymentRefused."""
        try:
            (used,) = await self._chain.read(self.token.address, "authorizationState", self._chain.address, nonce)
        except ChainError as error:
            raise unread(error) from None
        return bool(used)

    async def check_back(self, amount: int) -> None:
        """Whether money that goes back is worth its gas, whatever that costs today. Raises PaymentRefused."""
        _check_worth(amount, await self._worth.back.ask(), "goes back")

    @contextlib.contextmanager
    def _set_aside(self, payer: bytes, amount: int, has: int) -> Iterator[None]:
        """Of what a wallet has, so much is moving: each of many at once would find it there, and all but one revert.

        Raises PaymentRefused.
        """
        moving = self._moving[payer]
        if has < amount:
            raise PaymentRefused(ERR_INSUFFICIENT_BALANCE, "the wallet has less than the payment")
        if has < moving + amount:
            why = "other payments of this wallet are under way, and it has too little for all: try again in a minute"
            raise PaymentRefused(ERR_SETTLEMENT_PENDING, why)
        self._moving[payer] += amount
        try:
            yield
        finally:
            self._moving[payer] -= amount
            if not self._moving[payer]:
                del self._moving[payer]

    # Transfers

    async def transfer(
        self, order: bytes, transfer: Transfer, shown: SignedTransfer, whole: PaymentPayload, asked: PaymentRequirements
    ) -> Moved:
        """Have a transfer carried out, and its money counted. Raises PaymentRefused, PaymentUsed."""
        if order in self._under_way:
            raise PaymentUsed
        self.gas.check(wallet_of(transfer.payer), ERR_TRANSACTION_FAILED)
        self._under_way.add(order)
        # What is under way goes on, also when its client is gone.
        return await asyncio.shield(asyncio.ensure_future(self._carried_out(order, transfer, shown, whole, asked)))

    async def _carried_out(
        self, order: bytes, transfer: Transfer, shown: SignedTransfer, whole: PaymentPayload, asked: PaymentRequirements
    ) -> Moved:
        try:
            if self._book.strangers.is_ended(order) or await self._is_used(transfer, deep=False):
                raise PaymentRefused(ERR_NONCE_ALREADY_USED, "this transfer has happened, or was cancelled")
            payer = wallet_of(transfer.payer)
            with self._set_aside(payer, transfer.value, await self._chain.tokens(payer)):  # else nothing is kept of it
                await _check_least(self._worth.transfers, transfer.value)
                await self._book.post(presented(order, transfer))
                return await self._carry_out(order, transfer, shown, whole, asked)
        except ChainError as error:
            raise unread(error) from None
        finally:
            self._under_way.discard(order)

    async def _carry_out(
        self, order: bytes, transfer: Transfer, shown: SignedTransfer, whole: PaymentPayload, asked: PaymentRequirements
    ) -> Moved:
        try:
            async with asyncio.timeout(self._wait_s):
                transaction = await self._transferred(order, shown, whole, asked)
                came = await self._came(order, transfer)
                if came is not None:
                    await self._end(order, transfer, came)
        except Refused as error:
            _log.warning("a stranger's transfer was not brought to the chain: %s", error)
            raise PaymentRefused(ERR_TRANSACTION_FAILED, _why_not(error)) from None
        except (TimeoutError, ChainError) as error:
            if isinstance(error, ChainError):
                _log.warning("a stranger's transfer is not known to have happened: %s", error)
            came = None
        if came:
            return Moved(transfer.value, transaction)
        if came is None:
            raise PaymentRefused(ERR_SETTLEMENT_PENDING, _PENDING)
        raise PaymentRefused(ERR_TRANSACTION_FAILED, "the transfer did not happen: nothing was charged")

    async def _transferred(
        self, order: bytes, shown: SignedTransfer, whole: PaymentPayload, asked: PaymentRequirements
    ) -> bytes | None:
        if self._facilitator is not None:
            return await self._settled_elsewhere(self._facilitator, whole, asked, ERR_TRANSACTION_FAILED)
        payer = shown.authorization.payer
        with self.gas.spending(payer, ERR_TRANSACTION_FAILED):
            await self._chain.submit(order, shown.authorization.call(self.token, shown.signature))
        return (await self._chain.settled(order)).hash

    async def _came(self, order: bytes, transfer: Transfer) -> bool | None:
        """Whether the money of a transfer that this node has sent is here for good; None: that is not known yet.

        Raises ChainError.
        """
        if (await self._chain.outcome(order)).state == "settled":
            return True
        return await self._has_moved(transfer)

    async def _has_moved(self, transfer: Transfer) -> bool | None:
        """The same by what the token tells, whoever has sent it: its payer may have signed several of its nonce."""
        if await self._is_used(transfer, deep=True):
            # Or it was cancelled by its payer.
            signed = wallet_of(transfer.payer), transfer.nonce
            return await happened(self._chain, signed, transfer.value, transfer.expires - _EARLIEST_S)
        _, now = await self._chain.block()
        return False if now > transfer.expires + _LATE_S else None

    async def _is_used(self, transfer: Transfer, *, deep: bool) -> bool:
        payer, token = wallet_of(transfer.payer), self.token.address
        (used,) = await self._chain.read(token, "authorizationState", payer, transfer.nonce, deep=deep)
        return bool(used)

    async def _end(self, order: bytes, transfer: Transfer, came: bool) -> None:
        key = self._tabs.key(transfer.payer, PREPAID_RAIL)
        await self._tabs.pay_in(key, transfer.value if came else 0, ended(order, transfer))
        self.watched.drop(order)

    def watch(self, order: bytes, transfer: Transfer) -> None:
        """Count a transfer that was only seen, should somebody bring it to the chain; of many the latest."""
        if not self._book.strangers.knows(order):
            self.watched.add(order, transfer)

    async def sweep(self) -> None:
        """Find out what became of transfers that nobody waits for any more, and of those that were only seen."""
        await self._sweep_sent()
        try:
            await self._sweep_seen()
        except ChainError as error:
            _log.info("whether somebody brought what strangers have signed is not known now: %s", error)
        await self.watched.keep()

    async def _sweep_sent(self) -> None:
        for order, transfer in list(self._book.strangers.transfers.items()):
            if order in self._under_way or order not in self._book.strangers.transfers:
                continue  # whoever waits for it counts it, or has done so meanwhile
            self._under_way.add(order)
            try:
                came = await self._came(order, transfer)
                if came is not None:
                    await self._end(order, transfer, came)
            except ChainError as error:
                _log.info("what became of a stranger's transfer is not known yet: %s", error)
            finally:
                self._under_way.discard(order)

    async def _sweep_seen(self) -> None:
        """Of those that this node does not send, only such as endpoints say were used are looked at one by one.

        Raises ChainError.
        """
        seen = [*self._book.strangers.shown.items(), *self.watched.items()]
        if not seen:
            return
        _, now = await self._chain.block()
        for first in range(0, len(seen), MOST_NONCES):
            try:
                await self._sweep_some(dict(seen[first : first + MOST_NONCES]), now)
            except ChainError as error:
                # Whoever signs and uses so many that endpoints do not tell them all keeps few others waiting.
                _log.info("whether somebody brought what strangers have signed is not known now: %s", error)

    async def _sweep_some(self, some: dict[bytes, Transfer], now: int) -> None:
        """The same for so many, by the time of the last block. Raises ChainError."""
        since = min(transfer.expires for transfer in some.values()) - _EARLIEST_S
        signed = {(wallet_of(transfer.payer), transfer.nonce): order for order, transfer in some.items()}
        used = await used_among(self._chain, signed, since)
        for order in [order for one, order in signed.items() if used is None or one in used]:
            await self._look(order, some.pop(order))
        await self._forget({order: one for order, one in some.items() if now > one.expires + _LATE_S})

    async def _forget(self, over: dict[bytes, Transfer]) -> None:
        """Those that nobody has used, and nobody can any more."""
        shown = self._book.strangers.shown
        if ends := [ended(order, transfer) for order, transfer in over.items() if order in shown]:
            await self._book.post(*ends)
        for order in over:
            self.watched.drop(order)

    async def _look(self, order: bytes, transfer: Transfer) -> None:
        """Count the money of one that was seen, if it is here for good. Raises ChainError."""
        strangers = self._book.strangers
        if order in self._under_way or order in strangers.transfers or strangers.is_ended(order):
            return
        self._under_way.add(order)
        try:
            came = await self._has_moved(transfer)
            if came is not None:
                await self._end(order, transfer, came)
        finally:
            self._under_way.discard(order)


async def _check_least(least: Least, amount: int) -> None:
    """Whether so much may be paid in at once. Raises PaymentRefused."""
    _check_worth(amount, await least.lacks(amount) or 0, "is paid in")


def _check_worth(amount: int, needed: int, what: str) -> None:
    if amount < needed:
        this, least = Amount(amount, "uusd"), Amount(needed, "uusd")
        why = f"gas is so dear now that no less than {least} {what} at once, and this is {this}: more, or later"
        raise PaymentRefused(BELOW_GAS, why)


def _why_not(error: Exception) -> str:
    """What a stranger is told; what else there is (the price of gas, the wallet's balance) is the owner's business."""
    is_its_own = isinstance(error, Refused) and error.by_contract
    return str(error) if is_its_own else "payments cannot be brought to the chain now: try later"


def unread(error: ChainError) -> PaymentRefused:
    """What a stranger is told where the chain says nothing of use; the rest is the owner's business."""
    _log.warning("a stranger's channel cannot be looked at: %s", error)
    return PaymentRefused(ERR_RPC_READ_FAILED, "the chain cannot be read now: try later")
