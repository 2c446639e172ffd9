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

import numpy as np

from ledger.records import Sampling
from verify.cutoffs import MILLION, BadLogits, Kept, Logits, kept, peak_of
from verify.noise import Ids, NotUnsigned64, Reals, bits, gumbel, uniform

__all__ = ["SAMPLER", "BadLogits", "NotUnsigned64", "choice", "contenders", "gumbel", "sample"]

SAMPLER = "gumbel-1"

# From how many kept tokens on (hot temperatures) a rough pass with the vendor's faster logarithm pays.
MANY = 2_048
# Of the rough pass; above any logarithm's true error by six orders of magnitude.
ROUGH_ERROR = 1e-9


def sample(logits: Logits, sampling: Sampling, seed: int, position: int) -> int:
    """The token id to put at `position`, given the logits (V,), 32-bit floats, computed for it.

    Raises BadLogits if nothing can be drawn, NotUnsigned64 for a seed or position that does not fit.
    """
    if sampling.temperature == 0:
        peak_of(logits)
        return int(logits.argmax())
    few, z = contenders(kept(logits, sampling), sampling, seed, position)
    return choice(few.ids, z)


def contenders(kept: Kept, sampling: Sampling, seed: int, position: int, bar: float = np.inf) -> tuple[Kept, Reals]:
    """The kept tokens that may win or come above `bar`, and the exact z = logit + T G of each, (K,).

    Leaves out only tokens whose z is surely below both the largest and `bar`.
    """
    temperature = sampling.temperature / MILLION
    if kept.ids.size > MANY:
        u = uniform(bits(seed, position, kept.ids))
        rough = kept.logits - temperature * np.log(-np.log(u))
        error = ROUGH_ERROR * (temperature + float(np.abs(rough).max()))
        kept = kept.only(rough >= min(bar, float(rough.max())) - error)
    return kept, kept.logits + temperature * gumbel(seed, position, kept.ids)


def choice(ids: Ids, z: Reals) -> int:
    """The id with the largest z; of equals, the lowest id."""
    return int(ids[z == z.max()].min())
