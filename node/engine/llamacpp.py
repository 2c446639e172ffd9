"""The engine on llama.cpp: one thread owns one context per model and decodes all active streams in one batch per step.

Theory of operation. `llamacpp` checks what is asked and hands it over; `thread` keeps the line and drives; `batch`
decides what goes into each step and what comes of it, on `tasks`; `pace` bounds what a prompt may add to a step;
`prefixes` knows what the cache still holds for whom; `outlet` brings results to the event loop; `weights` computes.

Sampling is `verify.sampler`'s, never llama.cpp's own, so that every answer can be replayed: given the same logits, the
same tokens, whatever else is in the batch. Each sequence has a part of the KV cache of its own or, where memory is
short, all share one, and each sees its own alone. What is kept of ended jobs, for prompts that begin alike, lies in
main memory, is its client's alone and goes when room is needed.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from ledger.records import Fingerprint
from node.engine.batch import Batcher, Cells
from node.engine.hardware import default_threads
from node.engine.outlet import Outlet
from node.engine.port import BadPrompt, EngineBusy, EngineError, EngineFailed, Job, Piece, PromptTooLong, Rows
from node.engine.tasks import Replay, Stream
from node.engine.thread import EngineThread
from node.models.grammar import GRAMMAR, Grammars, Matcher
from node.models.llama import backend, build
from node.models.manifest import Manifest
from node.models.vocab import UnknownToken
from node.models.weights import Context, Embedder, KvType, Model
from verify.sampler import SAMPLER

Vector = NDArray[np.float64]

DEFAULT_CONTEXT: Final = 8_192  # tokens, where the model can do more: its whole context may not fit in memory
DEFAULT_SLOTS: Final = 4
MAX_SLOTS: Final = 128
WAITING: Final = 16  # jobs in line; more would wait longer than a client does
# Tokens computed at once while no stream runs. More is little faster on a CPU, and a cancelled prompt holds the
# engine for that long.
BATCH: Final = 256
_SCORE_BYTES: Final = 16 * 2**20  # of one block of logits
_SCORE_BLOCKS: Final = 2  # ahead of who takes them
_PIECES: Final = 256  # ahead of who takes them; then the stream rests
_MOST_EMBEDDED: Final = 2_048  # tokens of an input that the model takes only whole


@frozen
class _Loaded:
    model: Model
    context: Context
    grammars: Grammars


def _itself(cells: Cells) -> Cells:
    return cells


class LlamaEngine:
    """An `Engine`. Made by `load`."""

    def __init__(
        self,
        thread: EngineThread,
        loaded: _Loaded,
        manifest: Manifest,
        fingerprint: Fingerprint,
        context: int,
        threads: int,
    ) -> None:
        self.manifest, self.fingerprint, self.context = manifest, fingerprint, context
        self.eog = loaded.model.vocab.eog
        self.slots = thread.slots
        self._thread, self._loaded = thread, loaded
        self._embeddings = _Embeddings(thread, loaded.model, context, threads, loaded.context.rows)

    @classmethod
    async def load(
        cls,
        path: Path,
        manifest: Manifest,
        *,
        context: int | None = None,
        threads: int | None = None,
        batch_threads: int | None = None,
        kv: KvType = "f16",
        gpu_layers: int = -1,
        slots: int | None = None,
        cells: int | None = None,
        kept: int | None = None,
        waiting: int = WAITING,
        batch: int = BATCH,
        through: Callable[[Cells], Cells] = _itself,
    ) -> "LlamaEngine":
        """Load weights and warm up; `manifest` is `manifest_of(path)`, for those who have it already.

        `context` in tokens, for each job; `slots` jobs at the same time; `cells` of the KV cache, each for one token:
        one context for each slot and one for replays, unless told, and if there are fewer, all share them; `kept`
        tokens for later, half as many unless told. `threads` by default the physical cores, `batch_threads`, for
        prompts, as many. `through` puts something between the engine and what computes.
        Raises BadModelFile, MemoryError, OSError.
        """
        most = min(manifest.context, context or DEFAULT_CONTEXT)
        slots = min(slots or DEFAULT_SLOTS, MAX_SLOTS)
        sequences = slots + 1  # one for replays
        cells = max(most, cells or sequences * most)
        shared = cells < sequences * most
        threads = threads or default_threads()
        thread = EngineThread(f"llama.cpp {path.name}", slots, waiting)
        held: list[_Loaded] = []

        def load() -> Fingerprint:
            model = Model(path, gpu_layers=gpu_layers)
            try:
                opened = model.context(
                    tokens=cells if shared else most,
                    batch=max(min(batch, cells), slots),
                    threads=threads,
                    batch_threads=batch_threads,
                    kv=kv,
                    sequences=sequences,
                    shared=shared,
                    rows=max(slots + 1, _SCORE_BYTES // (4 * model.vocab.size)),
                )
                _warm_up(opened)
                eog = model.vocab.eog  # asks about every id once: here, and not later in the event loop
            except BaseException:
                model.close()
                raise
            held.append(_Loaded(model, opened, Grammars(model.vocab)))
            thread.serve(Batcher(through(opened), eog, cells // 2 if kept is None else kept))
            return Fingerprint(build(), backend(gpu_layers), kv, SAMPLER, GRAMMAR)

        def free() -> None:
            for loaded in held:
                loaded.model.close()

        try:
            fingerprint = await thread.call(load)
        except BaseException:  # also when cancelled while the thread loads: then it frees what it loaded
            await thread.close(free)
            raise
        return cls(thread, held[0], manifest, fingerprint, most, threads)

    def free_slots(self) -> int:
        """See `Engine.free_slots`."""
        return self._thread.free_slots()

    def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        """See `Engine.generate`."""
        self._check(job.prompt, 1)
        if not 0 <= job.earlier <= len(job.prompt):
            raise BadPrompt("the earlier part of the answer is longer than the prompt that holds it")
        self._thread.check()
        return self._pieces(job)

    def score(self, prompt: Sequence[int], claimed: Sequence[int]) -> AsyncGenerator[Rows, None]:
        """See `Engine.score`."""
        self._check(prompt, len(claimed))
        self._check_ids(claimed)
        self._thread.check()
        return self._blocks([*prompt, *claimed[:-1]] if claimed else [], len(prompt) - 1)

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Rows:
        """See `Engine.embed`."""
        for ids in inputs:
            self._check(ids, 0)
        return await self._embeddings.of(inputs)

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._thread.close(self._loaded.model.close)

    def _check(self, prompt: Sequence[int], more: int) -> None:
        if not prompt:
            raise BadPrompt("a prompt needs at least one token")
        if len(prompt) + more > self.context:
            raise PromptTooLong(len(prompt), self.context)
        self._check_ids(prompt)

    def _check_ids(self, ids: Sequence[int]) -> None:
        try:
            self._loaded.model.vocab.check(ids)
        except UnknownToken as error:
            raise BadPrompt(str(error)) from None

    async def _pieces(self, job: Job) -> AsyncGenerator[Piece, None]:
        outlet: Outlet[Piece] = Outlet(_PIECES, self._thread.changed)
        try:
            matcher = await asyncio.to_thread(self._matcher, job) if job.steering.grammar else None
            stream = Stream(job, outlet, self.context, matcher)
        except Exception as error:
            raise EngineFailed(f"{type(error).__name__}: {error}") from error
        self._thread.submit(stream)
        try:
            while pieces := await outlet.take():
                yield _joined(pieces)
        finally:
            self._thread.withdraw(stream)

    def _matcher(self, job: Job) -> Matcher:
        """The grammar behind the earlier part of the answer. Raises BadGrammar, ForbiddenToken, GrammarGaveUp."""
        matcher = self._loaded.grammars.compile(job.steering.grammar).start()
        for token in job.prompt[job.start - job.earlier :]:
            matcher.take(token)
        return matcher

    async def _blocks(self, ids: Sequence[int], first: int) -> AsyncGenerator[Rows, None]:
        replay = Replay(ids, first, Outlet(_SCORE_BLOCKS, self._thread.changed))
        self._thread.submit(replay)
        try:
            while blocks := await replay.outlet.take():
                for block in blocks:
                    yield block
        finally:
            self._thread.withdraw(replay)


class _Embeddings:
    """Vectors of inputs, one input at a time, in parts between the steps of the streams."""

    def __init__(self, thread: EngineThread, model: Model, context: int, threads: int, rows: int) -> None:
        self._thread, self._model = thread, model
        self._context, self._threads, self._rows = context, threads, rows
        self._embedder: Embedder | None = None  # made at first use: it takes memory
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def of(self, inputs: Sequence[Sequence[int]]) -> Rows:
        """One vector of length 1 for each, (len(inputs), width). Raises EngineError."""
        if self._waiting >= WAITING:
            raise EngineBusy(self._waiting, float(self._waiting))
        self._waiting += 1
        try:
            async with self._turn:
                if self._embedder is None:
                    self._embedder = await self._thread.call(self._open)
                embedder = self._embedder
                rows = [await self._vector(embedder, ids) for ids in inputs]
        except EngineError:
            raise
        except Exception as error:
            raise EngineFailed(f"{type(error).__name__}: {error}") from error
        finally:
            self._waiting -= 1
        return np.stack(rows) if rows else np.empty((0, embedder.width), np.float32)

    def _open(self) -> Embedder:
        return self._model.embedder(tokens=self._context, whole=_MOST_EMBEDDED, threads=self._threads, rows=self._rows)

    async def _vector(self, embedder: Embedder, ids: Sequence[int]) -> Rows:
        if len(ids) > embedder.tokens:
            raise PromptTooLong(len(ids), embedder.tokens)
        total: Vector = np.zeros(embedder.width)
        done = 0
        while done < len(ids):
            done, total = await self._thread.call(partial(self._add, embedder, ids, done, total))
        length = float(np.linalg.norm(total))
        if not (np.isfinite(length) and length > 0):
            raise EngineFailed("the model gave no vector for this input")
        return (total / length).astype(np.float32)

    def _add(self, embedder: Embedder, ids: Sequence[int], done: int, total: Vector) -> tuple[int, Vector]:
        """In the thread: the next part of an input, as much as the streams can bear."""
        if done == 0:
            embedder.begin()
        most = len(ids) - done if embedder.pools else min(len(ids) - done, self._thread.allowance(embedder.batch))
        return done + most, total + embedder.add(ids[done : done + most], done)


def _joined(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    ids = tuple(i for piece in pieces for i in piece.ids)
    return Piece(ids, pieces[0].cached, tuple(one for piece in pieces for one in piece.logprobs))


def _warm_up(context: Context) -> None:
    """The first batch also allocates and pages in: not at a user's cost."""
    context.decode([0], 0, 1)
    context.clear()
