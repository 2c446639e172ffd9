"""The services that buy, sell and settle, joined as the configuration has it."""

import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import partial

from attrs import frozen

from ledger.identity import Did
from ledger.money import Amount
from ledger.records import Offer, Signed
from node.config import Config, default_credit
from node.engine.calibration import CalibrationFiles
from node.exchange.allowance import Allowance
from node.exchange.auditor import Auditor
from node.exchange.buyer import Buyer
from node.exchange.claims import Claims
from node.exchange.disputes import Disputes
from node.exchange.netting import Netter
from node.exchange.opening import Opening
from node.exchange.panel import Market, Panel
from node.exchange.pledges import Pledges
from node.exchange.reconciling import Reconciler
from node.exchange.retaining import Retention
from node.exchange.sale import Ware
from node.exchange.seller import Credit, Seller
from node.exchange.settler import AuditPolicy, Settler
from node.exchange.settling import Settling
from node.exchange.till import Till
from node.gateway.gateway import Gateway
from node.gateway.question import Policy
from node.gateway.remotes import Remotes
from node.gateway.supply import Local, Supply
from node.ground import Ground
from node.mesh.static import NamedPeers
from node.models.tokenizer import Tokenizer
from node.own_models import OwnModel, OwnModels
from node.wire.messages import Refused


@frozen
class Buying:
    """The services of a buyer, and what both sides of an account need."""

    auditor: Auditor
    settler: Settler
    buyer: Buyer
    reconciler: Reconciler
    peers: NamedPeers
    remotes: Remotes
    supply: Supply
    gateway: Gateway
    settling: Settling
    netter: Netter
    disputes: Disputes
    retention: Retention
    opening: Opening | None
    pledges: Pledges | None


async def open_buying(stack: contextlib.AsyncExitStack, ground: Ground) -> Buying:
    """Everything but the seller. Nothing is asked of peers yet."""
    book, config, own, entropy, line = ground.book, ground.config, ground.own, ground.entropy, ground.lines.get
    calibrations = CalibrationFiles(ground.home.calibrations)
    auditor = Auditor(book, [model.engine for model in own.models], calibrations.find, ground.tokenizers.open_own)

    def open_offers() -> list[Signed[Offer]]:
        return peers.offers()

    pledges = _pledges(ground, open_offers)
    bonded = pledges.worth if pledges is not None else _nobody_is
    settler = Settler(book, entropy, auditor, AuditPolicy(config.audit.rate, config.audit.first), line, bonded)
    stack.push_async_callback(settler.close)
    remotes = Remotes([remote.backend for remote in ground.elsewhere], ground.clock, config.buy.limits())
    allowance = Allowance(config.buy.limits().most_per_day, remotes.spent_today)
    buyer = Buyer(book, entropy, settler.settle, config.buy.patience, settler, allowance=allowance)
    stack.push_async_callback(buyer.close)
    reconciler = Reconciler(book, entropy, line, settler.promised)
    await reconciler.heads.open()
    reconciler.taking.claimed = Claims(book, settler, ground.tokenizers.open).take
    opening = _opening(ground, buyer) if ground.money is not None else None
    peers = NamedPeers(
        book.identity.did,
        ground.lines,
        ground.tokenizers,
        ground.clock,
        buyer.take_grant,
        partial(_meet, opening, reconciler),
        reconciler.heads.may_work_with,
        book.rails.buying,
    )
    supply = Supply(book, [_local(model) for model in own.models], own.catalogue, peers, buyer, remotes, bonded)
    limits = Policy(config.buy.limits(), config.buy.weights, config.buy.busy_wait, config.api.max_tokens)
    helping = Buyer(book, entropy, settler.settle_help, config.buy.patience, settler, allowance=allowance)
    stack.push_async_callback(helping.close)
    auditor.panel = Panel(book, entropy, helping, _help(config, supply, peers))
    return Buying(
        auditor,
        settler,
        buyer,
        reconciler,
        peers,
        remotes,
        supply,
        Gateway(supply, entropy, limits),
        Settling(book, line),
        Netter(book, line),
        Disputes(book, line, settler.give_way),
        Retention(book, config.retention.records),
        opening,
        pledges,
    )


async def open_seller(ground: Ground, buying: Buying, url: str) -> Seller | None:
    """The selling side, if the owner named a price; `url` is where buyers reach it."""
    if ground.watch is not None:
        await ground.watch.look()
    wares = [*_wares(ground.own), *(remote.ware for remote in ground.elsewhere if remote.ware is not None)]
    if not wares:
        return None
    fit = buying.reconciler.heads.may_work_with
    seller = _seller(ground, wares, fit)
    buying.reconciler.taking.paid = seller.acknowledge
    seller.url = url
    await seller.sweep()
    return seller


def open_till(ground: Ground) -> Till | None:
    """Where channels to this node come in, if it can be paid so."""
    money = ground.money
    if money is None:
        return None
    return Till(ground.book, money.channels, money.rail, money.wanted, ground.effects.look)


async def _meet(opening: Opening | None, reconciler: Reconciler, peer: Did) -> None:
    """Compare accounts; what was promised on a channel counts for those alone who know the channel."""
    if opening is not None:
        await opening.show(peer)
    await reconciler.meet(peer)


def _opening(ground: Ground, buyer: Buyer) -> Opening:
    money = ground.money
    assert money is not None
    place, wallet = money.chain.place, money.chain.address
    return Opening(ground.book, money.channels, ground.lines.get, place, money.token, wallet, buyer.take_grant)


def _pledges(ground: Ground, offers: Callable[[], Sequence[Signed[Offer]]]) -> Pledges | None:
    """What sellers' stakes are worth, where the owner knows a contract of bonds."""
    money = ground.money
    known = money.known_bonds(ground.config.buy.arbiters) if money is not None else None
    if money is None or money.bonds is None or known is None:
        return None
    return Pledges(known, money.bonds.seen, offers, ground.clock)


def _nobody_is(_: Did) -> int:
    return 0


def _local(model: OwnModel) -> Local:
    return Local(model.engine, model.tokenizer, model.name, lambda: model.engine.state)


def _help(config: Config, supply: Supply, peers: NamedPeers) -> Market:
    """Whom the auditor may ask, and for how much."""

    async def tokenizer(offer: Signed[Offer]) -> Tokenizer:
        return await peers.tokenizer(offer.record.tokenizer, offer.signer)

    return Market(supply.other_candidates, peers.dial, tokenizer, config.buy.limits(), config.audit.max_per_day)


def _wares(own: OwnModels) -> list[Ware]:
    """The models of this machine that are sold."""
    return [
        Ware(
            model.engine,
            model.tokenizer,
            model.name,
            model.price,
            model.engine.is_unchanged,
            miss=model.engine.miss,
        )
        for model in own.models
        if model.price is not None
    ]


def _seller(ground: Ground, wares: Sequence[Ware], may_work_with: Callable[[Did], Refused | None]) -> Seller:
    sell, usual = ground.config.sell, default_credit(wares[0].price)
    limit = sell.open_credit or usual
    # Without credit, orders are paid from channels; their window is no smaller for that.
    window = sell.window or Amount(max((limit.value or usual.value) // 5, 1), limit.unit)
    exposure = sell.exposure or Amount(5 * window.value, window.unit)
    credit = {limit.unit: Credit(limit, window, exposure)}
    named: Collection[str] = ground.lines
    return Seller(
        ground.book,
        ground.entropy,
        wares,
        credit,
        ground.tokenizers.raw,
        named,
        ground.may_sell,
        may_work_with,
        sell.patience,
        ground.pledged,
    )
