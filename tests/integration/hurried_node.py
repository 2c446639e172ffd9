"""A node that asks the chain again at once, with an engine that takes no time: a process like any node's.

`python -m tests.integration.hurried_node --home … --config …`, until SIGTERM.
"""

import argparse
import asyncio
import signal
from functools import partial
from pathlib import Path

from node.app import run_node
from node.config import Config, load_config
from node.exchange import opening
from node.home import Home
from node.serve import say_started_json
from tests.integration.endless_seller import load_endless
from tests.integration.paying_node import PACE


async def run(home: Home, config: Config) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with run_node(home, config, partial(load_endless, pace=0.0), pace=PACE) as node:
        say_started_json(node, config)
        await stop.wait()


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
