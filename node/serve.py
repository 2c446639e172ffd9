"""Run a node as a process: until Ctrl-C or a termination signal."""

import asyncio
import contextlib
import json
import logging
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from rich.console import Console

from node.app import Node, load_llama, run_node
from node.config import Config
from node.home import Home
from node.own_models import LoadEngine

_FILES: Final = 65_536

Started = Callable[[Node, Config], None]


def say_started_json(node: Node, config: Config) -> None:
    """Tell scripts, in one line."""
    models = [model.name for model in node.own.models]
    body = {"url": node.url, "did": node.did, "sells": bool(config.prices), "models": models}
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()


def serve(home: Home, config: Config, started: Started, load_engine: LoadEngine = load_llama) -> None:
    """Run a node until it is told to stop. Raises what `run_node` raises."""
    _allow_many_connections()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(home, config, started, load_engine))


async def _serve(home: Home, config: Config, started: Started, load_engine: LoadEngine) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with Console(stderr=True).status("Looking at the models…") as status:
        context = run_node(home, config, load_engine, say=status.update)
        node = await context.__aenter__()
    try:
        started(node, config)
        await stop.wait()
    finally:
        await context.__aexit__(None, None, None)


def _allow_many_connections() -> None:
    """As many open files as the system lets this process have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems let none be raised so far
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))


def _loop_factory() -> Callable[[], Any] | None:
    try:
        import uvloop
    except ImportError:  # not made for this system: asyncio's own loop does the same, a little slower
        return None
    return uvloop.new_event_loop
