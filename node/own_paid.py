"""The owner's door for strangers who pay by x402, as the configuration has it."""

import contextlib
import logging
import socket
from collections.abc import Sequence
from functools import partial

from attrs import frozen

from node.api.callers import Proxies
from node.api.connections import serving
from node.api.paid import PaidDoor
from node.exchange.sale import Ware
from node.exchange.tabs import Tabs
from node.gateway.shop import Shop
from node.ground import Ground
from node.listening import bounds, listen
from node.own_money import Money, NoMoney
from node.paid.bank import WAIT_S, Bank, facilitator_at
from node.paid.refunds import Refunds
from node.paid.terms import X402_CONTRACT, Scheme, Terms
from node.paid.till import Till
from node.stablecoin_settings import PaidSettings

_log = logging.getLogger(__name__)


@frozen
class OpenDoor:
    """The open door: where it is, and what has to be looked after."""

    listener: socket.socket
    shop: Shop
    tabs: Tabs
    bank: Bank

    async def sweep(self) -> None:
        """Close what was left open, and find out what became of payments."""
        await self.tabs.sweep()
        await self.bank.sweep()


async def open_paid(stack: contextlib.AsyncExitStack, ground: Ground, money: Money, paid: PaidSettings) -> OpenDoor:
    """Open the door on its own address, until the stack ends. Raises CannotListen, NoMoney."""
    listener = stack.enter_context(contextlib.closing(listen(paid.host, paid.port)))
    tabs = Tabs(ground.book, ground.entropy)
    await tabs.sweep()
    facilitator = None
    if paid.facilitator is not None:
        facilitator = await stack.enter_async_context(facilitator_at(paid.facilitator.get_secret_value()))
    where = money.chain.network
    deep_s = where.confirmations * where.block_s
    bank = Bank(
        ground.book, tabs, money.chain, facilitator, max(WAIT_S, 2 * deep_s), partial(money.rail.fee, "top_up", 1)
    )
    terms = Terms(
        money.chain.place,
        money.chain.network.token,
        money.chain.address,
        money.settings.withdraw_delay,
        _schemes(money, paid),
        paid.prepaid.value,
        money.settings.min_deposit.value,
    )
    till = Till(ground.book, tabs, terms, bank, money.rail, money.channels.has)
    shop = Shop(_wares(ground, paid), ground.book.me, ground.may_sell, ground.config.api.max_tokens)
    refunds = Refunds(ground.book, tabs, till, bank, ground.effects.ask)
    proxies = Proxies(ground.config.node.trusted_proxies)
    door = PaidDoor(shop, till, refunds, ground.clock, ground.entropy, proxies=proxies)
    await stack.enter_async_context(serving(door.app(), listener, bounds(ground.config)))
    return OpenDoor(listener, shop, tabs, bank)


def _schemes(money: Money, paid: PaidSettings) -> Sequence[Scheme]:
    """x402's clients sign for one channels contract, and know no other. Raises NoMoney."""
    if money.chain.place.contract == X402_CONTRACT:
        return paid.schemes
    left: list[Scheme] = [scheme for scheme in paid.schemes if scheme != "batch-settlement"]
    if not left:
        why = "x402's clients pay through x402's contract alone: leave [stablecoin] contract out, or add exact"
        raise NoMoney(f"[paid] schemes: {why}")
    _log.warning("strangers cannot pay by channels: [stablecoin] contract is not x402's")
    return left


def _wares(ground: Ground, paid: PaidSettings) -> list[Ware]:
    """The models of this machine that are sold to strangers: at the door's price, or at their own."""
    wares = []
    for model, settings in zip(ground.own.models, ground.config.own_models, strict=True):
        price = (paid.price or model.price) if settings.sell else None
        if price is not None and price.unit == "uusd":
            engine = model.engine
            ware = Ware(engine, model.tokenizer, model.name, price, engine.is_unchanged, miss=engine.miss)
            wares.append(ware)
    return wares
