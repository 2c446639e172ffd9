"""The hash and the noise: exact, the same bits in any company, and as random as they must be."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verify.noise import (
    NotUnsigned64,
    bits,
    gumbel,
    gumbel_of,
    log,
    output,
    stream,
    uniform,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sampler.json").read_text())
VOCABULARY = 150_000
words = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("vector", VECTORS["noise"], ids=lambda v: f"{v['seed']}-{v['position']}-{v['token']}")
def test_noise_is_what_the_vectors_say(vector: dict[str, Any]) -> None:
    seed, position = int(vector["seed"], 16), int(vector["position"], 16)
    token = np.array([vector["token"]])
    state = stream(seed, position)
    assert output(state, vector["token"] // 8) == int(vector["coarse"], 16)
    assert output(state, 2**32 + vector["token"]) == int(vector["fine"], 16)
    assert int(bits(seed, position, token)[0]) == int(vector["hash"], 16)
    assert uniform(bits(seed, position, token))[0] == float.fromhex(vector["u"])
    assert gumbel(seed, position, token)[0] == pytest.approx(vector["noise"], abs=1e-9)


def test_the_hash_is_built_from_splitmix64() -> None:
    # The first outputs of Vigna's splitmix64.c from the state 1234567; `bits` of a stream is its output.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [output(1234567, n) for n in range(3)] == expected


def literal_hash(seed: int, position: int, token: int) -> int:
    """The hash as the docstring of `verify.sampler` has it, in plain integers."""

    def word(state: int, n: int) -> int:
        x = (state + (n + 1) * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    state = word(word(seed, 0), position)
    coarse = (word(state, token // 8) >> (8 * (token % 8))) & 255
    return (coarse << 56) | (word(state, 2**32 + token) >> 8)


@given(seed=words, position=words, token=st.integers(0, 2**32 - 1))
def test_the_hash_is_what_the_definition_says(seed: int, position: int, token: int) -> None:
    assert int(bits(seed, position, np.array([token]))[0]) == literal_hash(seed, position, token)


def test_no_noise_is_above_the_coarse_bound_of_its_highest_byte() -> None:
    most = gumbel_of(uniform(np.array([((byte + 1) << 56) - 1 for byte in range(256)], np.uint64)))
    bounds = [-math.log(-math.log((byte + 1) / 256)) for byte in range(255)]
    assert most[:-1] == pytest.approx(bounds)
    assert most[-2] < 5.55
    assert most[-1] < 36.8


@given(seed=words, position=words, token=st.integers(0, VOCABULARY - 1))
def test_a_token_alone_has_the_noise_it_has_among_others(seed: int, position: int, token: int) -> None:
    alone = gumbel(seed, position, np.array([token]))[0]
    around = np.arange(max(0, token - 37), token + 12)
    assert gumbel(seed, position, around)[token - around[0]] == alone


def test_noise_is_the_same_bits_at_every_length_alignment_stride_and_type() -> None:
    whole = gumbel(1, 2, np.arange(VOCABULARY))
    for start in range(9):
        for size in (1, 2, 3, 5, 8, 17, 64, 1_001):
            assert np.array_equal(gumbel(1, 2, np.arange(start, start + size)), whole[start : start + size])
    assert np.array_equal(gumbel(1, 2, np.arange(VOCABULARY)[::7]), whole[::7])
    assert np.array_equal(gumbel(1, 2, np.arange(VOCABULARY, dtype=np.int32)), whole)


@given(st.integers(0, 2**64 - 1))
def test_noise_is_finite_for_every_hash(word: int) -> None:
    u = uniform(np.array([word, 0, 2**64 - 1], np.uint64))
    assert ((u > 0) & (u < 1)).all()
    assert np.isfinite(-log(-log(u))).all()


@given(st.floats(min_value=2.0**-1000, max_value=2.0**1000))
def test_the_logarithm_is_within_one_unit_in_the_last_place(x: float) -> None:
    assert abs(log(np.array([x]))[0] - math.log(x)) <= math.ulp(math.log(x))


@pytest.mark.parametrize("wrong", [-1, 2**64])
def test_a_seed_or_position_beyond_64_bits_is_refused(wrong: int) -> None:
    with pytest.raises(NotUnsigned64, match="seed"):
        gumbel(wrong, 0, np.array([0]))
    with pytest.raises(NotUnsigned64, match="position"):
        gumbel(0, wrong, np.array([0]))


def _along(axis: str, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    if axis == "token":
        return uniform(bits(5, 6, np.arange(size)))
    token = np.array([3])
    pairs = ((n, 6) if axis == "seed" else (5, n) for n in range(size))
    return np.concatenate([uniform(bits(seed, position, token)) for seed, position in pairs])


@pytest.mark.parametrize("axis", ["seed", "position", "token"])
def test_noise_is_uniform_and_uncorrelated_along(axis: str) -> None:
    size = 20_000
    u = _along(axis, size)
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert ((counts - size / 64) ** 2 / (size / 64)).sum() < 103.4  # chi-square, 63 degrees, 0.1%
    for lag in (1, 2, 7, 64):
        correlation = np.corrcoef(u[:-lag], u[lag:])[0, 1]
        assert abs(correlation) < 4 / math.sqrt(size)


def test_the_tokens_of_one_word_have_independent_noise() -> None:
    # Coarse bytes come eight from one word; fine words are the generator's neighbours.
    u = uniform(bits(21, 22, np.arange(160_000))).reshape(-1, 8)
    limit = 4.5 / math.sqrt(len(u))
    for numbers in (u, u * 256 % 1, -np.log(-np.log(u))):
        correlations = np.corrcoef(numbers.T)
        assert np.abs(correlations[~np.eye(8, dtype=bool)]).max() < limit
    # A token's coarse byte says nothing of its own fine bits.
    assert abs(np.corrcoef(np.floor(u.ravel() * 256), u.ravel() * 256 % 1)[0, 1]) < 4 / math.sqrt(u.size)


def test_pairs_of_neighbours_are_spread_evenly() -> None:
    u = uniform(bits(31, 32, np.arange(128_000)))
    for lag in (1, 3, 8):
        cells = (u[:-lag] * 16).astype(int) * 16 + (u[lag:] * 16).astype(int)
        counts, expected = np.bincount(cells, minlength=256), cells.size / 256
        assert ((counts - expected) ** 2 / expected).sum() < 330.5  # chi-square, 255 degrees, 0.1%


@pytest.mark.parametrize("what", ["seed", "position"])
def test_one_flipped_bit_of_the_place_changes_half_of_the_hash(what: str) -> None:
    changed = []
    for bit in range(64):
        for n in range(50):
            here = {"seed": 12_345 * n, "position": n}
            there = here | {what: here[what] ^ (1 << bit)}
            a, b = (bits(c["seed"], c["position"], np.array([7 * n]))[0] for c in (here, there))
            changed.append((int(a) ^ int(b)).bit_count())
    assert abs(np.mean(changed) - 32) < 0.5
    assert min(changed) > 8


def test_one_flipped_bit_of_the_token_changes_half_of_the_hash() -> None:
    for bit in range(32):
        tokens = 7 * np.arange(400)
        changed = bits(1, 2, tokens) ^ bits(1, 2, tokens ^ (1 << bit))
        counts = [int(word).bit_count() for word in changed.tolist()]
        assert abs(np.mean(counts) - 32) < 1.0
        assert min(counts) > 8


def test_noise_has_the_mean_and_variance_of_gumbel() -> None:
    noise = gumbel(11, 12, np.arange(200_000))
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.012)
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.03)
