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
which moves margins by less than a millionth of a logit. `tests/vectors/sampler.json` fixes all of it.
Any change to what is written here is a new name in SAMPLER, which is part of every offer.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from ledger.records import Sampling
from verify.cutoffs import (
    FEW,
    LEAST,
    MILLION,
    BadLogits,
    Kept,
    Logits,
    drawable,
    few_drawable,
    lowest,
    lowest_of_nucleus,
    maxima,
    ranks,
)
from verify.noise import (
    Ids,
    NotUnsigned64,
    Reals,
    bytes_of,
    gumbel,
    gumbel_of,
    hash_of,
    hashes,
    highest_bytes,
    output,
    stream,
    uniform,
    uniform_of,
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

SAMPLER = "gumbel-2"
# What `sample_block` puts where nothing can be drawn.
NOTHING = -1

# Of z by the vendor's faster logarithms, relative; above its true error by six orders of magnitude.
ROUGH_ERROR = 1e-9
# Of more tokens than this few are looked at, if min-p alone cuts and keeps some of one in CROWD of their groups.
WHOLE, CROWD = 4_096, 4
# Tokens whose coarse noise is made at a time, so that it stays in the processor's cache.
CHUNK = 262_144
# How far below what is expected of it the winner's z is looked for at first, in temperatures.
BEHIND = 1.5
# One of so many tokens stands for what all have in common.
SOME = 128
# The noise of a token is less than this if the highest byte of its hash is not the highest there is.
HIGHEST, COARSE_MOST = 255, 5.55
# No noise of a token whose hash has this highest byte is above.
MOST = [*(-math.log(-math.log(byte / 256)) for byte in range(1, 256)), 36.8]


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
    if len(logits) == 1:
        (sampling,), (seed,), (position,) = samplings, seeds, positions
        few = few_drawable(logits[0], sampling)
        if few is not None:
            return [_winner(stream(seed, position), sampling.temperature / MILLION, *few)[0]]
    return _sampled(logits, samplings, seeds, positions)


@np.errstate(over="ignore")  # at a low temperature: minus infinity, and no mass
def _sampled(
    logits: NDArray[np.float32], samplings: Sequence[Sampling], seeds: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """As `sample_block`, of any rows."""
    found = [NOTHING] * len(logits)
    if not logits.size:
        return found
    groups = maxima(logits)
    # The maximum of an array that holds a NaN is NaN, so it shows every fault.
    peaks = np.maximum.reduce(groups, axis=1).tolist()
    few: list[_Draw] = []
    many: list[_Whole] = []
    for row, (peak, sampling, seed, position) in enumerate(zip(peaks, samplings, seeds, positions, strict=True)):
        if not math.isfinite(peak):
            continue
        if sampling.temperature == 0:
            found[row] = int(logits[row].argmax())
            continue
        temperature, state = sampling.temperature / MILLION, stream(seed, position)
        if logits.shape[1] > WHOLE and not ranks(sampling, logits.shape[1]):
            floor = _lowest_of_crowd(logits[row], groups[row], sampling, peak)
            if floor is not None:
                many.append(_Whole(row, temperature, state, peak, floor))
                continue
        ids, own = drawable(logits[row], sampling, peak, groups[row])
        few.append(_Draw(row, temperature, state, ids, own))
    if many:
        few += _likely(logits, many, _guesses(logits, groups, many))
    for draw, (token, least) in zip(few, _winners(few) if few else (), strict=True):
        found[draw.row] = token
        if least < draw.bar:
            # The winner's z is not below what some token has, and so the second time it is sure to be there.
            again = [one for one in many if one.row == draw.row]
            found[draw.row] = _winners(_likely(logits, again, np.array([least])))[0][0]
    return found


def _lowest_of_crowd(logits: Logits, groups: Logits, sampling: Sampling, peak: float) -> np.float32 | None:
    """The least logit (V,) that may be drawn without top-k, where many may and no others; `groups`: their `maxima`."""
    floor = lowest(peak, sampling)
    if CROWD * np.count_nonzero(groups >= floor) <= groups.size:
        return None
    if sampling.top_p == MILLION:
        return floor
    edge = lowest_of_nucleus(logits, sampling, peak)
    return None if edge is None else max(floor, edge)


class _Draw(NamedTuple):
    """Tokens of which one is drawn for one row: ids and logits (K,), and the state from which the noise comes.

    Of the tokens that may be drawn all are here whose z is not below the bar.
    """

    row: int
    temperature: float
    state: int
    ids: NDArray[np.intp]
    logits: NDArray[np.floating]
    bar: float = -math.inf


@frozen
class _Whole:
    """One row whose tokens may all be drawn whose logit is not below the floor; they are many."""

    row: int
    temperature: float
    state: int
    peak: float
    floor: np.float32


def _guesses(logits: NDArray[np.float32], groups: NDArray[np.float32], places: Sequence[_Whole]) -> Reals:
    """A z for each row that the largest nearly always passes, and few others do.

    In temperatures, the largest z is standard Gumbel noise above the logarithm of the sum of exp(logit / T). What the
    largest of the groups weigh is nearly all of that where few tokens have most of the mass; where all have much the
    same, it is as if all had the mean.
    """
    groups, some = _rows(groups, places), _rows(logits[:, ::SOME], places)
    peaks, temperatures = np.array([[one.peak, one.temperature] for one in places]).T
    weights = groups - peaks.astype(np.float32)[:, None]
    weights /= temperatures.astype(np.float32)[:, None]
    np.exp(weights, out=weights)
    few = peaks + temperatures * np.log(weights.sum(axis=1))
    alike = some.mean(axis=1, dtype=np.float64) + temperatures * math.log(logits.shape[1])
    guesses: Reals = np.maximum(few, alike) - temperatures * BEHIND
    return guesses


def _likely(logits: NDArray[np.float32], places: Sequence[_Whole], bars: Reals) -> list[_Draw]:
    """Of each row few of the tokens, all with z >= bar among them, and the largest logit.

    Unless the highest byte of a token's hash is the highest there is, its noise is less than COARSE_MOST; so it is too
    low if its logit is by so much, in temperatures, below the bar.
    """
    size = logits.shape[1]
    states = np.array([one.state for one in places], np.uint64)
    temperatures, peaks, floors = np.array([[one.temperature, one.peak, one.floor] for one in places]).T
    # Rounded to single precision, and then down, so that no token is lost by it.
    edges = np.nextafter((bars - COARSE_MOST * temperatures).astype(np.float32), LEAST)
    edges = np.minimum(edges, peaks.astype(np.float32))[:, None]
    index, values = [], []
    most = max(1, CHUNK // size)
    for start in range(0, len(places), most):
        own = _rows(logits, places[start : start + most])
        chosen = highest_bytes(states[start : start + most], size) == HIGHEST
        chosen |= own >= edges[start : start + most]
        near = chosen.ravel().nonzero()[0]
        values.append(own.ravel()[near])
        near += start * size
        index.append(near)
    ids, own = _joined(index), _joined(values)
    starts = np.arange(len(places) + 1) * size
    inside = own >= _spread(floors.astype(np.float32), np.diff(ids.searchsorted(starts)))
    ids, own = ids[inside], own[inside]
    ends = ids.searchsorted(starts).tolist()
    return [
        _Draw(one.row, one.temperature, one.state, ids[begin:end] - turn * size, own[begin:end], bar)
        for turn, (one, begin, end, bar) in enumerate(zip(places, ends[:-1], ends[1:], bars.tolist(), strict=True))
    ]


def _rows(logits: NDArray[np.float32], places: Sequence[_Whole]) -> NDArray[np.float32]:
    """The rows of these places, a view if they are neighbours."""
    first, last = places[0].row, places[-1].row + 1
    return logits[first:last] if last - first == len(places) else logits[[one.row for one in places]]


def _winners(draws: Sequence[_Draw]) -> list[tuple[int, float]]:
    """The token of each draw, by the vendor's quick logarithms, and by ours where these are too near to tell; and what
    its z is at least.
    """
    sizes = [draw.ids.size for draw in draws]
    if sum(sizes) <= FEW:
        return [_winner(draw.state, draw.temperature, draw.ids.tolist(), draw.logits.tolist()) for draw in draws]
    ids, logits = _joined([draw.ids for draw in draws]), _joined([draw.logits for draw in draws])
    temperatures = np.array([draw.temperature for draw in draws])
    starts = np.array([0, *itertools.accumulate(sizes[:-1])])
    u = uniform(hashes(_spread(np.array([draw.state for draw in draws], np.uint64), sizes), ids))
    z = _rough(logits, _spread(temperatures, sizes), u)
    best = np.maximum.reduceat(z, starts)
    least = best - ROUGH_ERROR * (temperatures + np.abs(best))
    last = (z >= _spread(least, sizes)).nonzero()[0]
    ids = ids[last]
    if last.size == len(draws):
        return list(zip(ids.tolist(), least.tolist(), strict=True))
    of = starts.searchsorted(last, side="right") - 1
    z = logits[last] + temperatures[of] * gumbel_of(u[last])
    return [(choice(ids[of == draw], z[of == draw]), bar) for draw, bar in enumerate(least.tolist())]


def _winner(state: int, temperature: float, ids: list[int], logits: list[float]) -> tuple[int, float]:
    """As `_winners`, of one draw from few tokens, one after the other: by their coarse bytes it is known what none of
    their z is above, and fine words are made only of those for which that is not below the z of the first in hope.
    """
    coarse = bytes_of(state, ids)
    bounds = [logit + temperature * MOST[byte] for logit, byte in zip(logits, coarse, strict=True)]
    first = bounds.index(max(bounds))
    least, near = -math.inf, []
    for place in (first, *range(len(bounds))):
        if bounds[place] >= least:
            u = uniform_of(hash_of(state, ids[place], coarse[place]))
            z = logits[place] - temperature * math.log(-math.log(u))
            least = max(least, z - ROUGH_ERROR * (temperature + abs(z)))
            near.append((z, place, u))
    places, us = zip(*((place, u) for z, place, u in near[1:] if z >= least), strict=True)
    if len(places) == 1:
        return ids[places[0]], least
    exact = np.array([logits[place] for place in places]) + temperature * gumbel_of(np.array(us))
    return choice(np.array([ids[place] for place in places]), exact), least


def _joined(parts: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _spread(values: NDArray[Scalar], sizes: Sequence[int] | NDArray[np.intp]) -> NDArray[Scalar]:
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
    temperature, state = sampling.temperature / MILLION, stream(seed, position)
    if kept.ids.size > WHOLE:
        # The largest z is not below that of any token, as the likeliest.
        first = int(kept.logits.argmax())
        least = min(bar, float(kept.logits[first] + temperature * gumbel(seed, position, kept.ids[[first]])[0]))
        edge = least - COARSE_MOST * temperature - ROUGH_ERROR * (temperature + abs(least))
        chosen = highest_bytes(np.array([state], np.uint64), int(kept.ids.max()) + 1)[0][kept.ids] == HIGHEST
        chosen |= kept.logits >= edge
        kept = kept.only(chosen.nonzero()[0])
    z = _rough(kept.logits, np.array([temperature]), uniform(hashes(np.uint64(state), kept.ids)))
    error = ROUGH_ERROR * (temperature + float(np.abs(z).max()))
    kept = kept.only(np.flatnonzero(z >= min(bar, float(z.max())) - error))
    return kept, kept.logits + temperature * gumbel(seed, position, kept.ids)


def choice(ids: Ids, z: Reals) -> int:
    """The id with the largest z; of equals, the lowest id."""
    return int(ids[z == z.max()].min())
