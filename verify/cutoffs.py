"""Top-k, top-p and min-p: which tokens may be drawn, and how far a token lies from being cut.

`verify.sampler` states them in words; `verify.drawing` draws what they keep, sooner. Min-p comes first because it is
cheap and never off: the other two then look only at the few tokens above its floor. That changes nothing. A token below
the floor is cut anyway, none of them ranks before one that is above, and where top-k has its edge below the floor, the
floor is the nearer edge.
"""

import math

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from ledger.records import Sampling
from verify.noise import Reals

Logits = NDArray[np.float32]

MILLION = 1_000_000
# Millionths of the likeliest token's probability. Of 150,000 tokens this leaves a few hundred.
LEAST_MIN_P = 1


class BadLogits(ValueError):
    """Logits from which nothing can be drawn: none finite, a NaN, or plus infinity."""

    def __init__(self, size: int, peak: float) -> None:
        super().__init__(
            f"the largest of {size} logits is {peak}: the engine failed, or its mask allows no token; "
            "give at least one finite logit and neither NaN nor +inf"
        )
        self.size = size
        self.peak = peak


@frozen(eq=False)
class Kept:
    """The tokens that pass every cutoff; three arrays of one shape (K,), K >= 1, in no promised order.

    `slack` is how far, in logits, each lies inside its nearest cutoff: not negative.
    """

    ids: NDArray[np.intp]
    logits: Reals
    slack: Reals

    def only(self, index: NDArray[np.intp]) -> "Kept":
        """The tokens at these places of the arrays."""
        return Kept(self.ids[index], self.logits[index], self.slack[index])


def peak_of(logits: Logits) -> float:
    """The largest of the logits (V,). Raises BadLogits."""
    # The maximum of an array that holds a NaN is NaN, so one pass finds every fault.
    peak = float(logits.max()) if logits.size else -math.inf
    if not math.isfinite(peak):
        raise BadLogits(logits.size, peak)
    return peak


@np.errstate(over="ignore")  # far below the peak: minus infinity, and no mass
def kept(logits: Logits, sampling: Sampling) -> Kept:
    """The tokens that may be drawn from logits (V,) at a temperature above 0. Raises BadLogits."""
    peak, temperature = peak_of(logits), _temperature(sampling)
    wide = logits.astype(np.float64)
    ids = (wide >= _floor(peak, sampling)).nonzero()[0]
    # Stable, so that equal logits stay in the order of their ids.
    ids = ids[(-wide[ids]).argsort(kind="stable")]
    own, size = wide[ids], ids.size
    slack = own - _floor(peak, sampling)
    if 0 < sampling.top_k < size:  # what is behind it in rank is the edge
        size = sampling.top_k
        slack = np.minimum(slack, own - own[size])
    if sampling.top_p < MILLION:
        upto = np.exp((own - peak) / temperature).cumsum()
        total = np.exp((wide - peak) / temperature).sum()
        size = min(size, 1 + int(upto[:-1].searchsorted(total * (sampling.top_p / MILLION))))
        before = np.concatenate(([0.0], upto[: size - 1]))
        with np.errstate(divide="ignore"):  # nothing comes before the first token: it is never cut
            odds = np.log(before / (total - before))
        nucleus = temperature * (_log_odds(sampling) - odds)
        slack = np.minimum(slack[:size], np.maximum(nucleus, 0.0))
    return Kept(ids[:size], own[:size], slack[:size])


def shortfall(token: int, logits: Logits, sampling: Sampling) -> float:
    """How far, in logits, a token that is cut lies outside its farthest cutoff: its slack, negated.

    `logits` (V,), temperature above 0, a finite logit of the token. Not negative. Raises BadLogits.
    """
    peak = peak_of(logits)
    wide = logits.astype(np.float64)
    own = float(wide[token])
    gaps = [0.0, _floor(peak, sampling) - own]
    if 0 < sampling.top_k < wide.size:
        # Negative for a token among the first k, which top-k does not cut.
        gaps.append(float(np.partition(wide, -sampling.top_k)[-sampling.top_k]) - own)
    before = wide > own
    before[:token] |= wide[:token] == own
    if sampling.top_p < MILLION and before.any():
        temperature = _temperature(sampling)
        # Each side relative to its own largest term: the odds stay finite where a plain share rounds to 1.
        ahead = peak + temperature * math.log(np.exp((wide[before] - peak) / temperature).sum())
        rest = own + temperature * math.log(np.exp((wide[~before] - own) / temperature).sum())
        gaps.append(ahead - rest - temperature * _log_odds(sampling))
    return max(gaps)


def _temperature(sampling: Sampling) -> float:
    return sampling.temperature / MILLION


def _floor(peak: float, sampling: Sampling) -> float:
    """The logit below which min-p cuts."""
    return peak + _temperature(sampling) * math.log(max(sampling.min_p, LEAST_MIN_P) / MILLION)


def _log_odds(sampling: Sampling) -> float:
    return math.log(sampling.top_p / (MILLION - sampling.top_p))
