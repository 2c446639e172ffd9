"""The door for anyone who pays: `/v1/chat/completions` for x402's clients, on a listener of its own.

A request without a payment is told what it may cost (402, `PAYMENT-REQUIRED`); with one (`PAYMENT-SIGNATURE`) it is
answered, and charged what it came to (`PAYMENT-RESPONSE`). A stream has sent its headers before that is known: it ends
with the same header as a comment, and a client that does not read it is told with its next request (x402's corrective
402). GET on the same path gives a channel's rest back, as x402's clients ask for it. `/v1/balance` and `/v1/refunds`
are for wallets that have paid by transfers: who asks signs a transfer of one unit, which is never made.
"""

import asyncio
import contextlib
import re
from collections import Counter as Counted
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from ledger.database import LedgerError
from ledger.money import Amount
from node.api import chat
from node.api.answers import Responder
from node.api.callers import Proxies, caller_of
from node.api.errors import FAILURES, ApiError, busy, told
from node.api.openai import read_body
from node.api.requests import Wishes, parse
from node.api.server import Encoded, Handler, errors, is_loopback
from node.exchange.book import NO_LEDGER
from node.exchange.rates import Rates
from node.gateway.shop import Counter, Shop
from node.paid.paid import Paid
from node.paid.presented import BadPayment, Payment, RefundAsked, SignedTransfer, read_payment
from node.paid.refunds import Refunds
from node.paid.terms import (
    BELOW_GAS,
    PAYMENT_SIGNATURE,
    PENDING,
    UNREADABLE,
    Asked,
    PaymentRefused,
    Settled,
    header_of,
    required,
)
from node.paid.till import Till
from node.ports import Clock, Entropy

MAX_BODY: Final = 2**20
# Strangers' requests at work at a time, of all and of one address, which may send so many a second after a first burst:
# each is counted in tokens before its price is known.
MAX_REQUESTS: Final = 64
MAX_OF_ADDRESS: Final = 16
_PER_S: Final = 10.0
_AT_FIRST: Final = 50.0
_READ_S: Final = 30.0
_WRITE_S: Final = 60.0
_DEAR_S: Final = 60
_NO_PROXIES: Final = Proxies()
_AMOUNT: Final = re.compile(r"[0-9]{1,15}")
_ID: Final = re.compile(r"[0-9a-f]{64}")
_WISHES: Final = Wishes("public", "local", may_degrade=False)


class PaidDoor:
    """Sells answers to whoever pays for them."""

    def __init__(
        self,
        shop: Shop,
        till: Till,
        refunds: Refunds,
        clock: Clock,
        entropy: Entropy,
        trusted: Callable[[str], bool] = is_loopback,
        proxies: Proxies = _NO_PROXIES,
    ) -> None:
        """`trusted` addresses may ask as often as they like: this machine's own, but not whom `proxies` ask for."""
        self._trusted = trusted
        self._proxies = proxies
        self._shop, self._till, self._refunds = shop, till, refunds
        self._clock, self._entropy = clock, entropy
        self._rates = Rates(clock.now, _PER_S, _AT_FIRST)
        self._requests: Counted[str] = Counted()

    def app(self) -> web.Application:
        """The application of its listener."""
        app = web.Application(middlewares=[errors, self._proxies.middleware, self._guard()], client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/v1/models", self.models),
                web.post("/v1/chat/completions", self.chat),
                web.get("/v1/chat/completions", self.channel_refund, allow_head=False),
                web.get("/v1/balance", self.balance, allow_head=False),
                web.post("/v1/refunds", self.refund),
            ]
        )
        return app

    def _guard(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            caller = caller_of(request)
            address = caller.share
            if caller.is_forwarded or not self._trusted(caller.address):
                if self._rates.charge(address) < 0:
                    raise busy("too many requests from your address: slow down", 1)
                if self._requests[address] >= MAX_OF_ADDRESS:
                    raise busy("too many requests from your address are at work here: wait for one to end", 1)
            if self._requests.total() >= MAX_REQUESTS:
                raise busy("too many requests are at work here: try again in a second", 1)
            if request.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise Encoded
            self._requests[address] += 1
            watching = asyncio.ensure_future(self._watch(request))
            try:
                return await handler(request)
            except LedgerError:
                raise ApiError(503, NO_LEDGER, kind="server_error", code="not_selling") from None
            finally:
                self._requests[address] -= 1
                if not self._requests[address]:
                    del self._requests[address]
                await watching

        return guard

    async def _watch(self, request: web.Request) -> None:
        """Whatever comes of a request, a transfer that it shows is good until it expires."""
        with contextlib.suppress(BadPayment):
            payment = read_payment(request.headers.get(PAYMENT_SIGNATURE, ""))
            if isinstance(payment.signed, SignedTransfer):
                await self._till.transfers.watch(payment.signed)

    async def models(self, _request: web.Request) -> web.Response:
        """What is sold, and for how much."""
        data = [
            {
                "id": ware.name,
                "object": "model",
                "created": 0,
                "owned_by": "idlemesh",
                "price": {
                    "input": str(Amount(ware.price.input, "uusd")),
                    "output": str(Amount(ware.price.output, "uusd")),
                    "per_tokens": 1_000_000,
                },
            }
            for ware in self._shop.wares()
        ]
        return web.json_response({"object": "list", "data": data})

    # A request

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation that is paid for."""
        asked = parse(chat.ChatRequest, await read_body(request, _READ_S))
        work = partial(chat.ask, asked, {}, _WISHES, self._entropy)
        asking = await asyncio.to_thread(work) if asked.has_schemas else work()
        try:
            quote = await self._shop.quote(asking.questions)
            self._shop.check_open()
            await self._look(request)
            payment = self._payment(request, partial(self._till.terms.accepts, quote.most))
            await self._shop.wait_for_slot(quote, partial(self._till.is_proven, payment, quote.most))
        except FAILURES as error:
            raise told(error, "messages") from None
        paid = await self._taken(request, payment, quote.most)
        counter = Counter(quote, paid.tab.key.payer, self._shop.me)
        async with self._charged(request, paid, counter):
            responder = Responder(
                counter,
                self._clock,
                self._entropy,
                _WRITE_S,
                begun=header_of(paid.response()),
                ended=partial(_ended, paid, counter),
            )
            with self._shop.serving(counter):
                return await responder.respond(request, asking)

    async def _taken(self, request: web.Request, payment: Payment, most: int) -> Paid:
        terms = self._till.terms
        try:
            return await self._till.take(payment, most, caller_of(request).share)
        except PaymentRefused as refused:
            error = self._asked(request, terms.accepts(most, refused.state), refused)
            if isinstance(payment.signed, SignedTransfer):
                # As x402's servers say it. Its client for channels would not read the correction beside it.
                error.headers |= header_of(refused.response(terms.place.network))
            raise error from None

    @contextlib.asynccontextmanager
    async def _charged(self, request: web.Request, paid: Paid, counter: Counter) -> AsyncIterator[None]:
        """However it ends, a request is charged; for nothing where it failed here and nothing was sent."""
        try:
            yield
        except asyncio.CancelledError:
            counter.abandoned = request.transport is None  # else it is this node that stops
            raise
        except ApiError as error:
            await paid.tab.charge(0 if counter.failed else counter.cost)
            error.headers |= header_of(paid.response())
            raise
        finally:
            # A client that is gone owes the prompt and what was computed for it; what broke off here owes no prompt.
            await paid.tab.charge(counter.cost)

    # Refunds

    async def channel_refund(self, request: web.Request) -> web.Response:
        """Give a channel's rest back, if it is asked for by its key; tell what a usual request costs, if not."""
        try:
            accepts = partial(self._till.terms.accepts, self._shop.least())
            await self._look(request)
        except FAILURES as error:
            raise told(error, "messages") from None
        payment = self._payment(request, accepts)
        if not isinstance(payment.signed, RefundAsked):
            raise ApiError(405, "POST the request that is to be paid", code="method_not_allowed")
        try:
            return _settled(await self._refunds.channel(payment.signed))
        except PaymentRefused as refused:
            if refused.code == PENDING:
                return self._pending(refused)
            raise self._asked(request, accepts(refused.state), refused) from None

    async def balance(self, request: web.Request) -> web.Response:
        """What is left of what a wallet has paid."""
        return web.json_response(self._refunds.balance(self._wallet(request)))

    async def refund(self, request: web.Request) -> web.Response:
        """Give a wallet back what is left of what it has paid: all, or `amount`; once for each `id` (32 bytes, hex)."""
        amount, asked = _number(request.query.get("amount")), _name(request.query.get("id"))
        wallet = self._wallet(request)
        try:
            return _settled(await self._refunds.prepaid(wallet, amount, asked))
        except PaymentRefused as refused:
            if refused.code == PENDING:
                return self._pending(refused)
            raise ApiError(409, str(refused), code=refused.code) from None

    def _wallet(self, request: web.Request) -> bytes:
        """Who asks: the wallet that signed."""
        terms = self._till.terms
        if "exact" not in terms.schemes:
            raise ApiError(404, "nothing is paid in advance here", code="not_found")
        accepts = [terms.signature()]
        payment = self._payment(request, lambda: accepts)
        try:
            asked = terms.is_signed_for(payment)
            assert isinstance(payment.signed, SignedTransfer)  # its scheme says so
            self._till.transfers.check(payment.signed, asked)
        except PaymentRefused as refused:
            raise self._asked(request, accepts, refused) from None
        return payment.signed.authorization.payer

    def _pending(self, refused: PaymentRefused) -> web.Response:
        said = refused.response(self._till.terms.place.network)
        return web.json_response({"state": "pending", "message": refused.why}, status=202, headers=header_of(said))

    # Payments

    async def _look(self, request: web.Request) -> None:
        """Whoever asks for the price is told one by which its gas is paid; who has been told it pays."""
        if PAYMENT_SIGNATURE not in request.headers:
            await self._till.terms.worth.look()

    def _payment(self, request: web.Request, accepts: Callable[[], Asked]) -> Payment:
        header = request.headers.get(PAYMENT_SIGNATURE)
        if header is None:
            raise self._asked(request, accepts())
        try:
            return read_payment(header)
        except BadPayment as error:
            raise self._asked(request, accepts(), PaymentRefused(UNREADABLE, str(error))) from None

    def _asked(self, request: web.Request, accepts: Asked, refused: PaymentRefused | None = None) -> ApiError:
        """The 402 that asks for a payment, or for another one; or the answer that nothing can be paid now."""
        too_dear = self._till.terms.too_dear
        if refused is None and not accepts and too_dear is not None:
            headers = {"Retry-After": str(_DEAR_S)}
            raise ApiError(503, f"{too_dear}: try again later", kind="server_error", code=BELOW_GAS, headers=headers)
        headers = header_of(required(accepts, str(request.url.with_query(None)), refused))
        if refused is not None and refused.settled is not None:
            headers |= header_of(refused.settled)
        why = str(refused) if refused else "this request is paid for by x402: PAYMENT-REQUIRED says how, and how much"
        why += "" if refused or too_dear is None else f" ({too_dear})"
        return ApiError(
            402,
            why,
            kind="payment_required",
            code=refused.code if refused else "payment_required",
            headers=headers | {"Cache-Control": "no-store"},
        )


async def _ended(paid: Paid, counter: Counter) -> Mapping[str, str]:
    """Charge a request whose answers are there, and say so."""
    await paid.tab.charge(counter.cost)
    return header_of(paid.response()) | {"x-idlemesh-cost": str(Amount(paid.tab.charged or 0, "uusd"))}


def _number(text: str | None) -> int | None:
    if text is not None and not _AMOUNT.fullmatch(text):
        raise ApiError(400, "amount is a whole number of millionths of a dollar", param="amount")
    return None if text is None else int(text)


def _name(text: str | None) -> bytes | None:
    if text is not None and not _ID.fullmatch(text):
        raise ApiError(400, "id is 32 bytes in hexadecimal, of your own choice", param="id")
    return None if text is None else bytes.fromhex(text)


def _settled(said: Settled) -> web.Response:
    return web.json_response({"refunded": said.amount, "unit": "uusd"}, headers=header_of(said))
