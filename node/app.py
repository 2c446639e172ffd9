"""The composition root: the one place that chooses real adapters and puts a node together."""

import asyncio
import contextlib
import logging
import math
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
from attrs import field, frozen

from ledger.database import Database, LedgerError, Place
from ledger.identity import Did, Identity
from ledger.money import Amount
from ledger.rails import credit
from ledger.rails.port import Rail
from ledger.records import Offer, Signed
from node.api.connections import Bounds, serving
from node.api.disputes import DisputesDoor
from node.api.effects import EffectsDoor
from node.api.mesh import MeshDoor
from node.api.openai import OpenAiDoor
from node.api.owner import OwnerDoor
from node.api.server import Keys, build_app, is_loopback, is_wildcard
from node.api.settlements import SettlementsDoor
from node.config import Config, default_credit, did_of
from node.engine.calibration import CalibrationFiles
from node.engine.hardware import Plan
from node.engine.llamacpp import LlamaEngine
from node.engine.load import Sensors
from node.engine.pool import Pool
from node.engine.port import Engine
from node.exchange.auditor import Auditor
from node.exchange.book import NO_LEDGER, Book
from node.exchange.buyer import Buyer
from node.exchange.claims import Claims
from node.exchange.disputes import Disputes
from node.exchange.effects import EffectDriver
from node.exchange.idling import IdleWatch, reader, selling_now
from node.exchange.netting import Netter
from node.exchange.panel import Market, Panel
from node.exchange.reconciling import Reconciler
from node.exchange.retaining import Retention
from node.exchange.sale import Ware
from node.exchange.seller import Credit, Seller
from node.exchange.settler import AuditPolicy, Settler
from node.exchange.settling import Settling
from node.gateway.gateway import Gateway
from node.gateway.question import Policy
from node.gateway.remotes import Remotes
from node.gateway.supply import Local, Supply
from node.home import Home, HomeError, Running
from node.mesh.static import NamedPeers
from node.models.catalogue import Catalogue, Entry, shipped
from node.models.manifest import Manifest
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from node.own_models import LoadEngine, OwnModel, OwnModels, Say, open_models
from node.own_remotes import open_remotes
from node.ports import Clock, Entropy, SystemClock, SystemEntropy
from node.wire.client import HttpPeer
from node.wire.messages import Refused

# What was open at a stop is settled once the peers have answered, or after so long.
_PEERS_ANSWER_S: Final = 15.0
# How often nonces and token ids past their time are dropped, and orders that came to nothing are closed.
_SWEEP_S: Final = 60.0

_log = logging.getLogger(__name__)


class CannotListen(HomeError):
    """The address is taken, or not this machine's."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {why}: choose another --port or --host")


class NeedsApiKey(HomeError):
    """A node that others can reach must ask its clients for a key."""

    def __init__(self, host: str, folder: Path) -> None:
        super().__init__(
            f"listening on {host} lets others in: make an API key first, with `idlemesh key api --home {folder}`"
        )


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
) -> AsyncIterator[Node]:
    """Run a node until the context is left; `say` is told what takes time at the start, `rails` can move money.

    Raises HomeError, BadModelFile, BadConfig, NameTaken, EngineError, LedgerCorrupt, each with advice.
    """
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    keys = Keys(secrets.token_urlsafe(32), _api_key(home, config))
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(home.lock())
        listener = stack.enter_context(contextlib.closing(_listen(config.node.host, config.node.port)))
        book = await _open_book(stack, config.ledger.place(home.ledger), home.identity(entropy), clock)
        book.token_ids_s = config.retention.token_ids_s
        renderer = TemplateRenderer()
        stack.push_async_callback(renderer.close)
        await renderer.start()
        tokenizers = Tokenizers(home.tokenizers, renderer)
        stack.push_async_callback(tokenizers.close)
        watch = _idle_watch(stack, config)  # before the models are read: what others use shows over a time
        own = await open_models(home, config, tokenizers, _catalogue(config), load_engine, say)
        stack.push_async_callback(own.pool.close)
        say(f"Loading {own.models[0].name}…")
        await own.load_first()
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        calibrations = CalibrationFiles(home.calibrations)
        auditor = Auditor(book, [model.engine for model in own.models], calibrations.find, tokenizers.open_own)
        dialled = {did_of(peer): HttpPeer(session, peer.url) for peer in config.peers}
        policy = AuditPolicy(config.audit.rate, config.audit.first)
        settler = Settler(book, entropy, auditor, policy, dialled.get)
        stack.push_async_callback(settler.close)
        buyer = Buyer(book, entropy, settler.settle, config.buy.patience, settler)
        stack.push_async_callback(buyer.close)
        reconciler = Reconciler(book, entropy, dialled.get, settler.promised)
        await reconciler.heads.open()
        fit = reconciler.heads.may_work_with
        peers = NamedPeers(book.identity.did, dialled, tokenizers, clock, buyer.take_grant, reconciler.meet, fit)
        reconciler.taking.claimed = Claims(book, settler, tokenizers.open).take
        names = [model.name for model in own.models]
        sold = [model.engine.manifest.digest for model in own.models if model.price is not None]
        elsewhere = await open_remotes(config, home, session, tokenizers, names, sold)
        remotes = Remotes([remote.backend for remote in elsewhere], clock)
        local = [_local(model) for model in own.models]
        supply = Supply(book, local, own.catalogue, peers, buyer, remotes)
        gateway = Gateway(supply, entropy, _policy(config))
        helping = Buyer(book, entropy, settler.settle_help, config.buy.patience, settler)
        stack.push_async_callback(helping.close)
        auditor.panel = Panel(book, entropy, helping, _help(config, supply, peers))
        if watch is not None:
            await watch.look()
        may_sell = partial(_may_sell, book, watch)
        wares = [*_wares(own), *(remote.ware for remote in elsewhere if remote.ware is not None)]
        seller = _seller(book, entropy, config, wares, tokenizers, dialled, may_sell, fit)
        if seller is not None:
            reconciler.taking.paid = seller.acknowledge
            seller.url = "" if is_wildcard(config.node.host) else _url(config.node.host, listener)
            await seller.sweep()
        url = _url("127.0.0.1" if is_wildcard(config.node.host) else config.node.host, listener)
        await settler.recover(partial(peers.asked_once, _PEERS_ANSWER_S))
        peers.start()
        stack.push_async_callback(peers.close)
        door = OpenAiDoor(gateway, clock, entropy, config.api.privacy, config.api.route)
        sells = seller is not None

        def selling() -> dict[str, Any]:
            return selling_now(sells, watch, book.trouble)

        def running() -> dict[str, Any]:
            return {**own.status(), "remotes": remotes.status()}

        offers = seller.offers if seller else _no_offers
        owner = OwnerDoor(book, gateway, peers, auditor, offers, selling, running, reconciler.heads)
        settling, netter = Settling(book, dialled.get), Netter(book, dialled.get)
        disputes = Disputes(book, dialled.get, settler.give_way)
        retention = Retention(book, config.retention.records)
        app = build_app(door, MeshDoor(seller, settling, netter, disputes, reconciler), owner, keys, clock)
        app.add_routes(SettlementsDoor(settling, netter).routes())
        app.add_routes(DisputesDoor(disputes, book.me).routes())
        effects = EffectDriver(book, entropy, rails)
        app.add_routes(EffectsDoor(book, effects).routes())
        await stack.enter_async_context(serving(app, listener, Bounds(trusted=is_loopback)))
        # At the end this comes first: what is being sold is cut in good order, and paid up to its last checkpoint.
        for remote in elsewhere:
            stack.push_async_callback(remote.close)
        stack.push_async_callback(own.pool.close)
        _in_background(stack, _sweep(book, settler, settling, disputes, retention, seller, own.pool))
        _in_background(stack, effects.run())
        if seller is not None and watch is not None:
            _in_background(stack, watch.run(seller.hand_back))
        home.announce(Running(url, keys.token, book.me))
        stack.callback(home.withdraw)
        yield Node(url, book.identity.did, book, gateway, peers, settler, effects, own, keys.token)


def _api_key(home: Home, config: Config) -> str | None:
    if is_loopback(config.node.host):
        return None
    key = home.api_key()
    if key is None:
        raise NeedsApiKey(config.node.host, home.folder)
    return key


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before anything slow begins. Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise CannotListen(host, port, error.strerror or str(error)) from None
    return listener


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


async def _open_book(stack: contextlib.AsyncExitStack, place: Place, identity: Identity, clock: Clock) -> Book:
    database = await Database.open(place, identity.did)
    stack.push_async_callback(database.close)
    return await Book.open(database, identity, clock)


def _local(model: OwnModel) -> Local:
    return Local(model.engine, model.tokenizer, model.name, lambda: model.engine.state)


def _catalogue(config: Config) -> Catalogue:
    catalogue = shipped()
    for name, digest in config.catalogue.items():
        catalogue = catalogue.add(bytes.fromhex(digest), Entry(name, name, ""))
    return catalogue


def _help(config: Config, supply: Supply, peers: NamedPeers) -> Market:
    """Whom the auditor may ask, and for how much."""

    async def tokenizer(offer: Signed[Offer]) -> Tokenizer:
        return await peers.tokenizer(offer.record.tokenizer, offer.signer)

    return Market(supply.other_candidates, peers.dial, tokenizer, config.buy.limits(), config.audit.max_per_day)


def _policy(config: Config) -> Policy:
    return Policy(config.buy.limits(), config.buy.weights, config.buy.busy_wait, config.api.max_tokens)


def _wares(own: OwnModels) -> list[Ware]:
    """The models of this machine that are sold."""
    return [
        Ware(model.engine, model.tokenizer, model.name, model.price, model.engine.is_unchanged)
        for model in own.models
        if model.price is not None
    ]


def _seller(
    book: Book,
    entropy: Entropy,
    config: Config,
    wares: Sequence[Ware],
    tokenizers: Tokenizers,
    named: Collection[str],
    may_sell: Callable[[], Refused | None],
    may_work_with: Callable[[Did], Refused | None],
) -> Seller | None:
    """The selling side, if the owner named a price."""
    if not wares:
        return None
    sell = config.sell
    limit = sell.open_credit or default_credit(wares[0].price)
    window = sell.window or Amount(max(limit.value // 5, 1), limit.unit)
    exposure = sell.exposure or Amount(5 * window.value, window.unit)
    credit = {limit.unit: Credit(limit, window, exposure)}
    return Seller(book, entropy, wares, credit, tokenizers.raw, named, may_sell, may_work_with, sell.patience)


def _idle_watch(stack: contextlib.AsyncExitStack, config: Config) -> IdleWatch | None:
    """The watch over the owner's machine, if something is sold by a rule."""
    rule = config.idle.rule()
    if not config.prices or rule is None:
        return None
    sensors = Sensors()
    stack.callback(sensors.close)
    return IdleWatch(rule, reader(sensors))


def _may_sell(book: Book, watch: IdleWatch | None) -> Refused | None:
    """Why nothing may be sold now, as buyers are told it."""
    if book.trouble is not None:
        return Refused("not_selling", NO_LEDGER, math.ceil(_SWEEP_S))
    return watch.may_sell() if watch is not None else None


async def _no_offers() -> list[bytes]:
    return []


async def _sweep(
    book: Book,
    settler: Settler,
    settling: Settling,
    disputes: Disputes,
    retention: Retention,
    seller: Seller | None,
    pool: Pool,
) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        try:
            pool.sweep()
            await book.sweep()
            await settler.sweep()
            await settling.sweep()
            if seller is not None:
                await seller.sweep()
            await disputes.sweep()
            await retention.sweep()
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
