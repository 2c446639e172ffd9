"""The owner's way to a running node: its local API, with the token from the home folder."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import aiohttp

from node.cli.output import CommandFailed
from node.home import Home, HomeError, Running

T = TypeVar("T")

_CALL_S: Final = 120.0
_MAX_LINE: Final = 4 * 2**20


class OwnerClient:
    """Calls one running node."""

    def __init__(self, session: aiohttp.ClientSession, running: Running) -> None:
        self._session = session
        self._running = running
        self._headers = {"Authorization": f"Bearer {running.token}"}

    async def get(self, path: str, **query: str) -> Any:
        """The JSON at a path. Raises CommandFailed with what the node says."""
        return await self._json("GET", path, query)

    async def post(self, path: str) -> Any:
        """The JSON that posting to a path brings. Raises CommandFailed."""
        return await self._json("POST", path, {})

    async def _json(self, method: str, path: str, query: dict[str, str]) -> Any:
        timeout = aiohttp.ClientTimeout(total=_CALL_S)
        try:
            async with self._session.request(
                method, self._running.url + path, params=query, headers=self._headers, timeout=timeout
            ) as response:
                body = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CommandFailed(f"the node at {self._running.url} does not answer: {type(error).__name__}") from None
        if response.status != 200:
            raise CommandFailed(body["error"]["message"])
        return body

    async def chat(self, body: dict[str, Any], headers: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
        """The events of a streamed answer. Raises CommandFailed."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with self._session.post(
                self._running.url + "/v1/chat/completions",
                json=body | {"stream": True, "stream_options": {"include_usage": True}},
                headers=self._headers | headers,
                timeout=timeout,
            ) as response:
                if response.status != 200:
                    raise CommandFailed((await response.json())["error"]["message"])
                async for event in _events(response):
                    if "error" in event:
                        raise CommandFailed(event["error"]["message"])
                    yield event
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CommandFailed(f"the node at {self._running.url} went away: {type(error).__name__}") from None


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        text = line.decode().strip()
        if text.startswith("data: ") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data: "))


async def with_client(running: Running, work: Callable[[OwnerClient], Awaitable[T]]) -> T:
    """Do some work with a client of a running node."""
    async with aiohttp.ClientSession(read_bufsize=_MAX_LINE) as session:
        return await work(OwnerClient(session, running))


def call(home: Home, work: Callable[[OwnerClient], Awaitable[T]]) -> T:
    """Do some work against the node that runs in this home. Raises CommandFailed."""
    try:
        running = home.running()
    except HomeError as error:
        raise CommandFailed(str(error)) from None
    return asyncio.run(with_client(running, work))
