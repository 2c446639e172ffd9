"""A pair of nodes that can be killed at any point of their trade, and what must be true of their books afterwards."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from attrs import frozen

from ledger.database import Database, Place
from ledger.events import Event
from ledger.payload import decode_events
from ledger.records import Acknowledgement, open_record
from node.home import Home
from node.ports import SystemEntropy
from tests.integration.crashing_node import write_clock
from tests.integration.network import PATIENCE_S, PRICE, free_port, write_config

# Tokens of an answer with two checkpoints, and of a short one; what is settled at a time.
LONG, SHORT, SETTLED = 140, 5, 7
PROMPT: Final = "One evening a fox"  # of four tokens
COST: Final = 4 + 2 * LONG
_SETTLED: Final = f"{SETTLED / 1e6:.6f}usd"
# An order that nobody answered is over by then.
EXPIRY_S: Final = 900
# Books that need no order to expire agree so soon, and a point that is reached at all is reached so soon.
_QUICKLY_S: Final = 0.5
_REACHED_S: Final = 3.0
_TRIES: Final = 3
_ALL: Final = 100_000

Books = Mapping[str, Mapping[str, int]]


@frozen
class Point:
    """A point of a node's work, and which of those of its name in one run."""

    node: str
    name: str
    nth: int

    def __str__(self) -> str:
        return f"{self.node}, {self.name}" + (f" ({self.nth})" if self.nth > 1 else "")


@frozen
class Terms:
    """How far a seller trusts, and how many answers are audited before they are paid; of later ones each after."""

    window: str
    audited_first: int


PAID_IN_THE_END: Final = Terms("0.5usd", 1_000)
# A window that does not bear a whole answer.
PAID_ON_THE_WAY: Final = Terms("0.000250usd", 0)


class CrashingNode:
    """One node: a home, a ledger, an address, and a process that comes and goes."""

    def __init__(self, name: str, folder: Path, place: Place | None, server: Path, clock: Path) -> None:
        self.name, self._home, self._server, self._clock = name, Home(folder / name), server, clock
        self.did: Final = self._home.identity(SystemEntropy()).did
        self.port: Final = free_port()
        self.place: Final[Place] = place or self._home.ledger
        self.bank: Final = folder / f"{name}'s bank"
        self.promised: Final[list[tuple[int, str]]] = []  # entries that were called durable: sequence, hash
        self.killed_at: str | None = None
        self.url = self.token = ""
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._listening is not None and not self._listening.done()

    def configure(self, peer: "CrashingNode", terms: Terms) -> None:
        """Write its settings."""
        sections: dict[str, Any] = {
            "api": {"route": "peers"},
            "sell": {"price": PRICE, "open_credit": "1usd", "window": terms.window},
            "audit": {"rate": 1, "first": terms.audited_first},
        }
        if isinstance(self.place, str):
            sections["ledger"] = {"url": self.place}
        write_config(self._home.folder, sections, [(peer.did, f"http://127.0.0.1:{peer.port}")], self.port)

    async def start(self) -> None:
        """Fork its process, and wait until it is there."""
        reader, self._writer = await asyncio.open_unix_connection(self._server)
        self.killed_at, self._answers = None, asyncio.Queue()
        folder = self._home.folder
        settings = {"home": folder, "config": folder / "config.toml", "clock": self._clock, "log": folder / "log.txt"}
        settings["bank"] = self.bank
        await self._send(**{name: str(path) for name, path in settings.items()})
        self._listening = asyncio.create_task(self._listen(reader, self._writer))
        said = await self._answer()
        self.url, self.token = said["url"], said["token"]

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while text := await reader.readline():
                said = json.loads(text)
                match said:
                    case {"durable": [int(sequence), str(digest)]}:
                        self.promised.append((sequence, digest))
                    case {"killed": str(name)}:
                        self.killed_at = name
                    case _:
                        self._answers.put_nowait(said)
        except ConnectionError:
            pass
        finally:
            self._answers.put_nowait({"gone": True})
            writer.close()

    async def _send(self, **what: object) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(what).encode() + b"\n")
        await self._writer.drain()

    async def _answer(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            said = await self._answers.get()
        if "gone" in said:
            self._answers.put_nowait(said)
            raise Gone(self.name)
        assert "failed" not in said, f"{self.name}: {said['failed']}"
        return said

    async def do(self, what: str, **more: object) -> dict[str, Any]:
        """Give it a command, and wait for its answer. Raises Gone."""
        try:
            await self._send(do=what, **more)
        except ConnectionError:
            raise Gone(self.name) from None
        answer: dict[str, Any] = (await self._answer())["answer"]
        return answer

    async def stop(self) -> None:
        """End it in good order, if it runs."""
        if self.running and self._writer is not None and self._listening is not None:
            self._writer.write_eof()
            await asyncio.wait_for(self._listening, PATIENCE_S)

    async def dies(self, patience_s: float) -> bool:
        """Wait for its process to kill itself; whether it did."""
        assert self._listening is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._listening), patience_s)
        return self.killed_at is not None


class Gone(Exception):
    """The node's process is not there (any more)."""


@frozen
class Reply:
    """What a node answered its owner; headers by their names in small letters."""

    status: int
    headers: dict[str, str]
    body: Any


class Pair:
    """Two nodes that buy from each other."""

    def __init__(self, folder: Path, server: Path, place: Place | None = None, terms: Terms = PAID_IN_THE_END) -> None:
        """`place` is that of both ledgers, by default the files in their homes."""
        self._clock, self._moved, self._http = folder / "clock", 0, aiohttp.ClientSession()
        write_clock(self._clock, 0)
        self.buyer = CrashingNode("buyer", folder, place, server, self._clock)
        self.seller = CrashingNode("seller", folder, place, server, self._clock)
        self.nodes: Final = {"buyer": self.buyer, "seller": self.seller}
        self.buyer.configure(self.seller, terms)
        self.seller.configure(self.buyer, terms)

    async def __aenter__(self) -> "Pair":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._http.close()

    async def start(self) -> None:
        """Start whoever is not running, and let both meet."""
        await asyncio.gather(*(node.start() for node in self.nodes.values() if not node.running))
        for node in self.nodes.values():
            await node.do("refresh")

    async def stop(self) -> None:
        """End both in good order."""
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    def move_clock(self, seconds: int) -> None:
        """Let so many seconds pass for both; negative ones set the clock back."""
        self._moved += seconds
        write_clock(self._clock, self._moved)

    async def books(self) -> tuple[Books, Books]:
        """What the buyer says of what it bought and sold, and what the seller says of the same."""
        mine = (await self.buyer.do("books", peer=self.seller.did))["books"]
        theirs = (await self.seller.do("books", peer=self.buyer.did))["books"]
        return mine, {"bought": theirs["sold"], "sold": theirs["bought"]}

    # What owners do; a node that is gone, or refuses, is no error here

    async def order(self, by: CrashingNode, tokens: int) -> None:
        """Ask a node for an answer that the other one sells."""
        await self.ask(by, tokens, "X-IdleMesh-Degrade", "never")

    async def ask(self, node: CrashingNode, tokens: int, header: str, value: str) -> Reply | None:
        """Ask a node for an answer; None if it is gone."""
        body = {"model": "auto", "prompt": PROMPT, "max_tokens": tokens, "temperature": 1}
        return await self._call("POST", node, "/v1/completions", body, {header: value})

    async def receipts(self, node: CrashingNode) -> Reply:
        """The receipts that a node lists."""
        reply = await self._call("GET", node, "/node/v1/receipts")
        assert reply is not None
        return reply

    async def status(self, node: CrashingNode) -> Any:
        """What a node says that it does now."""
        reply = await self._call("GET", node, "/node/v1/status")
        assert reply is not None
        return reply.body

    async def ask_to_settle(self) -> None:
        """The buyer's owner says that it has paid."""
        await self._call("POST", self.buyer, f"/node/v1/settlements/{self.seller.did}/{_SETTLED}/ask")

    async def confirm(self) -> None:
        """The seller's owner says that it has arrived."""
        await self._call("POST", self.seller, f"/node/v1/settlements/{self.buyer.did}/{_SETTLED}/confirm")

    async def net(self) -> None:
        """The buyer's owner sets off what both owe."""
        await self._call("POST", self.buyer, f"/node/v1/nettings/{self.seller.did}")

    async def _call(
        self,
        method: str,
        node: CrashingNode,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply | None:
        authorized = {"Authorization": f"Bearer {node.token}", **(headers or {})}
        try:
            async with self._http.request(method, node.url + path, json=body, headers=authorized) as response:
                sent = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status, sent, await response.json())
        except aiohttp.ClientError:
            return None

    # What must become true

    async def agree(self, patience_s: float = PATIENCE_S) -> Books:
        """Wait until nothing is under way, and both books say the same; what they say. Raises Differ."""
        deadline = asyncio.get_running_loop().time() + patience_s
        mine, theirs = await self.books()
        while not self._say_the_same(mine, theirs) or not await self._idle():
            if asyncio.get_running_loop().time() > deadline:
                raise Differ(mine, theirs)
            await asyncio.sleep(0.01)
            mine, theirs = await self.books()
        return mine

    async def _idle(self) -> bool:
        return all([(await node.do("idle"))["idle"] for node in self.nodes.values()])

    def _say_the_same(self, mine: Books, theirs: Books) -> bool:
        """Whether nothing is open, and both books are the same."""
        return mine == theirs and not any(way["open"] for way in mine.values())

    async def recover(self) -> Books:
        """Start who was killed, let orders that nobody answered expire, and let both agree."""
        await self.start()
        with contextlib.suppress(Differ):
            return await self.agree(_QUICKLY_S)
        self.move_clock(EXPIRY_S)
        for node in self.nodes.values():
            await node.do("sweep")
        await self.start()  # who has kept running meets the other one again only after a while
        return await self.agree()


class Differ(AssertionError):
    """The books do not come to say the same."""

    def __init__(self, mine: Books | None, theirs: Books | None) -> None:
        super().__init__(f"the buyer's books say {mine}, the seller's {theirs}")


@frozen
class Stage:
    """A part of the trade: what owners do, one step after another, and again after a crash until it is done.

    `is_done` is asked with the books before and now; `is_right` in the end, when both sides agree.
    """

    name: str
    steps: Sequence[Callable[[Pair], Awaitable[None]]]
    is_done: Callable[[Books, Books], bool]
    is_right: Callable[[Books, Books], bool]
    prepare: Callable[[Pair], Awaitable[None]]

    async def run(self, pair: Pair, before: Books) -> None:
        """Take the steps until it is done. Raises Gone."""
        for step in self.steps:
            await step(pair)
            if self.is_done(before, (await pair.books())[0]):
                return


async def _nothing(_: Pair) -> None:
    """Needs no preparation."""


async def _owe_each_other(pair: Pair) -> None:
    await pair.order(pair.buyer, SHORT)
    await pair.order(pair.seller, SHORT)
    await pair.agree()


def _grown(before: Books, now: Books, name: str, way: str = "bought") -> int:
    return now[way][name] - before[way][name]


def _is_paid(before: Books, now: Books) -> bool:
    """What is owed for the order is acknowledged, and is not more than one order costs."""
    grown = _grown(before, now, "owed")
    return grown == _grown(before, now, "authorized") and 0 <= grown <= COST


def _is_settled(before: Books, now: Books) -> bool:
    return _grown(before, now, "settled") == SETTLED


def _is_netted(before: Books, now: Books) -> bool:
    mutual = min(before["bought"]["unsettled"], before["sold"]["unsettled"])
    return mutual > 0 and all(_grown(before, now, "netted", way) == mutual for way in ("bought", "sold"))


STAGES: Final = (
    Stage("order", [lambda pair: pair.order(pair.buyer, LONG)], lambda *_: True, _is_paid, _nothing),
    Stage("settlement", [Pair.ask_to_settle, Pair.confirm, Pair.ask_to_settle], _is_settled, _is_settled, _nothing),
    Stage("netting", [Pair.net], _is_netted, _is_netted, _owe_each_other),
)


async def points_of(pair: Pair, stage: Stage) -> list[Point]:
    """All points of both nodes in a stage, in a run without a crash."""
    await stage.prepare(pair)
    before = await pair.agree()
    for node in pair.nodes.values():
        await node.do("watch", fatal=None)
    await stage.run(pair, before)
    now = await pair.agree()
    assert stage.is_done(before, now)
    assert stage.is_right(before, now)
    found = []
    for name, node in pair.nodes.items():
        counted: Counter[str] = Counter()
        for passed in (await node.do("seen"))["seen"]:
            counted[passed] += 1
            found.append(Point(name, passed, counted[passed]))
    return found


async def crash(pair: Pair, stage: Stage, point: Point) -> bool:
    """Kill a node at a point of a stage, let both finish it, and check their books; whether the point was reached."""
    await stage.prepare(pair)
    before = await pair.agree()
    victim = pair.nodes[point.node]
    await victim.do("watch", fatal=[point.name, point.nth])
    with contextlib.suppress(Gone):
        await stage.run(pair, before)
    reached = await victim.dies(_REACHED_S)
    if not reached:
        await victim.do("seen")
    try:
        await finish(pair, stage, point, before)
    except Differ as error:
        error.add_note(f"{stage.name}, killed at {point}")
        raise
    return reached


async def finish(pair: Pair, stage: Stage, point: Point, before: Books) -> None:
    """After what happened at a point, let both finish the stage, and check their books."""
    await pair.start()
    # What only owners can know is done again by them, until it is there.
    for _ in range(_TRIES):
        if stage.is_done(before, (await pair.books())[0]):
            break
        await stage.run(pair, before)
    now = await pair.recover()
    assert stage.is_right(before, now), f"{stage.name}, {point}: {before} became {now}"


async def check_chain(node: CrashingNode, database: Database) -> list[Event]:
    """Check that a stopped node's chain is whole, and has every entry that was called durable; all its events."""
    entries = [entry async for entry in database.entries()]
    hashes = [entry.hash.hex() for entry in entries]
    lost = [sequence for sequence, promised in node.promised if hashes[sequence - 1 : sequence] != [promised]]
    assert not lost, f"{node.name} lost the entries {lost[:5]}"
    return [event for entry in entries for event in decode_events(entry.payload)]


async def check_ledger(node: CrashingNode) -> None:
    """Check a stopped node's ledger: the chain is whole, holds every entry that was ever called durable, and what was
    authorized is what the acknowledgements of each order say, once.
    """
    async with await Database.open(node.place, node.did) as database:
        await check_chain(node, database)
        granted: dict[tuple[str, bytes], int] = {}
        for kept in await database.list_records(Acknowledgement.kind, _ALL):
            said = open_record(kept.raw, Acknowledgement)
            order = said.signer, said.record.order
            granted[order] = max(granted.get(order, 0), said.record.amount)
        for key, account in database.books.accounts.items():
            acknowledged = sum(amount for (payer, _), amount in granted.items() if payer == key.payer)
            assert account.authorized == acknowledged, f"{node.name}: {account} is not what was acknowledged"
