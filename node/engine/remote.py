"""An OpenAI-compatible server as an `Engine`: what computes is elsewhere, and so is the sampler.

It takes ids and gives ids, by the model's own tokenizer: the prompt is written as text with its control tokens, and the
text that comes is cut into ids again. There are no logits to be had, so it scores nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from ledger.records import Fingerprint, Sampling
from node.engine.completions import CompletionsClient
from node.engine.port import BadPrompt, EngineClosed, EngineFailed, Job, Piece, PromptTooLong, Rows
from node.engine.streaming import RemoteBusy, RemoteFailed, Said
from node.models.manifest import Manifest
from node.models.spelling import Misread, Spelling
from verify.attestation import UNDECLARED
from verify.steering import Steering

MILLION: Final = 1_000_000
# Servers take seeds of different sizes; all of them take these.
_SEEDS: Final = 2**31
_RETRY_S: Final = 1.0
# What a server that is paid may still send after the most that it was asked for, before it says what it charged.
_MAX_AFTER: Final = 32
# The backend of an engine that computes on somebody else's machine.
REMOTE: Final = "remote"


def fingerprint(own_hardware: bool, server: str = UNDECLARED) -> Fingerprint:
    """What is said of such an engine; `server`: what computes there, in its owner's words."""
    return Fingerprint(server, "server" if own_hardware else REMOTE, "unknown", "own")


def settings_of(sampling: Sampling, steering: Steering, seed: int, max_tokens: int) -> dict[str, Any]:
    """A request's settings in OpenAI's words; those that OpenAI does not know are sent only where they ask for
    something.
    """
    settings: dict[str, Any] = {
        "temperature": sampling.temperature / MILLION,
        "top_p": sampling.top_p / MILLION,
        "max_tokens": max_tokens,
        "seed": seed % _SEEDS,
    }
    optional = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p / MILLION,
        "frequency_penalty": steering.frequency / MILLION,
        "presence_penalty": steering.presence / MILLION,
        "logit_bias": {str(token): value / MILLION for token, value in steering.bias},
    }
    return settings | {name: value for name, value in optional.items() if value}


class RemoteEngine:
    """An `Engine`. `slots` requests at a time; more are refused, since the server has a line of its own."""

    def __init__(
        self,
        client: CompletionsClient,
        spelling: Spelling,
        manifest: Manifest,
        *,
        context: int,
        slots: int,
        own_hardware: bool = False,
        sends_ids: bool = False,
        server: str = UNDECLARED,
    ) -> None:
        """`manifest` is the owner's word for what the server runs, `server` for what it is; `sends_ids`: it takes
        prompts as ids.
        """
        self._sends_ids = sends_ids
        self.manifest, self.context, self.slots = manifest, context, slots
        self.fingerprint = fingerprint(own_hardware, server)
        self._client, self._spelling = client, spelling
        self._jobs = 0
        self._closed = asyncio.Event()

    def free_slots(self) -> int:
        """Requests that may be sent now."""
        return max(self.slots - self._jobs, 0)

    def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        """See `Engine.generate`. A piece holds what one event brought; nothing is said of logprobs."""
        if not job.prompt:
            raise BadPrompt("a prompt needs one id or more")
        if len(job.prompt) >= self.context:
            raise PromptTooLong(len(job.prompt), self.context)
        if job.steering.grammar:
            raise EngineFailed(f"the remote {self._client.name!r} is asked for no grammars")
        if job.logprobs is not None:
            raise EngineFailed(f"the remote {self._client.name!r} is asked for no logprobs")
        self._check_room()
        return self._generate(job)

    def score(self, prompt: Sequence[int], claimed: Sequence[int]) -> AsyncGenerator[Rows, None]:
        """There is nothing to score with. Raises EngineFailed."""
        raise EngineFailed(f"the remote {self._client.name!r} gives no logits")

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Rows:
        """Embeddings are computed on this machine only. Raises EngineFailed."""
        raise EngineFailed(f"the remote {self._client.name!r} is asked for no embeddings")

    async def close(self) -> None:
        """See `Engine.close`; the session belongs to who gave it."""
        self._closed.set()

    def _check_room(self) -> None:
        if self._closed.is_set():
            raise EngineClosed
        if self._jobs >= self.slots:
            raise RemoteBusy(self._client.name, _RETRY_S)

    async def _generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        self._check_room()
        self._jobs += 1
        try:
            ids, left = job.prompt, min(job.max_tokens, self.context - len(job.prompt))
            # The server counts by its own ids: where ours are fewer, it is asked to go on.
            while left > 0:
                before = left
                async with aclosing(self._once(job, ids, left)) as parts:
                    async for part, ended in parts:
                        ids, left = ids + part, left - len(part)
                        if part:
                            yield Piece(part)
                        if ended:
                            return
                if left == before:
                    raise RemoteFailed(self._client.name, "ended its answer without a word")
        finally:
            self._jobs -= 1

    async def _once(
        self, job: Job, ids: tuple[int, ...], most: int
    ) -> AsyncGenerator[tuple[tuple[int, ...], bool], None]:
        """The ids that one request brings, at most so many, each part with whether it ends the answer."""
        prompt = list(ids) if self._sends_ids else await self._spelled(ids)
        settings = settings_of(job.sampling, job.steering, job.seed, most)
        after = _MAX_AFTER if self._client.pays else 0
        async with aclosing(self._client.complete(prompt, settings, len(ids))) as said:
            while (most > 0 or after > 0) and (part := await self._next(said)) is not None:
                after -= most <= 0
                found = (await self._spelling.ids(part.text))[:most] if part.text and most > 0 else ()
                most -= len(found)
                ends = part.finish == "stop" and most > 0
                if ends and self._spelling.end is not None:
                    found += (self._spelling.end,)
                yield found, ends
                if ends:
                    return

    async def _spelled(self, ids: tuple[int, ...]) -> str:
        try:
            return await self._spelling.prompt(ids)
        except Misread as error:
            raise BadPrompt(str(error)) from None

    async def _next(self, said: AsyncGenerator[Said, None]) -> Said | None:
        """What the server says next, None at its end; EngineClosed if this engine is closed before."""
        following = asyncio.ensure_future(anext(said, None))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({following, closed}, return_when=asyncio.FIRST_COMPLETED)
            if self._closed.is_set():
                raise EngineClosed
            return await following
        finally:
            for task in (following, closed):
                task.cancel()
            await asyncio.gather(following, closed, return_exceptions=True)


class RemoteChat:
    """A server whose tokenizer is not here: whole conversations go there, and text comes back."""

    def __init__(self, client: CompletionsClient, slots: int) -> None:
        self._client, self._slots = client, slots
        self._running = 0

    def free_slots(self) -> int:
        """Requests that may be sent now."""
        return max(self._slots - self._running, 0)

    async def answer(
        self, messages: Sequence[dict[str, Any]], sampling: Sampling, steering: Steering, seed: int, max_tokens: int
    ) -> AsyncGenerator[Said, None]:
        """What the server says. Raises RemoteFailed, RemoteBusy."""
        if not self.free_slots():
            raise RemoteBusy(self._client.name, _RETRY_S)
        self._running += 1
        try:
            settings = settings_of(sampling, steering, seed, max_tokens)
            async with aclosing(self._client.chat(list(messages), settings)) as said:
                async for part in said:
                    yield part
        finally:
            self._running -= 1
