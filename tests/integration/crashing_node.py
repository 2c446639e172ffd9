"""Nodes that kill themselves at a chosen point, and start again in a moment: the hand that injects crashes.

`python -m tests.integration.crashing_node SOCKET` loads everything once and then forks a node for each connection to
that socket. The connection carries lines of JSON: first the node's settings, then commands, and one answer for each.

A point is a moment in the life of a change, named after what it writes or sends. Those of the database are found by
SQLAlchemy's events, whatever the code above it does: before the first row, before the commit, and after the commit,
before anybody is told. Others lie on both sides of each message to a peer and of each one from a peer, of each request
to a rail, and of what its bank does. None of this is in the node's own code.
"""

import asyncio
import contextlib
import functools
import json
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

import node.app
from ledger.account import AccountKey
from ledger.codec import Malformed
from ledger.database import Database, postgres  # noqa: F401 - so that no node has to import the driver
from ledger.effects import EffectPlanned, EffectTold
from ledger.events import AccountChanged, Event, FeePaid, InvalidEvents, Observed, RecordKept
from ledger.payload import decode_events
from ledger.rails import credit
from ledger.rails.scripted import ScriptedRail
from ledger.records import Fingerprint
from node.app import Node, run_node
from node.config import load_config
from node.engine.calibration import CalibrationFiles
from node.engine.hardware import Plan
from node.engine.memory import FINGERPRINT, MemoryEngine
from node.engine.port import Engine, Rows
from node.exchange import outbox
from node.exchange.auditor import Auditor
from node.exchange.delivery import Incoming
from node.exchange.netting import Netter
from node.exchange.seller import Seller
from node.exchange.settling import Settling
from node.home import Home
from node.models.manifest import Manifest
from node.models.template import TemplateRenderer
from node.models.vocab import open_vocab
from node.ports import SystemClock
from node.wire.client import HttpPeer
from node.wire.messages import Refused, Unreachable
from tests.integration.banking import FileBank, Teller, silence
from tests.integration.forking import fork_nodes
from tests.integration.network import PRICE, write_config
from verify.calibration import BINS, STRATA, Calibration

# What a node hands to its peers and takes from them; each is a moment before and one after.
_OUTGOING: Final = ("acknowledge", "settlement", "netting")
_INCOMING: Final = ((Seller, "acknowledge"), (Settling, "settlement"), (Netter, "netting"))
# What comes along with the first order of an offer, or under new terms, and so not every time.
_FIRST_TIME: Final = frozenset({"offer", "Granted"})
# A seller that was killed is back at once.
_RETRY_S: Final = (0.02, 0.1)
_CLOCK: Final = struct.Struct("<q")


class Line:
    """The way back to the test: a line of JSON each, from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def say(self, **what: object) -> None:
        with self._lock:
            self._connection.sendall(json.dumps(what).encode() + b"\n")


class Points:
    """The points that are passed while the test watches; the process does not survive the one it was told."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._fatal: tuple[str, int] | None = None
        self._disk = False
        self._passed: list[str] | None = None

    def watch(self, fatal: tuple[str, int] | None, disk: bool = False) -> None:
        """From now on; `fatal` is a point's name and which of those of this name.

        `disk`: the process survives it, and its disk takes nothing more until `let_write`.
        """
        with self._lock:
            self._fatal, self._disk, self._passed = fatal, disk, []

    def seen(self) -> list[str]:
        """The points passed, in order; nothing is watched any more."""
        with self._lock:
            passed, self._passed = self._passed or [], None
            return passed

    def reach(self, name: str) -> None:
        """This moment has come."""
        with self._lock:
            if self._passed is None:
                return
            self._passed.append(name)
            if self._fatal != (name, Counter(self._passed)[name]):
                return
            if self._disk:
                let_write(False)
                return
            self._line.say(killed=name)
            os.kill(os.getpid(), signal.SIGKILL)


def let_write(on: bool) -> None:
    """Whether this process may write to files: the kernel refuses each byte beyond a limit of 0, whatever the disk."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if on else 0, most))


def watch_database(points: Points) -> None:
    """Name the moments of every transaction that writes."""
    written: dict[sa.Connection, str] = {}
    committing = threading.local()

    def before(connection: sa.Connection, _: Any, statement: str, rows: Any, *__: Any) -> None:
        name = _name_of(statement, rows)
        if name is not None and connection not in written:
            written[connection] = name
            points.reach(f"{name}: before the first row")

    def before_commit(connection: sa.Connection) -> None:
        name = written.pop(connection, None)
        if name is not None:
            points.reach(f"{name}: before the commit")
        committing.name = name

    def rolled_back(connection: sa.Connection) -> None:
        written.pop(connection, None)

    def commit(self: DefaultDialect, connection: Any) -> None:
        name, committing.name = getattr(committing, "name", None), None
        original(self, connection)
        if name is not None:
            points.reach(f"{name}: after the commit")

    original: Callable[[DefaultDialect, Any], None] = DefaultDialect.do_commit
    _replace(DefaultDialect, "do_commit", commit)
    sa.event.listen(sa.Engine, "before_cursor_execute", before)
    sa.event.listen(sa.Engine, "commit", before_commit)
    sa.event.listen(sa.Engine, "rollback", rolled_back)


def _name_of(statement: str, rows: Any) -> str | None:
    """What a statement writes: the events of its entries, or else its table; None if it writes nothing."""
    words = statement.split(maxsplit=3)
    if words[0] not in ("INSERT", "UPDATE", "DELETE"):
        return None
    events = dict.fromkeys(name for value in _bytes_in(rows) for name in _events_in(value))
    return " ".join([name for name in events if name not in _FIRST_TIME] or events) or " ".join(words[:3])


def _bytes_in(rows: Any) -> Iterator[bytes]:
    """The bytes of a row, of a list of rows or of a list of columns, as it suits the driver."""
    for value in rows:
        if isinstance(value, bytes):
            yield value
        elif isinstance(value, list | tuple):
            yield from _bytes_in(value)


def _events_in(value: bytes) -> list[str]:
    try:
        return [_event_name(event) for event in decode_events(value)]
    except InvalidEvents:
        return []


def _event_name(event: Event) -> str:
    match event:
        case AccountChanged(_, change):
            return type(change).__name__
        case RecordKept(kind):
            return kind
        case Observed(_, what):
            return what
        case EffectPlanned(effect):
            return f"{effect.kind} planned"
        case EffectTold(_, _, news):
            return f"effect {news}"
        case FeePaid():
            return "fee paid"


def watch_messages(points: Points) -> None:
    """Name the moments on both sides of what is handed over, taken, audited and received."""
    for name in _OUTGOING:
        _wrap(points, HttpPeer, name, f"{name} handed over")
    for owner, name in _INCOMING:
        _wrap(points, owner, name, f"{name} taken")
    _wrap(points, Auditor, "audit", "audit")
    checked = Incoming.check

    def check(self: Incoming, raw: bytes) -> None:
        checked(self, raw)
        points.reach("checkpoint received")

    _replace(Incoming, "check", check)


def watch_rails(points: Points) -> None:
    """Name the moments on both sides of what a rail is asked; its bank names those of its own."""
    _wrap(points, ScriptedRail, "perform", "the rail is told")
    _wrap(points, ScriptedRail, "fate", "the rail is asked")


def _wrap(points: Points, owner: type, name: str, said: str) -> None:
    original: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @functools.wraps(original)
    async def wrapped(*arguments: Any, **options: Any) -> Any:
        points.reach(f"{said}: before")
        result = await original(*arguments, **options)
        points.reach(f"{said}: after")
        return result

    _replace(owner, name, wrapped)


def _replace(owner: object, name: str, by: object) -> None:
    setattr(owner, name, by)


def watch_promises(line: Line) -> None:
    """Tell the test of every entry that was called durable, as soon as it was."""
    original = Database.append

    async def append(self: Database, *arguments: Any, **options: Any) -> Any:
        entry = await original(self, *arguments, **options)
        line.say(durable=[entry.sequence, entry.hash.hex()])
        return entry

    _replace(Database, "append", append)


class StoryEngine(MemoryEngine):
    """Never ends an answer by itself, and gives only tokens that are text: each answer has the length ordered."""

    def __init__(self, manifest: Manifest, silent: frozenset[int], **settings: Any) -> None:
        super().__init__(manifest, eog=frozenset(), **settings)
        self._silent = sorted(silent)

    def logits(self, ids: Any) -> Rows:
        rows = super().logits(ids)
        rows[self._silent] = float("-inf")
        return rows


async def load_story(path: Path, manifest: Manifest, _plan: Plan) -> Engine:
    vocab = open_vocab(path)
    try:
        return StoryEngine(manifest, vocab.eog | vocab.control, vocabulary=vocab.size, slots=4)
    finally:
        vocab.close()


def _calibration(_: CalibrationFiles, model: bytes, seller: Fingerprint, checker: Fingerprint) -> Calibration | None:
    """Engines of this kind agree to the last bit."""
    if not seller == checker == FINGERPRINT:
        return None
    return Calibration(seller, checker, model, dict.fromkeys(STRATA, (1_000_000, *(0,) * (BINS - 1))))


async def _no_templates(_: TemplateRenderer) -> None:
    """The renderer's process is started at the first conversation, and here there is none."""


class SharedClock:
    """The machine's clock, moved by so many seconds as a file says that the test writes."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as opened:
            self._moved = mmap(opened.fileno(), _CLOCK.size, access=ACCESS_READ)
        self._system = SystemClock()

    def now(self) -> float:
        return self._system.now() + float(_CLOCK.unpack(self._moved[:])[0])


def write_clock(file: Path, seconds: int) -> None:
    """Move the clock of all nodes that share it."""
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(_CLOCK.pack(seconds))


class Controlled:
    """A node, and the commands that the test gives it."""

    def __init__(self, node: Node, points: Points, sweeps: Sequence[Any], teller: Teller) -> None:
        self._node, self._points, self._sweeps, self._teller = node, points, sweeps, teller

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do as told; what the test hears."""
        match command["do"]:
            case "watch":
                fatal = command["fatal"]
                self._points.watch(None if fatal is None else (fatal[0], fatal[1]), command.get("disk", False))
            case "write":
                let_write(command["on"])
            case "seen":
                return {"seen": self._points.seen()}
            case "sweep":
                for one in self._sweeps:
                    if isinstance(swept := one.sweep(), Awaitable):  # the pool's is done at once
                        await swept
            case "refresh":
                for did in self._node.peers.dids:
                    with contextlib.suppress(Refused, Unreachable, Malformed):  # as the node itself takes it
                        await self._node.peers.refresh(did)
            case "books":
                return {"books": self._books(command["peer"])}
            case "idle":
                return {"idle": self._node.settler.idle and not self._node.book.under_way}
            case "teller":
                return await self._teller.obey(command)
        return {}

    def _books(self, peer: str) -> dict[str, dict[str, int]]:
        """What both directions of the pair add up to."""
        me = self._node.did
        accounts = self._node.book.journal.books
        keys = {"bought": AccountKey(me, peer, "credit", "uusd"), "sold": AccountKey(peer, me, "credit", "uusd")}
        named = ("earned", "owed", "authorized", "settled", "netted", "forgiven", "reserved", "unsettled")
        return {
            way: {name: getattr(accounts.account(key), name) for name in named}
            | {"open": sum(order.open for order in accounts.account(key).orders.values())}
            for way, key in keys.items()
        }


async def _run(settings: dict[str, Any], line: Line, points: Points, commands: Callable[[], Awaitable[str]]) -> None:
    sweeps: list[Any] = []

    async def no_sweep(*services: Any) -> None:
        # Once a minute would be at any moment of the test; it says when.
        sweeps.extend(service for service in services if service is not None)

    _replace(node.app, "_sweep", no_sweep)
    clock = SharedClock(Path(settings["clock"]))
    config, home = load_config(Path(settings["config"]), {}), Home(Path(settings["home"]))
    rail = ScriptedRail(FileBank.open(Path(settings["bank"]), points.reach), silence)
    async with run_node(home, config, load_story, clock, rails=[credit, rail]) as running:
        await asyncio.sleep(0)  # the sweep's task has begun, and told what it would sweep
        line.say(url=running.url, did=running.did, token=running.token)
        controlled = Controlled(running, points, sweeps, Teller(running, rail))
        while text := await commands():
            command = json.loads(text)
            if command["do"] == "stop":
                break
            line.say(answer=await controlled.obey(command))


def _be_a_node(connection: socket.socket) -> None:
    line = Line(connection)
    incoming = connection.makefile("r")
    settings = json.loads(incoming.readline())
    with Path(settings["log"]).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    points = Points(line)
    watch_database(points)
    watch_messages(points)
    watch_rails(points)
    watch_promises(line)
    for name, wait_s in zip(("_FIRST_RETRY_S", "_LAST_RETRY_S"), _RETRY_S, strict=True):
        _replace(outbox, name, wait_s)
    _replace(CalibrationFiles, "find", _calibration)
    _replace(TemplateRenderer, "start", _no_templates)

    async def run() -> None:
        arrived: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listen() -> None:
            for text in incoming:
                loop.call_soon_threadsafe(arrived.put_nowait, text)
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(arrived.put_nowait, "")

        threading.Thread(target=listen, daemon=True).start()
        await _run(settings, line, points, arrived.get)

    try:
        asyncio.run(run())
    except BaseException as error:
        with contextlib.suppress(OSError):
            line.say(failed=f"{type(error).__name__}: {error}")
        raise


async def _warm_up() -> None:
    """Run a node once, for all that a process imports, compiles and reads only the first time."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        config = write_config(home.folder, {"sell": {"price": PRICE}}, [], 0)
        async with run_node(home, load_config(config, {}), load_story):
            pass


def main() -> None:
    """Load everything, and fork a node for each connection."""
    asyncio.run(_warm_up())
    fork_nodes(_be_a_node)


if __name__ == "__main__":
    main()
