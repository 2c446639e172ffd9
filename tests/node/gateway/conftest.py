"""A tokenizer that renders, and households built on it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from node.engine.port import Engine
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from node.ports import ManualClock
from node.wire.peer import Peer
from tests.node.gateway.household import Household, did_of
from tests.node.trading import DEMO

Move = Callable[..., Awaitable[Household]]


@pytest.fixture
async def tokenizers(tmp_path: Path) -> AsyncIterator[Tokenizers]:
    renderer = TemplateRenderer(timeout=20.0)
    made = Tokenizers(tmp_path / "tokenizers", renderer)
    yield made
    await made.close()
    await renderer.close()


@pytest.fixture
def digest(tokenizers: Tokenizers) -> bytes:
    return tokenizers.add_own(DEMO)


@pytest.fixture
def speaking(tokenizers: Tokenizers, digest: bytes) -> Tokenizer:
    """The demo model's tokenizer, with a renderer that works."""
    return tokenizers.open_own(digest)


@pytest.fixture
async def move_in(tokenizers: Tokenizers, digest: bytes, clock: ManualClock) -> AsyncIterator[Move]:
    """Makes a household with these engines by name, beside these neighbours, whom it has met."""
    async with AsyncExitStack() as stack:

        async def make(engines: Mapping[str, Engine] | None = None, *neighbours: Peer, **rest: Any) -> Household:
            named = {await did_of(peer): peer for peer in neighbours}
            household = Household(tokenizers, digest, clock, engines=engines, neighbours=named, **rest)
            stack.push_async_callback(household.close)
            await household.meet()
            return household

        yield make
