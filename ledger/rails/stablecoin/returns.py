"""Money out of channels, back to their payer: at once if the payee gives it back, else after the payer's notice.

Theory of operation. A refund names the channel's refund nonce, which is read together with what the channel holds and
what is gone from it: two that were signed over one nonce cannot both happen, and one that happened shows. So even a
payee that has lost its outbox gives nothing back twice. What vouchers promise stays. A payer can have only one
withdrawal under way, which takes as long as the notice: the effect goes on until the money is back.
"""

import time

from attrs import frozen

from ledger.effects import Effect
from ledger.money import Amount
from ledger.rails.port import Answer
from ledger.rails.stablecoin.chain import Chain, ChannelView
from ledger.rails.stablecoin.contracts import finalize_withdraw, initiate_withdraw, refund_with_signature
from ledger.rails.stablecoin.digests import CHANNELS, REFUND, ChannelConfig
from ledger.rails.stablecoin.sending import Act, sent, submitted, waits
from ledger.rails.stablecoin.typed import domain_of, message
from ledger.rails.stablecoin.vouchers import UNIT


@frozen
class Returns:
    """Refunds by the payee, and withdrawals by the payer."""

    _chain: Chain

    async def next_refund(self, effect: Effect, config: ChannelConfig, promised: int) -> Answer | Act:
        """What became of a refund, or what is to be done for it; `promised` is the best voucher's total.

        Raises ChainError, TriedOften.
        """
        transaction = await sent(self._chain, effect.key, "refund")
        if transaction.outcome.state == "settled":
            return Answer("settled", effect.amount)
        if transaction.under_way:
            return waits("refund", transaction.outcome)
        view = await self._chain.look(config)
        gone = view.gone + view.withdrawing
        if gone >= effect.total:
            return Answer("settled", effect.amount, why="so much has left the channel, or is about to")
        amount = min(effect.amount, effect.total - gone)
        spare = view.balance - max(view.claimed_at_head, promised)
        if amount > spare:
            return Answer("failed", why=f"only {max(spare, 0)} of the channel covers no voucher")
        return lambda: self._give_back(transaction.key, config, view, amount)

    async def next_rest(self, effect: Effect, config: ChannelConfig) -> Answer | Act:
        """The same for all that a channel holds and that is not claimed: what closes it, once its claim is deep."""
        transaction = await sent(self._chain, effect.key, "refund")
        if transaction.under_way:
            return waits("refund of the rest", transaction.outcome)
        view = await self._chain.look(config)
        rest = view.balance - view.claimed
        if transaction.outcome.state == "settled" or rest <= 0:
            return Answer("settled", effect.amount)
        return lambda: self._give_back(transaction.key, config, view, rest)

    async def _give_back(self, key: bytes, config: ChannelConfig, view: ChannelView, amount: int) -> Answer:
        place, nonce = self._chain.place, view.refund_nonce
        at = domain_of(*CHANNELS, place.chain_id, place.contract)
        shown = {"typed_data": message(at, REFUND, view.channel, nonce, amount)}
        signature = await self._chain.sign_digest(place.refund(view.channel, nonce, amount), shown)
        call = refund_with_signature(place.contract, config, amount, nonce, signature)
        return await submitted(self._chain, key, call, "refund")

    async def next_withdrawal(self, effect: Effect, config: ChannelConfig) -> Answer | Act:
        """What became of a payer's withdrawal, or what is to be done for it. Raises ChainError, TriedOften."""
        contract = self._chain.place.contract
        last = await sent(self._chain, effect.key, "end of the withdrawal")
        if last.outcome.state == "settled":
            return Answer("settled", effect.amount)
        first = await sent(self._chain, effect.key, "notice of the withdrawal")
        for transaction, what in ((last, "end of the withdrawal"), (first, "notice of the withdrawal")):
            if transaction.under_way:
                return waits(what, transaction.outcome)
        view = await self._chain.look(config)
        if first.outcome.state == "absent" and not _is_it(view, effect):
            return self._notice(first.key, effect, config, view)
        if not view.withdrawing:
            return Answer("settled", effect.amount, why="it came back, by a refund if not by its notice")
        _, now = await self._chain.block()
        due = view.withdraw_began + config.withdraw_delay
        if now < due:
            return Answer("unknown", why=f"the notice of the withdrawal is over at {_moment(due)}")
        call = finalize_withdraw(contract, config)
        return lambda: submitted(self._chain, last.key, call, "end of the withdrawal")

    def _notice(self, key: bytes, effect: Effect, config: ChannelConfig, view: ChannelView) -> Answer | Act:
        if view.withdrawing:
            return Answer(
                "failed", why=f"a withdrawal of {Amount(view.withdrawing, UNIT)} is under way: it comes first"
            )
        spare = view.balance - view.claimed_at_head
        if effect.amount > spare:
            return Answer("failed", why=f"only {Amount(spare, UNIT)} of the channel is not claimed")
        call = initiate_withdraw(self._chain.place.contract, config, effect.amount)
        what = f"notice of the withdrawal, of {config.withdraw_delay / 3600:.3g} hours,"
        return lambda: submitted(self._chain, key, call, what)


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _is_it(view: ChannelView, effect: Effect) -> bool:
    """Whether what leaves or left the channel is this effect's, as far as the chain alone can say."""
    return view.gone + view.withdrawing >= effect.total and view.withdrawing in (0, effect.amount)
