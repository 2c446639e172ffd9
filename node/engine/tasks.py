"""What the engine works on: an answer that grows, or a row of ids to be scored. Each knows its ids and how many of
them the KV cache holds, and so can lose its place in the cache at any time and be computed again."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from node.engine.outlet import Outlet
from node.engine.port import Job, Logprob, Piece, Rows
from node.models.grammar import Matcher
from verify.cutoffs import Logits
from verify.noise import unsigned64
from verify.steering import count, steer


class Row:
    """Ids of which the KV cache holds the first `computed`, in `sequence`."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: Final = list(ids)
        self.computed = 0
        self.sequence: int | None = None
        self.ended = False

    @property
    def rest(self) -> int:
        """How many ids have to be computed yet."""
        return len(self.ids) - self.computed


class Stream(Row):
    """An answer under way."""

    def __init__(self, job: Job, outlet: Outlet[Piece], context: int, matcher: Matcher | None = None) -> None:
        """`matcher` has taken the earlier part already. Raises NotUnsigned64."""
        super().__init__(job.prompt)
        unsigned64("seed", job.seed)
        self.job, self.matcher = job, matcher
        self.outlet: Final = outlet
        self.cached: int | None = None  # how many ids did not have to be computed, when it began
        self._end = min(job.start + job.max_tokens, context)
        self.ended = self._end <= job.start
        self._counts = count(job.prompt[job.start - job.earlier :]) if job.steering.penalised else {}
        steering = job.steering
        self.steered: Final = bool(steering.bias or steering.penalised or matcher is not None)

    @property
    def client(self) -> str | None:
        """Whose prefixes it may use and leaves behind."""
        return self.job.client

    @property
    def sold(self) -> bool:
        """Whether the owner's work goes before it."""
        return self.job.sold

    def wanted(self, size: int) -> int:
        """Of how many of the next `size` ids, the last ones, the logits are wanted: of the last there is."""
        return int(self.computed + size == len(self.ids))

    def steer(self, logits: Logits) -> Logits:
        """What the sampler is to see. Raises GrammarGaveUp."""
        allowed = self.matcher.mask() if self.matcher is not None else None
        return steer(logits, self.job.steering, self._counts, allowed)

    def take(self, token: int, logits: Logits, ends: frozenset[int]) -> None:
        """Go on with the token that was drawn from these logits. Raises ForbiddenToken, GrammarGaveUp."""
        if self.matcher is not None:
            self.matcher.take(token)
        told = () if self.job.logprobs is None else (logprob(logits, token, self.job.logprobs),)
        self.ids.append(token)
        if self.job.steering.penalised:
            self._counts[token] = self._counts.get(token, 0) + 1
        first = len(self.ids) == self.job.start + 1
        self.outlet.put(Piece((token,), self.cached or 0 if first else 0, told))
        self.ended = token in ends or len(self.ids) >= self._end


class Replay(Row):
    """Ids whose logits are asked for, from index `first` on."""

    client: Final = None  # it uses nobody's prefixes: what it says of a seller must not rest on what one left there
    sold: Final = False

    def __init__(self, ids: Sequence[int], first: int, outlet: Outlet[Rows]) -> None:
        super().__init__(ids)
        self.outlet: Final = outlet
        self.ended = not ids
        self._next = first  # index of the next id whose logits are due

    def wanted(self, size: int) -> int:
        """As of a stream: of those from `first` on that were not given yet."""
        return max(0, self.computed + size - max(self._next, self.computed))

    def plain(self) -> int:
        """How many ids come before the next whose logits are due."""
        return max(0, self._next - self.computed)

    def give(self, logits: Rows) -> None:
        """The next rows that were due, a view that does not last."""
        if len(logits):
            self.outlet.put(logits.copy())
            self._next += len(logits)
        self.ended = self._next >= len(self.ids)


def logprob(logits: Logits, token: int, top: int) -> Logprob:
    """What is to be told of one token and the `top` likeliest of its place."""
    wide = logits.astype(np.float64)
    peak = float(wide.max())
    total = peak + float(np.log(np.exp(wide - peak).sum()))
    top = min(top, wide.size)
    best = np.argpartition(-wide, top - 1)[:top] if top else np.empty(0, np.intp)
    ranked = sorted(
        ((float(wide[i]) - total, int(i)) for i in best if wide[i] > -np.inf), key=lambda it: (-it[0], it[1])
    )
    return Logprob(token, float(wide[token]) - total, tuple((i, value) for value, i in ranked))


Work = Stream | Replay
