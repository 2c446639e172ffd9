"""A client that goes away stops the work at once: this engine would never end by itself."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from node.engine.hardware import Plan
from node.engine.memory import MemoryEngine
from node.engine.port import Engine
from node.models.manifest import Manifest
from tests.node.api.running import RunningNode, running_node, settings

DEMO_VOCABULARY = 1024
STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]


async def load_endless(_path: Path, manifest: Manifest, _plan: Plan) -> Engine:
    return MemoryEngine(manifest, vocabulary=DEMO_VOCABULARY, eog=frozenset(), stall_after=3)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node whose engine gives three tokens and then nothing, and no end."""
    with running_node(tmp_path_factory.mktemp("endless"), settings(), load_endless) as node:
        yield node


async def is_free(node: RunningNode, free: bool) -> None:
    """Wait until the engine is free, or busy."""
    async with asyncio.timeout(10):
        while bool(node.engine.free_slots()) != free:  # noqa: ASYNC110 - the engine is in another thread
            await asyncio.sleep(0.002)


async def test_a_client_that_leaves_a_stream_frees_the_engine(endless: RunningNode) -> None:
    async with openai.AsyncOpenAI(base_url=endless.base_url, api_key="local", max_retries=0) as client:
        stream = await client.chat.completions.create(model="auto", messages=STORY, stream=True)
        await anext(aiter(stream))
        assert not endless.engine.free_slots()
        await stream.close()
        await is_free(endless, True)


async def test_a_client_that_does_not_wait_for_its_answer_frees_the_engine(endless: RunningNode) -> None:
    async with openai.AsyncOpenAI(base_url=endless.base_url, api_key="local", max_retries=0) as client:
        asking = asyncio.create_task(client.chat.completions.create(model="auto", messages=STORY))
        await is_free(endless, False)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await is_free(endless, True)


async def test_a_client_that_leaves_the_line_gives_its_place_free(endless: RunningNode) -> None:
    async with openai.AsyncOpenAI(base_url=endless.base_url, api_key="local", max_retries=0) as client:
        asking = [asyncio.create_task(client.chat.completions.create(model="auto", messages=STORY)) for _ in range(3)]
        await is_free(endless, False)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await is_free(endless, True)


async def test_when_the_line_is_full_a_client_is_told_to_come_again(endless: RunningNode) -> None:
    async with openai.AsyncOpenAI(base_url=endless.base_url, api_key="local", max_retries=0) as client:
        asking = [asyncio.create_task(client.chat.completions.create(model="auto", messages=STORY)) for _ in range(18)]
        done, waiting = await asyncio.wait(asking, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        error = done.pop().exception()
        assert isinstance(error, openai.RateLimitError)
        assert error.response.headers["retry-after"] == "1"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await is_free(endless, True)


async def test_a_node_that_is_stopped_tells_its_clients_so(tmp_path: Path) -> None:
    with running_node(tmp_path, settings(), load_endless) as node:
        client = openai.AsyncOpenAI(base_url=node.base_url, api_key="local", max_retries=0)
        stream = await client.chat.completions.create(model="auto", messages=STORY, stream=True)
        await anext(aiter(stream))
    async with client, stream:
        with pytest.raises(openai.APIError, match="being stopped"):
            [chunk async for chunk in stream]
