"""A whole node in this process, on a real socket, in a thread of its own: the clients under test may block."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from ledger.identity import Did
from node.app import Node, load_llama, run_node
from node.config import Config, load_config
from node.engine.hardware import Plan
from node.engine.port import Engine
from node.home import Home
from node.models.manifest import Manifest
from node.own_models import LoadEngine

MODEL: Final = "idlemesh-demo-q8_0"
# In the owner's catalogue, and offered by nobody.
OUT_OF_REACH: Final = "a-large-model"


@frozen
class RunningNode:
    """Where a node is reached; `engine` may be looked at from any thread."""

    url: str
    did: Did
    token: str
    engine: Engine

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return self.url + "/v1"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def settings(**sections: dict[str, Any]) -> Config:
    """A configuration for one core and any free port, on a machine that is never idle while tests run."""
    sections.setdefault("node", {})
    sections["node"] = {"port": 0, "threads": 1, **sections["node"]}
    sections["idle"] = {"enabled": False, **sections.get("idle", {})}
    return load_config(None, sections)


@contextlib.contextmanager
def running_node(folder: Path, config: Config, load_engine: LoadEngine = load_llama) -> Iterator[RunningNode]:
    """Run a node until the context is left. Raises what `run_node` raises."""
    ready: Future[RunningNode] = Future()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    engines: list[Engine] = []

    async def load(path: Path, manifest: Manifest, plan: Plan) -> Engine:
        engines.append(await load_engine(path, manifest, plan))
        return engines[-1]

    async def run() -> None:
        try:
            async with run_node(Home(folder), config, load) as node:
                ready.set_result(_seen(node, engines[0]))
                await stop.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    def serve() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=serve, name="node")
    thread.start()
    try:
        yield ready.result(60)
    finally:
        with contextlib.suppress(RuntimeError):  # its loop is closed already: the node did not start
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


def _seen(node: Node, engine: Engine) -> RunningNode:
    return RunningNode(node.url, node.did, node.token, engine)


@frozen
class Reply:
    """What a node answered."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    node: RunningNode, method: str, path: str, body: bytes | object = b"", headers: dict[str, str] | None = None
) -> Reply:
    """Ask a node by plain HTTP, as any program might; a body that is not bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with contextlib.closing(HTTPConnection("127.0.0.1", node.port, timeout=60)) as connection:
        connection.request(method, path, raw or None, headers or {})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
