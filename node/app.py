"""The composition root: the one place that chooses real adapters and puts a node together."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import aiohttp
from aiohttp import web
from attrs import field, frozen

from ledger.account import AccountKey
from ledger.database import Database, LedgerError, Place
from ledger.identity import Did, Identity
from ledger.rails import credit
from ledger.rails.port import Rail
from node.api.connections import Bounds, serving
from node.api.disputes import DisputesDoor
from node.api.effects import EffectsDoor
from node.api.mesh import MeshDoor
from node.api.openai import OpenAiDoor
from node.api.owner import OwnerDoor
from node.api.server import Keys, build_app, is_loopback, is_wildcard
from node.api.settlements import SettlementsDoor
from node.config import Config, did_of
from node.engine.hardware import Plan
from node.engine.llamacpp import LlamaEngine
from node.engine.load import Sensors
from node.engine.port import Engine
from node.exchange.book import Book
from node.exchange.effects import EffectDriver
from node.exchange.idling import IdleWatch, reader, selling_now
from node.exchange.opening import Opening
from node.exchange.pacing import Pace
from node.exchange.seller import Seller
from node.exchange.settler import Settler
from node.gateway.gateway import Gateway
from node.home import Home, Running
from node.listening import api_key, listen, url_of
from node.mesh.static import NamedPeers
from node.models.catalogue import Catalogue, Entry, shipped
from node.models.manifest import Manifest
from node.models.template import TemplateRenderer
from node.models.tokenizers import Tokenizers
from node.own_models import LoadEngine, OwnModels, Say, open_models
from node.own_remotes import no_payer, open_remotes
from node.own_wallet import add_wallet
from node.ports import Clock, Entropy, SystemClock, SystemEntropy
from node.trade import SWEEP_S, Buying, Ground, open_buying, open_seller, open_till
from node.wire.client import HttpPeer

if TYPE_CHECKING:
    from node.own_money import Money
    from node.own_paid import OpenDoor
    from node.own_purses import Purses

# What was open at a stop is settled once the peers have answered, or after so long.
_PEERS_ANSWER_S: Final = 15.0

_log = logging.getLogger(__name__)


@frozen
class Node:
    """A running node."""

    url: str
    did: Did
    book: Book
    gateway: Gateway
    peers: NamedPeers
    settler: Settler
    effects: EffectDriver
    own: OwnModels
    token: str = field(repr=False)


async def load_llama(path: Path, manifest: Manifest, plan: Plan) -> Engine:
    """The usual engine: llama.cpp on this machine."""
    return await LlamaEngine.load(
        path,
        manifest,
        context=plan.context,
        slots=plan.slots,
        cells=plan.cells,
        kept=plan.kept,
        threads=plan.threads,
        batch=plan.batch,
        kv=plan.kv,
        gpu_layers=plan.gpu_layers,
    )


@contextlib.asynccontextmanager
async def run_node(
    home: Home,
    config: Config,
    load_engine: LoadEngine = load_llama,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
    say: Say = lambda _: None,
    rails: Sequence[Rail] = (credit,),
    pace: Pace | None = None,
) -> AsyncIterator[Node]:
    """Run a node until the context is left; `say` is told what takes time at the start.

    `rails` can move money, besides the chain's, and `pace` is how long that waits for what.

    Raises HomeError, BadModelFile, BadConfig, NameTaken, EngineError, LedgerCorrupt, each with advice.
    """
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    keys = Keys(secrets.token_urlsafe(32), api_key(home, config))
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(home.lock())
        listener = stack.enter_context(contextlib.closing(listen(config.node.host, config.node.port)))
        ground = await _open_ground(stack, home, config, load_engine, clock, entropy, say, rails, pace)
        buying = await open_buying(stack, ground)
        everywhere = is_wildcard(config.node.host)
        seller = await open_seller(ground, buying, "" if everywhere else url_of(config.node.host, listener))
        url = url_of("127.0.0.1" if everywhere else config.node.host, listener)
        await buying.settler.recover(partial(buying.peers.asked_once, _PEERS_ANSWER_S))
        buying.peers.start()
        stack.push_async_callback(buying.peers.close)
        app = _doors(ground, buying, seller, keys)
        await stack.enter_async_context(serving(app, listener, Bounds(trusted=is_loopback)))
        paid = await _open_paid(stack, ground)
        # At the end this comes first: what is being sold is cut in good order, and paid up to its last checkpoint.
        for remote in ground.elsewhere:
            stack.push_async_callback(remote.close)
        stack.push_async_callback(ground.own.pool.close)
        _start(stack, ground, buying, seller, paid)
        home.announce(Running(url, keys.token, ground.book.me))
        stack.callback(home.withdraw)
        yield Node(
            url,
            ground.book.identity.did,
            ground.book,
            buying.gateway,
            buying.peers,
            buying.settler,
            ground.effects,
            ground.own,
            keys.token,
        )


async def _open_ground(
    stack: contextlib.AsyncExitStack,
    home: Home,
    config: Config,
    load_engine: LoadEngine,
    clock: Clock,
    entropy: Entropy,
    say: Say,
    rails: Sequence[Rail],
    pace: Pace | None,
) -> Ground:
    """Ledger, models, lines to peers, and money."""
    book = await _open_book(stack, config.ledger.place(home.ledger), home.identity(entropy), clock)
    book.token_ids_s = config.retention.token_ids_s
    book.rails.prefer(config.buy.rails)
    tokenizers = await _open_tokenizers(stack, home)
    watch = _idle_watch(stack, config)  # before the models are read: what others use shows over a time
    own = await open_models(home, config, tokenizers, _catalogue(config), load_engine, say)
    stack.push_async_callback(own.pool.close)
    say(f"Loading {own.models[0].name}…")
    await own.load_first()
    session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
    names = [model.name for model in own.models]
    sold = [model.engine.manifest.digest for model in own.models if model.price is not None]
    lines = {did_of(peer): HttpPeer(session, peer.url) for peer in config.peers}
    money, purses = await _open_money(stack, home, config, book, entropy, lines)
    policies = {money.rail.name: money.policy} if money is not None else {}
    rails = [*rails, *money.rails] if money is not None else rails
    payer_of = purses.payer_of if purses is not None else no_payer
    elsewhere = await open_remotes(config, home, session, tokenizers, names, sold, payer_of)
    effects = EffectDriver(book, entropy, rails, policies, pace)
    return Ground(
        home, config, book, clock, entropy, tokenizers, own, elsewhere, session, lines, effects, money, purses, watch
    )


async def _open_money(
    stack: contextlib.AsyncExitStack,
    home: Home,
    config: Config,
    book: Book,
    entropy: Entropy,
    lines: Mapping[Did, HttpPeer],
) -> "tuple[Money | None, Purses | None]":
    """What the section [stablecoin] says; nothing without one."""
    if config.stablecoin is None:
        return None, None
    # Not before it is known that they are needed: they take longer to import than the rest of a node to start.
    from node.own_money import open_money
    from node.own_purses import open_purses

    bond = bytes.fromhex(config.sell.bond[2:]) if config.sell.bond is not None else None
    money = await open_money(stack, home, config.stablecoin, book, lines.get, bond)
    return money, await open_purses(book, entropy, money.chain, money.chain.network, money.chain.place.contract)


def _doors(ground: Ground, buying: Buying, seller: Seller | None, keys: Keys) -> web.Application:
    """All that is asked of this node over HTTP."""
    config, book = ground.config, ground.book

    def selling() -> dict[str, Any]:
        return selling_now(seller is not None, ground.watch, book.trouble)

    def running() -> dict[str, Any]:
        return {**ground.own.status(), "remotes": buying.remotes.status()}

    offers = seller.offers if seller else _no_offers
    heads = buying.reconciler.heads
    own = OpenAiDoor(buying.gateway, ground.clock, ground.entropy, config.api.privacy, config.api.route)
    stakes = buying.pledges
    owner = OwnerDoor(book, buying.gateway, buying.peers, buying.auditor, offers, selling, running, heads, stakes)
    till = open_till(ground) if seller is not None else None
    mesh = MeshDoor(seller, buying.settling, buying.netter, buying.disputes, buying.reconciler, till)
    app = build_app(own, mesh, owner, keys, ground.clock)
    app.add_routes(SettlementsDoor(buying.settling, buying.netter).routes())
    app.add_routes(DisputesDoor(buying.disputes, book.me).routes())
    app.add_routes(EffectsDoor(book, ground.effects).routes())
    add_wallet(app, ground, buying.opening)
    return app


async def _open_paid(stack: contextlib.AsyncExitStack, ground: Ground) -> "OpenDoor | None":
    """The door for strangers who pay by x402, if the owner wants one."""
    if ground.config.paid is None or ground.money is None:
        return None
    from node.own_paid import open_paid  # as late as the rest that knows of chains

    return await open_paid(stack, ground, ground.money, ground.config.paid)


def _start(
    stack: contextlib.AsyncExitStack, ground: Ground, buying: Buying, seller: Seller | None, paid: "OpenDoor | None"
) -> None:
    """What goes on in the background while the node runs."""
    owed = (buying.settler, buying.settling, seller, buying.disputes)
    _in_background(stack, _sweep(ground.own.pool, ground.book, *owed, buying.retention, ground.purses, paid))
    _in_background(stack, ground.effects.run())
    if buying.opening is not None:
        _in_background(stack, _fill_channels(ground, buying.peers, buying.opening))
    if buying.pledges is not None:
        _in_background(stack, buying.pledges.run())
    if ground.money is not None and ground.money.own_bonds is not None:
        _in_background(stack, ground.money.own_bonds.run())
    selling = [side.hand_back for side in (seller, paid.shop if paid is not None else None) if side is not None]
    if selling and ground.watch is not None:
        _in_background(stack, ground.watch.run(partial(_hand_back, selling)))


def _hand_back(sides: Sequence[Callable[[], None]]) -> None:
    for hand_back in sides:
        hand_back()


async def _open_book(stack: contextlib.AsyncExitStack, place: Place, identity: Identity, clock: Clock) -> Book:
    database = await Database.open(place, identity.did)
    stack.push_async_callback(database.close)
    return await Book.open(database, identity, clock)


async def _open_tokenizers(stack: contextlib.AsyncExitStack, home: Home) -> Tokenizers:
    renderer = TemplateRenderer()
    stack.push_async_callback(renderer.close)
    await renderer.start()
    tokenizers = Tokenizers(home.tokenizers, renderer)
    stack.push_async_callback(tokenizers.close)
    return tokenizers


def _catalogue(config: Config) -> Catalogue:
    catalogue = shipped()
    for name, digest in config.catalogue.items():
        catalogue = catalogue.add(bytes.fromhex(digest), Entry(name, name, ""))
    return catalogue


def _idle_watch(stack: contextlib.AsyncExitStack, config: Config) -> IdleWatch | None:
    """The watch over the owner's machine, if something is sold by a rule."""
    rule = config.idle.rule()
    if not (config.prices or config.paid) or rule is None:
        return None
    sensors = Sensors()
    stack.callback(sensors.close)
    return IdleWatch(rule, reader(sensors))


async def _no_offers() -> list[bytes]:
    return []


async def _fill_channels(ground: Ground, peers: NamedPeers, opening: Opening) -> None:
    """Have sellers know of deposits, and deposit by itself what the owner says."""
    amount = ground.config.stablecoin.deposit.value if ground.config.stablecoin is not None else 0

    async def deposit(key: AccountKey, amount: int) -> None:
        await ground.effects.ask(key, "top_up", amount)

    await opening.run(peers.offers, deposit, amount)


class Sweeps(Protocol):
    """A service that drops what is past its time, and goes on with what waits."""

    def sweep(self) -> Awaitable[None] | None:
        """Once."""


async def _sweep(*services: Sweeps | None) -> None:
    """Each in turn, every now and then."""
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            for service in services:
                swept = service.sweep() if service is not None else None
                if swept is not None:  # the pool's is done at once
                    await swept
        except LedgerError as error:
            _log.warning("sweeping waits for the ledger: %s", error)
        except Exception:  # noqa: BLE001 - the sweep must outlive any one failure
            _log.exception("sweeping failed; it is tried again in a minute")


def _in_background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(stop)
