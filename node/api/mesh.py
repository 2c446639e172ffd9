"""`/mesh/v1`: what other nodes may ask of this one. The door of a `wire.peer.Peer`, and nothing more."""

import asyncio
import contextlib
from typing import Final

from aiohttp import web

from ledger import codec
from ledger.records import Acknowledgement, Cancel, Channel, Forgiveness, Netting, Settlement
from node.api.callers import caller_of
from node.exchange.disputes import Payee as Waiving
from node.exchange.netting import Helper
from node.exchange.reconciling import Reconciler
from node.exchange.settling import Payee
from node.exchange.till import Till
from node.wire.client import CBOR
from node.wire.messages import (
    MAX_BRINGING,
    MAX_ENVELOPE,
    MAX_EXCHANGE,
    MAX_HANDED_BYTES,
    RefusalCode,
    Refused,
    decode_envelope,
    encode_refusal,
)
from node.wire.peer import Peer

_READ_S: Final = 30.0
_WRITE_S: Final = 30.0
# So many tokenizer files are on their way at a time.
MAX_DOWNLOADS: Final = 8
_PIECE: Final = 65_536

# Refusals that have a better status than 403.
_STATUS: Final[dict[RefusalCode, int]] = {
    "malformed": 400,
    "forged": 400,
    "expired": 400,
    "cannot_open": 400,
    "unknown_offer": 404,
    "unknown_order": 404,
    "replayed": 409,
    "running": 409,
    "too_long": 413,
    "credit": 402,
    "window": 402,
    "exposure": 402,
    "max_cost": 402,
    "busy": 503,
    "failed": 500,
    "not_selling": 503,
    "too_many_requests": 429,
}


def refusal_response(refusal: Refused) -> web.Response:
    """A refusal as an HTTP answer."""
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after is not None else {}
    return web.Response(
        status=_STATUS.get(refusal.code, 403), body=encode_refusal(refusal), content_type=CBOR, headers=headers
    )


class MeshDoor:
    """Serves a seller over HTTP; without one, every question is refused. So with the others."""

    def __init__(
        self,
        seller: Peer | None,
        payee: Payee | None = None,
        helper: Helper | None = None,
        waiving: Waiving | None = None,
        counterpart: Reconciler | None = None,
        till: Till | None = None,
    ) -> None:
        self._seller = seller
        self._payee = payee
        self._helper = helper
        self._waiving = waiving
        self._counterpart = counterpart
        self._till = till
        self._downloads = 0

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        return [
            web.get("/mesh/v1/offers", self.offers),
            web.get("/mesh/v1/grants/{buyer}/{unit}", self.grant),
            web.get("/mesh/v1/grants/{buyer}/{unit}/{rail}", self.grant),
            web.get("/mesh/v1/manifests/{digest}", self.manifest),
            web.get("/mesh/v1/tokenizers/{digest}", self.tokenizer),
            web.post("/mesh/v1/orders", self.order),
            web.get("/mesh/v1/orders/{digest}/receipt", self.receipt),
            web.get("/mesh/v1/orders/{digest}/resolution", self.resolution),
            web.post("/mesh/v1/acknowledgements", self.acknowledge),
            web.post("/mesh/v1/cancels", self.cancel),
            web.post("/mesh/v1/settlements", self.settlement),
            web.post("/mesh/v1/nettings", self.netting),
            web.post("/mesh/v1/forgiveness", self.forgiveness),
            web.get("/mesh/v1/channel-terms", self.channel_terms),
            web.post("/mesh/v1/channels", self.channel),
            web.post("/mesh/v1/deposits", self.deposit),
            web.get("/mesh/v1/challenge", self.challenge),
            web.post("/mesh/v1/states", self.state),
            web.post("/mesh/v1/records", self.hand_back),
        ]

    @property
    def _open(self) -> Peer:
        if self._seller is None:
            raise Refused("not_selling", "this node sells nothing")
        return self._seller

    async def offers(self, _request: web.Request) -> web.Response:
        return _cbor(codec.encode(list(await self._open.offers())))

    async def grant(self, request: web.Request) -> web.Response:
        asked = request.match_info
        return _cbor(await self._open.grant(asked["buyer"], asked["unit"], asked.get("rail", "credit")))

    async def manifest(self, request: web.Request) -> web.Response:
        return _cbor(await self._open.manifest(_digest(request)))

    async def tokenizer(self, request: web.Request) -> web.StreamResponse:
        """Stream a file that may be large, to a few at a time, and to nobody who takes nothing."""
        raw = await self._open.tokenizer(_digest(request))
        if self._downloads >= MAX_DOWNLOADS:
            raise Refused("busy", "too many downloads at once: try again", 5)
        self._downloads += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": CBOR, "Content-Length": str(len(raw))})
            await response.prepare(request)
            for start in range(0, len(raw), _PIECE):
                async with asyncio.timeout(_WRITE_S):
                    await response.write(raw[start : start + _PIECE])
            await response.write_eof()
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._downloads -= 1
        return response

    async def receipt(self, request: web.Request) -> web.Response:
        raw = await self._open.receipt(_digest(request))
        if raw is None:
            raise Refused("unknown_order", "there is no receipt for such an order here")
        return _cbor(raw)

    async def acknowledge(self, request: web.Request) -> web.Response:
        await self._open.acknowledge(await _body(request, Acknowledgement.limit))
        return web.Response(status=204)

    async def cancel(self, request: web.Request) -> web.Response:
        await self._open.cancel(await _body(request, Cancel.limit))
        return web.Response(status=204)

    async def settlement(self, request: web.Request) -> web.Response:
        if self._payee is None:
            raise Refused("not_selling", "this node takes no settlements")
        return _cbor(await self._payee.settlement(await _body(request, Settlement.limit)))

    async def netting(self, request: web.Request) -> web.Response:
        if self._helper is None:
            raise Refused("not_selling", "this node sets nothing off")
        return _cbor(await self._helper.netting(await _body(request, Netting.limit)))

    async def resolution(self, request: web.Request) -> web.Response:
        raw = await self._waiving.resolution(_digest(request)) if self._waiving is not None else None
        if raw is None:
            raise Refused("unknown_order", "no dispute about such an order was resolved here")
        return _cbor(raw)

    async def forgiveness(self, request: web.Request) -> web.Response:
        if self._waiving is None:
            raise Refused("not_selling", "this node lets nothing go")
        return _cbor(await self._waiving.forgiveness(await _body(request, Forgiveness.limit)))

    @property
    def _paid(self) -> Till:
        if self._till is None:
            raise Refused("rail", "this node is not paid by channels")
        return self._till

    async def channel_terms(self, _request: web.Request) -> web.Response:
        return _cbor(await self._paid.channel_terms())

    async def channel(self, request: web.Request) -> web.Response:
        await self._paid.channel(await _body(request, Channel.limit), caller_of(request).share)
        return web.Response(status=204)

    async def deposit(self, request: web.Request) -> web.Response:
        await self._paid.deposit(await _body(request, MAX_BRINGING), caller_of(request).share)
        return web.Response(status=204)

    @property
    def _comparing(self) -> Reconciler:
        if self._counterpart is None:
            raise Refused("not_selling", "this node compares no accounts")
        return self._counterpart

    async def challenge(self, _request: web.Request) -> web.Response:
        return _cbor(await self._comparing.challenge())

    async def state(self, request: web.Request) -> web.Response:
        return _cbor(await self._comparing.state(await _body(request, MAX_EXCHANGE), caller_of(request).share))

    async def hand_back(self, request: web.Request) -> web.Response:
        await self._comparing.hand_back(await _body(request, MAX_HANDED_BYTES))
        return web.Response(status=204)

    async def order(self, request: web.Request) -> web.StreamResponse:
        """Stream an answer; the status is sent with its first bytes, so that a refusal can still have its own."""
        seller = self._open
        try:
            order, sealed = decode_envelope(await _body(request, MAX_ENVELOPE))
        except codec.Malformed as error:
            raise Refused("malformed", str(error)) from None
        response = web.StreamResponse(headers={"Content-Type": "application/cbor-seq"})
        try:
            async with contextlib.aclosing(seller.order(order, sealed)) as chunks:
                async for chunk in chunks:
                    if not response.prepared:
                        await response.prepare(request)
                    try:
                        async with asyncio.timeout(_WRITE_S):
                            await response.write(chunk)
                    except (ConnectionError, TimeoutError):
                        return response  # the buyer is gone, or takes nothing: leaving the loop closes the sale
        except Exception:
            # No error can follow what was sent: a line that breaks tells the buyer at once, and silence would not.
            if response.prepared and request.transport is not None:
                request.transport.abort()
            raise
        with contextlib.suppress(ConnectionError):
            if not response.prepared:
                await response.prepare(request)
            await response.write_eof()
        return response


def _cbor(raw: bytes) -> web.Response:
    return web.Response(body=raw, content_type=CBOR)


def _digest(request: web.Request) -> bytes:
    try:
        digest = bytes.fromhex(request.match_info["digest"])
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise Refused("malformed", "a digest is 64 hexadecimal digits")
    return digest


async def _body(request: web.Request, limit: int) -> bytes:
    """A body of at most `limit` bytes, in bounded time."""
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_S):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > limit:
                    raise Refused("malformed", f"more than the {limit} bytes that are allowed here")
    except TimeoutError:
        raise Refused("malformed", f"the body did not arrive within {_READ_S:.0f} seconds") from None
    return bytes(body)
