"""What an order takes that a channel pays for, against one on credit, in the same run.

Two buyers, each with a seller of its own, all processes on loopback with the same engine, which takes no time: one pair
trades on credit, the other by a channel on a chain that runs here too. They take turns, so that all meet the same
machine. Everything of an order counts that a client waits for: it is paid by a voucher before the next one begins.
"""

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop
from attrs import frozen

from benchmarks.report import Row
from ledger.money import parse_amount
from ledger.rails.stablecoin.keys import create_keystore
from node.demo.processes import NodeProcess
from node.owner_client import owner_client
from tests.chain import Anvil, running
from tests.integration.network import BUYER, PRICE, STORY, starting, way_to

RAILS: Final = ("credit", "stablecoin")
WARM_UP: Final = 10
ALONE: Final = 100
# Together: so many orders at a time, in so many rounds of so many.
AT_ONCE: Final = 8
ROUNDS: Final = 5
OF_A_ROUND: Final = 100
_DEPOSIT: Final = 2_000_000
_WAIT_S: Final = 60.0
_NODE: Final = "tests.integration.hurried_node"


@frozen
class Took:
    """What orders on one rail took: milliseconds alone, and how many were done in a second, by rounds."""

    alone: list[float]
    per_second: list[float]


def overhead() -> Sequence[Row]:
    """Orders by channel against orders on credit."""
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(running())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idlemesh-orders-")))
        buyers = {rail: _pair(stack, chain, folder / rail, rail) for rail in RAILS}
        return list(_rows(uvloop.run(_measure(buyers))))


def _pair(stack: contextlib.ExitStack, chain: Anvil, folder: Path, rail: str) -> NodeProcess:
    """A buyer that knows a seller, who takes nothing but this rail."""
    credit = "10usd" if rail == "credit" else "0usd"
    selling: dict[str, Any] = {"price": PRICE, "open_credit": credit, "window": "0.1usd", "exposure": "10usd"}
    sections: list[dict[str, Any]] = [{"sell": selling, "node": {"slots": 16}}, dict(BUYER)]
    if rail == "stablecoin":
        for name, section, dollars in zip(("seller", "buyer"), sections, (0, 2 * _DEPOSIT), strict=True):
            section["stablecoin"] = _wallet(chain, folder / name, dollars)
        sections[1]["stablecoin"] |= {"deposit": "2usd"}
    seller = stack.enter_context(starting(folder / "seller", sections[0], module=_NODE))
    return stack.enter_context(starting(folder / "buyer", sections[1], [way_to(seller)], module=_NODE))


def _wallet(chain: Anvil, folder: Path, dollars: int) -> dict[str, Any]:
    """The settings of a node with so much money."""
    folder.mkdir(parents=True)
    (folder / "passphrase").write_text("for benchmarks")
    create_keystore(folder / "wallet.json", "for benchmarks", secret=bytes(chain.wallet(dollars).key), cost=2)
    return {
        "network": "anvil",
        "rpc": [chain.url],
        "contract": chain.deployed.channels,
        "confirmations": 0,
        "passphrase_file": str(folder / "passphrase"),
        "min_deposit": "0.1usd",
        "claim_at": "1000usd",
    }


async def _measure(buyers: dict[str, NodeProcess]) -> dict[str, Took]:
    found = {rail: Took([], []) for rail in buyers}
    async with aiohttp.ClientSession() as session:
        for buyer in buyers.values():
            await _until_it_buys(session, buyer)
        for n in range(WARM_UP + ALONE):
            for rail, buyer in buyers.items():
                took = await _order(session, buyer)
                if n >= WARM_UP:
                    found[rail].alone.append(1_000 * took)
        for _ in range(ROUNDS):
            for rail, buyer in buyers.items():
                found[rail].per_second.append(OF_A_ROUND / await _round(session, buyer))
    for rail, buyer in buyers.items():
        await _check(rail, buyer)
    return found


async def _until_it_buys(session: aiohttp.ClientSession, buyer: NodeProcess) -> None:
    async with asyncio.timeout(_WAIT_S):
        while not await _served(session, buyer):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def _served(session: aiohttp.ClientSession, buyer: NodeProcess) -> bool:
    async with _asked(session, buyer) as response:
        return response.status == 200


async def _order(session: aiohttp.ClientSession, buyer: NodeProcess) -> float:
    """Seconds that an order takes."""
    started = time.perf_counter()
    async with _asked(session, buyer) as response:
        response.raise_for_status()
        await response.read()
    return time.perf_counter() - started


@contextlib.asynccontextmanager
async def _asked(session: aiohttp.ClientSession, buyer: NodeProcess) -> AsyncIterator[aiohttp.ClientResponse]:
    body = {"model": "auto", "messages": STORY, "max_tokens": 1}
    headers = {"X-IdleMesh-Degrade": "never"}
    async with session.post(f"{buyer.running.url}/v1/chat/completions", json=body, headers=headers) as response:
        yield response


async def _round(session: aiohttp.ClientSession, buyer: NodeProcess) -> float:
    """Seconds that a round of orders takes, some at a time."""
    left = iter(range(OF_A_ROUND))

    async def some() -> None:
        for _ in left:
            await _order(session, buyer)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(some())
    return time.perf_counter() - started


async def _check(rail: str, buyer: NodeProcess) -> None:
    """That they were paid as it says."""
    async with owner_client(buyer.running) as owner:
        accounts = (await owner.get("/node/v1/accounts"))["accounts"]
    paid = {account["rail"] for account in accounts if parse_amount(account["authorized"]).value}
    if paid != {rail}:
        raise SystemExit(f"orders were paid on {sorted(paid)}, and not on {rail} alone")


def _rows(found: dict[str, Took]) -> Iterator[Row]:
    alone = {rail: statistics.median(took.alone) for rail, took in found.items()}
    fast = {rail: statistics.median(took.per_second) for rail, took in found.items()}
    for rail in RAILS:
        against = "itself" if rail == "credit" else "credit"
        ratio = alone[rail] / alone["credit"]
        yield Row(f"an order, paid by {rail}, p50", round(alone[rail], 2), "ms", against, ratio, "reported", True)
    for rail in RAILS:
        against = "itself" if rail == "credit" else "credit"
        ratio, measure = fast[rail] / fast["credit"], f"orders, {AT_ONCE} at a time, paid by {rail}"
        yield Row(measure, round(fast[rail], 1), "/s", against, ratio, "reported", True)
