"""What the node adds to an answer: one request through it, local and bought, against the bare engine in the same run.

    python -m benchmarks.overhead [--json] [--requests N]

The nodes are processes of their own on loopback, with the demo model and one thread each, as is the bare engine in
this process; the requests take turns (bare, local, peers), one at a time, so that all meet the same machine. Times
are what a client sees: from sending the HTTP request, or calling the engine, to the first text and to the end.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.report import Row, report
from ledger.records import Sampling
from node.config import DEMO_MODEL
from node.demo.processes import NodeProcess, start_node
from node.engine.llamacpp import LlamaEngine
from node.engine.port import Job
from node.models.manifest import manifest_of
from node.models.template import TemplateRenderer
from node.models.tokenizers import Tokenizers

LOCAL_GOAL_MS = 3.0
PEER_GOAL_MS = 15.0
MAX_TOKENS = 48
WARM_UP = 5
MESSAGES = [{"role": "user", "content": "Tell me a story about a lighthouse keeper."}]

Times = tuple[float, float]  # milliseconds to the first text and to the end


async def bare(engine: LlamaEngine, prompt: tuple[int, ...], seed: int) -> Times:
    """The engine alone, with the prompt's ids at hand."""
    started = time.perf_counter()
    first = 0.0
    job = Job(prompt, Sampling(1_000_000, 1_000_000, 0, 0), seed, MAX_TOKENS)
    async with contextlib.aclosing(engine.generate(job)) as groups:
        async for _ in groups:
            first = first or time.perf_counter()
    return 1000 * (first - started), 1000 * (time.perf_counter() - started)


async def through(session: aiohttp.ClientSession, url: str, route: str, seed: int) -> Times:
    """The same request through a node's API, streamed."""
    body: dict[str, Any] = {
        "model": "auto",
        "messages": MESSAGES,
        "seed": seed,
        "max_tokens": MAX_TOKENS,
        "stream": True,
    }
    started = time.perf_counter()
    first = 0.0
    async with session.post(f"{url}/v1/chat/completions", json=body, headers={"X-IdleMesh-Route": route}) as response:
        response.raise_for_status()
        taken = response.headers["x-idlemesh-route"]
        if (taken == "local") != (route == "local"):
            raise SystemExit(f"the request went by {taken}, not by {route}")
        async for line in response.content:
            text = line.decode().removeprefix("data: ").strip()
            if text.startswith("{") and not first:
                choices = json.loads(text)["choices"]
                first = time.perf_counter() if choices and choices[0]["delta"].get("content") else 0.0
    return 1000 * (first - started), 1000 * (time.perf_counter() - started)


@contextlib.contextmanager
def nodes(folder: Path) -> Iterator[NodeProcess]:
    """A seller, and an owner's node that knows it."""
    up = ["node.cli", "up", "--json", "--home"]
    for name in ("seller", "owner"):
        (folder / name).mkdir()
        (folder / name / "config.toml").write_text("[node]\nport = 0\nthreads = 1\n[idle]\nenabled = false\n")
    sell = ["--sell", "0.05usd:0.15usd", "--open-credit", "10usd"]
    with start_node("seller", folder / "seller", [*up, str(folder / "seller"), *sell]) as seller:
        peer = f"--peer={seller.running.did}@{seller.running.url}"
        with start_node("owner", folder / "owner", [*up, str(folder / "owner"), peer]) as owner:
            yield owner


async def measure(owner: NodeProcess, folder: Path, requests: int) -> dict[str, list[Times]]:
    """All requests, in turns."""
    engine = await LlamaEngine.load(DEMO_MODEL, manifest_of(DEMO_MODEL), threads=1)
    renderer = TemplateRenderer()
    tokenizers = Tokenizers(folder / "tokenizers", renderer)
    prompt = await tokenizers.open_own(tokenizers.add_own(DEMO_MODEL)).encode(MESSAGES)
    times: dict[str, list[Times]] = {"bare": [], "local": [], "peers": []}
    url = owner.running.url
    try:
        async with aiohttp.ClientSession() as session:
            await _until_offers(session, owner)
            for seed in range(requests + WARM_UP):
                times["bare"].append(await bare(engine, prompt, seed))
                times["local"].append(await through(session, url, "local", seed))
                times["peers"].append(await through(session, url, "peers", seed))
    finally:
        await tokenizers.close()
        await renderer.close()
        await engine.close()
    return {name: measured[WARM_UP:] for name, measured in times.items()}


async def _until_offers(session: aiohttp.ClientSession, owner: NodeProcess) -> None:
    headers = {"Authorization": f"Bearer {owner.running.token}"}
    for _ in range(100):
        async with session.get(f"{owner.running.url}/node/v1/offers", headers=headers) as response:
            if (await response.json())["offers"]:
                return
        await asyncio.sleep(0.1)
    raise SystemExit("the seller's offer did not arrive")


def rows(times: dict[str, list[Times]]) -> list[Row]:
    """The medians, and what each route adds to the bare engine's."""
    middle = {
        (name, part): statistics.median(time[part] for time in measured)
        for name, measured in times.items()
        for part in (0, 1)
    }
    out = []
    for route, goal, judged in (("local", LOCAL_GOAL_MS, (0, 1)), ("peers", PEER_GOAL_MS, (0,))):
        for part, what in ((0, "time to first token"), (1, "total time")):
            added = middle[route, part] - middle["bare", part]
            ratio = middle[route, part] / middle["bare", part]
            wanted = f"adds <= {goal:g} ms" if part in judged else "reported"
            met = added <= goal if part in judged else True
            out.append(
                Row(
                    f"{route}: added to {what}, p50", round(added, 3), "ms", "bare engine", round(ratio, 3), wanted, met
                )
            )
    for part, what in ((0, "time to first token"), (1, "total time")):
        out.append(
            Row(f"bare engine: {what}, p50", round(middle["bare", part], 3), "ms", "itself", 1.0, "reported", True)
        )
    return out


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--requests", type=int, default=60, help="requests of each kind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idlemesh-overhead-") as name:
        folder = Path(name)
        with nodes(folder) as owner:
            times = uvloop.run(measure(owner, folder, arguments.requests))
    report("overhead", rows(times), arguments.json)


if __name__ == "__main__":
    main()
