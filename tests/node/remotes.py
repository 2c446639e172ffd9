"""OpenAI-compatible servers that do as a test says, on real sockets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import aiohttp
from aiohttp import web

from node.engine.completions import CompletionsClient, Endpoint

KEY: Final = "sk-never-to-be-seen"
SECRET: Final = "the owner's secret"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """One server; `asked` are the bodies of the requests, `keys` what they said of themselves."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        return await self._handler(request)


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Server]:
    """A server that answers everything so; `url` is what an owner writes in `[[remotes]]`."""
    server = Server(handler)
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", server.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def client_of(server: Server, stall_s: float = 5.0) -> AsyncIterator[CompletionsClient]:
    """A client of a server."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield CompletionsClient(session, Endpoint("cloud", server.url, "big-model", KEY), stall_s)


def sends(*lines: bytes, end: bool = True) -> Handler:
    """A handler that streams these lines; without an `end` it stays silent after them."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        if not end:
            await asyncio.Event().wait()  # until the client hangs up, which cancels this
        return response

    return handle


def says(parts: Sequence[str], finish: str = "stop") -> Handler:
    """A handler that streams an answer in these parts, in the form that the request's path asks for."""

    async def handle(request: web.Request) -> web.StreamResponse:
        chat = request.path.endswith("/chat/completions")
        lines = [event(text, chat=chat) for text in parts] + [event("", finish, chat=chat)]
        usage = {"prompt_tokens": 7, "completion_tokens": len(parts)}
        lines += [b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n", DONE]
        return await sends(*lines)(request)

    return handle


def event(text: str, finish: str | None = None, *, chat: bool = False) -> bytes:
    """One event of a stream."""
    said = {"delta": {"content": text}} if chat else {"text": text}
    return b"data: " + json.dumps({"choices": [{"index": 0, **said, "finish_reason": finish}]}).encode() + b"\n\n"


DONE: Final = b"data: [DONE]\n\n"


def refuses(status: int, body: str = "", headers: dict[str, str] | None = None) -> Handler:
    """A handler that says no."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body, headers=headers)

    return handle
