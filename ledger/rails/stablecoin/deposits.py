"""Money into channels: signed by the payer's wallet, brought by the payee where it does so, else by the payer.

Theory of operation. A deposit by EIP-3009 is a signature that moves its money once, whoever brings it, however often:
the effect's key is its salt, so the token itself says whether an effect has happened. It is handed to the payee first,
which spares the payer all gas; what the payee has not brought after a while the payer brings itself, the same deposit.
What was handed over may be brought until it ends, so until then no top-up has failed. Tokens without such signatures
are approved and then fetched; there the outbox and the channel's total see to it that it happens once.
"""

import hashlib
import math
import time
from typing import Final

from attrs import define

from ledger.account import AccountKey
from ledger.effects import Effect
from ledger.rails.port import Answer
from ledger.rails.stablecoin.books import Books, Deposit
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.contracts import approve, deposit
from ledger.rails.stablecoin.digests import ChannelConfig
from ledger.rails.stablecoin.errors import ChainError, ChannelUnknown
from ledger.rails.stablecoin.gas import WORTH
from ledger.rails.stablecoin.sending import REVERTED_OR_LOST, Act, sent, submitted, waits

# How long a signed deposit can be brought, and for how long that is left to the payee.
VALID_S: Final = 900
_PATIENCE_S: Final = 120.0
# One that is to be brought now must not end before it is mined.
_LEAST_VALID_S: Final = 60
_WITH_PAYEE: Final = Answer("unknown", why="the payee has the signed deposit, and brings it to the chain")


class DepositRefused(Exception):
    """A deposit that is not brought to the chain; the message says why."""


@define
class WrongChannel(DepositRefused):
    """The deposit is for another channel than the account's."""

    expected: bytes
    found: bytes

    def __str__(self) -> str:
        return f"the deposit is for the channel 0x{self.found.hex()}, and the account's is 0x{self.expected.hex()}"


@define
class TooSmall(DepositRefused):
    """Bringing it would cost the payee more than it is worth to it."""

    least: int
    found: int

    def __str__(self) -> str:
        return f"a deposit of {self.found} is not brought for anybody, from {self.least} on it is: bring it yourself"


@define
class TooDearNow(DepositRefused):
    """Gas costs more today than the deposit is worth to its payee; in the account's unit."""

    fee: int
    found: int

    def __str__(self) -> str:
        return f"bringing {self.found} costs {self.fee} of gas now: bring it yourself, or try again later"


@define
class TooLate(DepositRefused):
    """It ends before it could be mined."""

    def __str__(self) -> str:
        return "the deposit's time is over, or nearly so: sign it again"


class Deposits:
    """The payer's top-ups, and what a payee brings for its payers."""

    def __init__(self, chain: Chain, books: Books, min_deposit: int) -> None:
        """`min_deposit`: the least that is brought for others."""
        self._chain = chain
        self._books = books
        self._min_deposit = min_deposit
        # By the effect's key: when it was handed to the payee, and where the payee did not say that it brings it.
        self._handed: dict[bytes, float] = {}
        self._declined: set[bytes] = set()

    async def next(self, effect: Effect, config: ChannelConfig) -> Answer | Act:
        """What became of a top-up, or what is to be done for it. Raises ChainError, TriedOften."""
        if not (self._chain.network.token.eip3009 and self._chain.deployment.erc3009_collector):
            return await self._next_approved(effect, config)
        if await self._chain.deposited(config, effect.key):
            self._forget(effect)
            return Answer("settled", effect.amount)
        transaction = await sent(self._chain, effect.key, "deposit", REVERTED_OR_LOST)
        if transaction.under_way or await self._chain.deposited(config, effect.key, deep=False):
            return waits("deposit", transaction.outcome)
        if self._handed_s(effect) < _PATIENCE_S and effect.key not in self._declined:
            return _WITH_PAYEE
        return lambda: self._bring_own(effect, config, transaction.key)

    async def _bring_own(self, effect: Effect, config: ChannelConfig, key: bytes) -> Answer:
        holds = await self._chain.tokens(config.payer)
        if holds < effect.amount and self._handed_s(effect) > VALID_S:
            return Answer("failed", why=f"the wallet holds {holds}: send the token to its address first")
        _, now = await self._chain.block()
        signed = await self._chain.authorize(config, effect.amount, effect.key, now + VALID_S)
        if self._handed_s(effect) > VALID_S:
            self._forget(effect)
            self._handed[effect.key] = time.monotonic()
            if await self._books.relay(effect.account, signed):
                return _WITH_PAYEE
            self._declined.add(effect.key)
        try:
            return await submitted(self._chain, key, self._chain.bring(config, signed), "deposit")
        except ChainError as error:
            if self._handed_s(effect) > VALID_S:
                raise
            return Answer("unknown", why=f"the payee may bring the deposit yet; by this wallet: {error}")

    def _handed_s(self, effect: Effect) -> float:
        return time.monotonic() - self._handed.get(effect.key, -math.inf)

    def _forget(self, effect: Effect) -> None:
        self._handed.pop(effect.key, None)
        self._declined.discard(effect.key)

    async def _next_approved(self, effect: Effect, config: ChannelConfig) -> Answer | Act:
        collector, token = self._chain.deployment.approve_collector, config.token
        if collector is None:
            return Answer("failed", why="this channels contract has no collector for this token")
        transaction = await sent(self._chain, effect.key, "deposit")
        if transaction.outcome.state == "settled" or await self._holds(config, effect.total):
            return Answer("settled", effect.amount)
        if transaction.under_way:
            return waits("deposit", transaction.outcome)
        approval = await sent(self._chain, effect.key, "approval", REVERTED_OR_LOST)
        if approval.under_way:
            return waits("approval of the deposit", approval.outcome)
        (allowed,) = await self._chain.read(token, "allowance", config.payer, collector)
        if allowed < effect.amount:
            return lambda: submitted(
                self._chain, approval.key, approve(token, collector, effect.amount), "approval of the deposit"
            )
        call = deposit(self._chain.place.contract, config, effect.amount, collector)
        return lambda: submitted(self._chain, transaction.key, call, "deposit")

    async def _holds(self, config: ChannelConfig, total: int) -> bool:
        try:
            return (await self._chain.look(config)).deposited >= total
        except ChannelUnknown:
            return False

    async def bring(self, key: AccountKey, config: ChannelConfig, deposit: Deposit, fee: int | None) -> None:
        """Bring a payer's deposit to the chain, once, whatever number of times it is handed over.

        `fee` is what that costs now, if that is known. Raises DepositRefused, ChainError.
        """
        channel = self._chain.place.channel_id(config)
        if deposit.channel != channel:
            raise WrongChannel(channel, deposit.channel)
        if deposit.amount < self._min_deposit:
            raise TooSmall(self._min_deposit, deposit.amount)
        if fee is not None and fee * WORTH > deposit.amount:
            raise TooDearNow(fee, deposit.amount)
        _, now = await self._chain.block()
        if not deposit.valid_after <= now <= deposit.valid_before - _LEAST_VALID_S:
            raise TooLate
        about = hashlib.sha256(deposit.encode()).digest()
        transaction = await sent(self._chain, about, "brought deposit", REVERTED_OR_LOST)
        await self._chain.submit(transaction.key, self._chain.bring(config, deposit))
