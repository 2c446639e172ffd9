"""Claimed tokens against recomputed logits: the margin of each.

A margin is how far, in logits, the recomputation would have to move for the claimed token to be the choice.
With z = logit + T G, and the slack of a token its distance inside (positive) or outside (negative) its
nearest cutoff:

    margin(c) = max( -slack(c) if c was cut,
                     max over kept b with z_b > z_c of min(z_b - z_c, slack(b)) ), and not below 0

A rival b stops being one when it falls behind c or out of the cutoffs, whichever is nearer. Slack is the
least of

- min-p: l_i - l_max - T ln(min_p)
- top-k: l_i - l_(k+1) when kept, l_i - l_(k) when cut
- top-p: T (logodds(top_p) - logodds(mass before i))

Honest margins come from another batch size, another order of summation: on the demo model 0.3 at most, and
over 0.1 in 6 to 50 tokens of 100,000. At temperature 0 the margin is l_max - l_claimed.
"""

import numpy as np
from numpy.typing import NDArray

from ledger.records import Sampling
from verify.cutoffs import MILLION, Logits, kept, peak_of, shortfall
from verify.noise import Ids, Reals, gumbel
from verify.sampler import choice, contenders, sample_block

# The margin of a claimed token that the grammar forbids (logit -inf), and the largest there is; logits.
MASKED = 1_000_000.0
# The margin of a token that loses a tie: any movement at all would make it the choice, but it was not.
LOST_TIE = float(np.finfo(np.float64).tiny)


class OutsideVocabulary(ValueError):
    """A claimed token is no id of this model."""

    def __init__(self, row: int, token: int, vocabulary: int) -> None:
        super().__init__(
            f"claimed token {row} is {token}, but this model's ids are 0 to {vocabulary - 1}: "
            "dispute the answer, or check that seller and checker mean the same tokenizer"
        )
        self.row = row
        self.token = token
        self.vocabulary = vocabulary


class UnevenRows(ValueError):
    """Logits and claimed tokens are not as many."""

    def __init__(self, logits: tuple[int, ...], claimed: tuple[int, ...]) -> None:
        super().__init__(f"logits have shape {logits}, claimed tokens {claimed}: give (N, V) and (N,)")
        self.logits = logits
        self.claimed = claimed


def margins(logits: NDArray[np.float32], claimed: Ids, sampling: Sampling, seed: int, first_position: int) -> Reals:
    """The margins (N,) in logits, each finite, zero exactly if `sample` would pick the claimed token.

    logits (N, V): row j is what the model computed for the place of claimed token j, whose position
    is first_position + j, counted from the start of the prompt.
    Raises OutsideVocabulary, UnevenRows, BadLogits, NotUnsigned64.
    """
    if logits.ndim != 2 or claimed.shape != logits.shape[:1]:
        raise UnevenRows(logits.shape, claimed.shape)
    for row in np.flatnonzero((claimed < 0) | (claimed >= logits.shape[1])):
        raise OutsideVocabulary(int(row), int(claimed[row]), logits.shape[1])
    count = len(claimed)
    chosen = sample_block(logits, [sampling] * count, [seed] * count, range(first_position, first_position + count))
    found = np.zeros(count)
    # An honest claim is nearly always the choice, and that is known for the whole block at once.
    for row in np.flatnonzero(np.array(chosen, np.int64) != claimed):
        found[row] = margin(logits[row], int(claimed[row]), sampling, seed, first_position + int(row))
    return found


def margin(logits: Logits, token: int, sampling: Sampling, seed: int, position: int) -> float:
    """The margin of one claimed token, an id of the vocabulary, against the logits (V,) of its position."""
    peak, own = peak_of(logits), float(logits[token])
    if not np.isfinite(own):
        return MASKED
    if sampling.temperature == 0:
        best, distance = int(logits.argmax()), peak - own
    else:
        best, distance = _drawn(logits, token, sampling, seed, position)
    return 0.0 if best == token else min(max(distance, LOST_TIE), MASKED)


def _drawn(logits: Logits, token: int, sampling: Sampling, seed: int, position: int) -> tuple[int, float]:
    inside = kept(logits, sampling)
    noise = float(gumbel(seed, position, np.array([token]))[0])
    own = float(logits[token]) + sampling.temperature / MILLION * noise
    few, z = contenders(inside, sampling, seed, position, bar=own)
    ahead = z > own
    distance = float(np.minimum(z[ahead] - own, few.slack[ahead]).max(initial=0.0))
    if not (inside.ids == token).any():
        distance = max(distance, shortfall(token, logits, sampling))
    return choice(few.ids, z), distance
