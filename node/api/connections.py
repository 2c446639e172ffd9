"""Listening, with bounds on what a connection may hold without asking anything.

A connection that has sent no request's head in time is closed, and one that stays idle after an answer; of one address,
and of one network of IPv6, no more than so many are open, the newest going first. This machine's own programs may have
any number.
"""

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware
from attrs import field, frozen

from node.api.callers import Caller

# How long requests may still take when the node stops; aiohttp waits for it twice.
_SHUTDOWN_S: Final = 1.0


def _nobody(_address: str) -> bool:
    return False


@frozen
class Bounds:
    """`first_request_s` for the head of the first request, `idle_s` between requests; `per_address` connections, but
    for addresses that are `trusted`; looked at every `look_s`.
    """

    first_request_s: float = 15.0
    idle_s: float = 75.0
    per_address: int = 256
    trusted: Callable[[str], bool] = field(default=_nobody)
    look_s: float = 1.0


class Connections:
    """What is known of the open connections of a server."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._since: dict[web.RequestHandler, float] = {}
        self._asked: set[web.RequestHandler] = set()

    @property
    def middleware(self) -> Middleware:
        """Notes which connections bring requests."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._asked.add(request.protocol)
            return await handler(request)

        return note

    async def watch(self, server: web.Server) -> None:
        """Close what is out of bounds, until cancelled."""
        while True:
            await asyncio.sleep(self._bounds.look_s)
            self._look(server.connections, asyncio.get_running_loop().time())

    def _look(self, connections: list[web.RequestHandler], now: float) -> None:
        self._since = {one: self._since.get(one, now) for one in connections}
        self._asked &= self._since.keys()
        of: Counter[str] = Counter()
        for one, since in self._since.items():
            address = _address(one)
            share = Caller(address).share
            of[share] += 1
            late = one not in self._asked and now - since > self._bounds.first_request_s
            many = of[share] > self._bounds.per_address and not self._bounds.trusted(address)
            if late or many:
                one.force_close()


def _address(connection: web.RequestHandler) -> str:
    name = connection.peername
    return str(name[0]) if isinstance(name, tuple) else ""


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a line of the server's log is about this node: of requests that are none anyone could write any number,
    each with its own text.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


logging.getLogger("aiohttp.server").addFilter(_is_ours)


@contextlib.asynccontextmanager
async def serving(app: web.Application, listener: socket.socket, bounds: Bounds) -> AsyncIterator[None]:
    """Serve an application on a listening socket until the context is left."""
    connections = Connections(bounds)
    app.middlewares.insert(0, connections.middleware)
    # A client that goes away cancels its handler, and so the work here or at the seller.
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=bounds.idle_s,
        # Encoded bodies are refused: not even what is thrown away is decoded, which can fail or take much memory.
        auto_decompress=False,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        assert runner.server is not None  # it is set up
        watching = asyncio.create_task(connections.watch(runner.server))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    finally:
        await runner.cleanup()
