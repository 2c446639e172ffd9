"""`/node/v1`: what the owner's commands ask of a running node."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from aiohttp import web

from ledger.account import Account, AccountKey
from ledger.bundle import Bundle, to_json
from ledger.database import LedgerError
from ledger.identity import Did
from ledger.journal import Journal, Kept
from ledger.money import Amount, Unit
from ledger.records import (
    Acknowledgement,
    Checkpoint,
    Offer,
    Order,
    Receipt,
    Resolution,
    Signed,
    Verdict,
    amount_of,
    open_record,
)
from ledger.statement import figures
from node.api.checking import check_books
from node.api.comparisons import comparison_rows
from node.api.effects import effect_row
from node.api.errors import ApiError
from node.exchange.auditor import Auditor
from node.exchange.book import Book
from node.exchange.bought import load_bought
from node.exchange.exporting import chain_file
from node.exchange.heads import Heads
from node.exchange.recollection import encode_snapshot
from node.gateway.gateway import Gateway
from node.mesh.static import NamedPeers
from node.wire.messages import Refused
from verify.reputation import score

MAX_LISTED: Final = 1_000
_SHORTEST_PREFIX: Final = 6


class Bonds(Protocol):
    """What sellers' stakes are worth here: see `node.exchange.pledges.Pledges`."""

    def worth(self, seller: Did) -> int:
        """What of a seller's counts, in uusd."""

    def why(self, seller: Did) -> str:
        """Why nothing of it does."""


class OwnerDoor:
    """Lists, audits and exports; changes no money."""

    def __init__(
        self,
        book: Book,
        gateway: Gateway,
        peers: NamedPeers,
        auditor: Auditor,
        own_offers: Callable[[], Awaitable[list[bytes]]],
        selling: Callable[[], dict[str, Any]],
        running: Callable[[], dict[str, Any]],
        heads: Heads,
        bonds: Bonds | None = None,
    ) -> None:
        """`selling` says whether this node sells now, and if not, why; `running` which models it runs, on what, and
        which remotes it may ask."""
        self._book = book
        self._gateway = gateway
        self._peers = peers
        self._auditor = auditor
        self._own_offers = own_offers
        self._selling = selling
        self._running = running
        self._heads = heads
        self._bonds = bonds

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        return [
            web.get("/node/v1/id", self.id),
            web.get("/node/v1/status", self.status),
            web.get("/node/v1/peers", self.peers),
            web.get("/node/v1/offers", self.offers),
            web.get("/node/v1/receipts", self.receipts),
            web.get("/node/v1/receipts/{id}", self.receipt),
            web.get("/node/v1/receipts/{id}/export", self.export),
            web.post("/node/v1/receipts/{id}/audit", self.audit),
            web.get("/node/v1/accounts", self.accounts),
            web.get("/node/v1/ledger", self.ledger),
            web.get("/node/v1/ledger/snapshot", self.snapshot),
        ]

    async def id(self, _request: web.Request) -> web.Response:
        return web.json_response({"did": self._book.me})

    async def status(self, _request: web.Request) -> web.Response:
        """What the node does now."""
        today: dict[str, Any] = {
            "earned": _amounts(self._book.earned_today()),
            "paid": _amounts(self._book.paid_today()),
            "network_fees": [{"network": network, "wei": wei} for network, wei in self._book.fees_today().items()],
        }
        ledger = {"trouble": self._book.trouble, "shared": bool(self._book.journal.name), "leads": await self._leads()}
        body = {"did": self._book.me, "ledger": ledger, "selling": self._selling(), "today": today, **self._running()}
        return web.json_response(body)

    async def _leads(self) -> bool | None:
        """Whether this process does what only one of those that share the ledger may; None if it cannot be told now."""
        try:
            return await self._book.leads()
        except LedgerError:
            return None

    async def peers(self, _request: web.Request) -> web.Response:
        """The named peers and what this node has seen of them."""
        return web.json_response({"peers": [self._peer(did) for did in self._peers.dids]})

    def _peer(self, did: Did) -> dict[str, Any]:
        standing = self._book.experience.standing(did)
        history = standing.history
        return {
            "did": did,
            "trouble": self._peers.trouble.get(did),
            "paused": self._peers.paused.get(did),
            "not_compared": self._peers.apart.get(did),
            "reputation": round(score(history), 3),
            "condemned": history.condemned,
            "delivered": history.delivered,
            "failed": history.failed,
            "audits_passed": history.honest,
            "contradicted": history.contradicted,
            "scores_agreed": standing.word.agreed,
            "scores_distrusted": standing.word.lost,
            "tokens_per_s": standing.speed.tokens_per_s,
            "first_token_ms": standing.speed.first_token_ms,
        }

    async def offers(self, _request: web.Request) -> web.Response:
        """Own offers and those of the named peers."""
        try:
            own = [open_record(raw, Offer) for raw in await self._own_offers()]
        except Refused:
            own = []  # why it sells nothing is told below
        rows = [self._offer(signed, own=True) for signed in own]
        rows += [self._offer(signed, own=False) for signed in self._peers.offers()]
        return web.json_response({"offers": rows, "selling": self._selling()})

    def _offer(self, signed: Signed[Offer], own: bool) -> dict[str, Any]:
        offer = signed.record
        return {
            "seller": signed.signer,
            "own": own,
            "model": self._gateway.name_of(offer.model),
            "digest": offer.model.hex(),
            "quantization": offer.quantization,
            "context": offer.context,
            "input": str(Amount(offer.price.input, offer.price.unit)),
            "output": str(Amount(offer.price.output, offer.price.unit)),
            "expires": offer.expires,
            "backend": offer.engine.backend,
            "build": offer.engine.build,
            "jurisdiction": offer.jurisdiction,
            "retention": offer.retention,
            "bond": self._bond(signed, own),
        }

    def _bond(self, signed: Signed[Offer], own: bool) -> dict[str, Any] | None:
        """The stake that an offer names, and what of it counts here."""
        bond = signed.record.bond
        if bond is None:
            return None
        worth = self._bonds.worth(signed.signer) if self._bonds is not None else 0
        why = "no contract of bonds is known here" if self._bonds is None else self._bonds.why(signed.signer)
        return {
            "amount": str(Amount(bond.amount, "uusd")),
            "network": bond.network,
            "arbiters": [f"0x{one.hex()}" for one in bond.arbiters],
            "quorum": bond.quorum,
            "counts": str(Amount(bond.amount if own else worth, "uusd")),
            "why_not": None if own else why or None,
        }

    async def receipts(self, request: web.Request) -> web.Response:
        """The newest receipts, bought and sold."""
        limit = _int(request.query.get("limit", "50"), "limit", MAX_LISTED)
        kept = await self._book.journal.list_records(Receipt.kind, limit)
        return web.json_response({"receipts": [await self._row(record) for record in kept]})

    async def receipt(self, request: web.Request) -> web.Response:
        """One receipt with all that belongs to it."""
        return web.json_response(await self._row(await self._find(request)))

    async def _row(self, kept: Kept) -> dict[str, Any]:
        receipt = open_record(kept.raw, Receipt)
        said = receipt.record
        records = await self._book.journal.records_of(said.order)
        order = next((open_record(r.raw, Order) for r in records if r.kind == Order.kind), None)
        acks = _acknowledgements(records, receipt.digest)
        resolved = [open_record(r.raw, Resolution).record.total for r in records if r.kind == Resolution.kind]
        disputed = self._disputed(receipt, order) if order else 0
        verdicts = [open_record(r.raw, Verdict) for r in records if r.kind == Verdict.kind]
        return {
            "id": receipt.digest.hex(),
            "order": said.order.hex(),
            "role": "sold" if receipt.signer == self._book.me else "bought",
            "work": order.record.work if order else None,
            "seller": receipt.signer,
            "buyer": order.signer if order else None,
            "model": self._gateway.name_of(said.model),
            "prompt_tokens": said.prompt_tokens,
            "output_tokens": said.output_tokens,
            "finish": said.finish,
            "cost": str(amount_of(said)),
            "seed": order.record.seed if order else None,
            "finished_ms": said.finished_ms,
            "acknowledged": bool(acks),
            "accepted": acks[-1].record.accepted if acks else None,
            "paid": str(Amount(acks[-1].record.amount, said.unit)) if acks else None,
            "reason": acks[-1].record.reason if acks else None,
            "disputed": str(Amount(disputed, said.unit)) if disputed else None,
            "resolved": str(Amount(resolved[-1], said.unit)) if resolved else None,
            "verdicts": [_verdict(verdict) for verdict in verdicts],
        }

    def _disputed(self, receipt: Signed[Receipt], order: Signed[Order]) -> int:
        """What of an order is asked and not granted now."""
        key = AccountKey(order.signer, receipt.signer, order.record.rail, receipt.record.unit)
        found = self._book.journal.books.account(key).orders.find(order.digest)
        return 0 if found is None else found.disputed

    async def _find(self, request: web.Request, *others: str) -> Kept:
        """A receipt by its id, or by the beginning of it; or a record of another of these kinds."""
        prefix = request.match_info["id"].lower()
        if len(prefix) < _SHORTEST_PREFIX:
            raise ApiError(400, f"give at least {_SHORTEST_PREFIX} digits of the receipt's id", param="id")
        kept = [
            record
            for kind in (Receipt.kind, *others)
            for record in await self._book.journal.list_records(kind, MAX_LISTED)
        ]
        found = [record for record in kept if record.digest.hex().startswith(prefix)]
        if len(found) != 1:
            how = "several receipts" if found else "no receipt"
            raise ApiError(404, f"{how} here begins with {prefix[:64]}: `idlemesh receipts` lists them", param="id")
        return found[0]

    async def export(self, request: web.Request) -> web.Response:
        """One file with all that a stranger needs to check a receipt; token ids and salt only on request.

        The last checkpoint of an answer that was cut off, which has no receipt, can be had by its digest.
        """
        found = await self._find(request, Checkpoint.kind)
        cut = found.kind == Checkpoint.kind
        said = open_record(found.raw, Checkpoint).record.order if cut else open_record(found.raw, Receipt).record.order
        records = await self._book.journal.records_of(said)
        ordered = next((record.raw for record in records if record.kind == Order.kind), None)
        if ordered is None:
            raise ApiError(404, "the order of this receipt is not kept here any more", code="order_gone")
        order, acks = open_record(ordered, Order), _acknowledgements(records, found.digest)
        offer = await self._book.journal.record(order.record.offer)
        if offer is None:
            raise ApiError(404, "the offer of this receipt is not kept here any more", code="offer_gone")
        with_ids = request.query.get("ids") == "1"
        material = await self._book.material(order.digest) if with_ids else None
        if with_ids and material is None:
            raise ApiError(404, "the token ids of this receipt are not kept here (any more)", code="ids_gone")
        bundle = Bundle(
            offer=offer.raw,
            order=order.raw,
            receipt=None if cut else found.raw,
            checkpoint=found.raw if cut else None,
            acknowledgement=acks[-1].raw if acks else None,
            salt=material[0].salt if material else None,
            prompt=material[0].prompt + material[0].claimed if material else None,
            answer=material[1] if material else None,
        )
        return web.json_response(to_json(bundle))

    async def audit(self, request: web.Request) -> web.Response:
        """Replay a bought answer now."""
        receipt = open_record((await self._find(request)).raw, Receipt)
        if receipt.signer == self._book.me:
            raise ApiError(400, "this node sold that answer itself: only what was bought is audited", code="own_sale")
        bought = await load_bought(self._book, receipt.record.order)
        if bought is None:
            raise ApiError(404, "the token ids of this receipt are not kept here (any more)", code="ids_gone")
        audit = await self._auditor.audit(bought.terms, receipt.digest, bought.answer)
        return web.json_response(_verdict(audit.verdict) | {"abstained": audit.abstained})

    async def accounts(self, _request: web.Request) -> web.Response:
        """Every balance, and whether the journal bears it out."""
        rows = await account_rows(self._book.journal, self._book.me)
        return web.json_response(rows | comparison_rows(self._heads.met(), self._heads.cut))

    async def ledger(self, request: web.Request) -> web.StreamResponse:
        """The whole journal with its records, as one chain file."""
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        async for piece in chain_file(self._book.journal, self._book.me):
            await response.write(piece)
        await response.write_eof()
        return response

    async def snapshot(self, _request: web.Request) -> web.Response:
        """The stored snapshot of the journal, as CBOR, for `idlemesh ledger verify` to check."""
        return web.Response(
            body=encode_snapshot(await self._book.journal.snapshot()), content_type="application/octet-stream"
        )


def _acknowledgements(records: Sequence[Kept], of: bytes) -> list[Signed[Acknowledgement]]:
    """Those of an order's records that answer this receipt or checkpoint, oldest first."""
    acks = [open_record(record.raw, Acknowledgement) for record in records if record.kind == Acknowledgement.kind]
    return [ack for ack in acks if ack.record.of == of]


async def account_rows(journal: Journal, me: str) -> dict[str, Any]:
    """Every balance as the books have it, and whether the journal of late still chains and bears them out."""
    checked = await check_books(journal, me)
    books = journal.books
    return {
        "chain": "intact" if checked.why is None else "broken",
        "why": checked.why,
        "entries": checked.last,
        "checked_after": checked.since,
        "balanced": checked.balanced,
        "accounts": [_account(account, me) for account in books.accounts.values()],
        "effects": [effect_row(tracked, me) for tracked in books.effects.values()],
    }


def _account(account: Account, me: str) -> dict[str, Any]:
    key = account.key
    money = {name: str(amount) for name, amount in figures(account).items()}
    peer = key.payee if key.payer == me else key.payer
    return {
        "peer": peer,
        "direction": "we pay" if key.payer == me else "they pay",
        "rail": key.rail,
        "unit": key.unit,
    } | money


def _amounts(by_unit: Mapping[Unit, int]) -> list[str]:
    return [str(Amount(value, unit)) for unit, value in sorted(by_unit.items())]


def _verdict(signed: Signed[Verdict]) -> dict[str, Any]:
    said = signed.record
    return {
        "outcome": said.outcome,
        "reason": said.reason,
        "tokens": said.margins.tokens,
        "odd": said.margins.odd,
        "margin_mean": said.margins.mean / 1e6,
        "margin_max": said.margins.largest / 1e6,
        "evidence": said.evidence / 1000,
    }


def _int(text: str, name: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise ApiError(400, f"{name}: a number from 1 to {most}", param=name)
    return int(text)
