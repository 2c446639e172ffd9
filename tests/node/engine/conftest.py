"""The demo model in a real engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.records import Sampling
from node.engine.llamacpp import LlamaEngine
from node.models.manifest import Manifest, manifest_of

DEMO = Path(__file__).parents[3] / "node" / "models" / "demo" / "demo-Q8_0.gguf"


@pytest.fixture(scope="session")
def demo() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return manifest_of(DEMO)


@pytest.fixture
def hot() -> Sampling:
    """T = 1 and no cutoffs."""
    return Sampling(temperature=1_000_000, top_p=1_000_000, min_p=0, top_k=0)


@pytest.fixture
async def engine(demo: Path, manifest: Manifest) -> AsyncIterator[LlamaEngine]:
    made = await LlamaEngine.load(demo, manifest, threads=1)
    yield made
    await made.close()
