"""The composition root: the one place that chooses real adapters and puts a node together."""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from attrs import field, frozen

from ledger.database import Database
from ledger.identity import Did, Identity
from ledger.money import Amount
from node.api.chat import ChatDoor
from node.api.mesh import MeshDoor
from node.api.owner import OwnerDoor
from node.api.server import Keys, build_app, is_loopback, is_wildcard
from node.config import Config, SellSettings, default_credit, did_of
from node.engine.llamacpp import LlamaEngine
from node.engine.port import Engine
from node.exchange.auditor import Auditor
from node.exchange.book import Book
from node.exchange.buyer import Buyer
from node.exchange.seller import Credit, Seller, Ware
from node.exchange.settler import AuditPolicy, Settler
from node.gateway.gateway import Gateway
from node.gateway.question import Policy
from node.gateway.supply import Local, Supply
from node.home import Home, HomeError, Running
from node.mesh.static import NamedPeers
from node.models.catalogue import Catalogue, Entry, shipped
from node.models.gguf import BadModelFile
from node.models.manifest import Manifest, manifest_of
from node.models.template import TemplateRenderer
from node.models.tokenizers import Tokenizers
from node.ports import Clock, Entropy, SystemClock, SystemEntropy
from node.wire.client import HttpPeer

DEMO_MODEL: Final = Path(__file__).parent / "models" / "demo" / "demo-Q8_0.gguf"
# How often nonces and token ids past their time are dropped, and orders that came to nothing are closed.
_SWEEP_S: Final = 60.0
# How long requests may still take then; aiohttp waits for it twice.
_SHUTDOWN_S: Final = 1.0

LoadEngine = Callable[[Path, Manifest, Config], Awaitable[Engine]]

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
    token: str = field(repr=False)


async def load_llama(path: Path, manifest: Manifest, config: Config) -> Engine:
    """The usual engine: llama.cpp on this machine."""
    settings = config.node
    return await LlamaEngine.load(
        path, manifest, context=settings.context, threads=settings.threads, gpu_layers=settings.gpu_layers
    )


@contextlib.asynccontextmanager
async def run_node(
    home: Home,
    config: Config,
    load_engine: LoadEngine = load_llama,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
) -> AsyncIterator[Node]:
    """Run a node until the context is left. Raises HomeError, BadModelFile, LedgerCorrupt, each with advice."""
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    keys = Keys(secrets.token_urlsafe(32), _api_key(home, config))
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(home.lock())
        listener = stack.enter_context(contextlib.closing(_listen(config.node.host, config.node.port)))
        book = await _open_book(stack, home, home.identity(entropy), clock)
        renderer = TemplateRenderer()
        stack.push_async_callback(renderer.close)
        await renderer.start()
        tokenizers = Tokenizers(home.tokenizers, renderer)
        stack.callback(tokenizers.close)
        local, catalogue = await _load_model(stack, config, tokenizers, load_engine)
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        auditor = Auditor(book, [local.engine])
        dialled = {did_of(peer): HttpPeer(session, peer.url) for peer in config.peers}
        policy = AuditPolicy(config.audit.rate, config.audit.first)
        settler = Settler(book, entropy, auditor, policy, dialled.get)
        stack.push_async_callback(settler.close)
        buyer = Buyer(book, entropy, settler.settle, config.buy.patience)
        stack.push_async_callback(buyer.close)
        peers = NamedPeers(book.identity.did, dialled, tokenizers, clock, buyer.take_grant)
        gateway = Gateway(Supply(book, [local], catalogue, peers, buyer), entropy, _policy(config))
        seller = _seller(book, entropy, config.sell, local, tokenizers, dialled)
        if seller is not None:
            seller.url = "" if is_wildcard(config.node.host) else _url(config.node.host, listener)
            await seller.sweep()
        url = _url("127.0.0.1" if is_wildcard(config.node.host) else config.node.host, listener)
        await settler.recover()
        peers.start()
        stack.push_async_callback(peers.close)
        chat = ChatDoor(gateway, clock, entropy, config.api.privacy, config.api.route)
        owner = OwnerDoor(book, gateway, peers, auditor, seller.offers if seller else _no_offers)
        app = build_app(chat, MeshDoor(seller), owner, keys, clock)
        await _serve(stack, app, listener)
        # At the end this comes first: what is being sold is cut in good order, and paid up to its last checkpoint.
        stack.push_async_callback(local.engine.close)
        _in_background(stack, _sweep(book, settler, seller))
        home.announce(Running(url, keys.token, book.me))
        stack.callback(home.withdraw)
        yield Node(url, book.identity.did, book, gateway, peers, settler, keys.token)


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


async def _open_book(stack: contextlib.AsyncExitStack, home: Home, identity: Identity, clock: Clock) -> Book:
    database = await Database.open(home.ledger, identity.did)
    stack.push_async_callback(database.close)
    return await Book.open(database, identity, clock)


async def _load_model(
    stack: contextlib.AsyncExitStack, config: Config, tokenizers: Tokenizers, load_engine: LoadEngine
) -> tuple[Local, Catalogue]:
    """The node's model: the owner's, else the one that comes with idlemesh."""
    path = (config.node.model or DEMO_MODEL).expanduser()
    try:
        manifest = await asyncio.to_thread(manifest_of, path)
    except OSError as error:
        raise BadModelFile(str(path), f"it cannot be read: {error.strerror}", "Name a .gguf model file.") from None
    catalogue = _catalogue(config).add_own(manifest, path.stem)
    tokenizer = tokenizers.open(tokenizers.add_own(path))
    engine = await load_engine(path, manifest, config)
    stack.push_async_callback(engine.close)
    entry = catalogue.entry(manifest.digest)
    return Local(engine, tokenizer, entry.name if entry else path.stem), catalogue


def _catalogue(config: Config) -> Catalogue:
    catalogue = shipped()
    for name, digest in config.catalogue.items():
        catalogue = catalogue.add(bytes.fromhex(digest), Entry(name, name, ""))
    return catalogue


def _policy(config: Config) -> Policy:
    return Policy(config.buy.limits(), config.buy.weights, config.buy.busy_wait, config.api.max_tokens)


def _seller(
    book: Book, entropy: Entropy, sell: SellSettings, local: Local, tokenizers: Tokenizers, named: Collection[str]
) -> Seller | None:
    """The selling side, if the owner named a price."""
    if sell.price is None:
        return None
    limit = sell.open_credit or default_credit(sell.price)
    window = sell.window or Amount(max(limit.value // 5, 1), limit.unit)
    exposure = sell.exposure or Amount(5 * window.value, window.unit)
    ware = Ware(local.engine, local.tokenizer, local.name, sell.price)
    credit = {limit.unit: Credit(limit, window, exposure)}
    return Seller(book, entropy, [ware], credit, tokenizers.raw, named)


async def _no_offers() -> list[bytes]:
    return []


async def _serve(stack: contextlib.AsyncExitStack, app: web.Application, listener: socket.socket) -> None:
    # A client that goes away cancels its handler, and so the work here or at the seller.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener).start()


async def _sweep(book: Book, settler: Settler, seller: Seller | None) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        try:
            await book.sweep()
            await settler.sweep()
            if seller is not None:
                await seller.sweep()
        except Exception:  # noqa: BLE001 - the sweep must outlive any one failure
            _log.exception("sweeping failed; it is tried again in a minute")


def _in_background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(stop)
