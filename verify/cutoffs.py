"""Top-k, top-p and min-p: which tokens may be drawn, and how far a token lies from being cut.

One definition for seller and checker; `verify.sampler` states it in words. Min-p comes first because it
is cheap and never off: the other two then look only at the few tokens above its floor. That changes nothing.
A token below the floor is cut anyway, none of them ranks before one that is above, and where top-k has its
edge below the floor, the floor is the nearer edge.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate

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
# A vocabulary of which not even the largest logits are wanted in groups, and the tokens in a group of a larger one.
SMALL, GROUP = 2_048, 32
# A vocabulary of which it pays to look into the groups alone whose largest logit counts.
LARGE = 65_536
LEAST = np.float32(-np.inf)
# Into so many slices of equal width, by their logits, the tokens are put of which the mass is wanted.
SLICES = 4_096
# Of so many tokens in all it takes less time to look at one after the other.
FEW = 64
# The tokens in a group where one row alone is cut to few by top-k, and how many times k such groups there must be.
BLOCK, TIMES = 128, 2
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
    peak = peak_of(logits)
    ranking, temperature = _ranking(logits, sampling, peak, maxima(logits[None])[0]), _temperature(sampling)
    own, size = ranking.logits.astype(np.float64), ranking.size
    slack = own - _floor(peak, sampling)
    if size < own.size:  # top-k: what is behind it in rank is the edge
        slack = np.minimum(slack, own - own[size])
    if sampling.top_p < MILLION:
        upto, total = ranking.upto(temperature), _total(logits, ranking, temperature)
        size = min(size, _nucleus(upto, total, sampling))
        before = np.concatenate(([0.0], upto[: size - 1]))
        with np.errstate(divide="ignore"):  # nothing comes before the first token: it is never cut
            odds = np.log(before / (total - before))
        nucleus = temperature * (_log_odds(sampling) - odds)
        slack = np.minimum(slack[:size], np.maximum(nucleus, 0.0))
    return Kept(ranking.ids[:size], own[:size], slack[:size])


def lowest(peak: float, sampling: Sampling) -> np.float32:
    """The least logit that min-p keeps, where the largest is `peak`."""
    return _single_from(_floor(peak, sampling))


def lowest_of_nucleus(logits: Logits, sampling: Sampling, peak: float) -> np.float32 | None:
    """The least logit that top-p keeps of logits (V,); None where it does not keep all that are not below, since it
    cuts between equals, or where masses added in another order than that of rank could cut elsewhere.

    Whoever wants to know where a large nucleus ends need not rank what is in it.
    """
    temperature = _temperature(sampling)
    weights = np.exp((logits - np.float64(peak)) / temperature)
    target = float(weights.sum()) * (sampling.top_p / MILLION)
    depths = np.float32(peak) - logits
    depths *= np.float32(SLICES / (temperature * -math.log(LEAST_MIN_P / MILLION)))
    slices = np.minimum(depths, SLICES - 1, out=depths).astype(np.intp)
    upto = np.bincount(slices, weights, SLICES).cumsum()
    last = int(upto.searchsorted(target))
    before = float(upto[last - 1]) if last else 0.0
    inside = (slices == last).nonzero()[0]
    order = inside[(-logits[inside]).argsort(kind="stable")]
    sums = np.concatenate(([before], before + weights[order].cumsum()))
    place = int(sums.searchsorted(target)) - 1
    error = logits.size * 2.0**-51  # relative, of sums of so many: each addition rounds by 2^-53 at most
    if not 0 <= place < order.size or sums[place] > target * (1 - error) or sums[place + 1] < target * (1 + error):
        return None
    edge = logits[order[place]]
    return None if place + 1 < order.size and logits[order[place + 1]] == edge else edge


def ranks(sampling: Sampling, size: int) -> bool:
    """Whether top-k has something to cut in a vocabulary of this size."""
    return 0 < sampling.top_k < size


def drawable(
    logits: Logits, sampling: Sampling, peak: float, groups: Logits
) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
    """What `kept` keeps, where no slack is wanted: ids and logits.

    `peak`: the largest of the logits, finite; `groups`: their `maxima`.
    """
    ranking, temperature = _ranking(logits, sampling, peak, groups), _temperature(sampling)
    size = ranking.size
    if sampling.top_p < MILLION:
        upto = ranking.upto(temperature)
        # The exact total takes as long as all the rest, and most cuts are the same for its least and its most.
        for least, most in ranking.totals:
            nucleus = _nucleus(upto, least, sampling)
            if nucleus >= size or nucleus == _nucleus(upto, most, sampling):
                break
        else:
            nucleus = _nucleus(upto, _total(logits, ranking, temperature), sampling)
        size = min(size, nucleus)
    if size == ranking.ids.size:
        return ranking.ids, ranking.logits
    return ranking.ids[:size], ranking.logits[:size]


def few_drawable(logits: Logits, sampling: Sampling) -> tuple[list[int], list[float]] | None:
    """`drawable` of one row alone, sooner where the processor's caches are cold, which then is a matter of how much
    code runs for the first time: so there are few calls here, and one after the other what else has functions.

    None if top-k leaves not so few, the vocabulary is small or large, a logit is NaN or the largest is not finite, the
    temperature is 0, or all that is known of the mass of the vocabulary does not tell where top-p cuts.
    """
    count, top_k = logits.size // BLOCK, sampling.top_k
    if not (0 < top_k < FEW and TIMES * top_k < count and logits.size < LARGE and sampling.temperature):
        return None
    # The place of the largest is known in half the time that its value takes.
    places = logits[: count * BLOCK].reshape(count, BLOCK).argmax(axis=1)
    places += _starts(count)
    groups = logits[places]
    if logits.size > count * BLOCK:
        groups = np.concatenate([groups, logits[count * BLOCK :]])
    count = groups.size
    groups.partition((count // 2, count - top_k - 1, count - 1))
    middle, edge, peak = groups.item(count // 2), groups.item(count - top_k - 1), groups.item(count - 1)
    if not math.isfinite(peak):  # a NaN is last, too
        return None
    # As in `_ranking`: what top-k keeps is not below the edge, and what min-p keeps not below the floor.
    temperature, floor = _temperature(sampling), _floor(peak, sampling)
    bound = edge if edge > floor else float(_single_from(floor))
    near = (logits >= bound).nonzero()[0]
    if near.size > FEW:
        return None
    ids, own = near.tolist(), logits[near].tolist()
    # Stable also in reverse, so that equal logits stay in the order of their ids.
    order = sorted(range(len(own)), key=own.__getitem__, reverse=True)
    ids, own = [ids[place] for place in order], [own[place] for place in order]
    size = min(top_k, len(ids))
    if sampling.top_p < MILLION:
        upto = list(accumulate([math.exp((logit - peak) / temperature) for logit in own]))
        # The other half of the groups hold a token each that is not below the middle, and none is above the bound.
        least = upto[-1] + max(0, count - count // 2 - len(ids)) * math.exp((middle - peak) / temperature)
        most = upto[-1] + (logits.size - len(ids)) * math.exp((bound - peak) / temperature)
        found = _sure_nucleus(upto, size, least * (1 - NEAR), most * (1 + NEAR), sampling)
        if found is None:
            least, most = _bounds(logits, groups, floor, peak, temperature)
            found = _sure_nucleus(upto, size, least, most, sampling)
            if found is None:
                return None
        size = found
    return ids[:size], own[:size]


def _sure_nucleus(upto: list[float], size: int, least: float, most: float, sampling: Sampling) -> int | None:
    """How many of the first `size` tokens top-p keeps, if that is the same for the least and the most of the total.

    These are farther from it than `upto` can be from the sums of another `exp`, so it is the same for those too.
    """
    share = sampling.top_p / MILLION
    nucleus = 1 + bisect_left(upto, least * share, 0, size - 1)
    return nucleus if nucleus == size or nucleus == 1 + bisect_left(upto, most * share, 0, size - 1) else None


@lru_cache(maxsize=8)
def _starts(count: int) -> NDArray[np.intp]:
    starts = np.arange(count, dtype=np.intp) * BLOCK
    starts.flags.writeable = False
    return starts


def maxima(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest logits (R, W) of groups that share no token, so of each row's W tokens; of one token in a small
    vocabulary, otherwise of GROUP or one. logits (R, V). A NaN in a group is its maximum.
    """
    rows, size = logits.shape
    if size < SMALL:
        return logits
    width = size // GROUP
    whole = np.maximum.reduce(logits[:, : GROUP * width].reshape(rows, GROUP, width), axis=1)
    return whole if size == GROUP * width else np.concatenate([whole, logits[:, GROUP * width :]], axis=1)


def _from(bound: np.float32, logits: Logits, groups: Logits) -> NDArray[np.intp]:
    """The ids, ascending, of the tokens whose logits (V,) are not below; `groups`: the `maxima` of these."""
    if logits.size < LARGE:
        return (logits >= bound).nonzero()[0]
    width = logits.size // GROUP
    hot = (groups[:width] >= bound).nonzero()[0]
    if 4 * hot.size > width:
        return (logits >= bound).nonzero()[0]
    turns, places = (logits[: GROUP * width].reshape(GROUP, width)[:, hot] >= bound).nonzero()
    rest = (groups[width:] >= bound).nonzero()[0]
    return np.concatenate([turns * width + hot[places], rest + GROUP * width])


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
    """Tokens (K,) in the order of their rank, if top-k or top-p is on; those that these and min-p keep are the first
    `size`, and what tops k follows. With top-p, some that it surely cuts may be missing.

    `totals`: pairs between which the mass of the whole vocabulary lies, relative to the first token's, ever closer.
    """

    ids: NDArray[np.intp]
    logits: NDArray[np.floating]
    size: int
    totals: Iterable[tuple[float, float]] = ()

    def upto(self, temperature: float) -> Reals:
        """The mass of each token and all that rank before it, (K,), relative to that of the first."""
        weights = self.logits - self.logits[0]
        weights /= temperature
        upto: Reals = np.exp(weights, out=weights).cumsum()
        return upto


def _ranking(logits: Logits, sampling: Sampling, peak: float, groups: Logits) -> _Ranking:
    floor, temperature = _floor(peak, sampling), _temperature(sampling)
    top_p, edge = sampling.top_p < MILLION, LEAST
    if 0 < sampling.top_k < groups.size:
        # The largest k + 1 of the groups' maxima are k + 1 tokens: what top-k keeps is not below them.
        edge = np.partition(groups, -sampling.top_k - 1)[-sampling.top_k - 1]
    if edge > floor:
        ids = _from(edge, logits, groups)
        totals = _totals(logits, groups, sampling, peak) if top_p else ()
        return _ranked(ids, logits[ids], sampling.top_k, totals)
    ids = _from(_single_from(floor), logits, groups)
    if not (0 < sampling.top_k < ids.size or top_p):
        return _Ranking(ids, logits[ids], ids.size)
    own, size = logits[ids], ids.size
    if 0 < sampling.top_k < size:
        size = sampling.top_k
        inside = own >= np.partition(own, -size - 1)[-size - 1]
        ids, own = ids[inside], own[inside]
    if not top_p:
        return _ranked(ids, own, size)
    total = _bounds(logits, groups, floor, peak, temperature)
    if size == own.size > MANY:  # all above a logit, as soon as they weigh more than top-p keeps
        weights = masses(own, peak, temperature)
        for distance in (1.0, 2.0, 4.0, 8.0):
            few = own >= _single_from(peak - distance * temperature)
            if float(weights[few].sum()) * (1 - NEAR) > total[1] * (sampling.top_p / MILLION):
                ids, own = ids[few], own[few]
                size = ids.size
                break
    return _ranked(ids, own, size, (total,))


def _ranked(ids: NDArray[np.intp], own: Logits, size: int, totals: Iterable[tuple[float, float]] = ()) -> _Ranking:
    # Stable, so that equal logits stay in the order of their ids.
    order = (-own).argsort(kind="stable")
    return _Ranking(ids[order], own[order].astype(np.float64), size, totals)


def _totals(logits: Logits, groups: Logits, sampling: Sampling, peak: float) -> Iterator[tuple[float, float]]:
    """Of a group is known that it weighs at least what its largest token does and at most as many times that."""
    temperature = _temperature(sampling)
    if groups.size < logits.size:
        heaviest = float(masses(groups, peak, temperature).sum())
        yield heaviest * (1 - NEAR), GROUP * heaviest * (1 + NEAR)
    yield _bounds(logits, groups, _floor(peak, sampling), peak, temperature)


def _bounds(logits: Logits, groups: Logits, floor: float, peak: float, temperature: float) -> tuple[float, float]:
    """The least and the most that the vocabulary weighs, by what the tokens not far below the floor weigh."""
    low = floor - 4.0 * temperature
    near = logits[_from(_single_from(low), logits, groups)]
    inside = float(masses(near, peak, temperature).sum())
    below = (logits.size - near.size) * math.exp((low - peak) / temperature)
    return inside * (1 - NEAR), (inside + below) * (1 + NEAR)


def _single_from(bound: float) -> np.float32:
    """The least 32-bit float that is not below: to compare with it is to compare with the bound, exactly."""
    single = np.float32(bound)
    return single if float(single) >= bound else np.nextafter(single, np.float32(np.inf))


def _total(logits: Logits, ranking: _Ranking, temperature: float) -> float:
    """The mass of the whole vocabulary."""
    return float(np.exp((logits - ranking.logits[0]) / temperature).sum())


def masses(logits: Logits, peak: float, temperature: float) -> Logits:
    """exp((logit - peak) / T) in single precision, (V,) in and out."""
    found = logits - np.float32(peak)
    found /= np.float32(temperature)
    np.exp(found, out=found)
    return found


def _nucleus(upto: Reals, total: float, sampling: Sampling) -> int:
    """How many of the tokens top-p keeps."""
    return 1 + int(upto[:-1].searchsorted(total * (sampling.top_p / MILLION)))
