"""The tour: an owner buys stories from two sellers, checks them, condemns the cheat and pays for the honest work."""

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console

from node.config import DEFAULT_PORT, DEMO_MODEL
from node.demo.calibration import lend
from node.demo.figures import Seen, balanced, compute
from node.demo.narrator import Narrator
from node.demo.owner import Owner, poll
from node.demo.processes import NodeDidNotStart, NodeProcess, start_node
from node.demo.prompts import stories
from node.engine.calibration import CalibrationFiles
from node.home import Home
from node.models.llama import quantize

ORDERS: Final = 36
HONEST_PRICE: Final = "0.05usd:0.15usd"
# A little cheaper, as those are who sell something else than they say.
CHEAT_PRICE: Final = "0.04usd:0.12usd"
CHEAP_WEIGHTS: Final = "Q2_K"
_SETTLE_S: Final = 60.0

_SELLER_CONFIG: Final = """\
[node]
port = 0
threads = 1
gpu_layers = 0

[sell]
price = "{price}"

# Three nodes share this machine: each would take the others for its owner.
[idle]
enabled = false
"""
# Several engines on the same cores slow each other down, so each gets one thread; on a GPU, honest margins would have
# to be calibrated first. A quarter of the later receipts is audited, so that there is something to see.
_OWNER_CONFIG: Final = """\
[node]
port = {port}
threads = 1
gpu_layers = 0

[api]
route = "peers"

[audit]
rate = 0.25
"""


class TourFailed(Exception):
    """The tour cannot go on; the message says why."""


class Tour:
    """One run of the demo. `once` ends it after the story; `quiet` tells nothing; `port` None takes a fitting one."""

    def __init__(self, *, honest_only: bool, once: bool, port: int | None, quiet: bool) -> None:
        self._honest_only = honest_only
        self._once = once
        self._port = port if port is not None else 0 if once else DEFAULT_PORT
        self._say = Narrator(Console(quiet=quiet, highlight=False, emoji=False))

    def run(self) -> dict[str, Any]:
        """Go through it; the figures are returned once it has ended. Raises TourFailed."""
        with self._folder() as folder:
            try:
                return self._go(folder)
            except NodeDidNotStart as error:
                raise TourFailed(str(error)) from None

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="idlemesh-demo-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _go(self, folder: Path) -> dict[str, Any]:
        # However it is ended, the nodes end with it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._say.opening(self._honest_only)
        weights = self._weights(folder)
        with contextlib.ExitStack() as nodes:
            honest = self._start(nodes, "the honest seller", folder / "honest", _honest)
            cheat = self._start(nodes, "the cheaper seller", folder / "cheat", lambda home: _cheat(home, weights))
            sellers = [honest, cheat]
            owner = self._start(nodes, "the owner's node", folder / "owner", lambda home: self._owner(home, sellers))
            self._say.nodes(owner, honest, cheat, self._honest_only)
            figures = asyncio.run(self._trade(owner, honest, cheat))
            self._say.ending(figures)
            if not self._once:
                self._say.goodbye(owner.running.url)
                with contextlib.suppress(KeyboardInterrupt):
                    owner.process.wait()
        return figures

    def _weights(self, folder: Path) -> Path:
        """What the second seller really runs."""
        if self._honest_only:
            return DEMO_MODEL
        target = folder / f"{CHEAP_WEIGHTS}.gguf"
        with self._say.busy(f"Making the cheat's weights: {CHEAP_WEIGHTS} out of Q8_0…"):
            quantize(DEMO_MODEL, target, CHEAP_WEIGHTS)
        return target

    def _start(
        self, nodes: contextlib.ExitStack, name: str, home: Path, command: Callable[[Path], list[str]]
    ) -> NodeProcess:
        with self._say.busy(f"Starting {name}…"):
            return nodes.enter_context(start_node(name, home, command(home)))

    def _owner(self, home: Path, sellers: list[NodeProcess]) -> list[str]:
        lend(CalibrationFiles(Home(home).calibrations))
        peers = [f"--peer={seller.running.did}@{seller.running.url}" for seller in sellers]
        return [*_up(home, _OWNER_CONFIG.format(port=self._port)), *peers]

    async def _trade(self, owner: NodeProcess, honest: NodeProcess, cheat: NodeProcess) -> dict[str, Any]:
        names = {honest.running.did: "honest", cheat.running.did: "cheat"}
        async with aiohttp.ClientSession() as session:
            buyer = Owner(session, owner.running)
            await self._until(buyer.offers_are_here(len(names)), "the sellers' offers did not arrive")
            told: set[str] = set()
            for number, prompt in enumerate(stories(ORDERS), 1):
                with self._say.story(number, ORDERS, prompt) as line:
                    answer = await buyer.buy(prompt, line.add)
                    if answer.get("route") not in names:
                        raise TourFailed(f"no seller answered: {answer.get('degraded', 'nobody said why')}")
                    line.end(names[answer["route"]], answer)
                self._say.news(await buyer.peers(), names, told)
            sellers = {seller.running.did: Owner(session, seller.running) for seller in (honest, cheat)}

            async def accounts_agree() -> bool:
                return balanced(await buyer.accounts(), {did: await hand.accounts() for did, hand in sellers.items()})

            with self._say.busy("Waiting until everything is settled…"):
                await self._until(buyer.all_is_settled(ORDERS), "not everything was settled in time")
                await self._until(poll(accounts_agree), "the accounts of both sides did not come to agree in time")
            with self._say.busy("Checking every receipt again, from what both sides signed…"):
                receipts = await buyer.receipts(ORDERS)
                exports = [await buyer.export(receipt["id"]) for receipt in receipts]
                seen = Seen(
                    orders=ORDERS,
                    receipts=receipts,
                    exports=exports,
                    peers=await buyer.peers(),
                    owner_accounts=await buyer.accounts(),
                    seller_accounts={
                        seller.running.did: await Owner(session, seller.running).accounts()
                        for seller in (honest, cheat)
                    },
                    names=names,
                )
        return compute(seen, self._honest_only)

    async def _until(self, condition: Any, otherwise: str) -> None:
        try:
            async with asyncio.timeout(_SETTLE_S):
                await condition
        except TimeoutError:
            raise TourFailed(otherwise) from None


def _up(home: Path, config: str) -> list[str]:
    return ["node.cli", "up", "--json", "--home", str(home), "--config", str(_write(home, config))]


def _honest(home: Path) -> list[str]:
    return _up(home, _SELLER_CONFIG.format(price=HONEST_PRICE))


def _cheat(home: Path, weights: Path) -> list[str]:
    config = _write(home, _SELLER_CONFIG.format(price=CHEAT_PRICE))
    return ["node.demo.cheat", "--home", str(home), "--config", str(config), "--weights", str(weights)]


def _write(folder: Path, config: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.toml"
    path.write_text(config)
    return path
