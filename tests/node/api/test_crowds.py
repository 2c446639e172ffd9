"""Many clients at once, clients that hardly read, and a model that computes nonsense: each harms itself alone."""

import asyncio
import contextlib
import json
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from aiohttp import web
from attrs import evolve

from node.api.connections import Bounds, serving
from node.api.openai import MAX_REQUESTS, OpenAiDoor
from node.app import run_node
from node.engine.hardware import Plan
from node.engine.memory import MemoryEngine
from node.engine.port import Engine
from node.home import Home
from node.models.manifest import Manifest
from node.ports import SystemClock, SystemEntropy
from tests.node.api.running import RunningNode, request, running_node, settings

SLOTS, WAITING = 4, 16
CLIENTS = 1_000
SMALL_BUFFER = 4_096  # bytes, in the kernel
CHAT = "/v1/chat/completions"
BODY = {"model": "auto", "messages": [{"role": "user", "content": "Tell me a story about a fox."}], "max_tokens": 8}


async def load_small(_path: Path, manifest: Manifest, _plan: Plan) -> Engine:
    return MemoryEngine(manifest, vocabulary=1_024, eog=frozenset(), slots=SLOTS, waiting=WAITING)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of a thousand connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CLIENTS if hard == resource.RLIM_INFINITY else min(4 * CLIENTS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def small(tmp_path: Path, many_files: None) -> Iterator[RunningNode]:
    with running_node(tmp_path, settings(), load_small) as node:
        yield node


async def test_a_thousand_clients_at_once_are_answered_or_told_to_come_again(small: RunningNode) -> None:
    async def ask(session: aiohttp.ClientSession) -> int:
        async with session.post(small.url + CHAT, json=BODY) as response:
            said = await response.json()
            if response.status == 429:
                assert int(response.headers["Retry-After"]) >= 1
                assert said["error"]["code"] == "busy"
            else:
                assert said["usage"]["completion_tokens"] == 8
            return response.status

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        statuses = Counter(await asyncio.gather(*(ask(session) for _ in range(CLIENTS))))
    assert set(statuses) == {200, 429}
    assert statuses.total() == CLIENTS
    assert statuses[200] >= SLOTS + WAITING
    assert small.engine.free_slots() == SLOTS
    assert request(small, "POST", CHAT, BODY).status == 200


async def test_requests_at_work_are_bounded_whatever_they_wait_for(small: RunningNode) -> None:
    """These never send their bodies."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n".encode()
    opened = [await asyncio.open_connection("127.0.0.1", small.port) for _ in range(MAX_REQUESTS)]
    for _, writer in opened:
        writer.write(head)
    async with asyncio.timeout(20):
        while (await asyncio.to_thread(request, small, "POST", CHAT, BODY)).status != 429:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert request(small, "GET", "/v1/models").status == 200
    for _, writer in opened:
        writer.transport.abort()
    async with asyncio.timeout(20):
        while (await asyncio.to_thread(request, small, "POST", CHAT, BODY)).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def load_flooding(_path: Path, manifest: Manifest, _plan: Plan) -> Engine:
    """More text than all the buffers between a node and its client hold."""
    return MemoryEngine(evolve(manifest, context=2**24), vocabulary=1_024, eog=frozenset())


@asynccontextmanager
async def impatient(folder: Path) -> AsyncIterator[tuple[int, Engine]]:
    """The port of a node that waits for a client for the tenth of a second, and its engine."""
    engines: list[Engine] = []

    async def load(path: Path, manifest: Manifest, plan: Plan) -> Engine:
        engines.append(await load_flooding(path, manifest, plan))
        return engines[-1]

    async with run_node(Home(folder), settings(), load) as node:
        door = OpenAiDoor(node.gateway, SystemClock(), SystemEntropy(), "internal", "auto", write_s=0.1)
        app = web.Application()
        app.add_routes(door.routes())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)  # of its connections, too
            async with serving(app, listener, Bounds()):
                yield listener.getsockname()[1], engines[0]


async def test_a_client_that_hardly_reads_is_dropped_and_its_slot_is_free(tmp_path: Path) -> None:
    body = json.dumps(BODY | {"stream": True, "max_tokens": 2**23}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with impatient(tmp_path) as (port, engine):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        client.connect(("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=client, limit=1)
        writer.write(head + body)
        assert await reader.readexactly(1) == b"H"
        async with asyncio.timeout(60):
            while engine.free_slots():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            while not engine.free_slots():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert b"[DONE]" not in await rest_of(reader)
        writer.transport.abort()


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """The end of what comes until the connection is closed, in whatever way."""
    last = b""
    with contextlib.suppress(ConnectionError):
        while some := await reader.read(2**16):
            last = (last + some)[-100:]
    return last


class Spoiled(MemoryEngine):
    """Computes no numbers after a certain token."""

    def logits(self, ids: Any) -> Any:
        found = super().logits(ids)
        return np.full_like(found, np.nan) if 999 in ids else found


async def load_spoiled(_path: Path, manifest: Manifest, _plan: Plan) -> Engine:
    return Spoiled(manifest, vocabulary=1_024, eog=frozenset(), slots=2)


def test_logits_that_are_no_numbers_fail_their_request_alone(tmp_path: Path) -> None:
    with (
        running_node(tmp_path, settings(), load_spoiled) as node,
        openai.OpenAI(base_url=node.base_url, api_key="local", max_retries=0) as client,
    ):
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(model="auto", prompt=[5, 999], max_tokens=4, stream=stream)
            assert (caught.value.status_code, caught.value.code) == (500, "engine_failed")
            assert client.completions.create(model="auto", prompt=[5, 6], max_tokens=4).choices[0].text is not None
