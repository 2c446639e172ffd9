"""Gumbel noise for one token at one position, out of nothing but (seed, position, token id).

The definition is in `verify.sampler`. The logarithm here is built from correctly rounded operations
alone (add, multiply, divide, split off the exponent), because a vendor's `log` may give another last bit
for an element in the middle of an array than for the same element alone. So the noise of a token is the
same bits in an array of any length, and on any machine with IEEE 754 arithmetic.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.integer]
Reals = NDArray[np.float64]

WORD = 2**64
MASK = WORD - 1

# SplitMix64 (Steele, Lea, Flood 2014; constants of Vigna's reference implementation).
GAMMA = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB

# Words that are hashed at a time, so that they stay in the processor's cache.
CHUNK = 32_768


class NotUnsigned64(ValueError):
    """A seed or a position is no unsigned 64-bit integer."""

    def __init__(self, name: str, value: int) -> None:
        super().__init__(f"{name} is {value}: give an integer from 0 to 2**64 - 1")
        self.name = name
        self.value = value


def unsigned64(name: str, value: int) -> None:
    """Raises NotUnsigned64, with the name, for what does not fit."""
    if not 0 <= value < WORD:
        raise NotUnsigned64(name, value)


def stream(seed: int, position: int) -> int:
    """The SplitMix64 state from which all tokens at one position draw; an unsigned 64-bit integer."""
    unsigned64("seed", seed)
    unsigned64("position", position)
    return output(output(seed, 0), position)


def bits(seed: int, position: int, tokens: Ids) -> NDArray[np.uint64]:
    """The hash of each token, shape (K,) in and out; exact on every machine."""
    return hashes(np.uint64(stream(seed, position)), tokens)


def hashes(states: np.uint64 | NDArray[np.uint64], tokens: Ids) -> NDArray[np.uint64]:
    """`bits` of each token by the state of its `stream`, or of the one that all have."""
    word = _steps(tokens)
    word += states
    _mix(word, np.empty_like(word))
    return word ^ (word >> np.uint64(31))


def highest(state: int, tokens: Ids, least: int) -> NDArray[np.intp]:
    """The places among the tokens (K,) of all whose hash is not below `least`, and of few others."""
    steps = _all_steps(tokens.size) if tokens is all_ids(tokens.size) else _steps(tokens)
    # The last step of the hash leaves its upper bits as they are, so it need not be taken.
    bar = np.uint64(max(0, least) >> 33 << 33)
    room, other = np.empty(CHUNK, np.uint64), np.empty(CHUNK, np.uint64)
    places = []
    for start in range(0, tokens.size, CHUNK):
        own = steps[start : start + CHUNK]
        word = room[: own.size]
        np.add(own, np.uint64(state), out=word)
        _mix(word, other[: own.size])
        places.append((word >= bar).nonzero()[0] + start)
    return np.concatenate(places)


@lru_cache(maxsize=8)
def all_ids(size: int) -> NDArray[np.intp]:
    """The ids of a whole vocabulary: the same array each time, to be read only."""
    ids = np.arange(size)
    ids.flags.writeable = False
    return ids


@lru_cache(maxsize=8)
def _all_steps(size: int) -> NDArray[np.uint64]:
    return _steps(all_ids(size))


def _steps(tokens: Ids) -> NDArray[np.uint64]:
    """What each token adds to the state of the generator."""
    steps = tokens.astype(np.uint64)
    steps += np.uint64(1)
    steps *= np.uint64(GAMMA)
    return steps


def _mix(word: NDArray[np.uint64], other: NDArray[np.uint64]) -> None:
    """All of the hash but its last step, in place; `other` is room for as many words."""
    for distance, factor in ((30, FIRST), (27, SECOND)):
        np.right_shift(word, np.uint64(distance), out=other)
        word ^= other
        word *= np.uint64(factor)


def uniform(word: NDArray[np.uint64]) -> Reals:
    """53 bits of each word as a number strictly between 0 and 1: an odd multiple of 2**-53."""
    return ((word >> np.uint64(11)) | np.uint64(1)).astype(np.float64) * 2.0**-53


def gumbel(seed: int, position: int, tokens: Ids) -> Reals:
    """Standard Gumbel noise of each token id, shape (K,) in and out, between -3.7 and 36.8.

    Raises NotUnsigned64 for a seed or position that does not fit.
    """
    return gumbel_of(uniform(bits(seed, position, tokens)))


def gumbel_of(u: Reals) -> Reals:
    """Standard Gumbel noise of numbers strictly between 0 and 1, shape (K,) in and out."""
    return -log(-log(u))


# Polynomial of fdlibm's e_log.c (Sun Microsystems 1993): error below one unit in the last place.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_ODD = (
    1.479819860511658591e-01,
    1.818357216161805012e-01,
    2.857142874366239149e-01,
    6.666666666666735130e-01,
)
_EVEN = (1.531383769920937332e-01, 2.222219843214978396e-01, 3.999999999940941908e-01)
_SQRT_HALF = 0.7071067811865476


def log(x: Reals) -> Reals:
    """Natural logarithm of positive finite numbers, shape (K,): the same bits at any array length."""
    fraction, exponent = np.frexp(x)
    low = fraction < _SQRT_HALF
    fraction[low] *= 2.0
    power = (exponent - low).astype(np.float64)
    f = fraction - 1.0
    s = f / (f + 2.0)
    z = s * s
    w = z * z
    even = w * _polynomial(_EVEN, w)
    odd = z * _polynomial(_ODD, w)
    half = 0.5 * f * f
    result: Reals = power * _LN2_HIGH - ((half - (s * (half + (even + odd)) + power * _LN2_LOW)) - f)
    return result


def _polynomial(coefficients: tuple[float, ...], w: Reals) -> Reals:
    total = np.full_like(w, coefficients[0])
    for coefficient in coefficients[1:]:
        total *= w
        total += coefficient
    return total


def output(state: int, index: int) -> int:
    """Output `index` of the SplitMix64 generator that starts in `state`."""
    word = (state + (index + 1) * GAMMA) & MASK
    word = (word ^ (word >> 30)) * FIRST & MASK
    word = (word ^ (word >> 27)) * SECOND & MASK
    return word ^ (word >> 31)
