"""The seeded sampler `gumbel-2`: a token as a pure function of (logits, sampling, seed, position).

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

   With `state = S(S(seed, 0), position)`, token `t` (below 2**32) has a coarse byte, one of the eight of a word that
   it shares with its neighbours, and a fine word of its own:

       coarse = (S(state, t // 8) >> (8 * (t % 8))) & 255
       fine   = S(state, 2**32 + t)

   and its hash is `h = (coarse << 56) | (fine >> 8)`. Of one generator no two outputs below 2**64 are the same, so
   coarse and fine words never are.
4. **Noise.** `u = ((h >> 11) | 1) * 2**-53`: 53 bits, of which the last is always set, so that u is exact
   and never 0 or 1. `G = -ln(-ln(u))`, standard Gumbel noise between -3.7 and 36.8.
5. **Choice.** The kept token with the largest `z = l + T * G`; of equals, the one with the lowest id.

A token whose coarse byte is not 255 has noise below 5.55. So whoever knows of a z that is reached, or guesses it and
looks whether it was, need make fine words and logarithms only for tokens whose byte is 255, and for the few that are no
further below it than that; and the bytes of a vocabulary take an eighth of as many words.

The kept tokens' z have the maximum at token i with probability p_i over the sum of the kept p (the Gumbel-max
trick; Maddison, Tarlow, Minka 2014), so this is ordinary sampling with the dice thrown by the hash.

The hash is exact everywhere, u too. Another implementation's `ln` and `exp` may differ in their last bits,
which moves margins by less than a millionth of a logit. `tests/vectors/sampler.json` fixes all of it. `verify.drawing`
does all of it in C++, and says where it is too close to tell; there numpy decides, as it stands here.
Any change to what is written here is a new name in SAMPLER, which is part of every offer.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ledger.records import Sampling
from verify.cutoffs import MILLION, BadLogits, Kept, Logits, kept
from verify.drawing import NOTHING, UNSURE, draw
from verify.noise import Ids, NotUnsigned64, Reals, gumbel, gumbel_of, hashes, output, stream, uniform, unsigned64

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

SAMPLER = "gumbel-2"
# Of z by the vendor's faster logarithms, relative; above its true error by six orders of magnitude.
ROUGH_ERROR = 1e-9


def sample(logits: Logits, sampling: Sampling, seed: int, position: int) -> int:
    """The token id to put at `position`, given the logits (V,), 32-bit floats, computed for it.

    Raises BadLogits if nothing can be drawn, NotUnsigned64 for a seed or position that does not fit.
    """
    found = sample_block(logits[None, :], [sampling], [seed], [position])[0]
    if found == NOTHING:
        raise BadLogits(logits.size, float(logits.max()) if logits.size else -math.inf)
    return found


def sample_block(
    logits: NDArray[np.float32], samplings: Sequence[Sampling], seeds: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """The tokens that `sample` gives for each row of logits (R, V); NOTHING where it raises BadLogits.

    Raises NotUnsigned64.
    """
    found = []
    for row, s, seed, position in zip(range(len(logits)), samplings, seeds, positions, strict=True):
        try:
            token = draw(logits, row, s.temperature, s.top_p, s.min_p, s.top_k, seed, position)
        except OverflowError:
            unsigned64("seed", seed)
            unsigned64("position", position)
            raise
        found.append(_as_defined(logits[row], s, seed, position) if token == UNSURE else token)
    return found


def _as_defined(logits: Logits, sampling: Sampling, seed: int, position: int) -> int:
    """As `sample`, at a temperature above 0, of logits that offer a choice."""
    few, z = contenders(kept(logits, sampling), sampling, seed, position, bar=math.inf)
    return choice(few.ids, z)


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
    u = uniform(hashes(np.uint64(stream(seed, position)), kept.ids))
    z = kept.logits - temperature * np.log(-np.log(u))
    error = ROUGH_ERROR * (temperature + float(np.abs(z).max()))
    near = np.flatnonzero(z >= min(bar, float(z.max())) - error)
    few = kept.only(near)
    return few, few.logits + temperature * gumbel_of(u[near])


def choice(ids: Ids, z: Reals) -> int:
    """The id with the largest z; of equals, the lowest id."""
    return int(ids[z == z.max()].min())
