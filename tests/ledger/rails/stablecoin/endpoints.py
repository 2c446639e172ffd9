"""An RPC endpoint that says something else than the chain behind it."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

# method, parameters, what the chain says -> what is said
Twist: TypeAlias = Callable[[str, list[Any], Any], Any]


def honest(method: str, parameters: list[Any], found: Any) -> Any:
    return found


@asynccontextmanager
async def between(
    url: str, twist: Twist = honest, before: Callable[[str], Awaitable[None]] | None = None
) -> AsyncIterator[tuple[str, list[str]]]:
    """An endpoint in front of a chain; its address, and the methods that it was asked for.

    It waits for `before`, of a method, until it asks the chain.
    """
    asked: list[str] = []
    async with ClientSession() as session:

        async def answer(request: web.Request) -> web.Response:
            question = await request.json()
            asked.append(question["method"])
            if before is not None:
                await before(question["method"])
            async with session.post(url, json=question) as response:
                found = await response.json()
            if "result" in found:
                said = twist(question["method"], question["params"], found["result"])
                if isinstance(said, dict) and "code" in said:
                    return web.json_response({"jsonrpc": "2.0", "id": question["id"], "error": said})
                found["result"] = said
            return web.json_response(found)

        async with serving(answer) as address:
            yield address, asked


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Anything that listens."""
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


def plain(body: object, status: int = 200) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The same for every question."""

    async def answer(request: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status)

    return answer
