"""Gumbel noise for one token at one position, out of nothing but (seed, position, token id).

The definition is in `verify.sampler`. The logarithm here is built from correctly rounded operations
alone (add, multiply, divide, split off the exponent), because a vendor's `log` may give another last bit
for an element in the middle of an array than for the same element alone. So the noise of a token is the
same bits in an array of any length, and on any machine with IEEE 754 arithmetic.
"""

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

# Numbers for arrays of words. Arrays themselves: numpy takes twice as long over a few tokens by a number or a scalar.
_ONE, _THREE, _EIGHT, _ELEVEN, _56 = (np.array(number, np.uint64) for number in (1, 3, 8, 11, 56))
_ROUNDS = [
    (np.array(distance, np.uint64), np.array(factor, np.uint64)) for distance, factor in ((30, FIRST), (27, SECOND))
]
_LAST, _GAMMA = np.array(31, np.uint64), np.array(GAMMA, np.uint64)
_UNIT = np.array(2.0**-53)

# The index of the first token's fine word: behind the coarse words of any vocabulary, whose ids are 32 bits.
FINE = 2**32
_FINE = np.array(FINE, np.uint64)


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
    own = tokens.astype(np.uint64)
    words = np.empty((2, own.size), np.uint64)
    np.right_shift(own, _THREE, out=words[0])
    np.add(own, _FINE, out=words[1])
    _steps(words)
    words += states
    _mix(words)
    coarse, fine = words
    own <<= _THREE
    own &= _56
    coarse >>= own
    coarse <<= _56
    fine >>= _EIGHT
    coarse |= fine
    return coarse


def _steps(index: NDArray[np.uint64]) -> None:
    """What the generator's state has moved by when it gives the output of this index, in place."""
    index += _ONE
    index *= _GAMMA


def _mix(word: NDArray[np.uint64]) -> None:
    """The output of the generator for its moved state, in place."""
    other = np.empty_like(word)
    for distance, factor in _ROUNDS:
        np.right_shift(word, distance, out=other)
        word ^= other
        word *= factor
    np.right_shift(word, _LAST, out=other)
    word ^= other


def uniform(word: NDArray[np.uint64]) -> Reals:
    """53 bits of each word as a number strictly between 0 and 1: an odd multiple of 2**-53."""
    odd = word >> _ELEVEN
    odd |= _ONE
    u: Reals = odd.astype(np.float64)
    u *= _UNIT
    return u


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
