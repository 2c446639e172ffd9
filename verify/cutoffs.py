"""Top-k, top-p and min-p: which tokens may be drawn, and how far a token lies from being cut.

One definition for seller and checker; `verify.sampler` states it in words. Min-p comes first because it
is cheap and never off: the other two then look only at the few tokens above its floor. That changes nothing.
A token below the floor is cut anyway, none of them ranks before one that is above, and where top-k has its
edge below the floor, the floor is the nearer edge.
"""

import math
from functools import lru_cache

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from ledger.records import Sampling
from verify.noise import Reals

Logits = NDArray[np.float32]

MILLION = 1_000_000
# From how many tokens on it pays to look for the few that count before ranking them.
MANY = 1_024
# More than single precision errs by, relative, in a sum over a vocabulary.
NEAR = 1e-4
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


def kept(logits: Logits, sampling: Sampling) -> Kept:
    """The tokens that may be drawn from logits (V,) at a temperature above 0. Raises BadLogits."""
    peak = peak_of(logits)
    ranking, temperature = _ranking(logits, sampling, peak), _temperature(sampling)
    own, size = ranking.logits, ranking.size
    slack = own - _floor(peak, sampling)
    if size < own.size:  # top-k: what is behind it in rank is the edge
        slack = np.minimum(slack, own - own[size])
    if sampling.top_p < MILLION:
        before, total = ranking.before(temperature), _total(logits, ranking, temperature)
        size = min(size, _nucleus(before, total, sampling))
        with np.errstate(divide="ignore"):  # nothing comes before the first token: it is never cut
            odds = np.log(before[:size] / (total - before[:size]))
        nucleus = temperature * (_log_odds(sampling) - odds)
        slack = np.minimum(slack[:size], np.maximum(nucleus, 0.0))
    return Kept(ranking.ids[:size], own[:size], slack[:size])


def drawable(logits: Logits, sampling: Sampling, peak: float) -> tuple[NDArray[np.intp], Reals]:
    """What `kept` keeps, ids and logits, where no slack is wanted; `peak` is the largest of the logits, finite."""
    ranking, temperature = _ranking(logits, sampling, peak), _temperature(sampling)
    size = ranking.size
    if sampling.top_p < MILLION:
        before = ranking.before(temperature)
        # The exact total takes as long as all the rest, and most cuts are the same for its least and its most.
        size, most = (min(size, _nucleus(before, total, sampling)) for total in ranking.total)
        if size < most:
            size = min(most, _nucleus(before, _total(logits, ranking, temperature), sampling))
    if size == ranking.ids.size:
        return ranking.ids, ranking.logits
    return ranking.ids[:size], ranking.logits[:size]


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


@frozen(eq=False)
class _Ranking:
    """Tokens (K,) in the order of their rank, if top-k or top-p is on; those that min-p and top-k keep are the first
    `size`, and what tops k follows. With top-p, some that it surely cuts may be missing.

    `total`: the mass of the whole vocabulary, relative to the first token's, lies between these two.
    """

    ids: NDArray[np.intp]
    logits: Reals
    size: int
    total: tuple[float, float] = (0.0, 0.0)

    def before(self, temperature: float) -> Reals:
        """The mass that ranks before each token, (K,), relative to that of the first."""
        masses = np.exp((self.logits - self.logits[0]) / temperature)
        return np.concatenate(([0.0], np.cumsum(masses[:-1])))


def _ranking(logits: Logits, sampling: Sampling, peak: float) -> _Ranking:
    floor, temperature = _floor(peak, sampling), _temperature(sampling)
    above = logits >= _single_from(floor)
    size, total = int(np.count_nonzero(above)), (0.0, 0.0)
    top_k, top_p = 0 < sampling.top_k < size, sampling.top_p < MILLION
    whole = size == logits.size
    if not (top_k or top_p):
        ids = all_ids(size) if whole else np.flatnonzero(above)
        return _Ranking(ids, (logits if whole else logits[ids]).astype(np.float64), size)
    if top_k and 2 * size > logits.size:  # quicker than to pick those above the floor, of which top-k leaves a few
        ids, own = all_ids(logits.size), logits
    else:
        ids = np.flatnonzero(above)
        own = logits[ids]
    if top_p and own is not logits:
        masses = _masses(own, peak, temperature)
        total = _bounds(float(masses.sum()), logits, size, floor, peak, temperature)
    if top_k:  # the first k, the one behind them, and its equals: no need to sort more
        size = sampling.top_k
        edge = np.partition(own, -size - 1)[-size - 1]
        if top_p and own is logits:
            total = _wide_bounds(logits, size, float(edge), peak, temperature)
        places = np.flatnonzero(own >= edge)
        ids, own = ids[places], own[places]
    elif size > MANY:  # all above a logit, as soon as they weigh more than top-p keeps
        for distance in (1.0, 2.0, 4.0, 8.0):
            few = own >= _single_from(peak - distance * temperature)
            if float(masses[few].sum()) * (1 - NEAR) > total[1] * (sampling.top_p / MILLION):
                ids, own = ids[few], own[few]
                size = ids.size
                break
    # Stable, so that equal logits stay in the order of their ids.
    order = np.argsort(-own, kind="stable")
    return _Ranking(ids[order], own[order].astype(np.float64), size, total)


@lru_cache(maxsize=8)
def all_ids(size: int) -> NDArray[np.intp]:
    """The ids of a whole vocabulary: the same array each time, to be read only."""
    ids = np.arange(size)
    ids.flags.writeable = False
    return ids


def _bounds(
    inside: float, logits: Logits, size: int, floor: float, peak: float, temperature: float
) -> tuple[float, float]:
    """The least and the most that the vocabulary weighs, of which `size` tokens from the floor on weigh `inside`."""
    low = floor - 4.0 * temperature
    near = int(np.count_nonzero(logits >= _single_from(low))) - size
    below = near * math.exp((floor - peak) / temperature)
    below += (logits.size - size - near) * math.exp((low - peak) / temperature)
    return inside * (1 - NEAR), (inside + below) * (1 + NEAR)


def _wide_bounds(logits: Logits, size: int, edge: float, peak: float, temperature: float) -> tuple[float, float]:
    """The same of a vocabulary of which all but `size` tokens lie at the edge or below.

    A mean of exponentials is at least the exponential of the mean (Jensen 1906); no token weighs more than the first.
    """
    least = logits.size * math.exp((float(logits.mean(dtype=np.float64)) - peak) / temperature)
    most = size + (logits.size - size) * math.exp((edge - peak) / temperature)
    return least * (1 - NEAR), most * (1 + NEAR)


def _single_from(bound: float) -> np.float32:
    """The least 32-bit float that is not below: to compare with it is to compare with the bound, exactly."""
    with np.errstate(over="ignore"):
        single = np.float32(bound)
    return single if float(single) >= bound else np.nextafter(single, np.float32(np.inf))


def _total(logits: Logits, ranking: _Ranking, temperature: float) -> float:
    """The mass of the whole vocabulary.

    Of the tokens that are not ranked, most of the vocabulary, only the sum counts: single precision, ten times
    faster, is exact enough for that.
    """
    peak = float(ranking.logits[0])
    others = _masses(logits, peak, temperature)
    others[ranking.ids] = 0.0
    ranked = np.exp((ranking.logits - peak) / temperature)
    return float(ranked.sum()) + float(others.sum(dtype=np.float64))


def _masses(logits: Logits, peak: float, temperature: float) -> Logits:
    with np.errstate(over="ignore"):  # far below the peak: minus infinity, and no mass
        masses = logits - np.float32(peak)
        masses /= np.float32(temperature)
    np.exp(masses, out=masses)
    return masses


def _nucleus(before: Reals, total: float, sampling: Sampling) -> int:
    """How many of the tokens top-p keeps."""
    return int(np.searchsorted(before, total * (sampling.top_p / MILLION)))
