"""What the node asks of anything that runs a model, and the errors it must be ready for."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from ledger.records import Fingerprint, Sampling
from node.models.manifest import Manifest
from verify.steering import Steering

Rows = NDArray[np.float32]


class EngineError(Exception):
    """An engine could not do a job."""


class EngineBusy(EngineError):
    """As many jobs wait as may wait. `retry_after` in seconds, an estimate."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after:.0f} s")
        self.waiting, self.retry_after = waiting, retry_after


class EngineFailed(EngineError):
    """The computation of one job went wrong; others are not affected."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine failed: {reason}")
        self.reason = reason


class EngineClosed(EngineFailed):
    """The engine was closed before or while it did the job."""

    def __init__(self) -> None:
        super().__init__("it was closed; start the node again")


class PromptTooLong(EngineError):
    """Prompt and at least one token of answer (or all claimed ones) do not fit the context. All in tokens."""

    def __init__(self, prompt: int, context: int) -> None:
        super().__init__(f"the prompt has {prompt} tokens and the context {context}; leave something out")
        self.prompt, self.context = prompt, context


class BadPrompt(EngineError):
    """A prompt without ids, or with ids that the model does not have."""


@frozen
class Job:
    """One answer to generate. `max_tokens` at most, fewer where the context ends; a continued answer's prompt
    holds the tokens so far, and so has the same seed and positions as if it had never been interrupted."""

    prompt: tuple[int, ...] = field(repr=False)
    sampling: Sampling
    seed: int
    max_tokens: int
    steering: Steering = field(factory=Steering, repr=False)
    earlier: int = 0  # how many of the prompt's last ids are the answer's own earlier part
    client: str = ""  # whose prefix cache it may use and fill: a buyer's did; "" is the owner
    sold: bool = False  # sold work waits while the owner's own does
    logprobs: int | None = None  # how many of the likeliest tokens to tell for each; None tells nothing

    @property
    def start(self) -> int:
        """Position of the first generated token, counted from the start of the prompt."""
        return len(self.prompt)


@frozen
class Logprob:
    """One token's natural log-probability, and the likeliest tokens of its place, best first: of softmax(logits)
    after steering, at temperature 1 and without cutoffs, as OpenAI's."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@frozen
class Piece:
    """The next ids of an answer, as many logprobs if the job asked for them; `cached`, said with the first piece:
    how many of the prompt's tokens did not have to be computed."""

    ids: tuple[int, ...]
    cached: int = 0
    logprobs: tuple[Logprob, ...] = ()


class Engine(Protocol):
    """Runs one model. Safe to use from one event loop; jobs may be asked for at the same time and wait in
    line.
    """

    @property
    def manifest(self) -> Manifest:
        """The model that is offered."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """What computes its logits."""
        ...

    @property
    def context(self) -> int:
        """Prompt and answer together, in tokens, at most."""
        ...

    @property
    def slots(self) -> int:
        """How many jobs run at the same time."""
        ...

    def free_slots(self) -> int:
        """How many jobs would begin at once if they were asked for now."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        """New ids in pieces as they come, never an empty one; ends after an end-of-generation id, which
        belongs to the answer, or at `max_tokens` or the context's end.

        Closing the generator, or cancelling who waits for it, frees the engine within one token (one chunk of
        the prompt). Raises EngineError: what is known at once from the call itself, the rest from the
        iteration.
        """
        ...

    def score(self, prompt: Sequence[int], claimed: Sequence[int]) -> AsyncGenerator[Rows, None]:
        """The logits that predict each claimed token, in blocks (k, vocabulary) in order, k as memory allows.

        Closing and errors as in `generate`; it waits in the same line.
        """
        ...

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Rows:
        """One vector for each input's ids, (len(inputs), width), of length 1: the mean of the last layer over its
        tokens, or what the model's own pooling says. Errors as in `generate`."""
        ...

    async def close(self) -> None:
        """End all jobs with EngineClosed and free the memory; again does nothing."""
        ...
