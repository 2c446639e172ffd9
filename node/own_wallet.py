"""The door to the owner's wallet, as the configuration has it."""

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from ledger.account import AccountKey
from node.api.errors import ApiError
from node.trade import Ground

if TYPE_CHECKING:
    from node.exchange.opening import Opening
    from node.own_money import Money


def wallet_routes(ground: Ground, opening: "Opening | None") -> list[web.RouteDef]:
    """What the owner's commands ask of the wallet; a node without one says so."""
    money = ground.money
    if money is None or opening is None:
        return [web.route("*", "/node/v1/wallet{rest:.*}", _no_wallet)]
    # They import the libraries of chains, which takes seconds.
    from node.api.wallet import WalletDoor
    from node.exchange.wallet import Wallet

    wallet = Wallet(
        ground.book, money.chain, ground.effects, opening.open, partial(_channel_id, money), money.own_bonds
    )
    return WalletDoor(wallet, money.chain.network, ground.book.me).routes()


def _channel_id(money: "Money", key: AccountKey) -> bytes | None:
    config = money.channels.channel(key)
    return None if config is None else money.chain.place.channel_id(config)


async def _no_wallet(_request: web.Request) -> web.Response:
    raise ApiError(409, "this node has no wallet: write a section [stablecoin] into config.toml", code="no_wallet")
