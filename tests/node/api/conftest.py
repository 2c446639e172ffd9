"""One node for all tests of the API; it serves its owner and sells."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.node.api.running import OUT_OF_REACH, RunningNode, running_node, settings


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    config = settings(sell={"price": "0.05usd:0.15usd"}, catalogue={OUT_OF_REACH: "cd" * 32})
    with running_node(tmp_path_factory.mktemp("node"), config) as node:
        yield node


@pytest.fixture
def client(node: RunningNode) -> Iterator[openai.OpenAI]:
    """OpenAI's own client; it does not try again, so that each answer is seen."""
    with openai.OpenAI(base_url=node.base_url, api_key="local", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(node: RunningNode) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=node.base_url, api_key="local", max_retries=0, timeout=60) as client:
        yield client
