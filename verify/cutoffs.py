"""Top-k, top-p and min-p: which tokens may be drawn, and how far a token lies from being cut.

One definition for seller and checker; `verify.sampler` states it in words. Min-p comes first because it
is cheap and never off: the other two then look only at the few tokens above its floor. That changes nothing.
A token below the floor is cut anyway, none of them ranks before one that is above, and where top-k has its
edge below the floor, the floor is the nearer edge.
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

    def only(self, mask: NDArray[np.bool_]) -> "Kept":
        """The tokens where `mask` (K,) is true."""
        return Kept(self.ids[mask], self.logits[mask], self.slack[mask])


def peak_of(logits: Logits) -> float:
    """The largest of the logits (V,). Raises BadLogits."""
    # The maximum of an array that holds a NaN is NaN, so one pass finds every fault.
    peak = float(logits.max()) if logits.size else -math.inf
    if not math.isfinite(peak):
        raise BadLogits(logits.size, peak)
    return peak


def kept(logits: Logits, sampling: Sampling) -> Kept:
    """The tokens that may be drawn from logits (V,) at a temperature above 0. Raises BadLogits."""
    floor = _floor(peak_of(logits), sampling)
    wide = logits.astype(np.float64)
    ids = np.flatnonzero(wide >= floor)
    inside = Kept(ids, wide[ids], wide[ids] - floor)
    top_k = 0 < sampling.top_k < ids.size
    top_p = sampling.top_p < MILLION
    if not (top_k or top_p):
        return inside
    size = sampling.top_k if top_k else ids.size
    if top_k:  # the first k, the one behind them, and its equals: no need to sort more
        inside = inside.only(inside.logits >= np.partition(inside.logits, -size - 1)[-size - 1])
    ranked = _by_rank(inside)
    slack = ranked.slack
    if top_k:
        slack = np.minimum(slack, ranked.logits - ranked.logits[size])
    if top_p:
        before, total = _masses(ranked, logits, _temperature(sampling))
        size = min(size, int(np.searchsorted(before, total * (sampling.top_p / MILLION))))
        with np.errstate(divide="ignore"):  # nothing comes before the first token: it is never cut
            odds = np.log(before[:size] / (total - before[:size]))
        nucleus = _temperature(sampling) * (_log_odds(sampling) - odds)
        slack = np.minimum(slack[:size], np.maximum(nucleus, 0.0))
    return Kept(ranked.ids[:size], ranked.logits[:size], slack[:size])


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


def _by_rank(tokens: Kept) -> Kept:
    # Stable, so that equal logits stay in the order of their ids.
    order = np.argsort(-tokens.logits, kind="stable")
    return Kept(tokens.ids[order], tokens.logits[order], tokens.slack[order])


def _masses(ranked: Kept, logits: Logits, temperature: float) -> tuple[Reals, float]:
    """The mass that ranks before each token, (K,), and the mass of the whole vocabulary.

    Of the tokens that are not in `ranked`, most of the vocabulary, only the sum counts: single precision,
    ten times faster, is exact enough for that.
    """
    peak = ranked.logits[0]
    sums = np.cumsum(np.exp((ranked.logits - peak) / temperature))
    with np.errstate(over="ignore"):  # far below the peak: minus infinity, and no mass
        others = np.exp((logits - np.float32(peak)) / np.float32(temperature))
    others[ranked.ids] = 0.0
    return np.concatenate(([0.0], sums[:-1])), float(sums[-1]) + float(others.sum(dtype=np.float64))
