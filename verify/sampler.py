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

import math
from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from ledger.records import Sampling
from verify.cutoffs import MILLION, BadLogits, Kept, Logits, all_ids, drawable
from verify.noise import Ids, NotUnsigned64, Reals, bits, bits_between, gumbel, gumbel_of, output, uniform, unsigned64

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

SAMPLER = "gumbel-1"
# What `sample_block` puts where nothing can be drawn.
NOTHING = -1

# From how many kept tokens on it pays to look first which of them can win at all.
MANY = 256
# Of z by the vendor's faster logarithms, relative; above its true error by six orders of magnitude.
ROUGH_ERROR = 1e-9
# Tokens at a time in that look, so that its arrays stay in the processor's cache.
CHUNK = 16_384


def sample(logits: Logits, sampling: Sampling, seed: int, position: int) -> int:
    """The token id to put at `position`, given the logits (V,), 32-bit floats, computed for it.

    Raises BadLogits if nothing can be drawn, NotUnsigned64 for a seed or position that does not fit.
    """
    found = sample_block(logits[None, :], [sampling], [seed], [position])[0]
    if found == NOTHING:
        raise BadLogits(logits.size, float(logits.max()) if logits.size else -math.inf)
    return int(found)


def sample_block(
    logits: NDArray[np.float32], samplings: Sequence[Sampling], seeds: Sequence[int], positions: Sequence[int]
) -> NDArray[np.int64]:
    """The tokens (R,) that `sample` gives for each row of logits (R, V); NOTHING where it raises BadLogits.

    Raises NotUnsigned64.
    """
    found = np.full(len(logits), NOTHING, np.int64)
    peaks = logits.max(axis=1) if logits.size else np.full(len(logits), -np.inf, np.float32)
    draws: list[_Draw] = []
    places = zip(logits, peaks.tolist(), samplings, seeds, positions, strict=True)
    for row, (own, peak, sampling, seed, position) in enumerate(places):
        # The maximum of an array that holds a NaN is NaN, so it shows every fault.
        if math.isfinite(peak) and sampling.temperature == 0:
            found[row] = own.argmax()
        elif math.isfinite(peak):
            draws.append(
                _Draw(row, *drawable(own, sampling, peak), peak, sampling.temperature / MILLION, seed, position)
            )
    if draws:
        few = [draw.reaching(np.inf) for draw in draws]
        # The logarithms, a hundred steps, once for all rows.
        noise = gumbel_of(np.concatenate([draw.uniform(index) for draw, index in zip(draws, few, strict=True)]))
        parts = np.split(noise, np.cumsum([index.size for index in few])[:-1])
        for draw, index, part in zip(draws, few, parts, strict=True):
            found[draw.row] = choice(draw.ids[index], draw.logits[index] + draw.temperature * part)
    return found


@frozen(eq=False)
class _Draw:
    """Tokens of which one is drawn at one place: ids and logits (K,), `peak` the largest of these."""

    row: int
    ids: NDArray[np.intp]
    logits: Reals
    peak: float
    temperature: float
    seed: int
    position: int

    def bits_between(self, start: int, end: int) -> NDArray[np.uint64]:
        """The hashes of some of the tokens that stand together."""
        if self.ids is all_ids(self.ids.size):
            return bits_between(self.seed, self.position, start, end)
        return bits(self.seed, self.position, self.ids[start:end])

    def uniform(self, index: NDArray[np.intp] | slice) -> Reals:
        """The numbers between 0 and 1 from which the noise of some of the tokens is made."""
        return uniform(bits(self.seed, self.position, self.ids[index]))

    def reaching(self, bar: float) -> NDArray[np.intp]:
        """The indices of all tokens whose z = logit + T G may be the largest or above the bar, and of few others."""
        if self.ids.size <= MANY:
            return np.arange(self.ids.size)
        few = np.flatnonzero(self.logits >= self.peak - self.temperature)[:MANY]
        few = self._passing(self._below(bar, self._rough(few)))
        rough = self._rough(few)
        index: NDArray[np.intp] = few[rough >= self._below(bar, rough)]
        return index

    def _below(self, bar: float, rough: Reals) -> float:
        """Surely not above the bar and the largest z, by what the rough ones say of it."""
        return min(bar, float(rough.max())) - ROUGH_ERROR * (self.temperature + float(np.abs(rough).max()))

    def _rough(self, index: NDArray[np.intp]) -> Reals:
        noise = -np.log(-np.log(self.uniform(index)))
        z: Reals = self.logits[index] + self.temperature * noise
        return z

    def _passing(self, bar: float) -> NDArray[np.intp]:
        """The indices of all tokens with z >= bar, and of some others.

        z >= bar is u >= exp(-e) with e = exp((logit - bar) / T); and exp(-e) >= 1 - e. So no token is lost that has
        1 - u <= e. First that is asked with the e of the largest logit, of the bare bits; where many tokens are about
        as likely, as in a hot draw, that leaves few.
        """
        slope, found = 1.0 / self.temperature, []
        most = math.exp(min((self.peak - bar) * slope, 0.0)) * 1.001
        least = np.uint64(max(0, 2**64 - math.ceil(most * 2.0**64) - 2**12))
        for start in range(0, self.ids.size, CHUNK):
            end = min(start + CHUNK, self.ids.size)
            word = self.bits_between(start, end)
            near = np.flatnonzero(word >= least)
            e = (self.logits[start + near] - bar) * slope
            # Beyond these it is true of every u, or smaller than all 1 - u; a thousandth covers the rounding.
            np.exp(np.clip(e, -80.0, 1.0, out=e), out=e)
            e *= 2.0**53 * 1.001
            # The bits of 1 - u, in units of its last, or one less.
            rest = ~word[near] >> np.uint64(11)
            found.append(start + near[rest.astype(np.float64) <= e])
        return np.concatenate(found)


def derived_seed(seed: int, choice: int) -> int:
    """The seed of one of several answers to one question, counted from 0: unsigned 64-bit in and out.

    The first has the seed itself, number n has S(seed, n) of step 3. Raises NotUnsigned64.
    """
    unsigned64("seed", seed)
    unsigned64("choice", choice)
    return output(seed, choice) if choice else seed


def contenders(kept: Kept, sampling: Sampling, seed: int, position: int, bar: float = np.inf) -> tuple[Kept, Reals]:
    """The kept tokens that may win or come above `bar`, and the exact z = logit + T G of each, (K,).

    Leaves out only tokens whose z is surely below both the largest and `bar`.
    """
    temperature = sampling.temperature / MILLION
    few = _Draw(0, kept.ids, kept.logits, float(kept.logits.max()), temperature, seed, position).reaching(bar)
    kept = kept.only(few)
    return kept, kept.logits + temperature * gumbel(seed, position, kept.ids)


def choice(ids: Ids, z: Reals) -> int:
    """The id with the largest z; of equals, the lowest id."""
    return int(ids[z == z.max()].min())
