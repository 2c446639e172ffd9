"""The door to the owner's wallet, as the configuration has it."""

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from ledger.account import AccountKey
from node.api.errors import ApiError
from node.exchange.wallet_refusals import NoBonds
from node.ground import Ground

if TYPE_CHECKING:
    from node.exchange.opening import Opening
    from node.own_money import Money


def add_wallet(app: web.Application, ground: Ground, opening: "Opening | None") -> None:
    """What the owner's commands ask of the wallet; a node without one says so."""
    money = ground.money
    if money is None or opening is None:
        app.router.add_route("*", "/node/v1/wallet{rest:.*}", _no_wallet)
        return
    # They import the libraries of chains, which takes seconds.
    from node.api.slashes import SlashesDoor
    from node.api.wallet import WalletDoor
    from node.exchange.finding import Finding
    from node.exchange.wallet import Wallet

    assert ground.purses is not None  # where there is money there are purses
    channel_id, grant = partial(_channel_id, money), ground.purses.grant
    wallet = Wallet(ground.book, money.chain, ground.effects, opening.open, channel_id, money.own_bonds, grant)
    finding = Finding(money.chain, money.channels, ground.book.identity, partial(_peers, ground), ground.effects.look)
    app.add_routes(WalletDoor(wallet, money.chain.network, ground.book.me, finding).routes())
    if money.own_bonds is not None:
        slashes = SlashesDoor(money.own_bonds.known, money.own_bonds, money.chain.address, wallet.followed)
        app.add_routes(slashes.routes())
    else:
        app.router.add_route("*", "/node/v1/wallet/slashes{rest:.*}", _no_bonds)

    async def close(_app: web.Application) -> None:
        await finding.close()

    app.on_cleanup.append(close)


def _peers(ground: Ground) -> set[str]:
    """Whoever is named, or has an account here."""
    accounts = ground.book.journal.books.accounts
    return {*ground.lines, *(did for key in accounts for did in (key.payer, key.payee))}


def _channel_id(money: "Money", key: AccountKey) -> bytes | None:
    config = money.channels.channel(key)
    return None if config is None else money.chain.place.channel_id(config)


async def _no_bonds(_request: web.Request) -> web.Response:
    raise ApiError(409, str(NoBonds()), code="no_bonds")


async def _no_wallet(_request: web.Request) -> web.Response:
    raise ApiError(409, "this node has no wallet: write a section [stablecoin] into config.toml", code="no_wallet")
