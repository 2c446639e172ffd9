"""The owner's programs and a running node: its HTTP API, with the token from the home folder."""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import aiohttp

from node.home import Running

_CALL_S: Final = 120.0
_MAX_LINE: Final = 4 * 2**20  # of a streamed answer, in bytes


class CallFailed(Exception):
    """The node said no, or nothing; the message tells what to do, in the node's own words where it said something.

    `code` is what programs may know it by; empty where the node said nothing.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class OwnerClient:
    """Calls one running node."""

    def __init__(self, session: aiohttp.ClientSession, running: Running) -> None:
        self._session = session
        self._running = running
        self._headers = {"Authorization": f"Bearer {running.token}"}

    async def get(self, path: str, **query: str) -> Any:
        """The JSON at a path. Raises CallFailed."""
        return await self._json("GET", path, query)

    async def post(self, path: str, body: object = None) -> Any:
        """The JSON that posting to a path brings, with a body as JSON or without. Raises CallFailed."""
        return await self._json("POST", path, {}, body)

    async def _json(self, method: str, path: str, query: dict[str, str], body: object = None) -> Any:
        timeout = aiohttp.ClientTimeout(total=_CALL_S)
        try:
            async with self._session.request(
                method, self._running.url + path, params=query, headers=self._headers, timeout=timeout, json=body
            ) as response:
                said = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CallFailed(f"the node at {self._running.url} does not answer: {type(error).__name__}") from None
        if response.status != 200:
            raise CallFailed(said["error"]["message"], str(said["error"].get("code") or ""))
        return said

    async def download(self, path: str) -> AsyncGenerator[bytes, None]:
        """What lies at a path, of any length, in pieces. Raises CallFailed."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with self._session.get(self._running.url + path, headers=self._headers, timeout=timeout) as response:
                if response.status != 200:
                    raise CallFailed((await response.json())["error"]["message"])
                async for piece in response.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CallFailed(f"the node at {self._running.url} went away: {type(error).__name__}") from None

    async def chat(self, body: dict[str, Any], headers: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
        """The events of a streamed answer. Raises CallFailed."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with self._session.post(
                self._running.url + "/v1/chat/completions",
                json=body | {"stream": True, "stream_options": {"include_usage": True}},
                headers=self._headers | headers,
                timeout=timeout,
            ) as response:
                if response.status != 200:
                    raise CallFailed((await response.json())["error"]["message"])
                async for event in _events(response):
                    if "error" in event:
                        raise CallFailed(event["error"]["message"])
                    yield event
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CallFailed(f"the node at {self._running.url} went away: {type(error).__name__}") from None


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        text = line.decode().strip()
        if text.startswith("data: ") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data: "))


@contextlib.asynccontextmanager
async def owner_client(running: Running) -> AsyncIterator[OwnerClient]:
    """A client of a running node."""
    async with aiohttp.ClientSession(read_bufsize=_MAX_LINE) as session:
        yield OwnerClient(session, running)
