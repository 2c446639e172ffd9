"""Connections that ask nothing do not stay, and one address holds no more than its share."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import pytest
from aiohttp import web

from node.api import connections
from node.api.connections import Bounds, serving

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def listening(bounds: Bounds) -> AsyncIterator[Callable[[], Awaitable[tuple[Reader, Writer]]]]:
    """A server that answers at / at once and at /wait never; gives what opens a connection to it."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="here")

    async def wait(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application()
    app.add_routes([web.get("/", answer), web.get("/wait", wait)])
    opened: list[Writer] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def connect() -> tuple[Reader, Writer]:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
            opened.append(writer)
            return reader, writer

        async with serving(app, listener, bounds):
            yield connect
            for writer in opened:
                writer.transport.abort()


async def answered(reader: Reader, writer: Writer) -> bool:
    """Whether a request is answered over a connection."""
    writer.write(GET)
    try:
        head = await reader.readuntil(b"here")
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    return head.startswith(b"HTTP/1.1 200")


async def closed(reader: Reader) -> bytes:
    """What still comes before the connection ends."""
    async with asyncio.timeout(20):
        return await reader.read()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2], b"POST / HTTP/1.1\r\nHost: x\r\n"], ids=str)
async def test_a_connection_that_does_not_finish_a_requests_head_is_closed(sent: bytes) -> None:
    async with listening(Bounds(first_request_s=0.02, look_s=0.005)) as connect:
        reader, writer = await connect()
        writer.write(sent)
        assert await closed(reader) == b""


async def test_a_connection_that_has_asked_is_closed_when_it_stays_idle() -> None:
    async with listening(Bounds(idle_s=0.02, look_s=0.005)) as connect:
        reader, writer = await connect()
        assert await answered(reader, writer)
        assert await closed(reader) == b""


async def test_a_connection_at_work_stays_however_long_it_takes() -> None:
    bounds = Bounds(first_request_s=0.02, idle_s=0.02, look_s=0.005)
    async with listening(bounds) as connect:
        reader, writer = await connect()
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        silent, _ = await connect()
        await closed(silent)  # so that the limit has passed for both
        silent, _ = await connect()
        await closed(silent)
        assert not reader.at_eof()


async def test_of_an_addresss_connections_the_newest_go_first() -> None:
    async with listening(Bounds(per_address=3, look_s=0.005)) as connect:
        opened = [await connect() for _ in range(3)]
        assert all([await answered(*one) for one in opened])
        reader, _ = await connect()
        assert await closed(reader) == b""
        assert all([await answered(*one) for one in opened])


async def test_the_addresses_of_one_network_of_ipv6_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    peers: dict[web.RequestHandler, str] = {}

    def address(connection: web.RequestHandler) -> str:
        return peers.setdefault(connection, f"2001:db8::{len(peers):x}")

    monkeypatch.setattr(connections, "_address", address)
    async with listening(Bounds(per_address=3, look_s=0.005)) as connect:
        opened = [await connect() for _ in range(4)]
        assert await opened[-1][0].read() == b""
        assert [await answered(*one) for one in opened[:-1]] == [True] * 3


async def test_a_trusted_address_may_have_any_number() -> None:
    async with listening(
        Bounds(per_address=1, trusted=lambda address: address == "127.0.0.1", look_s=0.005)
    ) as connect:
        opened = [await connect() for _ in range(5)]
        for _ in range(3):
            assert all([await answered(*one) for one in opened])


async def test_a_place_that_comes_free_can_be_taken() -> None:
    async with listening(Bounds(per_address=1, look_s=0.005)) as connect:
        reader, writer = await connect()
        assert await answered(reader, writer)
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(20):
            while not await answered(*await connect()):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)


async def test_what_is_no_request_leaves_nothing_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(Bounds()) as connect:
        reader, writer = await connect()
        writer.write(b"GET *" + b"a" * 100 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await closed(reader)).startswith(b"HTTP/1.0 400")
        assert caplog.records == []
        assert await answered(*await connect())
