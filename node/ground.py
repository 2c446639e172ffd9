"""What a node stands on before it trades: ledger, models, lines to peers, and money."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import aiohttp
from attrs import frozen

from ledger.database import Database, Part, Place, is_postgres
from ledger.identity import Did, Identity
from ledger.rails.port import Rail
from ledger.records import Bond
from node.config import Config, did_of
from node.engine.load import Sensors
from node.exchange.book import NO_LEDGER, Book
from node.exchange.effects import EffectDriver
from node.exchange.idling import IdleWatch, reader
from node.exchange.pacing import Pace
from node.home import Home
from node.models.catalogue import Catalogue, Entry, shipped
from node.models.template import TemplateRenderer
from node.models.tokenizers import Tokenizers
from node.own_models import LoadEngine, OwnModels, Say, open_models
from node.own_remotes import OwnRemote, no_payer, open_remotes
from node.ports import Clock, Entropy
from node.wire.client import HttpPeer
from node.wire.messages import Refused
from node.wire.several import SeveralLines

if TYPE_CHECKING:  # what is in them takes seconds to import, and most nodes have no money on a chain
    from node.own_money import Money
    from node.own_purses import Purses

# How often what is past its time is dropped; until then a ledger in trouble is not tried again.
SWEEP_S: Final = 60.0


@frozen
class Ground:
    """What trading stands on; all of it is open by then."""

    home: Home
    config: Config
    book: Book
    clock: Clock
    entropy: Entropy
    tokenizers: Tokenizers
    own: OwnModels
    elsewhere: Sequence[OwnRemote]
    session: aiohttp.ClientSession
    lines: Mapping[Did, HttpPeer | SeveralLines]
    effects: EffectDriver
    money: "Money | None"
    purses: "Purses | None"
    watch: IdleWatch | None

    def pledged(self) -> Bond | None:
        """The stake that this node's offers name."""
        own = self.money.own_bonds if self.money is not None else None
        return own.pledged if own is not None else None

    def may_sell(self) -> Refused | None:
        """Why nothing may be sold now, as buyers are told it."""
        if self.book.trouble is not None:
            return Refused("not_selling", NO_LEDGER, math.ceil(SWEEP_S))
        return self.watch.may_sell() if self.watch is not None else None


async def open_ground(
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
    moves_money = config.stablecoin is not None or any(rail.effects for rail in rails)
    place, identity = config.ledger.place(home.ledger), home.identity(entropy)
    part = Part(home.process_id(entropy) if is_postgres(place) else b"", moves_money)
    book = await _open_book(stack, place, identity, clock, part)
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
    lines = _lines(session, config)
    money, purses = await _open_money(stack, home, config, book, entropy, lines, session)
    policies = {money.rail.name: money.settings.policy()} if money is not None else {}
    rails = [*rails, *money.rails(purses.asking if purses is not None else None)] if money is not None else rails
    payer_of = purses.payer_of if purses is not None else no_payer
    elsewhere = await open_remotes(config, home, session, tokenizers, names, sold, payer_of)
    effects = EffectDriver(book, entropy, rails, policies, pace)
    return Ground(
        home, config, book, clock, entropy, tokenizers, own, elsewhere, session, lines, effects, money, purses, watch
    )


def _lines(session: aiohttp.ClientSession, config: Config) -> dict[Did, HttpPeer | SeveralLines]:
    """The ways to the named peers; one that is named more than once runs in several processes."""
    by_did: dict[Did, list[HttpPeer]] = {}
    for peer in config.peers:
        by_did.setdefault(did_of(peer), []).append(HttpPeer(session, peer.url))
    return {did: SeveralLines(lines) if len(lines) > 1 else lines[0] for did, lines in by_did.items()}


async def _open_money(
    stack: contextlib.AsyncExitStack,
    home: Home,
    config: Config,
    book: Book,
    entropy: Entropy,
    lines: Mapping[Did, HttpPeer | SeveralLines],
    session: aiohttp.ClientSession,
) -> "tuple[Money | None, Purses | None]":
    """What the section [stablecoin] says; nothing without one."""
    if config.stablecoin is None:
        return None, None
    # Not before it is known that they are needed: they take longer to import than the rest of a node to start.
    from node.own_money import open_money
    from node.own_purses import open_purses

    bond = bytes.fromhex(config.sell.bond[2:]) if config.sell.bond is not None else None
    money = await open_money(stack, home, config.stablecoin, book, lines.get, bond)
    chain = money.chain
    return money, await open_purses(book, entropy, chain, chain.network, chain.place.contract, session)


async def _open_book(
    stack: contextlib.AsyncExitStack, place: Place, identity: Identity, clock: Clock, part: Part
) -> Book:
    database = await Database.open(place, identity.did, part=part)
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
