"""The rail itself, a `port.Rail` over one channels contract on one chain.

Theory of operation. Nothing of an effect is kept here: what became of it is read from the chain at enough depth, and
what it still needs follows from that. So `fate` and `perform` ask the same question, what comes next; `perform` does
it, and `fate` says "absent". A transaction that is sent is "unknown" until it is deep enough, not "failed" before. What
the chain or the wallet refuses is "failed": nothing was sent.

A chain that does not answer stops no work: what was seen of a channel bears it. But a payer could withdraw unseen, so a
channel that was not seen for half of its notice bears nothing new at its payee; the other half is for claiming. How
long ago the last run has looked counts as well.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Final

from attrs import define, evolve

from ledger.account import Account, AccountKey
from ledger.changes import VoucherReceived
from ledger.effects import Effect, Kind
from ledger.identity import Identity
from ledger.rails.port import Answer, Fate, Sight
from ledger.rails.stablecoin import vouchers
from ledger.rails.stablecoin.books import Books, Deposit
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.claims import GATHER_S, Claims
from ledger.rails.stablecoin.contracts import Row
from ledger.rails.stablecoin.deposits import Deposits
from ledger.rails.stablecoin.digests import ChannelConfig, Place
from ledger.rails.stablecoin.errors import ChainError, ChannelUnknown, Disagreement, Unreachable
from ledger.rails.stablecoin.gas import in_uusd, needed
from ledger.rails.stablecoin.networks import checksummed
from ledger.rails.stablecoin.returns import Returns
from ledger.rails.stablecoin.sending import Act, TriedOften, waits
from ledger.records import Signed, Voucher

_log = logging.getLogger(__name__)


@define
class AnotherWallet(Exception):
    """The channel is not the open wallet's."""

    needed: bytes
    found: bytes

    def __str__(self) -> str:
        needed, found = checksummed(self.needed), checksummed(self.found)
        return f"the channel is the wallet's {needed}, and {found} is open: start the node with the other one's key"


class Stablecoin:
    """A `port.Rail` for accounts in `uusd`, each with one channel for good; `close` it at the end."""

    name: Final = vouchers.NAME
    effects: Final[frozenset[Kind]] = frozenset({"top_up", "claim", "refund", "close"})

    def __init__(
        self,
        chain: Chain,
        books: Books,
        me: str,
        *,
        ether: int,
        min_deposit: int = 0,
        gather_s: float = GATHER_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`me` is this node's did; `ether` what one costs, in millionths of a dollar.

        `min_deposit` is the least that is brought to the chain for payers; claims wait `gather_s` for each other; `now`
        counts seconds.
        """
        self._chain = chain
        self._books = books
        self._me = me
        self._ether = ether
        self._claims = Claims(chain, gather_s)
        self._deposits = Deposits(chain, books, min_deposit)
        self._returns = Returns(chain)
        self._leaving: dict[AccountKey, int] = {}
        self._now = now
        self._last_run = now() - chain.unseen_s
        self._seen: dict[AccountKey, float] = {}

    @property
    def place(self) -> Place:
        """The channels contract, on its chain."""
        return self._chain.place

    async def close(self) -> None:
        """Gather no more claims."""
        await self._claims.close()

    # Vouchers

    def capacity(self, account: Account) -> int:
        """What the channel holds less what may leave it, by the account's own counters.

        0 at the payee while the channel was not seen for half of its notice.
        """
        return account.capacity if account.key.payer == self._me or self._is_seen(account.key) else 0

    def _is_seen(self, key: AccountKey) -> bool:
        config = self._books.channel(key)
        # What a node pays from was looked at every few minutes as long as this one ran; a stranger's when it paid.
        before = -math.inf if key.payer.startswith("did:pkh:") else self._last_run
        unseen_s = self._now() - self._seen.get(key, before)
        return config is not None and unseen_s <= config.withdraw_delay / 2

    def make_voucher(self, identity: Identity, account: Account, total: int) -> Signed[Voucher]:
        """The payer's promise of a growing total. Raises NoChannel, and what `vouchers.make_voucher` raises."""
        return vouchers.make_voucher(self.place, self._channel(account.key), identity, account, total)

    def check_voucher(self, voucher: Signed[Voucher], account: Account, at_least: int = 0) -> VoucherReceived:
        """The fact that a voucher is to the payee's account, and that the channel bears it.

        Raises NoChannel, and what `vouchers.check_voucher` raises: all of them VoucherRefused.
        """
        # What its payer has begun to take back can still be claimed.
        covered = account.capacity + self._leaving.get(account.key, 0)
        config = self._channel(account.key)
        return vouchers.check_voucher(self.place, config, voucher, account, at_least, covered)

    # What the chain says

    async def collateral(self, account: Account) -> Sight | None:
        """What the channel holds: deposits that are deep enough, less all that went back or may. Raises ChainError."""
        config = self._books.channel(account.key)
        if config is None:
            return None
        asked = self._now()
        try:
            view = await self._chain.look(config)
        except ChannelUnknown:
            block, _ = await self._chain.block()
            return _with_what_went(account, Sight(0, 0, block))
        # A claim takes what is leaving as well, so no more can leave than is not claimed.
        leaving = min(view.withdrawing, max(view.balance - view.claimed, 0))
        self._leaving[account.key] = leaving
        self._seen[account.key] = asked
        return _with_what_went(account, Sight(view.deposited, view.gone + leaving, view.block, leaving, view.claimed))

    async def fee(self, kind: Kind, accounts: int) -> int | None:
        """What gas would cost now, by the owner's price of ether; None: the chain does not say."""
        try:
            price = await self._chain.gas_price()
        except ChainError as error:
            _log.info("what moving costs is not known now: %s", error)
            return None
        return in_uusd(sum(price.cost(each.gas, each.size) for each in needed(kind, accounts)), self._ether)

    # Effects

    async def perform(self, effect: Effect) -> Answer:
        """Carry an effect out on the chain, once at most; it is settled when it is deep enough."""
        try:
            found = await self._next(effect)
        except ChainError as error:
            return Answer("unknown", why=str(error))
        if isinstance(found, Answer):
            return found
        try:
            self._check_wallet(effect)
            return await found()
        except (Unreachable, Disagreement) as error:
            return Answer("unknown", why=str(error))
        except (ChainError, TriedOften, AnotherWallet) as error:
            return Answer("failed", why=str(error))

    async def fate(self, effect: Effect) -> Answer:
        """What has become of an effect, as the chain has it at depth."""
        try:
            found = await self._next(effect)
        except ChainError as error:
            return Answer("unknown", why=str(error))
        return found if isinstance(found, Answer) else Answer("absent")

    async def bring(self, key: AccountKey, deposit: Deposit) -> None:
        """Bring a payer's signed deposit to the chain, at this payee's expense. Raises DepositRefused, ChainError."""
        await self._deposits.bring(key, self._channel(key), deposit, await self.fee("top_up", 1))

    def _check_wallet(self, effect: Effect) -> None:
        """Whether the open wallet can move this channel's money for this node. Raises AnotherWallet, NoWallet."""
        config, has = self._channel(effect.account), self._chain.address
        by_payer = effect.account.payer == self._me
        if has not in ((config.payer,) if by_payer else (config.receiver, config.receiver_authorizer)):
            raise AnotherWallet(config.payer if by_payer else config.receiver, has)

    async def _next(self, effect: Effect) -> Answer | Act:
        """What became of an effect, or what is to be done next for it. Raises ChainError."""
        config = self._books.channel(effect.account)
        if config is None:
            return Answer("failed", why=str(vouchers.NoChannel(effect.account.payer, effect.account.payee)))
        try:
            match effect.kind:
                case "top_up":
                    return await self._deposits.next(effect, config)
                case "claim":
                    return await self._next_claim(effect, config)
                case "close":
                    claimed = await self._next_claim(effect, config)
                    is_claimed = isinstance(claimed, Answer) and claimed.fate == "settled"
                    return await self._returns.next_rest(effect, config) if is_claimed else claimed
                case "refund" if effect.account.payer == self._me:
                    return await self._returns.next_withdrawal(effect, config)
                case "refund":
                    promise = await self._books.promise(effect.account)
                    return await self._returns.next_refund(effect, config, promise.total if promise else 0)
                case "pay":
                    return Answer("failed", why="what is owed on a channel is claimed by its payee")
        except ChannelUnknown as error:
            # A channel that was emptied before anything was claimed is as one that never was.
            fate: dict[Kind, Fate] = {"claim": "absent", "refund": "settled"}
            found = fate.get(effect.kind, "failed")
            return Answer(found, effect.amount if found == "settled" else 0, str(error))
        except TriedOften as error:
            return Answer("failed", why=str(error))

    async def _next_claim(self, effect: Effect, config: ChannelConfig) -> Answer | Act:
        view = await self._chain.look(config)
        if view.claimed >= effect.total:
            self._claims.forget(effect.key)
            await self._claims.pay_out()
            return Answer("settled", effect.amount)
        outcome = await self._claims.outcome(effect.key)
        if outcome.state in ("waiting", "mined") or view.claimed_at_head >= effect.total:
            return waits("claim", outcome)
        promise = await self._books.promise(effect.account)
        if promise is None or promise.total < effect.total:
            return Answer("failed", why=f"no voucher of {effect.total} is held")
        if effect.total > view.balance:
            return Answer("failed", why=f"the channel holds {view.balance} by now, and {effect.total} is claimed")
        if not vouchers.is_promised(self.place, config, view.channel, promise.total, promise.signature):
            return Answer("failed", why=str(vouchers.NotTheAuthorizers(view.channel, config.payer_authorizer)))
        row = Row(config, promise.total, promise.signature, effect.total)

        async def claim() -> Answer:
            return waits("claim", await self._claims.join(effect.key, row))

        return claim

    def _channel(self, key: AccountKey) -> ChannelConfig:
        config = self._books.channel(key)
        if config is None:
            raise vouchers.NoChannel(key.payer, key.payee)
        return config


def _with_what_went(account: Account, sight: Sight) -> Sight:
    """With what the account knows to have come and gone before the channel was opened last.

    A past that was lost is read anew from there. As much goes to both sums, so that no more stands behind anything.
    """
    more = max(min(account.funded - sight.funded, account.withdrawn - sight.withdrawn), 0)
    return evolve(sight, funded=sight.funded + more, withdrawn=sight.withdrawn + more)
