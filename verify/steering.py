"""What moves the logits before the sampler sees them: penalties, bias, and a grammar's mask.

All of it is a function of the order and of the answer's tokens before the place, so a checker does the same:

    l'(i) = l(i) + bias(i) - frequency * n(i) - presence * [n(i) > 0]      where n(i) counts i in the answer so far
    l'(i) = -inf                                                          where the grammar's mask forbids i

The mask is computed outside (`node.models.grammar`) and passed in. Arithmetic is in 64-bit floats, rounded once
to the 32-bit floats of the sampler. Without penalties, bias and grammar the logits are handed on untouched.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from verify.cutoffs import MILLION, Logits

Mask = NDArray[np.bool_]

MAX_PENALTY: Final = 2 * MILLION
MAX_BIAS: Final = 100 * MILLION
MAX_BIASED: Final = 1_024
MAX_GRAMMAR: Final = 65_536  # characters of GBNF


class BadSteering(ValueError):
    """Penalties, bias or grammar outside their ranges; the message says which and what is allowed."""


@frozen
class Steering:
    """Penalties and bias in millionths of a logit, a grammar as GBNF text; the defaults steer nothing."""

    frequency: int = 0
    presence: int = 0
    bias: tuple[tuple[int, int], ...] = field(default=(), repr=False)  # (token id, millionths), by id, each once
    grammar: str = field(default="", repr=False)  # "" allows everything

    def __attrs_post_init__(self) -> None:
        for name, value in (("frequency", self.frequency), ("presence", self.presence)):
            if type(value) is not int or not -MAX_PENALTY <= value <= MAX_PENALTY:
                raise BadSteering(f"the {name} penalty is {value}: give -2,000,000 to 2,000,000 millionths")
        ids = [token for token, _ in self.bias]
        if len(ids) > MAX_BIASED or ids != sorted(set(ids)) or (ids and ids[0] < 0):
            raise BadSteering(f"the bias must name at most {MAX_BIASED} token ids, each once, in their order")
        if not all(type(value) is int and -MAX_BIAS <= value <= MAX_BIAS for _, value in self.bias):
            raise BadSteering("a bias must be from -100,000,000 to 100,000,000 millionths of a logit")
        if len(self.grammar) > MAX_GRAMMAR:
            raise BadSteering(f"the grammar has {len(self.grammar)} characters: at most {MAX_GRAMMAR} are allowed")

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens matter."""
        return bool(self.frequency or self.presence)


def steer(logits: Logits, steering: Steering, counts: Mapping[int, int], allowed: Mask | None) -> Logits:
    """The logits (V,) that the sampler sees, the same array if nothing is steered.

    `counts`: how often each token stands in the answer so far; `allowed` (V,): the grammar's mask, None for all.
    """
    if not (steering.bias or steering.penalised or allowed is not None):
        return logits
    steered = logits.copy()
    if steering.bias:
        ids = np.fromiter((i for i, _ in steering.bias), np.intp)
        values = np.fromiter((v for _, v in steering.bias), np.float64) / MILLION
        known = ids < steered.size
        steered[ids[known]] = (steered[ids[known]].astype(np.float64) + values[known]).astype(np.float32)
    if steering.penalised and counts:
        ids = np.fromiter(counts.keys(), np.intp)
        times = np.fromiter(counts.values(), np.float64)
        less = (steering.frequency * times + steering.presence) / MILLION
        steered[ids] = (steered[ids].astype(np.float64) - less).astype(np.float32)
    if allowed is not None:
        steered[~allowed] = -np.inf
    return steered


def count(tokens: Sequence[int]) -> dict[int, int]:
    """How often each id stands in these tokens."""
    counts: dict[int, int] = {}
    for token in tokens:
        counts[token] = counts.get(token, 0) + 1
    return counts
