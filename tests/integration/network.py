"""Nodes as processes of their own on loopback, and what tests ask of them."""

import asyncio
import contextlib
import json
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import openai
from attrs import frozen
from openai.types.chat import ChatCompletionMessageParam

from ledger.identity import Did
from ledger.money import Amount, parse_amount
from node.demo.owner import Owner
from node.demo.processes import NodeProcess, start_node
from node.home import Home
from node.ports import SystemEntropy

STORY: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "Tell me a story about a fox."}]
# A millionth of a dollar for a prompt token, two for an output token.
PRICE: Final = "1usd:2usd"
# Sections by their names; a list stands for several of one name.
Sections = dict[str, Any]
# Trust enough for the longest answer at that price.
SELLER: Final[Sections] = {"sell": {"price": PRICE, "open_credit": "0.1usd"}}
# Bought only, and paid without a look: what audits find is the demo's business.
BUYER: Final[Sections] = {"api": {"route": "peers"}, "audit": {"rate": 0, "first": 0}}
# Whatever is waited for comes within a second or two, unless the machine is very busy.
PATIENCE_S: Final = 30.0


def free_port() -> int:
    """A port that nobody listens on, for nodes that must come back at the same address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def did_in(folder: Path) -> Did:
    """The identity of the node whose home this is."""
    return Home(folder).identity(SystemEntropy()).did


def write_config(folder: Path, sections: Sections, peers: Sequence[tuple[str, str]], port: int) -> Path:
    """Settings for one core of this machine, which is never idle while tests run."""
    folder.mkdir(parents=True, exist_ok=True)
    whole: Sections = {"node": {"port": port, "threads": 1}, "idle": {"enabled": False}}
    for name, values in sections.items():
        whole[name] = values if isinstance(values, list) else whole.get(name, {}) | values
    lines = []
    for name, values in whole.items():
        # What JSON writes for numbers, text and truth is TOML as well.
        for table in values if isinstance(values, list) else [values]:
            head = f"[[{name}]]" if isinstance(values, list) else f"[{name}]"
            lines += [head, *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    for did, url in peers:
        lines += ["[[peers]]", f'did = "{did}"', f'url = "{url}"']
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def starting(
    folder: Path,
    sections: Sections,
    peers: Sequence[tuple[str, str]] = (),
    port: int = 0,
    module: str = "node.cli",
    arguments: Sequence[object] = (),
) -> contextlib.AbstractContextManager[NodeProcess]:
    """A node in this folder; `module` is run instead of the ordinary one, `arguments` are added."""
    config = write_config(folder, sections, peers, port)
    command = ["up", "--json"] if module == "node.cli" else []
    settings = ["--home", str(folder), "--config", str(config), *map(str, arguments)]
    return start_node(folder.name, folder, [module, *command, *settings])


class Network:
    """The nodes of one test; they are stopped when it ends."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack

    async def up(
        self,
        name: str,
        sections: Sections,
        peers: Sequence[tuple[str, str]] = (),
        port: int = 0,
        module: str = "node.cli",
        arguments: Sequence[object] = (),
    ) -> NodeProcess:
        """Start a node; the same name is the same home again."""
        node = starting(self.folder / name, sections, peers, port, module, arguments)
        started = await asyncio.to_thread(node.__enter__)
        self._stack.push_async_callback(asyncio.to_thread, node.__exit__, None, None, None)
        return started


def way_to(node: NodeProcess) -> tuple[str, str]:
    """How an owner names a peer."""
    return node.running.did, node.running.url


async def kill(node: NodeProcess) -> None:
    """End a node as a power cut would."""
    node.process.kill()
    await asyncio.to_thread(node.process.wait)


async def terminate(node: NodeProcess) -> int:
    """End a node as its owner would; its exit status."""
    node.process.terminate()
    return await asyncio.to_thread(node.process.wait, PATIENCE_S)


@contextlib.asynccontextmanager
async def owner_of(node: NodeProcess) -> AsyncIterator[Owner]:
    """The owner's door to a node."""
    async with aiohttp.ClientSession() as session:
        yield Owner(session, node.running)


@contextlib.asynccontextmanager
async def client_of(node: NodeProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client for a node; it does not try again."""
    async with openai.AsyncOpenAI(
        base_url=node.running.url + "/v1", api_key="local", max_retries=0, timeout=PATIENCE_S
    ) as client:
        yield client


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, another process, until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - another process sets no event here
            await asyncio.sleep(0.02)


async def sellers_are_known(node: NodeProcess, count: int = 1) -> None:
    """Return once the offers of so many sellers have arrived."""
    async with owner_of(node) as owner, asyncio.timeout(PATIENCE_S):
        await owner.offers_are_here(count)


@frozen
class Balance:
    """One account, in millionths of a dollar."""

    earned: int
    authorized: int
    reserved: int
    unpaid: int


async def balance(node: NodeProcess, peer: str) -> Balance:
    """What a node's journal says of its account with a peer; the chain is whole, and the balances add up."""
    async with owner_of(node) as owner:
        body = await owner.accounts()
    assert (body["chain"], body["balanced"]) == ("intact", True)
    rows = [row for row in body["accounts"] if row["peer"] == peer]
    if not rows:
        return Balance(0, 0, 0, 0)
    (row,) = rows
    return Balance(*(parse_amount(row[name]).value for name in ("earned", "authorized", "reserved", "unpaid")))


async def closed(node: NodeProcess, peer: str) -> Balance:
    """The account with a peer, once a node has settled all its orders there."""

    async def is_closed() -> bool:
        books = await balance(node, peer)
        return not books.reserved and not books.unpaid

    await until(is_closed)
    return await balance(node, peer)


async def settled(buyer: NodeProcess, seller: NodeProcess) -> Balance:
    """Wait until both sides' books are closed and say the same; what they say."""

    async def agree() -> bool:
        mine = await balance(buyer, seller.running.did)
        theirs = await balance(seller, buyer.running.did)
        return mine == theirs and not mine.reserved and not mine.unpaid

    try:
        await until(agree)
    except TimeoutError:
        mine, theirs = await balance(buyer, seller.running.did), await balance(seller, buyer.running.did)
        raise AssertionError(f"the buyer's book says {mine}, the seller's {theirs}") from None
    return await balance(buyer, seller.running.did)


def usd(text: str) -> int:
    """An amount as the API writes it, in millionths of a dollar."""
    amount = parse_amount(text)
    assert amount == Amount(amount.value, "uusd")
    return amount.value


class Wiretap:
    """A way to a node that remembers the requests that went over it, and may change what comes back."""

    def __init__(self, target: str, change: Callable[[bytes], bytes] = bytes) -> None:
        """`change` is given each piece that the node sends."""
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._change = change
        self._dropped: bytes | None = None
        self._heard = bytearray()
        self.url = ""

    @property
    def heard(self) -> bytes:
        """All that was sent to the node."""
        return bytes(self._heard)

    @property
    def orders(self) -> int:
        """How many orders went over it."""
        return self.heard.count(b"POST /mesh/v1/orders ")

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        back = None
        try:
            there, back = await asyncio.open_connection(*self._target)
            await asyncio.gather(_pass(reader, back, self._hear), _pass(there, writer, self._change))
        except OSError:
            pass  # one end is gone, and with it goes the other
        finally:
            for end in (writer, back):
                if end is not None:
                    end.transport.abort()

    def drop(self, head: bytes) -> None:
        """From now on, cut the connections on which such a request comes, before it arrives."""
        self._dropped = head

    def allow(self) -> None:
        """From now on, let everything through."""
        self._dropped = None

    def _hear(self, piece: bytes) -> bytes:
        if self._dropped is not None and self._dropped in piece:
            raise ConnectionAbortedError
        self._heard += piece
        return piece


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, through: Callable[[bytes], bytes]) -> None:
    while piece := await reader.read(65_536):
        writer.write(through(piece))
        await writer.drain()
    writer.write_eof()


@contextlib.asynccontextmanager
async def tapped(target: str, change: Callable[[bytes], bytes] = bytes) -> AsyncIterator[Wiretap]:
    """A wiretap that listens."""
    tap = Wiretap(target, change)
    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(tap.relay(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    tap.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield tap
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@frozen
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


async def idlemesh(*arguments: object) -> Said:
    """Run the command in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli", *map(str, arguments), stdout=PIPE, stderr=PIPE, stdin=DEVNULL
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())
