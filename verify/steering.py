"""What moves the logits before the sampler sees them: penalties, bias, and a grammar's mask.

All of it is a function of the order and of the answer's tokens before the place, so a checker does the same:

    l'(i) = l(i) + bias(i) - frequency * n(i) - presence * [n(i) > 0]      where n(i) counts i in the answer so far
    l'(i) = -inf                                                          where the grammar's mask forbids i

The mask is computed outside (`node.models.grammar`) and passed in. What moves a logit is summed up in integers, the
millionths of the order; divided by 1,000,000 and added in 64-bit floats, and rounded once to the 32-bit floats of the
sampler. A bias for an id that the vocabulary does not have is passed over. Without penalties, bias and grammar the
logits are handed on untouched. `tests/vectors/steering.json` fixes all of it.
"""

from collections import Counter
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
        if not all(type(token) is int and 0 <= token < 2**32 for token in ids):
            raise BadSteering("the ids of a bias are numbers of 32 bits")
        if len(ids) > MAX_BIASED or ids != sorted(set(ids)):
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
    moves = _moves(steering, counts)
    if not moves and allowed is None:
        return logits
    steered = logits.copy()
    if moves:
        ids = np.fromiter(moves.keys(), np.intp)
        by = np.fromiter(moves.values(), np.float64) / MILLION
        known = ids < steered.size
        ids, by = ids[known], by[known]
        steered[ids] = (steered[ids].astype(np.float64) + by).astype(np.float32)
    if allowed is not None:
        steered[~allowed] = -np.inf
    return steered


def _moves(steering: Steering, counts: Mapping[int, int]) -> dict[int, int]:
    """By how many millionths each logit moves: exact, being integers."""
    moves = dict(steering.bias)
    if steering.penalised:
        for token, times in counts.items():
            moves[token] = moves.get(token, 0) - steering.frequency * times - steering.presence
    return moves


def count(tokens: Sequence[int]) -> dict[int, int]:
    """How often each id stands in these tokens."""
    return dict(Counter(tokens))
