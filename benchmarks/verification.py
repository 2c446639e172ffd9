"""What verification costs and what it tells, on the demo model: frauds, false alarms, and the price of a replay.

    python -m benchmarks.verification [--json] [--tokens N] [--fraud-tokens N] [--processes N] [--fresh]

Answers are made and replayed by real engines, honest ones and each fraud's, and kept under the user's cache folder for
the next run. Then the detector runs over them: `--tokens` honest tokens once through, 10^9 honest ones and 400 runs of
each fraud by drawing whole answers again and again. Honest answers here are not those of the calibration that is
shipped. "Like" is a checker with the seller's kind of KV cache, "across" one with another.
"""

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from benchmarks.frauds import FRAUDS, HOT, Bench, Fraud, Sold, cheaper_cache, honest, smaller_model
from benchmarks.random_llama import VOCABULARY, random_llama
from benchmarks.report import Row, report
from ledger.records import Sampling
from node.config import DEMO_MODEL
from node.engine.calibration import (
    KV_TYPES,
    SAMPLINGS,
    CalibrationFiles,
    Calibrator,
    Replayed,
    Table,
    answers,
    fingerprint,
    replay,
)
from node.engine.hardware import default_threads
from node.engine.llamacpp import LlamaEngine
from node.engine.port import Job
from node.models.llama import backend, build, quantize
from node.models.manifest import manifest_of
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from node.models.weights import KvType, Model, Run
from verify.calibration import BETS, Odds, bins_of, decode, encode
from verify.evidence import LOG_CONDEMN, Evidence, advance, observe
from verify.sampler import SAMPLER

RECORDING: Final = 3  # counted up whenever recordings are made in another way
RESAMPLED: Final = 10**9
RUNS: Final = 400
GIVE_UP: Final = 100_000  # tokens after which a fraud counts as not convicted
LOWER: Final = {"Q8_0": ("Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"), "Q4_K_M": ("Q3_K_M", "Q2_K")}
GOALS: Final = {("Q4_K_M", "Q3_K_M"): (1_500, 3_000), ("Q8_0", "Q4_K_M"): (2_500, 6_000)}
CALIBRATED: Final = 1_000_000  # honest tokens of the Q4_K_M file, which nobody ships a calibration for
GROSS_TOKENS: Final = 4_000  # of frauds that any few hundred tokens show
ANSWER_TOKENS: Final = 128
REPLAY_GOAL: Final = 0.3
ANSWER_ROWS: Final = 64  # tokens of the answers of which the cost is measured
LONGER_ROWS: Final = (256, 512)  # and of longer ones: their prompt, computed in one piece both times, weighs less
CUT: Final = Sampling(1_000_000, 950_000, 0, 40)
_PER_ANSWER: Final = 45  # tokens of a story, about
_CHAINS: Final = 400  # of the 10^9 resampled tokens, side by side

Bins = NDArray[np.intp]
Recording = list[Bins]  # the bins of each answer's tokens


@contextlib.asynccontextmanager
async def demo_tokenizer() -> AsyncIterator[Tokenizer]:
    """The demo model's."""
    with tempfile.TemporaryDirectory(prefix="idlemesh-verification-") as folder:
        renderer = TemplateRenderer()
        tokenizers = Tokenizers(Path(folder), renderer)
        try:
            yield tokenizers.open_own(tokenizers.add_own(DEMO_MODEL))
        finally:
            await tokenizers.close()
            await renderer.close()


@frozen
class Store:
    """Recordings on disk, by what they are of."""

    folder: Path

    @staticmethod
    def open() -> "Store":
        """In the user's cache folder, apart for each kind of engine and file of the demo model."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        made_of = f"{RECORDING} {build()} {backend()} {SAMPLER}".encode() + DEMO_MODEL.read_bytes()
        folder = cache / "idlemesh" / "verification" / hashlib.sha256(made_of).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return Store(folder)

    def weights(self, name: str) -> Path:
        """The demo model in another quantization, or "one layer less"."""
        if name == "Q8_0":
            return DEMO_MODEL
        path = self.folder / f"{name.replace(' ', '-')}.gguf"
        if not path.exists() and name == "one layer less":
            smaller_model(DEMO_MODEL, path)
        elif not path.exists():
            quantize(DEMO_MODEL, path, name, threads=1)
        return path

    def load(self, name: str) -> Recording | None:
        """A recording, if it is there."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path) as file:
            return list(np.split(file["bins"].astype(np.intp), file["ends"][:-1]))

    def save(self, name: str, recording: Recording) -> None:
        """Keep a recording."""
        partial = self.folder / f"{name}.partial.npz"
        ends = np.cumsum([bins.size for bins in recording])
        np.savez_compressed(partial, bins=np.concatenate(recording).astype(np.int8), ends=ends)
        partial.replace(self.folder / f"{name}.npz")


def record_fraud(name: str, offered: str, run: str, tokens: int) -> None:
    """Make one fraud's answers and replay them with both kinds of cache. In a process of its own."""
    store = Store.open()
    fraud: Fraud = {"honest": honest, "q8_0 cache": cheaper_cache("q8_0"), **FRAUDS}[name]

    async def make() -> None:
        async with demo_tokenizer() as tokenizer:
            bench = Bench(tokenizer, tokenizer.eog, Random(f"{name} {offered} {run}"))
            sold: list[Sold] = []
            while sum(len(one.answer) for one in sold) < tokens:
                sold += await fraud(bench, store.weights(run), max(12, tokens // _PER_ANSWER // 4), ANSWER_TOKENS)
            for kv in KV_TYPES:
                store.save(_fraud_file(name, offered, run, kv, tokens), await _checked(store, offered, kv, sold))

    asyncio.run(make())


async def _checked(store: Store, offered: str, kv: KvType, sold: Sequence[Sold]) -> Recording:
    weights = store.weights(offered)
    engine = await LlamaEngine.load(weights, manifest_of(weights), context=2_048, threads=1, kv=kv, slots=1)
    try:
        return [bins_of(await replay(engine, one.job, one.answer)) for one in sold]
    finally:
        await engine.close()


def _fraud_file(name: str, offered: str, run: str, kv: KvType, tokens: int) -> str:
    return f"fraud {name} {offered} {run} {kv} {tokens}".replace(" ", "-")


def record_honest(offered: str, part: int, tokens: int) -> None:
    """Honest answers of all kinds, by all pairs; those of Q4_K_M, which only f16 caches sell, to be calibrated by.

    In a process of its own.
    """
    store = Store.open()

    async def make() -> None:
        async with demo_tokenizer() as tokenizer:
            weights = store.weights(offered)
            manifest = manifest_of(weights)
            calibrator = Calibrator(weights, manifest, tokenizer, threads=1)
            table, made = Table(manifest.digest), list[Replayed]()
            sellers = len(KV_TYPES) if offered == "Q8_0" else 1
            seed, numbers = 10**6 + part, itertools.count(step=len(KV_TYPES) // sellers)
            while sum(one.margins.size for one in made) < tokens or len({one.seller for one in made}) < sellers:
                number = next(numbers)
                made += await calibrator.check(seed, number, await calibrator.answer(seed, number))
            for one in made:
                table.add(one)
            (store.folder / f"table-{offered}-{part}-{tokens}.json").write_bytes(encode(table.calibrations))
            for seller in KV_TYPES:
                for checker in KV_TYPES:
                    pair = [one for one in made if (one.seller.kv, one.checker.kv) == (seller, checker)]
                    for sampling in {one.job.sampling for one in pair}:
                        bins = [bins_of(one.margins) for one in pair if one.job.sampling == sampling]
                        store.save(_honest_file(offered, part, tokens, seller, checker, sampling), bins)

    asyncio.run(make())


def _honest_file(offered: str, part: int, tokens: int, seller: KvType, checker: KvType, sampling: Sampling) -> str:
    return f"honest-{offered}-{part}-{tokens}-{seller}-{checker}-{sampling.temperature}-{sampling.top_k}"


@frozen(eq=False)
class Draws:
    """Chains of answers drawn from a recording, side by side: of each odd token the good ones before it and its bin.

    Two arrays (steps, chains); `lengths` (chains,) says how many steps each has, the longest first.
    """

    good: Bins
    bins: Bins
    lengths: Bins


def draw(recording: Recording, tokens: int, chains: int, rng: np.random.Generator) -> Draws:
    """So many chains of so many tokens each."""
    sizes = np.array([bins.size for bins in recording])
    odd = [np.flatnonzero(bins) for bins in recording]
    count = np.array([places.size for places in odd])
    firsts = np.cumsum(count) - count
    offsets = np.concatenate(odd)
    values = np.concatenate([bins[places] for bins, places in zip(recording, odd, strict=True)])
    found = []
    for _ in range(chains):
        drawn = rng.integers(len(recording), size=int(tokens / sizes.mean() * 1.1) + 20)
        each = count[drawn]
        index = np.repeat(firsts[drawn] - np.cumsum(each) + each, each) + np.arange(each.sum())
        places = np.repeat(np.cumsum(sizes[drawn]) - sizes[drawn], each) + offsets[index]
        inside = places < tokens
        found.append((np.diff(places[inside], prepend=-1) - 1, values[index[inside]]))
    found.sort(key=lambda one: -one[0].size)
    lengths = np.array([good.size for good, _ in found])
    both = np.zeros((2, int(lengths.max()), chains), np.intp)
    for column, (good, bins) in enumerate(found):
        both[0, : good.size, column], both[1, : good.size, column] = good, bins
    return Draws(both[0], both[1], lengths)


def convictions(recording: Recording, odds: Odds, rng: np.random.Generator) -> NDArray[np.float64]:
    """After how many tokens each of RUNS runs convicts, (RUNS,); infinite where it does not before GIVE_UP."""
    draws = draw(recording, GIVE_UP, RUNS, rng)
    places = np.cumsum(draws.good + 1, axis=0)
    found, log_ms = np.full(RUNS, np.inf), np.full((RUNS, len(BETS)), -np.inf)
    for step, (good, bins) in enumerate(zip(draws.good, draws.bins, strict=True)):
        live = int((draws.lengths > step).sum())
        log_ms[:live] = advance(log_ms[:live], good[:live], bins[:live], odds)
        convicted = _condemned(log_ms[:live]) & np.isinf(found[:live])
        found[:live][convicted] = places[step, :live][convicted]
        if np.isfinite(found).all():
            break
    return found


def false_alarms(recording: Recording, odds: Odds, tokens: int, rng: np.random.Generator) -> int:
    """How often honest tokens drawn again, `tokens` in all, are condemned; each time the test starts anew."""
    draws = draw(recording, tokens // _CHAINS, _CHAINS, rng)
    alarms, log_ms = 0, np.full((_CHAINS, len(BETS)), -np.inf)
    for step, (good, bins) in enumerate(zip(draws.good, draws.bins, strict=True)):
        live = int((draws.lengths > step).sum())
        log_ms[:live] = advance(log_ms[:live], good[:live], bins[:live], odds)
        condemned = _condemned(log_ms[:live])
        alarms += int(condemned.sum())
        log_ms[:live][condemned] = -np.inf
    return alarms


def _condemned(log_ms: NDArray[np.float64]) -> NDArray[np.bool_]:
    log_m: NDArray[np.float64] = np.logaddexp.reduce(log_ms, axis=1) - math.log(len(BETS))
    return log_m >= LOG_CONDEMN


async def replay_cost(streams: int, rows: int = ANSWER_ROWS) -> float:
    """Seconds to check answers one by one over those to make them, by so many streams at once: 64 ids of prompt and so
    many of answer, on the model of random weights that speed is measured with, by all cores.
    """
    path = random_llama()
    manifest, rng = manifest_of(path), Random(7)
    jobs = [
        Job(tuple(rng.randrange(300, VOCABULARY) for _ in range(64)), CUT, rng.getrandbits(64), rows) for _ in range(8)
    ]
    ratios = []
    for _ in range(3):
        took = []
        engine = await LlamaEngine.load(path, manifest, context=64 + rows + 1, slots=streams)
        started = time.perf_counter()
        made = await answers(engine, jobs)
        took.append(time.perf_counter() - started)
        started = time.perf_counter()
        for job, answer in zip(jobs, made, strict=True):
            await replay(engine, job, answer)
        took.append(time.perf_counter() - started)
        await engine.close()
        ratios.append(took[1] / took[0])
    return sorted(ratios)[1]


def decode_floor() -> float:
    """The same of llama.cpp's computing alone: one pass over prompt and answer against the prompt and single steps."""
    model, rng, ratios = Model(random_llama()), Random(7), []
    try:
        threads = default_threads()
        context = model.context(tokens=256, batch=256, threads=threads, sequences=2, rows=ANSWER_ROWS)
        for _ in range(8):
            ids = [rng.randrange(300, VOCABULARY) for _ in range(64 + ANSWER_ROWS - 1)]
            started = time.perf_counter()
            context.compute([Run(ids[:64], 0, 0, 1)])
            for place in range(64, len(ids)):
                context.compute([Run(ids[place : place + 1], place, 0, 1)])
            made = time.perf_counter() - started
            context.clear()
            started = time.perf_counter()
            context.compute([Run(ids, 0, 0, ANSWER_ROWS)])
            ratios.append((time.perf_counter() - started) / made)
            context.clear()
    finally:
        model.close()
    return statistics.median(ratios)


def _record(store: Store, honest_tokens: int, fraud_tokens: int, processes: int) -> list[tuple[str, str, str, int]]:
    """Make what is not there yet, several at a time; the frauds."""
    for name in {*LOWER, *(one for lower in LOWER.values() for one in lower), "one layer less"}:
        store.weights(name)
    frauds = [("honest", offered, run, fraud_tokens) for offered, lower in LOWER.items() for run in lower]
    frauds += [("q8_0 cache", "Q8_0", "Q8_0", fraud_tokens)]
    frauds += [("honest", "Q8_0", "one layer less", min(GROSS_TOKENS, fraud_tokens))]
    frauds += [(name, "Q8_0", "Q8_0", min(GROSS_TOKENS, fraud_tokens)) for name in FRAUDS]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = []
        for part in range(processes):
            for offered, tokens in (
                ("Q4_K_M", min(CALIBRATED, honest_tokens) // processes),
                ("Q8_0", honest_tokens // processes),
            ):
                if not (store.folder / f"table-{offered}-{part}-{tokens}.json").exists():
                    jobs.append(pool.submit(record_honest, offered, part, tokens))
        missing = [one for one in frauds if store.load(_fraud_file(*one[:3], KV_TYPES[-1], one[3])) is None]
        jobs += [pool.submit(record_fraud, *fraud) for fraud in missing]
        for job in jobs:
            job.result()
    return frauds


def _odds(
    store: Store, offered: str, tables: Sequence[Path], checker: KvType, seller: KvType, sampling: Sampling
) -> Odds:
    """Those shipped for the demo model; for Q4_K_M those just calibrated."""
    pair = (fingerprint(seller), fingerprint(checker))
    model = manifest_of(store.weights(offered)).digest
    if offered == "Q8_0":
        found = CalibrationFiles(store.folder).find(model, *pair)
        if found is None:
            raise SystemExit("no calibration is shipped for this build of llama.cpp on this machine's kind of backend")
        return found.odds(sampling)
    counts = None
    for path in tables:
        (one,) = [one for one in decode(path.read_bytes()) if (one.seller, one.checker) == pair]
        counts = one if counts is None else counts.joined(one)
    assert counts is not None
    return counts.odds(sampling)


def fraud_rows(store: Store, frauds: Sequence[tuple[str, str, str, int]], tables: Sequence[Path]) -> list[Row]:
    """Tokens to convict each."""
    rows = []
    for name, offered, run, tokens in frauds:
        title = name if name != "honest" else f"{offered} offered, {run} run"
        goals = GOALS.get((offered, run)) if name == "honest" else None
        for number, (where, checker) in enumerate((("like", KV_TYPES[0]), ("across", KV_TYPES[1]))):
            recording = store.load(_fraud_file(name, offered, run, checker, tokens))
            assert recording is not None
            odds = _odds(store, offered, tables, checker, "f16", HOT)
            found = convictions(recording, odds, np.random.default_rng(1))
            median, last = np.percentile(found, [50, 99], method="higher")
            shown = [GIVE_UP if math.isinf(value) else value for value in (median, last)]
            goal = f"99% within {goals[number]:,}" if goals else "reported"
            met = last <= goals[number] if goals else True
            convicted = float(np.isfinite(found).mean())
            rows.append(Row(f"{title} ({where}): tokens, median", shown[0], "tok", "runs", convicted, "reported", True))
            rows.append(Row(f"{title} ({where}): tokens, p99", shown[1], "tok", "runs", convicted, goal, bool(met)))
    return rows


def honest_rows(store: Store, tokens: int, processes: int) -> list[Row]:
    """False alarms over all honest tokens in their order, receipt by receipt, and over many drawn again."""
    seen = alarms = receipts = drawn = drawn_alarms = 0
    rng = np.random.default_rng(2)
    parts = [
        (seller, checker, sampling, recording)
        for seller in KV_TYPES
        for checker in KV_TYPES
        for sampling in SAMPLINGS
        if (recording := _joined(store, tokens, processes, seller, checker, sampling))
    ]
    whole = sum(sum(bins.size for bins in recording) for *_, recording in parts)
    for seller, checker, sampling, recording in parts:
        odds = _odds(store, "Q8_0", (), checker, seller, sampling)
        evidence = Evidence()
        for bins in recording:
            evidence = observe(evidence, _margins(bins), odds)
        seen, receipts, alarms = seen + evidence.tokens, receipts + len(recording), alarms + evidence.condemned
        share = int(RESAMPLED * evidence.tokens / whole)
        drawn_alarms += false_alarms(recording, odds, share, rng)
        drawn += share
    return [
        Row("honest tokens: false alarms", alarms, "", f"{seen:,} tokens", alarms / seen, "none", alarms == 0),
        Row("honest receipts condemned", alarms, "", f"{receipts:,}", alarms / receipts, "none", alarms == 0),
        Row("resampled: false alarms", drawn_alarms, "", f"{drawn:,}", drawn_alarms / drawn, "<= 1", drawn_alarms <= 1),
    ]


_OF_BIN: Final = np.array([0.0, 0.005, 0.02, 0.06, 0.15, 0.3, 0.6, 1.2, 9.0, 1e6])


def _margins(bins: Bins) -> NDArray[np.float64]:
    return _OF_BIN[bins]


def _joined(
    store: Store, tokens: int, processes: int, seller: KvType, checker: KvType, sampling: Sampling
) -> Recording:
    names = [_honest_file("Q8_0", part, tokens // processes, seller, checker, sampling) for part in range(processes)]
    return [bins for name in names for bins in store.load(name) or []]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="honest tokens")
    parser.add_argument("--fraud-tokens", type=int, default=20_000, help="tokens of each cheaper quantization")
    parser.add_argument("--processes", type=int, default=2, help="recordings made at a time")
    parser.add_argument("--fresh", action="store_true", help="make all recordings anew")
    arguments = parser.parse_args()
    store = Store.open()
    if arguments.fresh:
        shutil.rmtree(store.folder)
        store = Store.open()
    frauds = _record(store, arguments.tokens, arguments.fraud_tokens, arguments.processes)
    calibrated = min(CALIBRATED, arguments.tokens) // arguments.processes
    parts = range(arguments.processes)
    rows = fraud_rows(store, frauds, [store.folder / f"table-Q4_K_M-{part}-{calibrated}.json" for part in parts])
    rows += honest_rows(store, arguments.tokens, arguments.processes)
    for streams, answer, goal in (
        (1, ANSWER_ROWS, REPLAY_GOAL),
        *((1, longer, REPLAY_GOAL) for longer in LONGER_ROWS),
        (8, ANSWER_ROWS, None),
    ):
        cost = asyncio.run(replay_cost(streams, answer))
        wanted, met = (f"<= {goal:g}", cost <= goal) if goal else ("reported", True)
        against = "generating alone" if streams == 1 else f"generating at {streams}"
        rows.append(Row(f"replay: cost of {answer} tokens, {streams} streams", cost, "x", against, cost, wanted, met))
    floor = decode_floor()
    rows.append(Row("replay: cost, llama_decode alone", floor, "x", "64 of prompt, 64 steps", floor, "reported", True))
    report("verification", rows, arguments.json)


if __name__ == "__main__":
    main()
