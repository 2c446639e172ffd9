"""A seller that is x402's own server code, on a chain: a model's endpoint that answers 402 until it is paid."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web
from attrs import define, field
from x402 import x402Facilitator, x402ResourceServer
from x402.http import x402HTTPResourceServer
from x402.http.types import HTTPRequestContext, PaymentOption, RouteConfig
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner
from x402.mechanisms.evm.batch_settlement.facilitator import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.batch_settlement.server import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeServerConfig,
)
from x402.mechanisms.evm.exact import ExactEvmServerScheme
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme
from x402.schemas import AssetAmount

from tests.chain import CHAIN_ID, Anvil
from tests.node.remotes import DONE, event

NETWORK = f"eip155:{CHAIN_ID}"
PATH = "/v1/chat/completions"


class _Adapter:
    """aiohttp's request as x402 asks for it."""

    def __init__(self, request: web.Request) -> None:
        self._request = request

    def get_header(self, name: str) -> str | None:
        return self._request.headers.get(name)

    def get_method(self) -> str:
        return self._request.method

    def get_path(self) -> str:
        return self._request.path

    def get_url(self) -> str:
        return str(self._request.url)

    def get_accept_header(self) -> str:
        return self._request.headers.get("Accept", "")

    def get_user_agent(self) -> str:
        return self._request.headers.get("User-Agent", "")

    def get_query_params(self) -> dict[str, str | list[str]] | None:
        return None

    def get_query_param(self, name: str) -> str | list[str] | None:
        return None

    def get_body(self) -> Any:
        return None


@define(eq=False)
class X402Seller:
    """What tests set: `amount` is the most of a request, `charge` what it costs (None: all), in the token's units.

    `breaks` fails when it is shown a payment, before it looks; `loses` loses the answer once it was paid for. `asks`
    changes what it wants to be paid, `tells` what it says of a payment; `in_stream`: it says so at the end.
    """

    chain: Anvil
    scheme: str
    address: str
    url: str = ""
    amount: int = 1_000
    charge: int | None = None
    breaks: bool = False
    loses: bool = False
    in_stream: bool = False
    tells: Callable[[dict[str, Any]], None] = lambda _: None
    asks: dict[str, Any] = field(factory=dict)
    presented: list[str] = field(factory=list)
    server: Any = None
    batch: BatchSettlementEvmScheme = field(default=None)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        context = HTTPRequestContext(adapter=_Adapter(request), path=request.path, method=request.method)
        if (payment := request.headers.get("PAYMENT-SIGNATURE")) is not None:
            self.presented.append(payment)
            if self.breaks:
                return web.Response(status=500)
        # Its facilitator asks the chain without awaiting: the loop must go on meanwhile.
        result = await asyncio.to_thread(asyncio.run, self.server.process_http_request(context))
        if result.type == "payment-error":
            told = result.response
            return web.Response(text=json.dumps(told.body or {}), status=told.status, headers=told.headers)
        overrides = None if self.charge is None else {"amount": str(self.charge)}
        settled = await asyncio.to_thread(
            asyncio.run,
            self.server.process_settlement(
                result.payment_payload, result.payment_requirements, context=context, settlement_overrides=overrides
            ),
        )
        if not settled.success:
            return web.json_response({}, status=402, headers=settled.headers)
        if self.loses:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        said = json.loads(base64.b64decode(settled.headers["PAYMENT-RESPONSE"]))
        self.tells(said)
        return await self._stream(request, base64.b64encode(json.dumps(said).encode()).decode())

    async def _stream(self, request: web.Request, paid: str) -> web.StreamResponse:
        headers = {} if self.in_stream else {"PAYMENT-RESPONSE": paid}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **headers})
        await response.prepare(request)
        for text in ("Once", " upon"):
            await response.write(event(text, chat=True))
        await response.write(event("", "stop", chat=True))
        usage = {"prompt_tokens": 7, "completion_tokens": 2}
        await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(f": PAYMENT-RESPONSE: {paid}\n\n".encode() * self.in_stream + DONE)
        return response

    def price(self, _: HTTPRequestContext) -> AssetAmount:
        asked = {"amount": str(self.amount), "asset": self.chain.deployed.dollar} | self.asks
        extra = {"name": "USD Coin", "version": "2"} | asked.pop("extra", {})
        return AssetAmount(**asked, extra=extra)


@contextlib.asynccontextmanager
async def selling(chain: Anvil, scheme: str, ways: int = 1) -> AsyncIterator[X402Seller]:
    """A seller by one scheme, which brings its money to the chain by itself; it lists so many ways to pay."""
    wallet = chain.wallet()
    seller = X402Seller(chain, scheme, wallet.address)
    signer = FacilitatorWeb3Signer(wallet.key.hex(), chain.url)
    facilitator = x402Facilitator()
    authorizer = LocalAuthorizerSigner(wallet)
    facilitator.register([NETWORK], ExactEvmScheme(signer))
    facilitator.register([NETWORK], BatchSettlementEvmFacilitator(signer, authorizer))
    resource = x402ResourceServer(facilitator)
    seller.batch = BatchSettlementEvmScheme(
        wallet.address, BatchSettlementEvmSchemeServerConfig(receiver_authorizer_signer=authorizer)
    )
    schemes: list[Any] = [ExactEvmServerScheme(), seller.batch]  # type: ignore[no-untyped-call]
    for one in schemes:
        resource.register(NETWORK, one)
    option = PaymentOption(scheme, wallet.address, seller.price, NETWORK, 300)
    seller.server = x402HTTPResourceServer(resource, {f"POST {PATH}": RouteConfig(accepts=[option] * ways)})
    await asyncio.to_thread(seller.server.initialize)
    app = web.Application()
    app.router.add_post(PATH, seller.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        seller.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield seller
    finally:
        await runner.cleanup()
