"""Makes calibrations: honest answers computed many in a batch, each replayed alone, with all that may honestly differ.

A round is the work of a selling engine with one kind of KV cache: stories of all temperatures, with cutoffs and
without, after short conversations and long ones, some at a time in one batch. Then engines with either kind of cache
replay each alone, as a checker does. Threads, streams and chunks of prompts differ from round to round.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from itertools import count, cycle, islice, product
from pathlib import Path
from random import Random
from typing import Final, get_args

import numpy as np
from attrs import frozen

from ledger.records import Fingerprint, Sampling
from node.engine.llamacpp import LlamaEngine
from node.engine.port import Engine, EngineBusy, Job
from node.models.llama import backend, build
from node.models.manifest import Manifest
from node.models.template import Message
from node.models.tokenizer import Tokenizer
from node.models.weights import KvType
from verify.calibration import (
    GROSS_MARGIN,
    LONG,
    MAX_BYTES,
    MAX_PAIRS,
    TEMPERATURES,
    Calibration,
    Stratum,
    decode,
    encode,
)
from verify.cutoffs import MILLION
from verify.noise import Reals
from verify.replay import margins
from verify.sampler import SAMPLER

KV_TYPES: Final[tuple[KvType, ...]] = get_args(KvType)
SHIPPED: Final = Path(__file__).parent.parent / "models" / "demo" / "calibration.json"

ANSWERS: Final = 84  # in a round: of each kind of sampling after each kind of conversation alike many
ANSWER_TOKENS: Final = 128
_ROOM: Final = 2_048  # tokens of the longest conversation with its answer
_STREAMS: Final = (4, 8, 16)
_GROSS_SHARE: Final = 0.01  # of a round's tokens: the bounds on few of them are wider
_AGAIN_S: Final = 5.0  # until a remote that is busy is asked again
_PATIENCE: Final = 12  # times
_BATCHES: Final = (64, 256, 512)
_TURNS = ((0, 2), (0, 2), (6, 12))  # earlier turns of short conversations and, which take far longer, long ones

_ASK: Final = ("Tell me a story about a {}.", "Write a story about a {}", "a story about a {}, please", "story: {}")
_WHO: Final = (
    "fox", "owl", "hedgehog", "robot", "gardener", "sailor", "baker", "dragon",
    "mouse", "clockmaker", "crow", "bear", "girl", "lighthouse keeper", "snail", "wizard",
)  # fmt: skip
_WHEN: Final = ("One evening", "Long ago", "Last winter", "On a bright morning", "One night")
_FOUND: Final = ("a silver key", "a broken radio", "a box of letters", "a lantern", "a tiny door", "a jar of stars")
_WHERE: Final = ("by the river", "in the old mill", "under a bridge", "on the hill", "at the harbour", "in the attic")
_THEN: Final = ("it began to glow", "the rain stopped", "a voice said thank you", "nothing happened at all")

SAMPLINGS: Final = tuple(
    Sampling(temperature, top_p, 0, top_k)
    for temperature in TEMPERATURES
    for top_p, top_k in (((MILLION, 0), (950_000, 40)) if temperature else ((MILLION, 0),))
)

GREEDY: Final = (Sampling(0, MILLION, 0, 0),)


class TooSmall(ValueError):
    """A model whose context has no room for a conversation and its answer."""

    def __init__(self, context: int) -> None:
        super().__init__(f"a context of {context} tokens is too small to calibrate: 256 are needed")
        self.context = context


class Unlike(ValueError):
    """What a seller computes is not this model, so that nothing would be honest of it or dishonest."""

    def __init__(self, share: float) -> None:
        super().__init__(
            f"{share:.0%} of the tokens are none that this model would choose, so another model answers: name the "
            'file that the server runs, and let it take ids (prompts = "ids") if it can'
        )
        self.share = share


@frozen
class Answered:
    """An honest answer: what computed it, the job, and its ids."""

    seller: Fingerprint
    job: Job
    answer: tuple[int, ...]


@frozen
class Replayed:
    """An honest answer, checked: what computed on both sides, the job, and the margins (N,) in logits."""

    seller: Fingerprint
    checker: Fingerprint
    job: Job
    margins: Reals


def fingerprint(kv: KvType, gpu_layers: int = -1) -> Fingerprint:
    """That of an engine of this machine."""
    return Fingerprint(build(), backend(gpu_layers), kv, SAMPLER)


def conversation(rng: Random, turns: int) -> list[Message]:
    """A wish for a story, after so many other stories: what is written then is not certain, so it tells something."""
    messages: list[Message] = []
    for _ in range(turns):
        who = rng.choice(_WHO)
        told = f"{rng.choice(_WHEN)} a {who} found {rng.choice(_FOUND)} {rng.choice(_WHERE)}, and {rng.choice(_THEN)}."
        messages.append({"role": "user", "content": rng.choice(_ASK).format(who)})
        messages.append({"role": "assistant", "content": told})
    return [*messages, {"role": "user", "content": rng.choice(_ASK).format(rng.choice(_WHO))}]


async def draw_jobs(
    tokenizer: Tokenizer,
    rng: Random,
    count: int,
    *,
    context: int = _ROOM,
    samplings: Sequence[Sampling] = SAMPLINGS,
    max_tokens: int = ANSWER_TOKENS,
) -> list[Job]:
    """So many jobs, of each sampling after short and long conversations, that fit a context of so many tokens.

    Raises TooSmall, TemplateError.
    """
    room = min(context, _ROOM) - max_tokens
    kinds = list(product(_TURNS, samplings))
    rng.shuffle(kinds)  # fewer jobs than kinds are still of all kinds in the long run
    jobs = []
    for turns, sampling in islice(cycle(kinds), count):
        fewest, most = turns
        # A greedy answer to the same words is the same answer, and single wishes are few.
        messages = conversation(rng, rng.randint(fewest if sampling.temperature else max(fewest, 1), most))
        while len(prompt := await tokenizer.encode(messages)) > room:
            if len(messages) == 1:
                raise TooSmall(context)
            messages = messages[2:]
        jobs.append(Job(prompt, sampling, rng.getrandbits(64), max_tokens))
    return jobs


async def answers(engine: Engine, jobs: Sequence[Job]) -> list[tuple[int, ...]]:
    """The engine's answers to the jobs, as many at a time as it has slots; where it is busy, it is asked again.

    Raises EngineError.
    """
    slots = asyncio.Semaphore(engine.slots)

    async def one(job: Job) -> tuple[int, ...]:
        async with slots:
            for _ in range(_PATIENCE):
                with contextlib.suppress(EngineBusy):
                    return await once(job)
                await asyncio.sleep(_AGAIN_S)
            return await once(job)

    async def once(job: Job) -> tuple[int, ...]:
        async with contextlib.aclosing(engine.generate(job)) as pieces:
            return tuple([token async for piece in pieces for token in piece.ids])

    return await asyncio.gather(*map(one, jobs))


async def replay(engine: Engine, job: Job, answer: Sequence[int]) -> Reals:
    """The margins (N,) in logits of an answer to a job without steering. Raises EngineError."""
    found: list[Reals] = []
    done = 0
    async with contextlib.aclosing(engine.score(job.prompt, answer)) as blocks:
        async for rows in blocks:
            claimed = np.asarray(answer[done : done + len(rows)], dtype=np.int64)
            found.append(margins(rows, claimed, job.sampling, job.seed, job.start + done))
            done += len(rows)
    return np.concatenate(found) if found else np.zeros(0)


class Calibrator:
    """Calibrates one model on this machine. One engine is in memory at a time."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        tokenizer: Tokenizer,
        *,
        threads: int,
        gpu_layers: int = -1,
        remote: Engine | None = None,
    ) -> None:
        """`remote`: a server that runs this very model, to be checked in place of this machine's engines, by its greedy
        answers: the others are its own sampler's.
        """
        self._path, self._manifest, self._tokenizer = path, manifest, tokenizer
        self._threads, self._gpu_layers, self._remote = threads, gpu_layers, remote

    @property
    def engines(self) -> tuple[Fingerprint, ...]:
        """Those of this machine, with either kind of KV cache."""
        return tuple(fingerprint(kv, self._gpu_layers) for kv in KV_TYPES)

    @property
    def pairs(self) -> frozenset[tuple[Fingerprint, Fingerprint]]:
        """Sellers and checkers that are compared."""
        return frozenset(product([self._remote.fingerprint] if self._remote else self.engines, self.engines))

    async def rounds(self, seed: int, size: int = ANSWERS) -> AsyncGenerator[list[Replayed], None]:
        """Round after round of honest answers, `size` in each, without end. Raises EngineError, TooSmall."""
        for number in count():
            made = await self.answer(seed, number, size)
            yield await self.check(seed, number, made)

    async def answer(self, seed: int, number: int, size: int = ANSWERS) -> list[Answered]:
        """The answers of one round; the rounds' sellers have one kind of KV cache after the other.

        Raises EngineError, TooSmall.
        """
        rng = Random(f"{seed} {number}")
        async with self._seller(rng, KV_TYPES[number % len(KV_TYPES)]) as engine:
            samplings = SAMPLINGS if engine is not self._remote else GREEDY
            room = min(self._manifest.context, engine.context)
            jobs = await draw_jobs(self._tokenizer, rng, size, context=room, samplings=samplings)
            made = await answers(engine, jobs)
            return [Answered(engine.fingerprint, job, answer) for job, answer in zip(jobs, made, strict=True)]

    async def check(self, seed: int, number: int, made: Sequence[Answered]) -> list[Replayed]:
        """Honest answers of this machine or another, replayed by both kinds of KV cache.

        Raises EngineError; Unlike where they are none of this model.
        """
        rng, found = Random(f"{seed} {number} checked"), []
        for checker in KV_TYPES:
            async with self._engine(rng, checker, slots=1) as engine:
                for one in made:
                    margins = await replay(engine, one.job, one.answer)
                    found.append(Replayed(one.seller, engine.fingerprint, one.job, margins))
        _check_likeness(found)
        return found

    @contextlib.asynccontextmanager
    async def _seller(self, rng: Random, kv: KvType) -> AsyncGenerator[Engine, None]:
        if self._remote is not None:
            yield self._remote
            return
        async with self._engine(rng, kv, slots=rng.choice(_STREAMS)) as engine:
            yield engine

    @contextlib.asynccontextmanager
    async def _engine(self, rng: Random, kv: KvType, slots: int) -> AsyncGenerator[LlamaEngine, None]:
        engine = await LlamaEngine.load(
            self._path,
            self._manifest,
            context=_ROOM,
            threads=rng.choice((1, self._threads)),
            kv=kv,
            gpu_layers=self._gpu_layers,
            slots=slots,
            batch=rng.choice(_BATCHES),
        )
        try:
            yield engine
        finally:
            await engine.close()


def _check_likeness(found: Sequence[Replayed]) -> None:
    margins = np.concatenate([one.margins for one in found])
    gross = float((margins > GROSS_MARGIN).mean()) if margins.size else 0.0
    if gross > _GROSS_SHARE:
        raise Unlike(gross)


class Table:
    """The calibrations of one model, growing."""

    def __init__(self, model: bytes, known: Iterable[Calibration] = ()) -> None:
        self.model: Final = model
        self._pairs = {(one.seller, one.checker): one for one in known}

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """All pairs."""
        return tuple(self._pairs.values())

    def tokens(self, pairs: Collection[tuple[Fingerprint, Fingerprint]]) -> int:
        """How many tokens these pairs have."""
        return sum(one.tokens for pair, one in self._pairs.items() if pair in pairs)

    def add(self, replayed: Replayed) -> None:
        """Count one answer."""
        pair = replayed.seller, replayed.checker
        if pair not in self._pairs and len(self._pairs) >= MAX_PAIRS:
            del self._pairs[min(self._pairs, key=lambda known: self._pairs[known].tokens)]
        one = self._pairs.get(pair) or Calibration(*pair, self.model)
        job, found = replayed.job, replayed.margins
        # The context of a token is what stands before it.
        short = max(0, min(LONG - job.start, found.size))
        for long, part in ((False, found[:short]), (True, found[short:])):
            if part.size:
                one = one.add(Stratum.of(job.sampling, long), part)
        self._pairs[pair] = one


class CalibrationFiles:
    """Calibrations on disk, a file for each model: the folder's, and what is shipped with the demo model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[int, tuple[Calibration, ...]]] = {}

    def path(self, model: bytes) -> Path:
        """Where a model's own file is, by its manifest's digest."""
        return self._folder / f"{model.hex()}.json"

    def own(self, model: bytes) -> tuple[Calibration, ...]:
        """What was calibrated here. Raises BadCalibration, OSError."""
        return tuple(one for one in self._load(self.path(model)) if one.model == model)

    def find(self, model: bytes, seller: Fingerprint, checker: Fingerprint) -> Calibration | None:
        """The calibration of a model and pair of engines, the one with more tokens if there are two.

        Raises BadCalibration, OSError.
        """
        known = [one for path in (self.path(model), SHIPPED) for one in self._load(path) if one.model == model]
        fitting = [one for one in known if (one.seller, one.checker) == (seller, checker)]
        return max(fitting, key=lambda one: one.tokens, default=None)

    def save(self, model: bytes, calibrations: Iterable[Calibration]) -> Path:
        """Write a model's file, whole or not at all. Raises OSError."""
        path = self.path(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(encode(calibrations))
        partial.replace(path)
        return path

    def _load(self, path: Path) -> tuple[Calibration, ...]:
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return ()
        known = self._read.get(path)
        if known is None or known[0] != changed:
            with path.open("rb") as stream:
                known = (changed, decode(stream.read(MAX_BYTES + 1)))
            self._read[path] = known
        return known[1]
