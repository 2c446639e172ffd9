"""One node for all tests of the API; it serves its owner and sells."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
from eth_account.signers.local import LocalAccount

from node.engine.hardware import Plan
from node.engine.memory import MemoryEngine
from node.engine.port import Engine
from node.models.manifest import Manifest
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.vocab import open_vocab
from tests.chain import Anvil
from tests.node.api.running import OUT_OF_REACH, RunningNode, running_node, settings
from tests.node.conftest import tokenizer_digest
from tests.node.strangers import RICH
from tests.node.trading import DEMO, engine_of


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    config = settings(sell={"price": "0.05usd:0.15usd"}, catalogue={OUT_OF_REACH: "cd" * 32})
    with running_node(tmp_path_factory.mktemp("node"), config) as node:
        yield node


@pytest.fixture(scope="session")
def client(node: RunningNode) -> Iterator[openai.OpenAI]:
    """OpenAI's own client; it does not try again, so that each answer is seen.

    One for all: to make one takes longer than many a test, for it reads the certificates that it trusts.
    """
    with openai.OpenAI(base_url=node.base_url, api_key="local", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(node: RunningNode) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=node.base_url, api_key="local", max_retries=0, timeout=60) as client:
        yield client


async def load_exact(_path: Path, manifest: Manifest, _plan: Plan) -> Engine:
    return MemoryEngine(manifest, vocabulary=1_024, slots=4)


@pytest.fixture(scope="session")
def exact_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("exact"), settings(), load_exact) as node:
        yield node


@pytest.fixture(scope="session")
def exact(exact_node: RunningNode) -> Iterator[openai.OpenAI]:
    """A client of a node whose engine gives the same logits to the last bit, whatever else it does."""
    with openai.OpenAI(base_url=exact_node.base_url, api_key="local", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def speaking() -> AsyncIterator[Tokenizer]:
    """A tokenizer that renders conversations."""
    renderer = TemplateRenderer()
    await renderer.start()
    yield Tokenizer(open_vocab(DEMO), tokenizer_digest(), renderer)
    await renderer.close()


@pytest.fixture
async def engine(speaking: Tokenizer) -> AsyncIterator[MemoryEngine]:
    """Computes the answers that strangers pay for."""
    engine = engine_of(speaking, slots=4)
    yield engine
    await engine.close()


@pytest.fixture
def buyer(chain: Anvil) -> LocalAccount:
    """A stranger's wallet with `RICH` in it."""
    return chain.wallet(dollars=RICH)
