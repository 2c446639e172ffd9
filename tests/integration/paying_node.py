"""Nodes that pay or are paid on a chain, in a hurry, each a process that starts in a moment and can be killed.

`python -m tests.integration.paying_node SOCKET` loads everything once and then forks a node for each connection to that
socket. The connection carries lines of JSON: first the node's home and settings, then what is asked of it.
"""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

import uvloop
from attrs import asdict

import node.own_money
import node.own_purses
import node.own_wallet  # noqa: F401 - so that no node has to import them
from ledger.account import AccountKey
from ledger.rails.stablecoin.keys import Key
from node.app import Node, run_node
from node.config import load_config
from node.engine.hardware import Plan
from node.engine.port import Engine
from node.exchange import opening
from node.exchange.effects import EffectRefused
from node.exchange.pacing import Pace
from node.home import Home
from node.models.manifest import Manifest
from node.models.template import TemplateRenderer
from node.models.vocab import open_vocab
from tests.integration.crashing_node import StoryEngine
from tests.integration.forking import fork_nodes

PACE: Final = Pace(
    round_s=0.1,
    answer_s=10,
    look_s=0.3,
    look_again_s=0.05,
    rest_s=0.3,
    seldom_s=0.3,
    confirm_s=0.5,
    first_retry_s=0.05,
    last_retry_s=0.3,
)


async def load_wide(path: Path, manifest: Manifest, _plan: Plan) -> Engine:
    """An engine for many at a time, whose answers do not end by themselves."""
    vocab = open_vocab(path)
    try:
        return StoryEngine(manifest, vocab.eog | vocab.control, vocabulary=vocab.size, slots=32)
    finally:
        vocab.close()


async def _no_templates(_: TemplateRenderer) -> None:
    """The renderer's process is started at the first conversation, and here there is none."""


async def answer(node: Node, payer: str, payee: str, ask: str = "", amount: int = 0, kind: str = "") -> dict[str, Any]:
    """The account's counters, and the effect on it; with `ask`, after that was asked for.

    With `kind`, the records of that kind instead, the latest first.
    """
    if kind:
        return {"raw": [kept.raw.hex() for kept in await node.book.journal.list_records(kind, 100)]}
    key = AccountKey(payer, payee, "stablecoin", "uusd")
    refused = ""
    if ask:
        try:
            await node.effects.ask(key, ask, amount)  # type: ignore[arg-type]
        except EffectRefused as error:
            refused = str(error)
    books = node.book.journal.books
    account, tracked = books.account(key), books.effects.get(key)
    counters = asdict(account, filter=lambda field, _: field.name not in ("key", "orders"))
    more = {name: getattr(account, name) for name in ("owed", "reserved", "unsettled", "available", "shortfall")}
    state = None if tracked is None else [tracked.effect.kind, tracked.state, tracked.why]
    return {**counters, **more, "effect": state, "refused": refused}


async def run(settings: dict[str, str], connection: socket.socket) -> None:
    """Until the connection ends."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    home = Home(Path(settings["home"]))
    async with run_node(home, load_config(Path(settings["config"]), {}), load_wide, pace=PACE) as running:
        said: dict[str, Any] = {"url": running.url, "did": running.did, "pid": os.getpid()}
        while True:
            writer.write(json.dumps(said).encode() + b"\n")
            await writer.drain()
            line = await reader.readline()
            if not line:
                return
            said = await answer(running, **json.loads(line))


def _be_a_node(connection: socket.socket) -> None:
    text = b""
    while not text.endswith(b"\n"):
        text += connection.recv(1)
    settings = json.loads(text)
    with Path(settings["log"]).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    opening._ROUND_S = 0.1  # type: ignore[misc]
    setattr(TemplateRenderer, "start", _no_templates)  # noqa: B010 - mypy takes no other method
    uvloop.run(run(settings, connection))


def main() -> None:
    """Load everything, and fork a node for each connection."""
    Key.of(b"\1" * 32)
    fork_nodes(_be_a_node)


if __name__ == "__main__":
    main()
