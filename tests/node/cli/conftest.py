"""One owner's node with a peer, and the command line in this process."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import frozen

from node.cli import main
from node.demo.processes import NodeProcess
from tests.integration.network import BUYER, PRICE, starting, way_to


@frozen
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


Idlemesh = Callable[..., Said]


@pytest.fixture
def idlemesh(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Idlemesh:
    """The command, with its arguments."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["idlemesh", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        status = end.value.code
        assert isinstance(status, int)
        return Said(status, printed.out, printed.err)

    return run


@frozen
class Nodes:
    """An owner's node, and the peer it may buy from."""

    owner: NodeProcess
    seller: NodeProcess


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("cli")
    with contextlib.ExitStack() as stack:
        seller = stack.enter_context(starting(folder / "seller", {"sell": {"price": PRICE}}))
        sections = {"audit": BUYER["audit"], "sell": {"price": "3usd:4usd"}}
        yield Nodes(stack.enter_context(starting(folder / "owner", sections, [way_to(seller)])), seller)
