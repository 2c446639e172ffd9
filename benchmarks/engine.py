"""How fast the engine is: tokens per second beside llama.cpp's own server, and what a long prompt does to streams.

    python -m benchmarks.engine [--json] [--rounds N] [--threads N] [--streams 1,4,8,16]
        [--llama-server PATH] [--llama-cpp-server-python PATH]

The model is a Llama of about 160 million random parameters (Q8_0, vocabulary 32,000), made from a seed at the first
run into the user's cache folder; each stream has 64 tokens of prompt and 64 of answer, at T = 1. The engine runs in
this process, and its streams are coroutines of the same event loop; the servers are processes on loopback with as
many slots, and are asked over HTTP for whole answers, without streaming, which is the less work for them. Both take
turns, each first every second time; durations are medians, and a ratio is the median of those of the rounds, in which
the machine was as fast for both. `--llama-server` names a server built from the very source of the installed
llama-cpp-python, the fair peer; without it PyPI's xllamacpp is used where it is installed.
`--llama-cpp-server-python` names an interpreter that has `llama-cpp-python[server]`.

llama.cpp computes a step here as fast as there, within a percent (on two cores of an AMD EPYC, by turns in one run with
the durations that the server tells), so at four streams and more the ratio is that of what lies between two
computations, and of how prompts that come together are put into batches. What lies between costs two to three times
what it does with warm caches, since the weights go through them in each step: what helps is to make and call less. No
single call stands out; each of numpy's costs 5 to 15 microseconds for the first time in a step and each function of
Python's 2 to 8. The thread's own time shows them (`time.thread_time`, of a context with one thread) also on a busy
machine; but two processes of the same code may be 50 apart.

Not of use: to guess what a part of a prompt takes from steps of before, which may have been slower ones (seen once on a
busy machine: parts grew to 140 tokens); huge pages for Python's own memory; prompts in batches of 64, 128 or 512 tokens
for 256; a thread pool of llama.cpp's own; mapped weights; as few rows of logits and sequences as there are streams; to
wake the event loop only at the end of an answer. Without flash attention a step takes a tenth longer.
"""

import argparse
import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np
import uvloop
from attrs import define, field, frozen

from benchmarks.peers import Peer, PeerFailed, Shape, has_xllamacpp, llama_cpp_server, llama_server
from benchmarks.random_llama import VOCABULARY, random_llama
from benchmarks.report import Row, report
from ledger.records import Sampling
from node.engine.batch import Cells
from node.engine.hardware import default_threads
from node.engine.llamacpp import BATCH, LlamaEngine
from node.engine.port import Job, Rows
from node.models.manifest import manifest_of
from node.models.weights import Run
from verify.sampler import sample_block

PROMPT: Final = 64
ANSWER: Final = 64
CONTEXT: Final = 2_048
LONG_PROMPT: Final = 1_000
SETTLE_S: Final = 0.3  # between two turns, so that nothing that one leaves to be done is done in the other's
AFTER_S: Final = 2.0  # that streams run on after the long prompt
SETTLED: Final = 30  # tokens of a stream before the long prompt arrives
LARGE_VOCABULARY: Final = 150_000
GOALS: Final = {1: 0.97, 4: 1.0, 8: 1.0, 16: 1.0}
OLD_SERVER_GOAL: Final = 2.0
GAP_GOAL: Final = 3.0
SAMPLER_GOAL_MS: Final = 2.0


@frozen
class Cutoffs:
    """One way to sample, as the engine and as the servers are told."""

    name: str
    sampling: Sampling
    server: dict[str, Any]
    overhead_goal: float  # share of a step


WAYS: Final = (
    Cutoffs("top-k 40, top-p 0.95", Sampling(1_000_000, 950_000, 0, 40), {"top_k": 40, "top_p": 0.95}, 0.04),
    Cutoffs("no cutoffs", Sampling(1_000_000, 1_000_000, 0, 0), {"top_k": 0, "top_p": 1.0}, 0.10),
)


class Timed:
    """A KV cache that notes when it computes."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self.tokens, self.batch, self.sequences, self.rows = cells.tokens, cells.batch, cells.sequences, cells.rows
        self.shared, self.save, self.restore, self.remove = cells.shared, cells.save, cells.restore, cells.remove
        self.extent, self.clear = cells.extent, cells.clear
        self.computed: list[tuple[float, float, int]] = []  # from, to, rows

    def compute(self, runs: Sequence[Run]) -> Rows:
        """See `Context.compute`."""
        began = time.perf_counter()
        logits = self._cells.compute(runs)
        self.computed.append((began, time.perf_counter(), sum(len(run.ids) for run in runs)))
        return logits

    def share_between(self, streams: int) -> float:
        """Of steps that decode all streams and no prompt: the share that lies between two computations."""
        between = inside = 0.0
        for (_, before, _), (began, ended, rows) in itertools.pairwise(self.computed):
            if rows == streams:
                between, inside = between + began - before, inside + ended - began
        return between / (between + inside) if inside else 0.0


@define
class Bench:
    """The engine under test."""

    engine: LlamaEngine
    timed: Timed
    draw: np.random.Generator = field(factory=lambda: np.random.default_rng(7))

    def prompt(self, tokens: int = PROMPT) -> tuple[int, ...]:
        """Words that were not asked before."""
        return tuple(self.draw.integers(300, VOCABULARY, tokens).tolist())

    async def answer(self, prompt: tuple[int, ...], sampling: Sampling, most: int = ANSWER) -> int:
        """One answer; how many tokens it has."""
        job = Job(prompt, sampling, int(self.draw.integers(2**32)), most)
        tokens = 0
        async with contextlib.aclosing(self.engine.generate(job)) as pieces:
            async for piece in pieces:
                tokens += len(piece.ids)
        return tokens


async def opened(model: Path, slots: int, threads: int) -> Bench:
    """The engine with as many slots."""
    held: list[Timed] = []

    def through(cells: Cells) -> Cells:
        held.append(Timed(cells))
        return held[0]

    engine = await LlamaEngine.load(
        model, manifest_of(model), slots=slots, threads=threads, context=CONTEXT, through=through
    )
    return Bench(engine, held[0])


async def rate(answers: Sequence[Any]) -> float:
    """Tokens per second of answers that run at the same time."""
    began = time.perf_counter()
    tokens: int = sum(await asyncio.gather(*answers))
    return tokens / (time.perf_counter() - began)


async def speed(model: Path, streams: int, arguments: argparse.Namespace) -> list[Row]:
    """Tokens per second at so many streams, here and there in turns."""
    shape = Shape(model, streams, CONTEXT, arguments.threads, BATCH)
    rates: dict[tuple[str, str], list[float]] = {}
    shares: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        peers = _peers(stack, shape, arguments)
        bench = await opened(model, streams, arguments.threads)
        # Each question has a connection of its own: the server closes those that rest while the engine has its turn.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
            for turn in range(arguments.rounds + 1):
                for way in WAYS:
                    found = await _turn(bench, peers, session, way, streams, ours_last=bool(turn % 2))
                    if turn:  # the first warms up
                        for name, value in found.items():
                            rates.setdefault((way.name, name), []).append(value)
                        shares.setdefault(way.name, []).append(bench.timed.share_between(streams))
        await bench.engine.close()
    return [row for way in WAYS for row in _speed_rows(way, streams, rates, shares)]


async def _turn(
    bench: Bench,
    peers: Sequence[Peer],
    session: aiohttp.ClientSession,
    way: Cutoffs,
    streams: int,
    *,
    ours_last: bool,
) -> dict[str, float]:
    prompts = [bench.prompt() for _ in range(streams)]
    asked = {peer.name: peer for peer in peers if peer.ids or way is WAYS[0]}
    found = {}
    for name in (*asked, "ours") if ours_last else ("ours", *asked):
        if name == "ours":
            bench.timed.computed.clear()
            found[name] = await rate([bench.answer(prompt, way.sampling) for prompt in prompts])
        else:
            answers = [asked[name].answer(session, prompt, ANSWER, **way.server) for prompt in prompts]
            found[name] = await rate(answers)
        await asyncio.sleep(SETTLE_S)
    return found


def _peers(stack: contextlib.ExitStack, shape: Shape, arguments: argparse.Namespace) -> list[Peer]:
    found = []
    if arguments.llama_server is not None or has_xllamacpp():
        found.append(stack.enter_context(llama_server(shape, arguments.llama_server)))
    if shape.slots == 8 and arguments.llama_cpp_server_python is not None:
        found.append(stack.enter_context(llama_cpp_server(shape, arguments.llama_cpp_server_python)))
    return found


def _speed_rows(
    way: Cutoffs, streams: int, rates: dict[tuple[str, str], list[float]], shares: dict[str, list[float]]
) -> list[Row]:
    ours = rates[way.name, "ours"]
    measure, typical = f"{streams} streams, {way.name}", round(statistics.median(ours), 1)
    rows = []
    for name in ("llama-server", "xllamacpp", "llama_cpp.server"):
        if (way.name, name) in rates:
            theirs = rates[way.name, name]
            goal = OLD_SERVER_GOAL if name == "llama_cpp.server" else GOALS.get(streams, 1.0)
            ratio = statistics.median(here / there for here, there in zip(ours, theirs, strict=True))
            against = f"{name}, {statistics.median(theirs):.1f}"
            rows.append(Row(measure, typical, "t/s", against, round(ratio, 3), f">= {goal:g} x", ratio >= goal))
    if not rows:
        rows.append(Row(measure, typical, "t/s", "no server given", 1.0, "reported", True))
    share = statistics.median(shares[way.name])
    most = f"< {way.overhead_goal:.0%}"
    met = share < way.overhead_goal
    what = f"{measure}: all but llama_decode"
    rows.append(Row(what, round(100 * share, 2), "%", "a step", round(share, 4), most, met))
    return rows


async def gaps(model: Path, arguments: argparse.Namespace) -> list[Row]:
    """The gaps between a stream's tokens while a long prompt arrives, in steps, and how long the prompt takes."""
    sampling, streams = WAYS[0].sampling, 8
    bench = await opened(model, streams + 1, arguments.threads)
    found, waits, lone = [], [], []
    for _ in range(max(2, arguments.rounds)):
        gap, wait = await _gap(bench, sampling, streams)
        found.append(gap)
        waits.append(wait)
        began = time.perf_counter()
        await bench.answer(bench.prompt(LONG_PROMPT), sampling, 1)
        lone.append(time.perf_counter() - began)
    await bench.engine.close()
    worst, wait, alone = statistics.median(found), statistics.median(waits), statistics.median(lone)
    what = f"{streams} streams, a prompt of {LONG_PROMPT} arrives"
    goal = f"< {GAP_GOAL:g} steps"
    return [
        Row(f"{what}: p99 gap", round(worst, 2), "step", "a step without it", round(worst, 2), goal, worst < GAP_GOAL),
        Row(f"{what}: its first token", round(wait, 2), "s", "no streams", round(wait / alone, 2), "reported", True),
    ]


async def _gap(bench: Bench, sampling: Sampling, streams: int) -> tuple[float, float]:
    times: list[list[float]] = [[] for _ in range(streams)]
    settled = asyncio.Event()
    running = [asyncio.create_task(_clocked(bench, sampling, row, settled)) for row in times]
    await settled.wait()
    asked = time.perf_counter()
    await bench.answer(bench.prompt(LONG_PROMPT), sampling, 1)
    came = time.perf_counter()
    await asyncio.sleep(AFTER_S)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    # Contexts grow, and steps with them: those before and those after say what one in between would take.
    before: list[float] = []
    during: list[float] = []
    after: list[float] = []
    for row in times:
        for earlier, later in itertools.pairwise(row):
            (before if later < asked else during if later <= came else after).append(later - earlier)
    plain = (statistics.median(before) + statistics.median(after)) / 2
    return float(np.percentile(during, 99)) / plain, came - asked


async def _clocked(bench: Bench, sampling: Sampling, times: list[float], settled: asyncio.Event) -> None:
    """A stream that notes when its tokens come, until it is cancelled."""
    job = Job(bench.prompt(), sampling, 1, CONTEXT - PROMPT)
    async with contextlib.aclosing(bench.engine.generate(job)) as pieces:
        async for _ in pieces:
            times += [time.perf_counter()]
            if len(times) == SETTLED:
                settled.set()


def sampler() -> list[Row]:
    """The time to draw for 8 streams of a large vocabulary."""
    logits = (np.random.default_rng(3).standard_normal((8, LARGE_VOCABULARY)) * 3).astype(np.float32)
    rows = []
    for way in WAYS:
        times = []
        for position in range(40):
            began = time.perf_counter()
            sample_block(logits, [way.sampling] * 8, list(range(8)), [position] * 8)
            times.append(1000 * (time.perf_counter() - began))
        took = statistics.median(times)
        what, goal = f"sampler, 8 streams of {LARGE_VOCABULARY}, {way.name}", f"<= {SAMPLER_GOAL_MS:g} ms"
        rows.append(
            Row(what, round(took, 3), "ms", "the goal", round(took / SAMPLER_GOAL_MS, 3), goal, took <= SAMPLER_GOAL_MS)
        )
    return rows


async def measure(arguments: argparse.Namespace) -> list[Row]:
    """All of it."""
    model = random_llama()
    rows = []
    for streams in arguments.streams:
        rows += await speed(model, streams, arguments)
    return rows + await gaps(model, arguments) + sampler()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--threads", type=int, default=default_threads(), help="of the engine and of each server")
    parser.add_argument("--streams", type=_numbers, default=(1, 4, 8, 16), help="as 1,4,8,16")
    parser.add_argument("--llama-server", type=Path, help="a llama-server of the same llama.cpp")
    parser.add_argument("--llama-cpp-server-python", type=Path, help="a python with llama-cpp-python[server]")
    arguments = parser.parse_args()
    try:
        rows = uvloop.run(measure(arguments))
    except PeerFailed as error:
        raise SystemExit(f"a server did not start: {error}") from None
    if arguments.llama_cpp_server_python is None:
        print("not measured: llama_cpp.server (give --llama-cpp-server-python)", file=sys.stderr)
    if arguments.llama_server is None and not has_xllamacpp():
        print("not measured: llama.cpp's server (give --llama-server, or install xllamacpp)", file=sys.stderr)
    report("engine", rows, arguments.json)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
