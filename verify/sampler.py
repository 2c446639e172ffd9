"""The seeded sampler `gumbel-1`: a token as a pure function of (logits, sampling, seed, position).

Seller and checker run this same code, so a checker that recomputes the logits of any position can tell
which token was due there (`verify.replay`). Here is all that another implementation needs.

Given: `l`, one logit per token id, 32-bit floats, after penalties and bias; -inf for a token that the
grammar forbids. Temperature, top-p and min-p in millionths; T = temperature / 1,000,000. `seed` and
`position`, unsigned 64-bit; the position of a token counts from the start of the prompt, whose first token
has position 0. Arithmetic below is in 64-bit floats; integers wrap at 2**64.

Temperature 0: the token with the largest logit; of equals, the one with the lowest id. No cutoff, no noise.

Otherwise:

1. **Rank.** Tokens are ranked by logit, largest first; of equals, the lower id first.
2. **Cutoffs.** With p = softmax(l / T) over the whole vocabulary, a token is kept if it passes all three:
   - min-p: `l >= l_max + T * ln(max(min_p, 1) / 1,000,000)`, that is p >= min_p * p_max. Never off.
   - top-k: it is among the first k in rank. 0 is off.
   - top-p: the sum of p over all tokens ranked before it is below top_p / 1,000,000 of the sum over the
     vocabulary. 1,000,000 is off. The first token is always kept.
3. **Hash.** `S(state, n)` is output n, counted from 0, of the SplitMix64 generator that starts in `state`:

       x = state + (n + 1) * 0x9E3779B97F4A7C15
       x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
       x = (x ^ (x >> 27)) * 0x94D049BB133111EB
       S(state, n) = x ^ (x >> 31)

   and the hash of a token is `h = S(S(S(seed, 0), position), token id)`.
4. **Noise.** `u = ((h >> 11) | 1) * 2**-53`: 53 bits, of which the last is always set, so that u is exact
   and never 0 or 1. `G = -ln(-ln(u))`, standard Gumbel noise between -3.7 and 36.8.
5. **Choice.** The kept token with the largest `z = l + T * G`; of equals, the one with the lowest id.

The kept tokens' z have the maximum at token i with probability p_i over the sum of the kept p (the Gumbel-max
trick; Maddison, Tarlow, Minka 2014), so this is ordinary sampling with the dice thrown by the hash.

The hash is exact everywhere, u too. Another implementation's `ln` and `exp` may differ in their last bits,
which moves margins by less than a millionth of a logit. `tests/vectors/sampler.json` fixes all of it.
Any change to what is written here is a new name in SAMPLER, which is part of every offer.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from ledger.records import Sampling
from verify.cutoffs import MILLION, WHOLE, BadLogits, Kept, Logits, drawable, masses, maxima
from verify.noise import (
    Ids,
    NotUnsigned64,
    Reals,
    bits,
    gumbel,
    gumbel_of,
    hashes,
    highest,
    output,
    stream,
    uniform,
    unsigned64,
)

__all__ = [
    "NOTHING",
    "SAMPLER",
    "BadLogits",
    "NotUnsigned64",
    "choice",
    "contenders",
    "derived_seed",
    "gumbel",
    "sample",
    "sample_block",
]

Scalar = TypeVar("Scalar", bound=np.generic)

SAMPLER = "gumbel-1"
# What `sample_block` puts where nothing can be drawn.
NOTHING = -1

# Of z by the vendor's faster logarithms, relative; above its true error by six orders of magnitude.
ROUGH_ERROR = 1e-9
# So many groups hold the tokens that are always looked at.
HOT = 128
# How far below what is expected of it the winner's z is looked for at first, in temperatures.
BEHIND = 1.0
# More than the rounding of a bound, as a factor.
SLACK = 1.001


def sample(logits: Logits, sampling: Sampling, seed: int, position: int) -> int:
    """The token id to put at `position`, given the logits (V,), 32-bit floats, computed for it.

    Raises BadLogits if nothing can be drawn, NotUnsigned64 for a seed or position that does not fit.
    """
    found = sample_block(logits[None, :], [sampling], [seed], [position])[0]
    if found == NOTHING:
        raise BadLogits(logits.size, float(logits.max()) if logits.size else -math.inf)
    return int(found)


@np.errstate(over="ignore")  # at a low temperature: minus infinity, and no mass
def sample_block(
    logits: NDArray[np.float32], samplings: Sequence[Sampling], seeds: Sequence[int], positions: Sequence[int]
) -> NDArray[np.int64]:
    """The tokens (R,) that `sample` gives for each row of logits (R, V); NOTHING where it raises BadLogits.

    Raises NotUnsigned64.
    """
    found = np.full(len(logits), NOTHING, np.int64)
    if not logits.size:
        return found
    groups = maxima(logits)
    # The maximum of an array that holds a NaN is NaN, so it shows every fault.
    places = zip(groups.max(axis=1).tolist(), samplings, seeds, positions, strict=True)
    draws: list[_Draw] = []
    few: list[_Draw] = []
    for row, (peak, sampling, seed, position) in enumerate(places):
        if math.isfinite(peak) and sampling.temperature == 0:
            found[row] = logits[row].argmax()
        elif math.isfinite(peak):
            ids, own, floor = drawable(logits[row], sampling, peak, groups[row])
            draw = _Draw(row, ids, own, floor, sampling.temperature / MILLION, stream(seed, position))
            draws.append(draw)
            few.append(draw.likely(peak, groups[row]) if ids.size > WHOLE else draw)
    if draws:
        tokens, largest = _winners(few)
        for missed in np.flatnonzero(largest < [draw.bar for draw in few]):
            tokens[missed] = _winners([draws[missed].all()])[0][0]
        found[[draw.row for draw in draws]] = tokens
    return found


@frozen(eq=False)
class _Draw:
    """Tokens of which one is drawn at one place: ids and logits (K,), of which those from the floor on count.

    `state` is the generator's, from which all tokens at this place draw.
    """

    row: int
    ids: NDArray[np.intp]
    logits: NDArray[np.floating]
    floor: np.float32
    temperature: float
    state: int
    bar: float = -math.inf

    def likely(self, peak: float, groups: Logits) -> "_Draw":
        """The same with few of the tokens, all with z >= bar among them, a bar that the largest z nearly always passes.

        `groups`: the largest logits of groups of the tokens. The tokens with the largest logits stay. Of the others,
        z >= bar is u >= exp(-e) with e = exp((logit - bar) / T); and exp(-e) >= 1 - e. So none is lost that has
        1 - u <= e, and that is asked with the e of the largest of their logits.
        """
        # In temperatures, the largest z is standard Gumbel noise above the logarithm of the sum of exp(logit / T).
        mass = float(masses(groups, peak, self.temperature).sum())
        bar = peak + self.temperature * (math.log(mass) - BEHIND)
        edge = np.partition(groups, -HOT)[-HOT]
        most = math.exp(min((float(edge) - bar) / self.temperature, 0.0)) * SLACK
        near = highest(self.state, self.ids, 2**64 - math.ceil(most * 2.0**64) - 2**12)
        own = self.logits[near]
        near = near[(own < edge) & (own >= self.floor)]
        index = np.concatenate([(self.logits >= max(edge, self.floor)).nonzero()[0], near])
        return evolve(self, ids=self.ids[index], logits=self.logits[index], bar=bar)

    def all(self) -> "_Draw":
        """The same with no tokens but those from the floor on."""
        inside = self.logits >= self.floor
        return evolve(self, ids=self.ids[inside], logits=self.logits[inside])


def _winners(draws: Sequence[_Draw]) -> tuple[NDArray[np.int64], Reals]:
    """The token of each draw, by the vendor's quick logarithms, and by ours where these are too near to tell; and its
    z, by the quick ones.
    """
    sizes = [draw.ids.size for draw in draws]
    starts = np.array([0, *itertools.accumulate(sizes[:-1])])
    ids, logits = _joined([draw.ids for draw in draws]), _joined([draw.logits for draw in draws])
    temperatures = np.array([draw.temperature for draw in draws])
    u = uniform(hashes(_spread(np.array([draw.state for draw in draws], np.uint64), sizes), ids))
    z = _rough(logits, _spread(temperatures, sizes), u)
    best = np.maximum.reduceat(z, starts)
    last = (z >= _spread(best - ROUGH_ERROR * (temperatures + np.abs(best)), sizes)).nonzero()[0]
    ids = ids[last]
    if last.size == len(draws):
        return ids, best
    of = starts.searchsorted(last, side="right") - 1
    z = logits[last] + temperatures[of] * gumbel_of(u[last])
    return np.array([choice(ids[of == draw], z[of == draw]) for draw in range(len(draws))]), best


def _joined(parts: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _spread(values: NDArray[Scalar], sizes: Sequence[int]) -> NDArray[Scalar]:
    """Each value as often as there are tokens, or once if that is the same."""
    return values.repeat(sizes) if len(sizes) > 1 else values


def _rough(logits: NDArray[np.floating], temperatures: Reals, u: Reals) -> Reals:
    """z from the numbers u of the noise, about as exact as 64-bit floats are."""
    z: Reals = logits - temperatures * np.log(-np.log(u))
    return z


def derived_seed(seed: int, choice: int) -> int:
    """The seed of one of several answers to one question, counted from 0: unsigned 64-bit in and out.

    The first has the seed itself, number n has S(seed, n) of step 3. Raises NotUnsigned64.
    """
    unsigned64("seed", seed)
    unsigned64("choice", choice)
    return output(seed, choice) if choice else seed


def contenders(kept: Kept, sampling: Sampling, seed: int, position: int, bar: float) -> tuple[Kept, Reals]:
    """The kept tokens that may win or come above `bar`, and the exact z = logit + T G of each, (K,).

    Leaves out only tokens whose z is surely below both the largest and `bar`.
    """
    temperature = sampling.temperature / MILLION
    z = _rough(kept.logits, np.array([temperature]), uniform(bits(seed, position, kept.ids)))
    error = ROUGH_ERROR * (temperature + float(np.abs(z).max()))
    kept = kept.only(np.flatnonzero(z >= min(bar, float(z.max())) - error))
    return kept, kept.logits + temperature * gumbel(seed, position, kept.ids)


def choice(ids: Ids, z: Reals) -> int:
    """The id with the largest z; of equals, the lowest id."""
    return int(ids[z == z.max()].min())
