"""Money back to strangers: what is left in a channel, and what is left of what was paid by transfers.

Whoever asks has signed: a channel's key signs a voucher of what was charged (x402's refund), a wallet signs in. The
money goes to the payer's own wallet, whoever it was that asked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from x402.mechanisms.evm.batch_settlement import errors
from x402.mechanisms.evm.constants import ERR_SETTLEMENT_PENDING
from x402.schemas import SettleResponse

from ledger.account import AccountKey
from ledger.effects import Kind, Tracked, free_collateral
from ledger.money import Amount
from ledger.rails.stablecoin.networks import checksummed
from node.exchange.book import Book
from node.exchange.effects import EffectRefused
from node.exchange.strangers import PREPAID_RAIL, HeldVoucher, did_of_wallet, held, refund_nonce
from node.exchange.tabs import Tabs
from node.paid.bank import Bank
from node.paid.paid import channel_state
from node.paid.presented import RefundAsked
from node.paid.terms import PaymentRefused
from node.paid.till import Till

# How long a client waits for its refund to be deep on the chain: x402's gives up after five seconds. What is under way
# by then covers nothing any more, is in the journal, and comes without the client.
_WAIT_S: Final = 3.0
_POLL_S: Final = 0.2
Ask = Callable[[AccountKey, Kind, int, bytes | None], Awaitable[Tracked | None]]


class Refunds:
    """Gives back what is free."""

    def __init__(self, book: Book, tabs: Tabs, till: Till, bank: Bank, ask: Ask) -> None:
        """`ask` has a rail move money: see `EffectDriver.ask`."""
        self._book = book
        self._tabs = tabs
        self._till = till
        self._bank = bank
        self._gas = bank.gas
        self._ask = ask

    async def channel(self, asked: RefundAsked) -> SettleResponse:
        """Give back what is left in a channel, or a part of it. Raises PaymentRefused."""
        voucher = asked.voucher
        key = self._till.check(voucher)
        self._till.take_turn(key)
        try:
            account = self._tabs.account(key)
            if self._book.strangers.voucher(key) is None:
                raise PaymentRefused(errors.ERR_MISSING_CHANNEL, "this channel has paid for nothing here")
            self._till.check_total(key, voucher, 0)
            free = free_collateral(account)
            amount = free if asked.amount is None else asked.amount
            if not 0 < amount <= free:
                raise PaymentRefused(errors.ERR_REFUND_NO_BALANCE, f"{free} of the channel can go back")
            # From now on the channel's latest voucher is for what was charged, and nothing of the rest can be claimed.
            self._gas.check(voucher.config.payer, errors.ERR_REFUND_TRANSACTION_FAILED)
            await self._bank.check_back(amount)
            latest = HeldVoucher(voucher.config.words(), voucher.total, voucher.signature)
            await self._book.post(held(key.payer, latest))
            under_way = await self._move(key, voucher.config.payer, amount)
            state = channel_state(self._tabs.account(key))
            return self._response(voucher.config.payer, amount, {"channelState": state, "underWay": under_way})
        finally:
            self._tabs.give_back(key)

    def balance(self, wallet: bytes) -> dict[str, str]:
        """What a wallet has paid by transfers, and what is left of it, in millionths of a dollar."""
        account = self._tabs.account(self._key(wallet))
        return {
            "paid": str(account.funded),
            "refunded": str(account.withdrawn),
            "charged": str(account.owed),
            "reserved": str(account.reserved),
            "left": str(free_collateral(account)),
        }

    async def prepaid(self, wallet: bytes, amount: int | None = None, asked: bytes | None = None) -> SettleResponse:
        """Give back what is left of a wallet's transfers, or so much of it. Raises PaymentRefused.

        What was `asked` for under one name (32 bytes) goes back once, and whoever asks again is told so: see
        `refund_nonce`.
        """
        key, under = self._key(wallet), None if asked is None else refund_nonce(wallet, asked)
        free = free_collateral(self._tabs.account(key))
        if under is not None and (found := await self._is_known(key, under)) is not None:
            return self._response(wallet, amount or 0, {"balance": str(free), "underWay": found})
        amount = free if amount is None else amount
        if not 0 < amount <= free:
            raise PaymentRefused("no_balance", f"{Amount(free, 'uusd')} is left of what this wallet has paid")
        await self._bank.check_back(amount)
        under_way = await self._move(key, wallet, amount, under)
        return self._response(wallet, amount, {"balance": self.balance(wallet)["left"], "underWay": under_way})

    async def _is_known(self, key: AccountKey, under: bytes) -> bool | None:
        """Whether a refund is still on its way; None: nobody has asked for it. Raises PaymentRefused."""
        tracked = self._book.journal.books.effects.get(key)
        if tracked is not None and tracked.effect.key == under:
            return tracked.state != "settled"
        return False if await self._bank.has_paid(under) else None

    def _key(self, wallet: bytes) -> AccountKey:
        return self._tabs.key(did_of_wallet(self._till.terms.place.network, wallet), PREPAID_RAIL)

    async def _move(self, key: AccountKey, wallet: bytes, amount: int, under: bytes | None = None) -> bool:
        """Have money go back; whether it is still on its way. Raises PaymentRefused."""
        with self._gas.spending(wallet, errors.ERR_REFUND_TRANSACTION_FAILED):
            try:
                tracked = await self._ask(key, "refund", amount, under)
            except EffectRefused as error:
                raise PaymentRefused(errors.ERR_REFUND_TRANSACTION_FAILED, f"not now: {error}") from None
        loop = asyncio.get_running_loop()
        until = loop.time() + _WAIT_S
        while tracked is not None and tracked.under_way and loop.time() < until:
            await asyncio.sleep(_POLL_S)
            now = self._book.journal.books.effects.get(key)
            tracked = now if now is not None and now.effect.key == tracked.effect.key else None
        if tracked is not None and tracked.state in ("failed", "contradicted"):
            why = "the refund could not be sent; it is tried again, and nothing else is done with the money"
            raise PaymentRefused(ERR_SETTLEMENT_PENDING, why)
        return tracked is not None and tracked.under_way

    def _response(self, payer: bytes, amount: int, extra: dict[str, object]) -> SettleResponse:
        network = self._till.terms.place.network
        return SettleResponse(
            success=True,
            payer=checksummed(payer),
            transaction="",
            network=network,
            amount=str(amount),
            extra=extra,
        )
