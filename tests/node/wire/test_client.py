"""The client against real servers that misbehave: whatever answers, a call ends, in bounds, as the port promises."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web

from ledger import codec
from ledger.records import Offer, Receipt
from node.wire.client import MAX_OFFERS, HttpPeer
from node.wire.messages import MAX_REFUSAL, Refused, Unreachable, decode_envelope, encode_refusal

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Call = Callable[[HttpPeer], Awaitable[object]]
SHORT_S, DIGEST = 0.2, bytes([7]) * 32
HOST = "127.0.0.1"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The URL of a server that gives every request to one handler."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def speaking(said: bytes, close: bool = True) -> AsyncIterator[str]:
    """The URL of something that says these bytes to whoever connects, HTTP or not."""
    conversations: set[asyncio.Task[None]] = set()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read(1)
            writer.write(said)
            await writer.drain()
            while not close and await reader.read(65_536):
                pass  # until the other side hangs up
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.add(asyncio.create_task(speak(reader, writer)))

    server = await asyncio.start_server(connected, HOST, 0)
    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*conversations)


@asynccontextmanager
async def dialling(url: str, short: bool = False) -> AsyncIterator[HttpPeer]:
    async with aiohttp.ClientSession() as session:
        yield HttpPeer(session, url, SHORT_S, SHORT_S) if short else HttpPeer(session, url)


def answering(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return handler


def refusing(refusal: Refused, status: int = 403) -> Handler:
    return answering(encode_refusal(refusal), status)


def endless(status: int = 200) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(bytes(65_536))
        return response

    return handler


async def silent(_: web.Request) -> web.Response:
    await asyncio.sleep(3600)
    raise AssertionError("nobody waits so long")


async def order(peer: HttpPeer) -> bytes:
    """The whole stream of an order."""
    async with aclosing(peer.order(b"order", b"sealed")) as stream:
        return b"".join([chunk async for chunk in stream])


CALLS: dict[str, Call] = {
    "offers": lambda peer: peer.offers(),
    "grant": lambda peer: peer.grant("did:key:z6Mk", "uusd"),
    "manifest": lambda peer: peer.manifest(DIGEST),
    "tokenizer": lambda peer: peer.tokenizer(DIGEST),
    "receipt": lambda peer: peer.receipt(DIGEST),
    "acknowledge": lambda peer: peer.acknowledge(b"acknowledgement"),
    "cancel": lambda peer: peer.cancel(b"cancel"),
    "settlement": lambda peer: peer.settlement(b"settlement"),
    "netting": lambda peer: peer.netting(b"netting"),
    "resolution": lambda peer: peer.resolution(DIGEST),
    "forgiveness": lambda peer: peer.forgiveness(b"forgiveness"),
    "order": order,
}
EACH_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
SHORT_CALLS = {name: call for name, call in CALLS.items() if name not in ("order", "tokenizer")}


async def test_each_call_goes_where_the_protocol_says() -> None:
    asked: list[tuple[str, str, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, await request.read()))
        return web.Response(body=codec.encode([b"one", b"two"]) if request.path.endswith("/offers") else b"answer")

    async with serving(handler) as url, dialling(url + "/") as peer:
        assert await peer.offers() == [b"one", b"two"]
        assert await peer.grant("did:key:z6Mk", "uusd") == b"answer"
        assert await peer.manifest(DIGEST) == b"answer"
        assert await peer.tokenizer(DIGEST) == b"answer"
        assert await peer.receipt(DIGEST) == b"answer"
        await peer.acknowledge(b"acknowledgement")
        await peer.cancel(b"cancel")
        assert await peer.settlement(b"settlement") == b"answer"
        assert await peer.netting(b"netting") == b"answer"
        assert await peer.resolution(DIGEST) == b"answer"
        assert await peer.forgiveness(b"forgiveness") == b"answer"
        assert await order(peer) == b"answer"
    name, base = DIGEST.hex(), "/mesh/v1"
    assert asked[:-1] == [
        ("GET", f"{base}/offers", b""),
        ("GET", f"{base}/grants/did:key:z6Mk/uusd", b""),
        ("GET", f"{base}/manifests/{name}", b""),
        ("GET", f"{base}/tokenizers/{name}", b""),
        ("GET", f"{base}/orders/{name}/receipt", b""),
        ("POST", f"{base}/acknowledgements", b"acknowledgement"),
        ("POST", f"{base}/cancels", b"cancel"),
        ("POST", f"{base}/settlements", b"settlement"),
        ("POST", f"{base}/nettings", b"netting"),
        ("GET", f"{base}/orders/{DIGEST.hex()}/resolution", b""),
        ("POST", f"{base}/forgiveness", b"forgiveness"),
    ]
    method, path, body = asked[-1]
    assert (method, path, decode_envelope(body)) == ("POST", f"{base}/orders", (b"order", b"sealed"))


@EACH_CALL
async def test_a_refusal_comes_as_refused_with_its_code(call: Call) -> None:
    async with serving(refusing(Refused("busy", "later", 2), 503)) as url, dialling(url) as peer:
        with pytest.raises(Refused) as caught:
            await call(peer)
    assert (caught.value.code, caught.value.message, caught.value.retry_after) == ("busy", "later", 2)


@EACH_CALL
@pytest.mark.parametrize("status", [201, 206, 400, 404, 500])
async def test_another_status_without_a_refusal_is_unreachable(call: Call, status: int) -> None:
    async with serving(answering(b"<html>", status)) as url, dialling(url) as peer:
        with pytest.raises(Unreachable, match=f"HTTP {status}"):
            await call(peer)


@EACH_CALL
async def test_a_redirect_is_not_followed(call: Call) -> None:
    visited: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        visited.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with serving(handler) as url, dialling(url) as peer:
        with pytest.raises(Unreachable, match="HTTP 307"):
            await call(peer)
    assert "/elsewhere" not in visited


@EACH_CALL
async def test_an_endless_refusal_is_unreachable(call: Call) -> None:
    async with serving(endless(500)) as url, dialling(url) as peer:
        with pytest.raises(Unreachable, match="HTTP 500"):
            await call(peer)


@pytest.mark.parametrize("call", SHORT_CALLS.values(), ids=SHORT_CALLS)
async def test_an_endless_answer_is_unreachable(call: Call) -> None:
    async with serving(endless()) as url, dialling(url) as peer:
        with pytest.raises(Unreachable, match="too much"):
            await call(peer)


async def test_an_answer_one_byte_too_large_is_unreachable() -> None:
    for size, fits in ((Receipt.limit, True), (Receipt.limit + 1, False)):
        async with serving(answering(bytes(size))) as url, dialling(url) as peer:
            if fits:
                assert await peer.receipt(DIGEST) == bytes(size)
                continue
            with pytest.raises(Unreachable, match=f"{size} bytes where at most {Receipt.limit}"):
                await peer.receipt(DIGEST)


async def test_a_packed_answer_counts_unpacked() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    assert len(bomb) < MAX_OFFERS * Offer.limit
    async with serving(answering(bomb, headers={"Content-Encoding": "gzip"})) as url, dialling(url) as peer:
        with pytest.raises(Unreachable, match="too much"):
            await peer.offers()


@EACH_CALL
async def test_a_peer_that_never_answers_is_unreachable(call: Call) -> None:
    async with serving(silent) as url, dialling(url, short=True) as peer:
        with pytest.raises(Unreachable, match="in time"):
            await call(peer)


NO_HTTP = [
    b"",
    b"\0" * 100,
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 99999 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
]


@pytest.mark.parametrize("said", NO_HTTP, ids=lambda said: repr(said[:60]))
@EACH_CALL
async def test_what_speaks_no_http_is_unreachable(call: Call, said: bytes) -> None:
    async with speaking(said) as url, dialling(url) as peer:
        with pytest.raises(Unreachable):
            await call(peer)


@EACH_CALL
async def test_headers_that_never_end_are_unreachable(call: Call) -> None:
    async with speaking(b"HTTP/1.1 200 OK\r\nX: ", close=False) as url, dialling(url, short=True) as peer:
        with pytest.raises(Unreachable):
            await call(peer)


@EACH_CALL
async def test_a_port_where_nobody_listens_is_unreachable(call: Call) -> None:
    async with serving(silent) as url:
        pass
    async with dialling(url) as peer:
        with pytest.raises(Unreachable, match="cannot be reached: nothing listens there"):
            await call(peer)


@EACH_CALL
@pytest.mark.parametrize("url", ["", "nowhere", "http://", "http://[::", "ftp://127.0.0.1", "http://127.0.0.1:0"])
async def test_a_url_that_is_none_is_unreachable(call: Call, url: str) -> None:
    async with dialling(url) as peer:
        with pytest.raises(Unreachable):
            await call(peer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        codec.encode({"offers": []}),
        codec.encode([1]),
        codec.encode([b""] * (MAX_OFFERS + 1)),
        b"\x98\x01\x40",
    ],
    ids=["nothing", "HTML", "a map", "numbers", "too many", "not canonical"],
)
async def test_what_is_no_list_of_offers_is_unreachable(body: bytes) -> None:
    async with serving(answering(body)) as url, dialling(url) as peer:
        with pytest.raises(Unreachable):
            await peer.offers()


async def test_a_receipt_that_is_not_there_is_none() -> None:
    async with serving(refusing(Refused("unknown_order", "no"), 404)) as url, dialling(url) as peer:
        assert await peer.receipt(DIGEST) is None


async def test_a_refusal_larger_than_any_is_unreachable() -> None:
    body = codec.encode({"code": "busy", "message": "x" * MAX_REFUSAL})
    async with serving(answering(body, 503)) as url, dialling(url) as peer:
        with pytest.raises(Unreachable, match="HTTP 503"):
            await peer.offers()


async def test_what_came_of_an_order_before_the_peer_fell_silent_is_kept() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        return await silent(request)

    async with (
        serving(handler) as url,
        dialling(url, short=True) as peer,
        aclosing(peer.order(b"order", b"sealed")) as stream,
    ):
        assert await anext(stream) == b"first"
        with pytest.raises(Unreachable, match="in time"):
            await anext(stream)


async def test_an_order_s_stream_may_be_longer_than_a_call() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(6):
            await response.write(b"beat")
            await asyncio.sleep(SHORT_S / 4)
        return response

    async with serving(handler) as url, aiohttp.ClientSession() as session:
        assert await order(HttpPeer(session, url, call_s=SHORT_S)) == 6 * b"beat"


async def test_closing_an_order_hangs_up() -> None:
    hung_up = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"beat")
                await asyncio.sleep(0.01)
        finally:
            hung_up.set()

    async with serving(handler) as url, dialling(url) as peer:
        async with aclosing(peer.order(b"order", b"sealed")) as stream:
            assert (await anext(stream)).startswith(b"beat")
        await asyncio.wait_for(hung_up.wait(), 30)
