"""What OpenAI's clients speak: `/v1/models`, `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from aiohttp import web

from ledger.records import Privacy
from node.api import chat, completions
from node.api.answers import Responder
from node.api.embeddings import EmbeddingRequest, body_of
from node.api.errors import FAILURES, ApiError, busy, told
from node.api.requests import Wishes, parse
from node.gateway.gateway import Gateway
from node.gateway.question import UnknownModel
from node.market.candidates import Route
from node.ports import Clock, Entropy

# A body that takes longer to arrive is not coming.
_READ_S: Final = 60.0
# A client that takes nothing for so long is gone.
_WRITE_S: Final = 60.0
# Requests at work at a time, so that their bodies and prompts do not fill the memory.
MAX_REQUESTS: Final = 256


class OpenAiDoor:
    """The owner's door to the gateway. `write_s`: a client that takes nothing for so many seconds is gone."""

    def __init__(
        self,
        gateway: Gateway,
        clock: Clock,
        entropy: Entropy,
        default_privacy: Privacy,
        default_route: Route,
        write_s: float = _WRITE_S,
    ) -> None:
        self._gateway = gateway
        self._entropy = entropy
        self._default = Wishes(default_privacy, default_route, may_degrade=True)
        self._responder = Responder(gateway, clock, entropy, write_s)
        self._requests = 0

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        return [
            web.get("/v1/models", self.models),
            web.get("/v1/models/{name:.+}", self.model),
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.complete),
            web.post("/v1/embeddings", self.embed),
        ]

    async def models(self, _request: web.Request) -> web.Response:
        """The models that can be asked for."""
        return web.json_response({"object": "list", "data": self._models()})

    async def model(self, request: web.Request) -> web.Response:
        """One of them."""
        name = request.match_info["name"]
        for model in self._models():
            if model["id"] == name:
                return web.json_response(model)
        raise told(UnknownModel(name), "model")

    def _models(self) -> list[dict[str, Any]]:
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in self._gateway.models()
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        async with self._at_work():
            asked = parse(chat.ChatRequest, await read_body(request))
            work = partial(chat.ask, asked, request.headers, self._default, self._entropy)
            # Grammars of large schemas take a while, in which others are answered.
            asking = await asyncio.to_thread(work) if asked.has_schemas else work()
            return await self._responder.respond(request, asking)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Go on with prompts."""
        async with self._at_work():
            asked = parse(completions.CompletionRequest, await read_body(request))
            return await self._responder.respond(
                request, completions.ask(asked, request.headers, self._default, self._entropy)
            )

    async def embed(self, request: web.Request) -> web.Response:
        """Texts as vectors."""
        async with self._at_work():
            asked = parse(EmbeddingRequest, await read_body(request))
            try:
                embedded = await self._gateway.embed(asked.model, asked.inputs())
            except FAILURES as error:
                raise told(error, "input") from None
            headers = {"x-idlemesh-route": "local", "x-idlemesh-cost": "0"}
            # Many numbers take long to write, row by row so that others get their turn.
            body = b"".join(await asyncio.to_thread(lambda: list(body_of(asked, embedded))))
            response = web.Response(body=body, content_type="application/json", headers=headers)
            return await self._responder.send(request, response)

    @asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        if self._requests >= MAX_REQUESTS:
            raise busy(f"{MAX_REQUESTS} requests are at work already; try again in a second", 1)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1


async def read_body(request: web.Request, within_s: float = _READ_S) -> bytes:
    """A request's body. Raises ApiError."""
    try:
        async with asyncio.timeout(within_s):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {within_s:.0f} seconds", code="timeout") from None
