"""The logits that a claimed answer was to be drawn from: recomputed, and steered as its order says.

Penalties count the answer's tokens before the place, its earlier part's too; the grammar follows them from where the
answer began. A claimed token that the grammar forbids is passed over by it, and where nothing is allowed any more,
behind an end, nothing is forbidden either: so every checker steers alike, whatever was claimed.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from node.engine.port import Engine, EngineFailed, Rows
from node.models.grammar import BadGrammar, ForbiddenToken, GrammarGaveUp, Matcher
from node.models.tokenizer import Tokenizer
from verify.steering import Mask, Steering, count, steer


async def recomputed(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    claimed: Sequence[int],
    steering: Steering,
    start: int,
) -> AsyncGenerator[Rows, None]:
    """The steered logits for the place of each claimed token, in blocks (k, vocabulary). Raises EngineError.

    `start`: how many of the prompt's last ids are the answer's earlier part.
    """
    try:
        steps = await asyncio.to_thread(_Steps, tokenizer, steering, prompt[len(prompt) - start :])
        done = 0
        async with contextlib.aclosing(engine.score(prompt, claimed)) as blocks:
            async for rows in blocks:
                yield await asyncio.to_thread(steps.steered, rows, claimed[done : done + len(rows)])
                done += len(rows)
    except (BadGrammar, GrammarGaveUp) as error:
        raise EngineFailed(str(error)) from error


def follow(tokenizer: Tokenizer, grammar: str, earlier: Sequence[int]) -> Matcher:
    """A grammar behind the answer's earlier part; takes a while. Raises BadGrammar, ForbiddenToken, GrammarGaveUp."""
    matcher = tokenizer.grammars.compile(grammar).start()
    for token in earlier:
        matcher.take(token)
    return matcher


class _Steps:
    """Follows the claimed tokens."""

    def __init__(self, tokenizer: Tokenizer, steering: Steering, earlier: Sequence[int]) -> None:
        self._steering = steering
        self._counts = count(earlier)
        self._matcher: Matcher | None = None
        if steering.grammar:
            self._matcher = tokenizer.grammars.compile(steering.grammar).start()
            for token in earlier:
                self._take(self._matcher, token)

    def steered(self, rows: Rows, claimed: Sequence[int]) -> Rows:
        """The next rows (k, vocabulary), steered; the tokens claimed for them are taken."""
        steered = [self._step(row, token) for row, token in zip(rows, claimed, strict=True)]
        return np.stack(steered)

    def _step(self, row: Rows, token: int) -> Rows:
        allowed: Mask | None = None
        if self._matcher is not None:
            mask = self._matcher.mask()
            allowed = mask if mask.any() else None
            self._take(self._matcher, token)
        steered = steer(row, self._steering, self._counts, allowed)
        self._counts[token] = self._counts.get(token, 0) + 1
        return steered

    def _take(self, matcher: Matcher, token: int) -> None:
        with contextlib.suppress(ForbiddenToken):
            matcher.take(token)
