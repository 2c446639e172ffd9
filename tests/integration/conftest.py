"""Real nodes: one pair that trades all the time, and those that a test starts for itself."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from node.demo.processes import NodeProcess
from tests.integration.forking import fork_server
from tests.integration.network import PRICE, Network, starting, way_to


@frozen
class Pair:
    """A buyer that knows one seller."""

    buyer: NodeProcess
    seller: NodeProcess


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with contextlib.ExitStack() as stack:
        selling = {"sell": {"price": PRICE, "open_credit": "1usd", "exposure": "1usd"}}
        seller = stack.enter_context(starting(folder / "seller", selling))
        buyer = stack.enter_context(starting(folder / "buyer", {}, [way_to(seller)]))
        yield Pair(buyer, seller)


@pytest.fixture(scope="session")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fork_server("tests.integration.crashing_node", tmp_path_factory.mktemp("forking") / "socket") as server:
        yield server


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    async with contextlib.AsyncExitStack() as stack:
        yield Network(tmp_path, stack)
