"""The engine on llama.cpp: one thread owns one context and computes one sequence at a time.

Sampling is `verify.sampler`'s, never llama.cpp's own, so that every answer can be replayed. Between jobs the
KV cache is zeroed: nothing of one buyer's prompt is left for the next.
"""

from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from attrs import frozen

from ledger.records import Fingerprint
from node.engine.hardware import default_threads
from node.engine.port import BadPrompt, EngineFailed, Job, Piece, PromptTooLong, Rows
from node.engine.thread import Work, WorkThread
from node.models.llama import backend, build
from node.models.manifest import Manifest
from node.models.vocab import UnknownToken
from node.models.weights import Context, KvType, Model
from verify.sampler import SAMPLER, sample

T = TypeVar("T")

DEFAULT_CONTEXT: Final = 8_192  # tokens, where the model can do more: its whole context may not fit in memory
WAITING: Final = 16  # jobs in line; more would wait longer than a client does
# Tokens computed at once. More is little faster on a CPU, and a cancelled prompt holds the engine for that
# long.
BATCH: Final = 256
_SCORE_BYTES: Final = 16 * 2**20  # of one block of logits
_SCORE_BLOCKS: Final = 2  # ahead of who takes them


@frozen
class _Loaded:
    model: Model
    context: Context


class LlamaEngine:
    """An `Engine`. Made by `load`."""

    slots: Final = 1

    def __init__(
        self,
        thread: WorkThread,
        loaded: _Loaded,
        manifest: Manifest,
        fingerprint: Fingerprint,
    ) -> None:
        self.manifest, self.fingerprint = manifest, fingerprint
        self.context: int = loaded.context.tokens
        self.eog = loaded.model.vocab.eog
        self._thread, self._loaded = thread, loaded

    @classmethod
    async def load(
        cls,
        path: Path,
        manifest: Manifest,
        *,
        context: int | None = None,
        threads: int | None = None,
        kv: KvType = "f16",
        gpu_layers: int = -1,
        waiting: int = WAITING,
        batch: int = BATCH,
    ) -> "LlamaEngine":
        """Load weights and warm up; `manifest` is `manifest_of(path)`, for those who have it already.

        `context` in tokens, `threads` by default the physical cores. Raises BadModelFile, MemoryError,
        OSError.
        """
        tokens = min(manifest.context, context or DEFAULT_CONTEXT)
        thread = WorkThread(f"llama.cpp {path.name}", waiting)
        held: list[_Loaded] = []

        def load() -> Fingerprint:
            held.append(_load(path, tokens, threads or default_threads(), kv, gpu_layers, min(batch, tokens)))
            return Fingerprint(build(), backend(gpu_layers), kv, SAMPLER)

        def free() -> None:
            for loaded in held:
                loaded.model.close()

        try:
            fingerprint = await thread.call(load)
        except BaseException:  # also when cancelled while the thread loads: then it frees what it loaded
            await thread.close(free)
            raise
        return cls(thread, held[0], manifest, fingerprint)

    def free_slots(self) -> int:
        """1 while nothing runs or waits, else 0."""
        return int(self._thread.idle())

    def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        """See `Engine.generate`."""
        self._check(job.prompt, 1)
        self._thread.check()
        return self._taken(Work(lambda: self._translated(self._generate(job))))

    def score(self, prompt: Sequence[int], claimed: Sequence[int]) -> AsyncGenerator[Rows, None]:
        """See `Engine.score`."""
        self._check(prompt, len(claimed))
        self._check_ids(claimed)
        self._thread.check()
        ids = [*prompt, *claimed[:-1]] if claimed else []
        work = Work(lambda: self._translated(self._score(ids, len(prompt) - 1)), room=_SCORE_BLOCKS)
        return self._each(work)

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Rows:
        """See `Engine.embed`."""
        raise EngineFailed("embeddings are not there yet")

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

    async def _taken(self, work: Work[int]) -> AsyncGenerator[Piece, None]:
        self._thread.submit(work)
        try:
            while ids := await work.take():
                yield Piece(tuple(ids))
        finally:
            self._thread.withdraw(work)

    async def _each(self, work: Work[Rows]) -> AsyncGenerator[Rows, None]:
        self._thread.submit(work)
        try:
            while blocks := await work.take():
                for block in blocks:
                    yield block
        finally:
            self._thread.withdraw(work)

    def _translated(self, steps: Generator[T, None, None]) -> Generator[T, None, None]:
        """The same steps with the engine's own errors, and a clean cache after them."""
        try:
            yield from steps
        except Exception as error:
            raise EngineFailed(f"{type(error).__name__}: {error}") from error
        finally:
            self._loaded.context.clear()

    def _generate(self, job: Job) -> Generator[int | None, None, None]:
        context = self._loaded.context
        logits = yield from self._prefill(job.prompt)
        last = min(job.start + job.max_tokens, self.context) - 1
        for position in range(job.start, last + 1):
            token = sample(logits[0], job.sampling, job.seed, position)
            yield token
            if token in self.eog or position == last:
                return
            logits = context.decode([token], position, 1)

    def _prefill(self, prompt: Sequence[int]) -> Generator[None, None, Rows]:
        context = self._loaded.context
        for start in range(0, len(prompt), context.batch):
            chunk = prompt[start : start + context.batch]
            ends = start + len(chunk) == len(prompt)
            logits = context.decode(chunk, start, int(ends))
            if not ends:
                yield None
        return logits

    def _score(self, ids: Sequence[int], first: int) -> Generator[Rows | None, None, None]:
        """Logits of the rows from `first` on; those before are computed without."""
        context = self._loaded.context
        most = max(1, min(context.batch, _SCORE_BYTES // (4 * self._loaded.model.vocab.size)))
        position = 0
        while position < len(ids):
            before = min(first - position, context.batch)
            count = before if before > 0 else min(most, len(ids) - position)
            rows = context.decode(ids[position : position + count], position, 0 if before > 0 else count)
            position += count
            yield None if before > 0 else rows


def _load(path: Path, tokens: int, threads: int, kv: KvType, gpu_layers: int, batch: int) -> _Loaded:
    model = Model(path, gpu_layers=gpu_layers)
    try:
        context = model.context(tokens=tokens, batch=batch, threads=threads, kv=kv)
        context.decode([0], 0, 1)  # the first batch also allocates and pages in: not at a user's cost
        context.clear()
        _ = model.vocab.eog  # asks about every id once: here, and not later in the event loop
    except BaseException:
        model.close()
        raise
    return _Loaded(model, context)
