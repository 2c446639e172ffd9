"""The owner's door for strangers who pay by x402, as the configuration has it."""

import contextlib
import logging
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

from attrs import frozen

from ledger.money import Amount
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
from node.paid.terms import TIMEOUT_S, TRANSFER_S, X402_CONTRACT, Scheme, Terms
from node.paid.till import Till
from node.paid.watched import Watched
from node.paid.worth import Worth
from node.stablecoin_settings import PaidSettings

_log = logging.getLogger(__name__)


@frozen
class OpenDoor:
    """The open door: where it is, and what has to be looked after."""

    listener: socket.socket
    shop: Shop
    tabs: Tabs
    bank: Bank
    terms: Terms

    def status(self) -> dict[str, Any]:
        """How strangers can pay now, for the owner."""
        terms, least = self.terms, self.terms.worth.transfers.amount
        return {
            "schemes": [scheme for scheme in terms.schemes if scheme != "exact" or least is not None],
            "prepaid": None if least is None else str(Amount(least, "uusd")),
            "trouble": terms.too_dear,
        }

    async def sweep(self) -> None:
        """Close what was left open, find out what became of payments, and what gas costs by now."""
        await self.terms.worth.look()
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
    worth = Worth.of(
        partial(money.rail.fee, "top_up", 1),
        ground.book.now,
        prepaid=paid.prepaid.value,
        most_prepaid=paid.most_prepaid,
        deposit=money.settings.min_deposit.value,
        valid_s=(TRANSFER_S, TIMEOUT_S),
        is_brought_by_others=facilitator is not None,
    )
    await worth.look()
    place = money.chain.place
    watched = Watched.open(
        ground.home.chain / f"shown-{place.chain_id}-{money.chain.address.hex()}.jsonl",
        ground.book.now(),
        ground.book.strangers.knows,
    )
    bank = Bank(ground.book, tabs, money.chain, worth, watched, facilitator, max(WAIT_S, 2 * deep_s))
    terms = Terms(
        money.chain.place,
        money.chain.network.token,
        money.chain.address,
        money.settings.withdraw_delay,
        _schemes(money, paid),
        worth,
    )
    till = Till(ground.book, tabs, terms, bank, money.rail, money.channels.has)
    shop = Shop(_wares(ground, paid), ground.book.me, ground.may_sell, ground.config.api.max_tokens)
    refunds = Refunds(ground.book, tabs, till, bank, ground.effects.ask)
    proxies = Proxies(ground.config.node.trusted_proxies)
    door = PaidDoor(shop, till, refunds, ground.clock, ground.entropy, proxies=proxies)
    await stack.enter_async_context(serving(door.app(), listener, bounds(ground.config)))
    return OpenDoor(listener, shop, tabs, bank, terms)


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
