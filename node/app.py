"""The composition root: the one place that chooses real adapters and puts a node together."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp import web
from attrs import field, frozen

from ledger.account import AccountKey
from ledger.database import LedgerError
from ledger.identity import Did
from ledger.rails import credit
from ledger.rails.port import Rail
from node.api.callers import Proxies
from node.api.connections import serving
from node.api.disputes import DisputesDoor
from node.api.effects import EffectsDoor
from node.api.mesh import MeshDoor
from node.api.openai import OpenAiDoor
from node.api.owner import OwnerDoor
from node.api.server import Keys, build_app, is_wildcard
from node.api.settlements import SettlementsDoor
from node.config import Config
from node.engine.hardware import Plan
from node.engine.llamacpp import LlamaEngine
from node.engine.port import Engine
from node.exchange.book import Book
from node.exchange.effects import EffectDriver
from node.exchange.idling import selling_now
from node.exchange.opening import Opening
from node.exchange.pacing import Pace
from node.exchange.seller import Seller
from node.exchange.settler import Settler
from node.exchange.sharing import catch_up, keep_up
from node.gateway.gateway import Gateway
from node.ground import SWEEP_S, Ground, open_ground
from node.home import Home, Running
from node.listening import api_key, bounds, listen, url_of
from node.mesh.static import NamedPeers
from node.models.manifest import Manifest
from node.own_models import LoadEngine, OwnModels, Say
from node.own_wallet import add_wallet
from node.ports import Clock, Entropy, SystemClock, SystemEntropy
from node.trade import Buying, open_buying, open_seller, open_till

if TYPE_CHECKING:
    from node.own_paid import OpenDoor

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
        ground = await open_ground(stack, home, config, load_engine, clock, entropy, say, rails, pace)
        buying = await open_buying(stack, ground)
        everywhere = is_wildcard(config.node.host)
        seller = await open_seller(ground, buying, "" if everywhere else url_of(config.node.host, listener))
        url = url_of("127.0.0.1" if everywhere else config.node.host, listener)
        await buying.settler.recover(partial(buying.peers.asked_once, _PEERS_ANSWER_S))
        buying.peers.start()
        stack.push_async_callback(buying.peers.close)
        paid: OpenDoor | None = None
        app = _doors(ground, buying, seller, keys, lambda: None if paid is None else paid.status())
        await stack.enter_async_context(serving(app, listener, bounds(config)))
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


def _doors(
    ground: Ground, buying: Buying, seller: Seller | None, keys: Keys, paid: Callable[[], dict[str, Any] | None]
) -> web.Application:
    """All that is asked of this node over HTTP; `paid` is the state of the door for strangers, if it is open."""
    config, book = ground.config, ground.book

    def selling() -> dict[str, Any]:
        return selling_now(seller is not None, ground.watch, book.trouble)

    def running() -> dict[str, Any]:
        return {**ground.own.status(), "remotes": buying.remotes.status(), "slashes": _slashes(ground), "door": paid()}

    offers = seller.offers if seller else _no_offers
    heads = buying.reconciler.heads
    own = OpenAiDoor(buying.gateway, ground.clock, ground.entropy, config.api.privacy, config.api.route)
    stakes = buying.pledges
    owner = OwnerDoor(book, buying.gateway, buying.peers, buying.auditor, offers, selling, running, heads, stakes)
    till = open_till(ground) if seller is not None else None
    mesh = MeshDoor(seller, buying.settling, buying.netter, buying.disputes, buying.reconciler, till)
    proxies = Proxies(config.node.trusted_proxies)
    app = build_app(own, mesh, owner, keys, ground.clock, proxies, partial(catch_up, book))
    app.add_routes(SettlementsDoor(buying.settling, buying.netter).routes())
    app.add_routes(DisputesDoor(buying.disputes, book.me).routes())
    app.add_routes(EffectsDoor(book, ground.effects).routes())
    add_wallet(app, ground, buying.opening)
    return app


def _slashes(ground: Ground) -> list[dict[str, Any]]:
    """What arbiters want to take of this node's bonds."""
    if ground.money is None or ground.money.own_bonds is None:
        return []
    from node.api.slash_rows import slash_row  # as late as the rest that knows of chains

    return [slash_row(bond.id, slash) for bond, slash in ground.money.own_bonds.slashes]


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
    fees = ground.money.fees if ground.money is not None else None
    _in_background(stack, _sweep(ground.own.pool, ground.book, *owed, buying.retention, ground.purses, paid, fees))
    sold = seller.look_again if seller is not None else _nothing
    _in_background(stack, keep_up(ground.book, sold, (ground.book.end_left_sales, buying.settler.sweep)))
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


def _nothing() -> None:
    """Nobody sells."""


def _hand_back(sides: Sequence[Callable[[], None]]) -> None:
    for hand_back in sides:
        hand_back()


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
