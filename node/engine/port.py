"""What the node asks of anything that runs a model, and the errors it must be ready for."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from ledger.records import Fingerprint, Sampling
from node.models.manifest import Manifest

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

    @property
    def start(self) -> int:
        """Position of the first generated token, counted from the start of the prompt."""
        return len(self.prompt)


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

    def generate(self, job: Job) -> AsyncGenerator[list[int], None]:
        """New ids in groups as they come, never an empty group; ends after an end-of-generation id, which
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

    async def close(self) -> None:
        """End all jobs with EngineClosed and free the memory; again does nothing."""
        ...
