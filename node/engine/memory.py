"""An engine without weights: deterministic, in memory, for tests, the simulator and anything that needs no
sense.

Its logits are a pure function of the last ids and of `weights`, so its answers can be scored and replayed
like any other's; an engine with other `weights` is another model, such as a cheat would run. It has slots, a line in
which the owner's jobs go first, steering, and prefixes that are counted (there is nothing to save) for each client.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from hashlib import sha256, shake_256
from typing import Final, TypeVar

import numpy as np

from ledger.records import Fingerprint
from node.engine.line import Line
from node.engine.port import BadPrompt, EngineBusy, EngineClosed, EngineFailed, Job, Piece, PromptTooLong, Rows
from node.engine.prefixes import as_ids, common
from node.engine.tasks import logprob
from node.models.grammar import GRAMMAR, BadGrammar, ForbiddenToken, GrammarGaveUp, Grammars, Matcher, Vocabulary
from node.models.manifest import Manifest
from node.models.merkle import File
from verify.cutoffs import BadLogits
from verify.noise import NotUnsigned64
from verify.sampler import SAMPLER, sample
from verify.steering import count, steer

T = TypeVar("T")

FINGERPRINT: Final = Fingerprint("memory-1", "none", "none", SAMPLER, GRAMMAR)
_ORDER: Final = 3  # how many of the last ids decide the next logits
_SPREAD: Final = 10.0  # logits lie in [0, 10): at T = 1 some tokens are likely and none is certain
_SCORE_ROWS: Final = 64  # in one block
_RETRY_AFTER: Final = 1.0  # seconds
_KEPT: Final = 8  # prefixes of a client
_CLIENTS: Final = 64  # that have prefixes


def memory_manifest(weights: int = 0, context: int = 2_048) -> Manifest:
    """A manifest for a model that has no file; another one for other weights."""
    digest = sha256(b"idlemesh memory engine" + weights.to_bytes(8, "little")).digest()
    tokenizer = sha256(b"idlemesh memory tokenizer").digest()
    return Manifest("memory", "memory", 1, "F32", context, (File(1, digest, digest),), tokenizer)


class MemoryEngine:
    """An `Engine`. May be told to fail or stall after so many tokens of a job, and to take time for each; with
    `words`, what its ids stand for, it follows grammars.
    """

    def __init__(
        self,
        manifest: Manifest | None = None,
        *,
        fingerprint: Fingerprint = FINGERPRINT,
        weights: int = 0,
        vocabulary: int = 64,
        words: Vocabulary | None = None,
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
        self._grammars = Grammars(words) if words is not None else None
        self._line: Line[asyncio.Future[None]] = Line()
        self._running = 0
        self._prefixes: dict[str, deque[tuple[int, ...]]] = {}
        self._closed = asyncio.Event()

    def logits(self, ids: Sequence[int]) -> Rows:
        """The logits (vocabulary,) that follow these ids."""
        known = b"".join(int(token).to_bytes(4, "little") for token in ids[-_ORDER:])
        raw = shake_256(self._weights.to_bytes(8, "little") + known).digest(4 * self._vocabulary)
        return (np.frombuffer(raw, "<u4") * (_SPREAD / 2**32)).astype(np.float32)

    def free_slots(self) -> int:
        """Slots without a job."""
        return max(0, self.slots - self._running - len(self._line))

    def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        """See `Engine.generate`."""
        self._check(job.prompt, 1)
        if not 0 <= job.earlier <= len(job.prompt):
            raise BadPrompt("the earlier part of the answer is longer than the prompt that holds it")
        self._check_room()
        return self._in_turn(self._generate(job), job.sold)

    def score(self, prompt: Sequence[int], claimed: Sequence[int]) -> AsyncGenerator[Rows, None]:
        """See `Engine.score`."""
        self._check(prompt, len(claimed))
        self._check_room()
        return self._in_turn(self._score([*prompt, *claimed], len(prompt)))

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Rows:
        """See `Engine.embed`."""
        for ids in inputs:
            self._check(ids, 0)
        if self._closed.is_set():
            raise EngineClosed
        rows = [np.stack([self.logits(ids[: end + 1]) for end in range(len(ids))]).mean(axis=0) for ids in inputs]
        if not rows:
            return np.empty((0, self._vocabulary), np.float32)
        vectors = np.stack(rows)
        unit: Rows = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit

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
        if self._running + len(self._line) >= self.slots + self._waiting:
            raise EngineBusy(len(self._line), _RETRY_AFTER)

    async def _in_turn(self, results: AsyncGenerator[T, None], sold: bool = False) -> AsyncGenerator[T, None]:
        self._check_room()
        await self._turn(sold)
        try:
            async with aclosing(results):
                while (result := await self._next(results)) is not None:
                    yield result
        finally:
            self._running -= 1
            self._move_up()

    async def _turn(self, sold: bool) -> None:
        """Wait for a slot, and take it."""
        place = asyncio.get_running_loop().create_future()
        self._line.join(place, sold)
        self._move_up()
        try:
            await place
        except asyncio.CancelledError:
            self._line.leave(place)
            if place.done() and not place.cancelled():  # its turn had come
                self._running -= 1
                self._move_up()
            raise

    def _move_up(self) -> None:
        while self._running < self.slots and (place := self._line.first()) is not None:
            self._line.leave(place)
            if not place.done():
                self._running += 1
                place.set_result(None)

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
        cached = self._cached(job)
        matcher = self._matcher(job)
        try:
            for done in range(min(job.max_tokens, self.context - len(ids))):
                if done == self._fail_after:
                    raise EngineFailed(f"told to fail after {done} tokens")
                if done == self._stall_after:
                    await asyncio.Event().wait()
                await asyncio.sleep(self._seconds)
                yield self._next_token(job, ids, matcher, cached if done == 0 else 0)
                if ids[-1] in self.eog:
                    return
        finally:
            self._keep(job.client, ids[:-1])  # nothing has followed the last: it was not computed yet

    def _next_token(self, job: Job, ids: list[int], matcher: Matcher | None, cached: int) -> Piece:
        """Add the next token to the ids. Raises EngineFailed."""
        counts = count(ids[job.start - job.earlier :]) if job.steering.penalised else {}
        try:
            allowed = matcher.mask() if matcher is not None else None
            logits = steer(self.logits(ids), job.steering, counts, allowed)
            token = sample(logits, job.sampling, job.seed, len(ids))
            if matcher is not None:
                matcher.take(token)
        except (BadLogits, NotUnsigned64, ForbiddenToken, GrammarGaveUp) as error:
            raise EngineFailed(f"{type(error).__name__}: {error}") from error
        ids.append(token)
        told = () if job.logprobs is None else (logprob(logits, token, job.logprobs),)
        return Piece((token,), cached, told)

    def _matcher(self, job: Job) -> Matcher | None:
        if not job.steering.grammar:
            return None
        if self._grammars is None:
            raise EngineFailed("this engine does not know what its ids stand for, and so no grammar")
        try:
            matcher = self._grammars.compile(job.steering.grammar).start()
            for token in job.prompt[job.start - job.earlier :]:
                matcher.take(token)
        except (BadGrammar, ForbiddenToken, GrammarGaveUp) as error:
            raise EngineFailed(f"{type(error).__name__}: {error}") from error
        return matcher

    def _cached(self, job: Job) -> int:
        """How many of the prompt's ids, never the last, the client's last jobs began with."""
        ids = as_ids(job.prompt[:-1])
        return max((common(as_ids(kept), ids) for kept in self._prefixes.get(job.client, ())), default=0)

    def _keep(self, client: str, ids: Sequence[int]) -> None:
        self._prefixes.setdefault(client, deque(maxlen=_KEPT)).append(tuple(ids))
        if len(self._prefixes) > _CLIENTS:
            del self._prefixes[next(iter(self._prefixes))]

    async def _score(self, ids: list[int], first: int) -> AsyncGenerator[Rows, None]:
        for start in range(first, len(ids), _SCORE_ROWS):
            await asyncio.sleep(0)
            block = range(start, min(start + _SCORE_ROWS, len(ids)))
            yield np.stack([self.logits(ids[:position]) for position in block])
