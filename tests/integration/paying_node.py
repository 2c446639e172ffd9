"""A node that pays or is paid on a chain, in a hurry, with a door for its test.

`python -m tests.integration.paying_node --home … --config …`. Its engine is that of the endless seller, without a
pause; what it asks the chain, it asks again at once. The door is a socket in its home: a line of JSON each way.
"""

import argparse
import asyncio
import contextlib
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import asdict

from ledger.account import AccountKey
from node.app import Node, run_node
from node.config import Config, load_config
from node.exchange import opening
from node.exchange.effects import EffectRefused
from node.exchange.pacing import Pace
from node.home import Home
from node.serve import say_started_json
from tests.integration.endless_seller import load_endless

PACE: Final = Pace(
    round_s=0.1, answer_s=10, look_s=0.3, look_again_s=0.05, confirm_s=0.5, first_retry_s=0.05, last_retry_s=0.3
)


class Door:
    """What a test asks of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(**json.loads(line))).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, payer: str, payee: str, ask: str = "", amount: int = 0) -> dict[str, Any]:
        """The account's counters, and the effect on it; with `ask`, after that was asked for."""
        key = AccountKey(payer, payee, "stablecoin", "uusd")
        refused = ""
        if ask:
            try:
                await self._node.effects.ask(key, ask, amount)  # type: ignore[arg-type]
            except EffectRefused as error:
                refused = str(error)
        books = self._node.book.journal.books
        account, tracked = books.account(key), books.effects.get(key)
        counters = asdict(account, filter=lambda field, _: field.name not in ("key", "orders"))
        more = {name: getattr(account, name) for name in ("owed", "reserved", "unsettled", "available", "shortfall")}
        state = None if tracked is None else [tracked.effect.kind, tracked.state, tracked.why]
        return {**counters, **more, "effect": state, "refused": refused}


async def run(home: Home, config: Config) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with run_node(home, config, partial(load_endless, pace=0.0), pace=PACE) as node:
        server = await asyncio.start_unix_server(Door(node).serve, home.folder / "door")
        say_started_json(node, config)
        await stop.wait()
        server.close()


def main() -> None:
    """Run the node until it is told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    opening._ROUND_S = 0.1  # type: ignore[misc]
    asyncio.run(run(Home(arguments.home), load_config(arguments.config, {})))


if __name__ == "__main__":
    main()
