"""The rail of what was paid in advance by transfers: what is left of it can go back.

It is a `port.Rail` for the driver of effects. Nothing is ever claimed on it, and vouchers are not its way to pay. A
refund is a transfer by this node's wallet, signed (EIP-3009) with the effect's key as nonce: so the token itself sees
to it that it happens once. What this node has prepaid itself is its payee's to give back: see `Asks`.
"""

from typing import Final, Protocol

from ledger.account import Account
from ledger.changes import VoucherReceived
from ledger.effects import Effect, Kind
from ledger.identity import Identity
from ledger.rails.port import Answer, Sight, WrongRail
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.errors import ChainError, Disagreement, Unreachable
from ledger.rails.stablecoin.sending import TriedOften, sent, submitted, waits
from ledger.rails.stablecoin.transfers import Authorization, happened
from ledger.records import Signed, Voucher
from node.exchange.strangers import PREPAID_RAIL, is_stranger, refund_nonce, wallet_of

_FOR_EVER: Final = 2**40
# What came back is looked for in the blocks of so many seconds: it is asked after every few minutes, while a node runs.
_LOOK_BACK_S: Final = (3_600, 86_400)


class Asks(Protocol):
    """Asks this node's money back from a payee. Both answer as a rail does."""

    async def perform(self, effect: Effect) -> Answer:
        """Ask for it."""

    async def fate(self, effect: Effect) -> Answer:
        """Whether it came."""


_NOBODY: Final = Answer("failed", why="no remote here is paid by x402: name the seller in [[remotes]]")


class Prepaid:
    """See the module."""

    name: Final = PREPAID_RAIL
    effects: Final[frozenset[Kind]] = frozenset({"refund"})

    def __init__(self, chain: Chain, asks: Asks | None = None) -> None:
        """Without `asks` nothing of this node's own is ever prepaid."""
        self._chain = chain
        self._asks = asks

    def capacity(self, account: Account) -> int:
        """What was paid and did not go back."""
        return account.capacity

    def make_voucher(self, identity: Identity, account: Account, total: int) -> Signed[Voucher]:
        """There are none. Raises WrongRail."""
        raise WrongRail(self.name, self.name)

    def check_voucher(self, voucher: Signed[Voucher], account: Account, at_least: int = 0) -> VoucherReceived:
        """There are none. Raises WrongRail."""
        raise WrongRail(self.name, voucher.record.rail)

    async def collateral(self, account: Account) -> Sight | None:
        """The account itself counts what came, and what went back."""
        return None

    async def fee(self, kind: Kind, accounts: int) -> int | None:
        """Nothing is claimed here."""
        return 0

    async def perform(self, effect: Effect) -> Answer:
        """Send what is left back to its wallet, once."""
        if is_stranger(effect.account.payee):
            return _NOBODY if self._asks is None else await self._checked(effect, await self._asks.perform(effect))
        answer = await self.fate(effect)
        if answer.fate != "absent":
            return answer
        try:
            token, chain_id = self._chain.network.token, self._chain.network.chain_id
            back = Authorization(
                self._chain.address, wallet_of(effect.account.payer), effect.amount, 0, _FOR_EVER, effect.key
            )
            transaction = await sent(self._chain, effect.key, "refund")
            digest, shown = back.digest(chain_id, token), {"typed_data": back.typed(chain_id, token)}
            signature = await self._chain.sign_digest(digest, shown)
            return await submitted(self._chain, transaction.key, back.call(token, signature), "refund")
        except (Unreachable, Disagreement) as error:
            return Answer("unknown", why=str(error))
        except (ChainError, TriedOften) as error:
            return Answer("failed", why=str(error))

    async def fate(self, effect: Effect) -> Answer:
        """Whether the token has made the transfer, at depth."""
        if is_stranger(effect.account.payee):
            return _NOBODY if self._asks is None else await self._checked(effect, await self._asks.fate(effect))
        try:
            nonce = self._chain.address, effect.key
            token = self._chain.network.token.address
            (used,) = await self._chain.read(token, "authorizationState", *nonce, deep=True)
            if used:
                return Answer("settled", effect.amount)
            transaction = await sent(self._chain, effect.key, "refund")
        except (ChainError, TriedOften) as error:
            return Answer("unknown", why=str(error))
        return waits("refund", transaction.outcome) if transaction.under_way else Answer("absent")

    async def _checked(self, effect: Effect, answer: Answer) -> Answer:
        """A payee may use the nonce up for less, or cancel it: what came is what the token says has moved here."""
        if answer.fate != "settled":
            return answer
        signed = wallet_of(effect.account.payee), refund_nonce(self._chain.address, effect.key)
        try:
            _, now = await self._chain.block()
            for seconds in _LOOK_BACK_S:
                came = await happened(self._chain, signed, effect.amount, now - seconds)
                if came is not False:
                    break
        except ChainError as error:
            return Answer("unknown", why=str(error))
        if came is None:
            return Answer("unknown", why="the endpoints do not agree on what the seller has sent back")
        return answer if came else Answer("settled", 0)
