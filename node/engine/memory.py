"""An engine without weights: deterministic, in memory, for tests, the simulator and anything that needs no
sense.

Its logits are a pure function of the last ids and of `weights`, so its answers can be scored and replayed
like any other's; an engine with other `weights` is another model, such as a cheat would run.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from hashlib import sha256, shake_256
from typing import Final, TypeVar

import numpy as np

from ledger.records import Fingerprint
from node.engine.port import BadPrompt, EngineBusy, EngineClosed, EngineFailed, Job, Piece, PromptTooLong, Rows
from node.models.manifest import Manifest
from node.models.merkle import File
from verify.sampler import SAMPLER, sample

T = TypeVar("T")

FINGERPRINT: Final = Fingerprint("memory-1", "none", "none", SAMPLER)
_ORDER: Final = 3  # how many of the last ids decide the next logits
_SPREAD: Final = 10.0  # logits lie in [0, 10): at T = 1 some tokens are likely and none is certain
_SCORE_ROWS: Final = 64  # in one block
_RETRY_AFTER: Final = 1.0  # seconds


def memory_manifest(weights: int = 0, context: int = 2_048) -> Manifest:
    """A manifest for a model that has no file; another one for other weights."""
    digest = sha256(b"idlemesh memory engine" + weights.to_bytes(8, "little")).digest()
    tokenizer = sha256(b"idlemesh memory tokenizer").digest()
    return Manifest("memory", "memory", 1, "F32", context, (File(1, digest, digest),), tokenizer)


class MemoryEngine:
    """An `Engine`. May be told to fail or stall after so many tokens of a job, and to take time for each."""

    def __init__(
        self,
        manifest: Manifest | None = None,
        *,
        fingerprint: Fingerprint = FINGERPRINT,
        weights: int = 0,
        vocabulary: int = 64,
        eog: frozenset[int] = frozenset({0}),
        slots: int = 1,
        waiting: int = 16,
        seconds_per_token: float = 0.0,
        fail_after: int | None = None,
        stall_after: int | None = None,
    ) -> None:
        self.manifest = manifest or memory_manifest(weights)
        self.fingerprint, self.eog, self.slots = fingerprint, eog, slots
        self.context = self.manifest.context
        self._weights, self._vocabulary = weights, vocabulary
        self._waiting, self._seconds = waiting, seconds_per_token
        self._fail_after, self._stall_after = fail_after, stall_after
        self._turns = asyncio.Semaphore(slots)
        self._jobs = 0
        self._closed = asyncio.Event()

    def logits(self, ids: Sequence[int]) -> Rows:
        """The logits (vocabulary,) that follow these ids."""
        known = b"".join(int(token).to_bytes(4, "little") for token in ids[-_ORDER:])
        raw = shake_256(self._weights.to_bytes(8, "little") + known).digest(4 * self._vocabulary)
        return (np.frombuffer(raw, "<u4") * (_SPREAD / 2**32)).astype(np.float32)

    def free_slots(self) -> int:
        """Slots without a job."""
        return max(0, self.slots - self._jobs)

    def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        """See `Engine.generate`."""
        self._check(job.prompt, 1)
        self._check_room()
        return self._in_turn(self._generate(job))

    def score(self, prompt: Sequence[int], claimed: Sequence[int]) -> AsyncGenerator[Rows, None]:
        """See `Engine.score`."""
        self._check(prompt, len(claimed))
        self._check_room()
        return self._in_turn(self._score([*prompt, *claimed], len(prompt)))

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Rows:
        """See `Engine.embed`."""
        raise EngineFailed("embeddings are not there yet")

    async def close(self) -> None:
        """See `Engine.close`."""
        self._closed.set()

    def _check(self, prompt: Sequence[int], more: int) -> None:
        if not prompt or not all(0 <= token < self._vocabulary for token in prompt):
            raise BadPrompt(f"a prompt needs one id or more, all below {self._vocabulary}")
        if len(prompt) + more > self.context:
            raise PromptTooLong(len(prompt), self.context)

    def _check_room(self) -> None:
        if self._closed.is_set():
            raise EngineClosed
        if self._jobs >= self.slots + self._waiting:
            raise EngineBusy(self._jobs - self.slots, _RETRY_AFTER)

    async def _in_turn(self, results: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        self._check_room()
        self._jobs += 1
        try:
            async with self._turns, aclosing(results):
                while (result := await self._next(results)) is not None:
                    yield result
        finally:
            self._jobs -= 1

    async def _next(self, results: AsyncGenerator[T, None]) -> T | None:
        """The next result, or EngineClosed if the engine is closed before it comes."""
        result = asyncio.ensure_future(anext(results, None))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({result, closed}, return_when=asyncio.FIRST_COMPLETED)
            if self._closed.is_set():
                raise EngineClosed
            return await result
        finally:
            for task in (result, closed):
                task.cancel()
            await asyncio.gather(result, closed, return_exceptions=True)

    async def _generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        ids = list(job.prompt)
        for done in range(min(job.max_tokens, self.context - len(ids))):
            if done == self._fail_after:
                raise EngineFailed(f"told to fail after {done} tokens")
            if done == self._stall_after:
                await asyncio.Event().wait()
            await asyncio.sleep(self._seconds)
            ids.append(sample(self.logits(ids), job.sampling, job.seed, len(ids)))
            yield Piece((ids[-1],))
            if ids[-1] in self.eog:
                return

    async def _score(self, ids: list[int], first: int) -> AsyncGenerator[Rows, None]:
        for start in range(first, len(ids), _SCORE_ROWS):
            await asyncio.sleep(0)
            block = range(start, min(start + _SCORE_ROWS, len(ids)))
            yield np.stack([self.logits(ids[:position]) for position in block])
