"""The seeded sampler: vectors, edges, cutoffs, and that it is ordinary sampling after all."""

import ctypes
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ledger.records import MAX_TOKENS, Sampling
from verify.cutoffs import kept
from verify.drawing import UNSURE, draw
from verify.noise import NotUnsigned64, gumbel
from verify.sampler import NOTHING, SAMPLER, BadLogits, derived_seed, sample, sample_block

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sampler.json").read_text())
PLAIN = Sampling(temperature=1_000_000, top_p=1_000_000, min_p=0, top_k=0)
GREEDY = Sampling(temperature=0, top_p=1_000_000, min_p=0, top_k=0)


def logits_of(vector: dict[str, Any]) -> NDArray[np.float32]:
    return np.array([-np.inf if x is None else x for x in vector["logits"]], np.float32)


def sampling_of(vector: dict[str, Any]) -> Sampling:
    return Sampling(**{name: vector[name] for name in ("temperature", "top_p", "min_p", "top_k")})


def test_the_vectors_are_of_this_version() -> None:
    assert VECTORS["sampler"] == SAMPLER


@pytest.mark.parametrize("vector", VECTORS["choices"], ids=lambda v: f"{v['case']}, seed {v['seed']}")
def test_choices_are_what_the_vectors_say(vector: dict[str, Any]) -> None:
    logits, sampling = logits_of(vector), sampling_of(vector)
    assert sample(logits, sampling, int(vector["seed"], 16), vector["position"]) == vector["token"]
    if sampling.temperature:
        assert sorted(kept(logits, sampling).ids) == vector["kept"]


@pytest.mark.parametrize("sampling", [PLAIN, GREEDY])
@pytest.mark.parametrize(
    "values",
    [[], [math.nan, 1.0], [0.0, math.inf], [-math.inf, -math.inf]],
    ids=["none", "nan", "inf", "masked"],
)
def test_logits_that_offer_no_choice_are_refused(values: list[float], sampling: Sampling) -> None:
    with pytest.raises(BadLogits, match="finite"):
        sample(np.array(values, np.float32), sampling, 1, 1)


@pytest.mark.parametrize("sampling", [PLAIN, GREEDY, Sampling(10_000_000, 1, 1_000_000, 1)])
def test_a_vocabulary_of_one_leaves_no_choice(sampling: Sampling) -> None:
    assert sample(np.array([-5.0], np.float32), sampling, 1, 1) == 0


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**32))
def test_a_forbidden_token_is_never_drawn(seed: int, position: int) -> None:
    hot = Sampling(temperature=10_000_000, top_p=1_000_000, min_p=0, top_k=0)
    logits = np.array([-np.inf, 0.0, -np.inf, -1.0], np.float32)
    assert sample(logits, hot, seed, position) in {1, 3}


def test_equal_logits_are_drawn_equally_often() -> None:
    logits = np.zeros(4, np.float32)
    counts = np.bincount([sample(logits, PLAIN, 3, n) for n in range(4_000)], minlength=4)
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 16.3  # chi-square, 3 degrees, 0.1%


def expected_shares(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) / (sampling.temperature / 1e6))
    weights[np.setdiff1d(np.arange(logits.size), kept(logits, sampling).ids)] = 0.0
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


@pytest.mark.parametrize("along", ["positions", "seeds"])
@pytest.mark.parametrize(
    "sampling",
    [PLAIN, Sampling(1_700_000, 1_000_000, 0, 0), Sampling(1_000_000, 900_000, 20_000, 5)],
    ids=["T=1", "T=1.7", "cutoffs"],
)
def test_sampling_follows_softmax_of_what_is_kept(sampling: Sampling, along: str) -> None:
    size = 5_000
    logits = np.array([1.0, -0.5, 0.25, 2.0, 1.5, -1.0, 0.0, 1.0], np.float32)
    places = ((77, n) if along == "positions" else (n, 77) for n in range(size))
    counts = np.bincount([sample(logits, sampling, *place) for place in places], minlength=logits.size)
    expected = size * expected_shares(logits, sampling)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 24.4  # chi-square, 7 degrees, 0.1%; fewer degrees are stricter than this asks


@pytest.mark.parametrize("temperature", [1_000_000, 2_500_000, 10_000_000])
def test_a_large_vocabulary_is_drawn_as_by_looking_at_every_token(temperature: int) -> None:
    sampling = Sampling(temperature, 1_000_000, 0, 0)
    logits = np.random.default_rng(4).normal(0, 2, 50_000).astype(np.float32)
    logits[::9] = logits[0]  # ties
    assert kept(logits, sampling).ids.size > 4_096
    for position in range(20):
        z = logits + temperature / 1e6 * gumbel(9, position, np.arange(logits.size))
        z[logits < logits.max() + temperature / 1e6 * math.log(1e-6)] = -np.inf
        assert sample(logits, sampling, 9, position) == int(z.argmax())


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-40, 40), min_size=1, max_size=30),
    top_k=st.integers(0, 35),
    top_p=st.integers(1, 1_000_000),
    min_p=st.integers(0, 1_000_000),
    temperature=st.integers(1, 10_000_000),
)
def test_cutoffs_keep_a_run_of_the_likeliest_tokens(
    values: list[int], top_k: int, top_p: int, min_p: int, temperature: int
) -> None:
    logits = np.array([value / 4 for value in values], np.float32)
    found = kept(logits, Sampling(temperature, top_p, min_p, top_k))
    ranked = sorted(range(logits.size), key=lambda i: (-logits[i], i))
    assert found.ids.size >= 1
    assert sorted(found.ids) == sorted(ranked[: found.ids.size])
    assert not top_k or found.ids.size <= top_k
    assert (found.slack >= 0).all()
    assert np.isfinite(found.slack).all()


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 1, 700_000, 1_000_000, 10_000_000]) | st.integers(0, 10_000_000),
    top_p=st.sampled_from([1, 950_000, 999_999, 1_000_000]) | st.integers(1, 1_000_000),
    min_p=st.sampled_from([0, 50_000, 1_000_000]) | st.integers(0, 1_000_000),
    top_k=st.sampled_from([0, 1, 40]) | st.integers(0, 3_000),
)
words = st.integers(0, 2**64 - 1)
sizes = st.sampled_from([1, 2, 3, 7, 8, 9, 255, 256, 257, 1_024, 1_025, 4_097, 8_191, 40_000, 70_001])
sizes |= st.integers(1, 5_000)


def plainly(logits: NDArray[np.float32], s: Sampling, seed: int, position: int) -> int:
    """The docstring of the sampler, over the whole vocabulary, with nothing left out to be quick."""
    if not np.isfinite(logits.max()):
        return NOTHING
    if s.temperature == 0:
        return int(logits.argmax())
    wide, t = logits.astype(np.float64), s.temperature / 1e6
    ranked = np.lexsort((np.arange(wide.size), -wide))
    masses = np.exp((wide[ranked] - wide.max()) / t)
    before = np.concatenate(([0.0], np.cumsum(masses)[:-1]))
    passed = wide[ranked] >= wide.max() + t * math.log(max(s.min_p, 1) / 1e6)
    if s.top_k:
        passed[s.top_k :] = False
    if s.top_p < 1_000_000:
        passed &= (before < masses.sum() * (s.top_p / 1e6)) | (np.arange(wide.size) == 0)
    z = np.full(wide.size, -np.inf)
    z[ranked[passed]] = (wide + t * gumbel(seed, position, np.arange(wide.size)))[ranked[passed]]
    return int(z.argmax())


@settings(deadline=None, max_examples=150)
@given(
    size=sizes,
    rows=st.lists(
        st.tuples(
            samplings, words, words, st.sampled_from(["spread", "ties", "masked", "peaked", "flat", "huge", "tiny"])
        ),
        max_size=5,
    ),
    random=st.integers(0, 2**32),
)
def test_a_block_is_drawn_as_its_rows_are(size: int, rows: list[tuple[Sampling, int, int, str]], random: int) -> None:
    logits = np.random.default_rng(random).normal(0, 2, (len(rows), size)).astype(np.float32)
    for own, (_, _, _, shape) in zip(logits, rows, strict=True):
        if shape == "ties":
            own[:] = np.round(own)
        elif shape == "masked":
            own[np.random.default_rng(random + 1).random(size) < 0.9] = -np.inf
        elif shape == "peaked":
            own[: max(1, size // 50)] += 8
        elif shape == "flat":
            own[:] = 1.5
        elif shape == "huge":
            own[:] = own * np.float32(1e37)
        elif shape == "tiny":
            own[:] = own * np.float32(1e-30)
    found = sample_block(logits, [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    for own, token, (sampling, seed, position, _) in zip(logits, found, rows, strict=True):
        assert token == plainly(own, sampling, seed, position)
        if np.isfinite(own.max()):
            assert token == sample(own, sampling, seed, position)


@pytest.mark.parametrize(
    "sampling", [PLAIN, Sampling(300_000, 1_000_000, 10_000, 0), Sampling(2_000_000, 700_000, 0, 0)]
)
@pytest.mark.parametrize("size", [1, 5, 8, 13, 41, 63, 64, 65, 300])
def test_small_vocabularies_are_drawn_as_by_looking_at_every_token(size: int, sampling: Sampling) -> None:
    logits = np.round(np.random.default_rng(8).normal(0, 2, (60, size)), 1).astype(np.float32)
    found = sample_block(logits, [sampling] * 60, range(60), [size] * 60)
    assert found == [plainly(row, sampling, seed, size) for seed, row in enumerate(logits)]


def test_a_large_vocabulary_follows_softmax() -> None:
    # 6,000 tokens in twelve classes of like probability: the places of each differ in their coarse words.
    size, draws = 6_000, 3_000
    logits = np.repeat(np.linspace(-2, 2, 12), size // 12).astype(np.float32)
    logits = np.random.default_rng(6).permutation(logits)
    found = np.array(sample_block(np.broadcast_to(logits, (draws, size)), [PLAIN] * draws, [5] * draws, range(draws)))
    shares = expected_shares(logits, PLAIN)
    kinds = np.unique(logits, return_inverse=True)[1]
    counts, expected = np.bincount(kinds[found], minlength=12), draws * np.bincount(kinds, shares)
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # chi-square, 11 degrees, 0.1%
    within = np.bincount(found % 8, minlength=8)
    per_byte = draws * np.bincount(np.arange(size) % 8, shares)
    assert ((within - per_byte) ** 2 / per_byte).sum() < 24.4  # 7 degrees


def drawn(logits: NDArray[np.float32], s: Sampling, seed: int, position: int) -> int:
    return draw(logits[None], 0, s.temperature, s.top_p, s.min_p, s.top_k, seed, position)


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("top_k", [0, 1, 40, 499, 500, 501, 5_000])
@pytest.mark.parametrize("top_p", [500_000, 950_000, 1_000_000])
def test_quick_arithmetic_is_sure_as_a_rule(spread: float, top_k: int, top_p: int) -> None:
    logits = np.random.default_rng(4).normal(0, spread, 32_000).astype(np.float32)
    sampling = Sampling(1_000_000, top_p, 0, top_k)
    found = [drawn(logits, sampling, seed, 3) for seed in range(5)]
    assert found == [plainly(logits, sampling, seed, 3) for seed in range(5)]


@pytest.mark.parametrize("top_k", [0, 2, 3])
def test_a_nucleus_that_ends_too_near_to_tell_is_left_to_the_definition(top_k: int) -> None:
    # The first weighs what the others do together, to the last bit or nearly.
    halves = np.array([0, -math.exp(-30), -30, -np.inf], np.float32)
    for top_p, sure in ((499_999, True), (500_000, False), (500_001, True)):
        sampling = Sampling(1_000_000, top_p, 0, top_k)
        for seed in range(20):
            assert (drawn(halves, sampling, seed, 1) != UNSURE) == sure
            assert sample(halves, sampling, seed, 1) == plainly(halves, sampling, seed, 1)


def test_a_nucleus_that_ends_near_the_floor_too_near_to_tell_is_left_to_the_definition() -> None:
    # What is not far below the floor weighs so little that top-p cuts inside of it by the last bits of the sum.
    many, few = 90_000, 12
    low, deep = np.float32(-13.7), np.float32(-14.001)
    rest = (many + math.exp(low) * (few / 2 - 0.5)) / 0.999999 - many - few * math.exp(low)
    count = int(rest / math.exp(deep))
    left = math.log(rest - count * math.exp(deep))
    logits = np.concatenate([np.zeros(many), np.full(few, low), np.full(count, deep), [left]]).astype(np.float32)
    sampling = Sampling(1_000_000, 999_999, 0, 0)
    for seed in (4055100156372843885, 9026236351108650761, 1):
        assert drawn(logits, sampling, seed, 5) == UNSURE
        assert sample(logits, sampling, seed, 5) == plainly(logits, sampling, seed, 5)


def test_a_nucleus_may_end_between_equals() -> None:
    pairs = np.repeat(np.array([0, -1], np.float32), 500)
    for top_p in (300_000, 700_000, 800_000, 900_000):
        sampling = Sampling(1_000_000, top_p, 0, 0)
        for seed in range(20):
            token = drawn(pairs, sampling, seed, 1)
            assert token == plainly(pairs, sampling, seed, 1)


def test_tokens_that_noise_does_not_tell_apart_are_left_to_the_definition() -> None:
    logits = np.full(100, 1e30, np.float32)
    assert drawn(logits, PLAIN, 1, 1) == UNSURE
    assert sample(logits, PLAIN, 1, 1) == plainly(logits, PLAIN, 1, 1) == 0


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 12_345, 39_999, 40_000])
@pytest.mark.parametrize("sampling", [PLAIN, GREEDY, Sampling(1_000_000, 950_000, 0, 40)])
def test_a_fault_anywhere_in_a_row_is_found(value: float, place: int, sampling: Sampling) -> None:
    logits = np.random.default_rng(9).normal(0, 2, 40_001).astype(np.float32)
    logits[place] = value
    assert drawn(logits, sampling, 1, 1) == NOTHING


@pytest.mark.parametrize(
    "block",
    [
        np.zeros(4, np.float32),
        np.zeros((2, 4)),
        np.zeros((2, 8), np.float32)[:, ::2],
        np.zeros((2, 4), np.int32),
        np.frombuffer(bytes(33), np.float32, count=8, offset=1).reshape(2, 4),
        (ctypes.c_float * 4 * 2)(),
    ],
    ids=["one row", "64 bits", "in pieces", "integers", "between addresses", "no array of numpy's"],
)
def test_only_rows_of_32_bit_floats_in_one_piece_are_drawn_from(block: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="32-bit floats"):
        draw(block, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "arguments",
    [(-1, 0, 0, 0, 0), (2, 0, 0, 0, 0), (0, -1, 0, 0, 0), (0, 1, -1, 0, 0), (0, 1, 0, 1_000_001, 0), (0, 0, 0, 0, -1)],
)
def test_what_is_out_of_range_or_no_row_is_refused(arguments: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="number of a row"):
        draw(np.zeros((2, 4), np.float32), *arguments, 0, 0)


def test_seed_and_position_may_be_any_integers() -> None:
    logits = np.random.default_rng(2).normal(0, 2, (1, 100)).astype(np.float32)
    numpys = draw(logits, 0, 1_000_000, 1_000_000, 0, 0, np.uint64(2**64 - 1), np.int64(7))  # type: ignore[arg-type]
    assert numpys == drawn(logits[0], PLAIN, 2**64 - 1, 7)
    with pytest.raises(TypeError):
        draw(logits, 0, 1_000_000, 1_000_000, 0, 0, 1.5, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [(-1, 0), (2**64, 0), (0, -1), (0, 2**64)])
def test_a_place_that_does_not_fit_is_refused(place: tuple[int, int]) -> None:
    with pytest.raises(NotUnsigned64):
        sample(np.zeros(4, np.float32), PLAIN, *place)


@pytest.mark.parametrize("order", ["=", "<", ">"])
def test_rows_are_of_this_machines_order_of_bytes(order: str) -> None:
    # numpy tells the order of arrays that it is given by ctypes, as the logits are.
    logits = np.random.default_rng(2).normal(0, 2, (1, 100)).astype(f"{order}f4")
    if logits.dtype.isnative:
        assert sample_block(logits, [PLAIN], [1], [1]) == [plainly(logits[0], PLAIN, 1, 1)]
    else:
        with pytest.raises(ValueError, match="32-bit floats"):
            sample_block(logits, [PLAIN], [1], [1])


def test_top_k_may_be_larger_than_any_vocabulary() -> None:
    logits = np.random.default_rng(2).normal(0, 2, 100).astype(np.float32)
    for top_k in (100, 101, MAX_TOKENS):
        assert drawn(logits, Sampling(1_000_000, 900_000, 0, top_k), 1, 1) == plainly(
            logits, Sampling(1_000_000, 900_000, 0, 0), 1, 1
        )


def test_rows_may_stand_apart() -> None:
    logits = np.random.default_rng(2).normal(0, 2, (6, 100)).astype(np.float32)
    apart = logits[::2]
    assert sample_block(apart, [PLAIN] * 3, [1] * 3, [1] * 3) == [sample(row, PLAIN, 1, 1) for row in apart.copy()]


def test_top_p_counts_the_whole_vocabulary_exactly() -> None:
    # Half of the mass is just above that of the first two tokens, by less than single precision tells.
    logits = np.full(3_003, -200.0, np.float32)
    logits[[7, 70, 700]] = 0.0
    logits[1_000:3_000] = np.float32(10 * math.log(1 / 2_000) + 1e-6)
    s = Sampling(10_000_000, 500_000, 0, 3)
    for seed in range(20):
        assert sample(logits, s, seed, 5) == plainly(logits, s, seed, 5)


def test_rows_that_offer_no_choice_are_told_apart_from_the_others() -> None:
    bad = [[-np.inf, -np.inf], [np.nan, 1.0], [np.inf, 1.0]]
    logits = np.array([[0.0, 1.0], *bad, [3.0, -np.inf]], np.float32)
    for sampling in (PLAIN, GREEDY, Sampling(1_000_000, 500_000, 0, 1)):
        found = sample_block(logits, [sampling] * 5, [1] * 5, [7] * 5)
        assert found[1:4] == [NOTHING] * 3
        assert found[0] == sample(logits[0], sampling, 1, 7)
        assert found[4] == 0


@pytest.mark.parametrize("shape", [(0, 8), (2, 0), (0, 0)])
def test_a_block_may_be_empty(shape: tuple[int, int]) -> None:
    rows = shape[0]
    assert sample_block(np.zeros(shape, np.float32), [PLAIN] * rows, [1] * rows, [1] * rows) == [NOTHING] * rows


def test_a_block_needs_a_place_for_each_row() -> None:
    with pytest.raises(ValueError, match="zip"):
        sample_block(np.zeros((2, 4), np.float32), [PLAIN], [1], [1])


@pytest.mark.parametrize("vector", VECTORS["derived_seeds"], ids=lambda v: f"{v['seed']}-{v['choice']}")
def test_derived_seeds_are_what_the_vectors_say(vector: dict[str, Any]) -> None:
    assert derived_seed(int(vector["seed"], 16), vector["choice"]) == int(vector["derived"], 16)


@given(words)
def test_each_choice_has_a_seed_of_its_own(seed: int) -> None:
    assert derived_seed(seed, 0) == seed
    assert len({derived_seed(seed, choice) for choice in range(100)}) == 100


@pytest.mark.parametrize("arguments", [(-1, 0), (2**64, 0), (0, -1), (0, 2**64)])
def test_a_seed_that_does_not_fit_is_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(NotUnsigned64):
        derived_seed(*arguments)
