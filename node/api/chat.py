"""`/v1/models` and `/v1/chat/completions`: what OpenAI's clients speak."""

import asyncio
import contextlib
import json
import logging
from typing import Any, Final, get_args

from aiohttp import web

from ledger.records import Privacy
from node.api.errors import ApiError, internal_error
from node.api.openai import chunk, completion, facts, parse_request, privacy_of, text_chunks, usage
from node.engine.port import BadPrompt, EngineBusy, EngineClosed, EngineError, PromptTooLong
from node.gateway.answer import Answer, AnswerCut
from node.gateway.gateway import Gateway
from node.gateway.question import ContextExceeded, Question, UnknownModel, Unservable
from node.market.candidates import Route
from node.models.template import TemplateError
from node.ports import Clock, Entropy

# A header's value may not be longer in most clients and proxies.
_MAX_HEADER: Final = 2_048
# A body that takes longer to arrive is not coming.
_READ_S: Final = 60.0
# A client that takes nothing for so long is gone.
_WRITE_S: Final = 60.0

_log = logging.getLogger(__name__)


class ChatDoor:
    """The owner's door to the gateway."""

    def __init__(
        self,
        gateway: Gateway,
        clock: Clock,
        entropy: Entropy,
        default_privacy: Privacy,
        default_route: Route,
    ) -> None:
        self._gateway = gateway
        self._clock = clock
        self._entropy = entropy
        self._default_privacy = default_privacy
        self._default_route = default_route

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        return [
            web.get("/v1/models", self.models),
            web.get("/v1/models/{name:.+}", self.model),
            web.post("/v1/chat/completions", self.chat),
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
        raise ApiError(404, str(UnknownModel(name)), param="model", code="model_not_found")

    def _models(self) -> list[dict[str, Any]]:
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in self._gateway.models()
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        asked = parse_request(await _body(request))
        question = Question(
            messages=[message.plain() for message in asked.messages],
            model=asked.model,
            sampling=asked.sampling(),
            max_tokens=asked.most_tokens(),
            privacy=privacy_of(request.headers.get("X-IdleMesh-Privacy"), asked.metadata, self._default_privacy),
            route=self._route(request),
            stop=asked.stops(),
            seed=asked.seed_bits(),
            may_degrade=_may_degrade(request),
            streaming=bool(asked.stream),
        )
        answer = await self._begin(question)
        identifier, created = "chatcmpl-" + self._entropy.bytes(12).hex(), int(self._clock.now())
        try:
            if asked.stream:
                with_usage = asked.stream_options is not None and asked.stream_options.include_usage
                return await self._stream(request, identifier, created, answer, with_usage)
            return await self._whole(identifier, created, answer)
        finally:
            await answer.close()

    def _route(self, request: web.Request) -> Route:
        said = request.headers.get("X-IdleMesh-Route")
        if said is None:
            return self._default_route
        for route in get_args(Route):
            if said == route:
                return route  # type: ignore[no-any-return]
        raise ApiError(400, "X-IdleMesh-Route: one of auto, local, peers", param="X-IdleMesh-Route")

    async def _begin(self, question: Question) -> Answer:
        try:
            return await self._gateway.answer(question)
        except UnknownModel as error:
            raise ApiError(404, str(error), param="model", code="model_not_found") from None
        except Unservable as error:
            raise ApiError(503, str(error), kind="unservable_error", code="nobody_can_answer") from None
        except (ContextExceeded, PromptTooLong) as error:
            raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
        except (TemplateError, BadPrompt) as error:
            raise ApiError(400, str(error), param="messages", code="invalid_messages") from None
        except EngineBusy as error:
            headers = {"Retry-After": str(max(1, round(error.retry_after)))}
            raise ApiError(429, str(error), kind="rate_limit_error", code="busy", headers=headers) from None
        except EngineError as error:
            raise _engine_failed(error) from None

    async def _whole(self, identifier: str, created: int, answer: Answer) -> web.Response:
        try:
            text = await answer.collect()
        except AnswerCut as error:
            raise ApiError(502, str(error), kind="server_error", code="answer_cut") from None
        except EngineError as error:
            raise _engine_failed(error) from None
        if answer.ending is None:
            raise internal_error()
        body = completion(identifier, created, answer, text, answer.ending)
        return web.json_response(body, headers=_headers(answer))

    async def _stream(
        self, request: web.Request, identifier: str, created: int, answer: Answer, with_usage: bool
    ) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **_headers(answer)}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        # Where sending fails, the client is gone; the answer is closed by our caller.
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self._send_all(response, identifier, created, answer, with_usage)
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        return response

    async def _send_all(
        self, response: web.StreamResponse, identifier: str, created: int, answer: Answer, with_usage: bool
    ) -> None:
        try:
            await _send(response, chunk(identifier, created, answer, {"role": "assistant", "content": ""}))
            event_of = text_chunks(identifier, created, answer)
            async for text in answer.text():
                if text:
                    await _send_json(response, event_of(text))
            if answer.ending is not None:
                last = chunk(identifier, created, answer, {}, answer.ending.finish)
                await _send(response, last | {"idlemesh": facts(answer)})
                if with_usage:
                    counted = chunk(identifier, created, answer, {}) | {"choices": []}
                    await _send(response, counted | {"usage": usage(answer, answer.ending), "idlemesh": facts(answer)})
        except AnswerCut as error:
            cut = ApiError(502, f"the answer broke off: {error}", kind="server_error", code="answer_cut")
            await _send(response, cut.body())
        except EngineError as error:
            await _send(response, _engine_failed(error).body())


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_READ_S):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {_READ_S:.0f} seconds", code="timeout") from None


def _engine_failed(error: EngineError) -> ApiError:
    if isinstance(error, EngineClosed):
        return ApiError(503, "this node is being stopped", kind="server_error", code="stopping")
    _log.error("a request failed: %s", error)
    return internal_error()


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await _send_json(response, json.dumps(event, separators=(",", ":")))


async def _send_json(response: web.StreamResponse, event: str) -> None:
    async with asyncio.timeout(_WRITE_S):
        await response.write(f"data: {event}\n\n".encode())


def _headers(answer: Answer) -> dict[str, str]:
    known = facts(answer) | ({"cost": "0"} if answer.route == "local" else {})
    return {f"x-idlemesh-{name}": _plain(value) for name, value in known.items()}


def _plain(value: str) -> str:
    """Text as a header may carry it: it can hold words of a peer, and those can hold anything."""
    return "".join(c if " " <= c <= "~" else "?" for c in value[:_MAX_HEADER])


def _may_degrade(request: web.Request) -> bool:
    said = request.headers.get("X-IdleMesh-Degrade")
    if said not in (None, "never", "allow"):
        raise ApiError(400, "X-IdleMesh-Degrade: never or allow", param="X-IdleMesh-Degrade")
    return said != "never"
