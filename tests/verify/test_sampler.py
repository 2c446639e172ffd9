"""The seeded sampler: vectors, edges, cutoffs, and that it is ordinary sampling after all."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ledger.records import Sampling
from verify.cutoffs import drawable, few_drawable, kept, lowest, lowest_of_nucleus, maxima
from verify.noise import NotUnsigned64, gumbel
from verify.sampler import NOTHING, SAMPLER, WHOLE, BadLogits, derived_seed, sample, sample_block

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
    assert kept(logits, sampling).ids.size > WHOLE
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
    "sampling", [PLAIN, Sampling(300_000, 1_000_000, 10_000, 0), Sampling(2_000_000, 1_000_000, 0, 0)]
)
def test_small_vocabularies_are_drawn_alike_by_coarse_bytes(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(8)
    monkeypatch.setattr("verify.sampler.WHOLE", 0)
    monkeypatch.setattr("verify.sampler.CHUNK", 50)
    for size in (1, 5, 8, 13, 41, 300):
        logits = np.round(random.normal(0, 2, (60, size)), 1).astype(np.float32)
        rows = range(len(logits))
        found = sample_block(logits, [sampling] * 60, rows, [size] * 60)
        assert found == [plainly(logits[row], sampling, row, size) for row in rows]


def test_a_winner_below_what_was_expected_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.sampler.BEHIND", -20.0)  # expects far too much
    logits = np.random.default_rng(5).normal(0, 2, (4, 9_001)).astype(np.float32)
    for position in range(20):
        found = sample_block(logits, [PLAIN] * 4, range(4), [position] * 4)
        assert found == [plainly(row, PLAIN, seed, position) for seed, row in enumerate(logits)]


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


@settings(deadline=None, max_examples=150)
@given(sizes, samplings.filter(lambda s: s.temperature > 0), st.integers(0, 2**32), st.booleans())
def test_what_may_be_drawn_is_what_is_kept(size: int, sampling: Sampling, random: int, ties: bool) -> None:
    logits = np.random.default_rng(random).normal(0, 2, size).astype(np.float32)
    if ties:
        logits = np.round(logits)
    ids, own = drawable(logits, sampling, float(logits.max()), maxima(logits[None])[0])
    inside = kept(logits, sampling)
    assert (ids == inside.ids).all()
    assert (own == inside.logits).all()


@settings(deadline=None, max_examples=150)
@given(
    size=st.sampled_from([16_384, 32_000, 40_001]),
    temperature=st.sampled_from([1, 300_000, 1_000_000, 10_000_000]),
    top_p=st.sampled_from([1, 500_000, 950_000, 999_999, 1_000_000]),
    min_p=st.sampled_from([0, 50_000, 1_000_000]),
    top_k=st.integers(1, 63),
    shape=st.sampled_from(["plain", "ties", "peaked", "masked", "flat", "huge", "tiny", "signs"]),
    random=st.integers(0, 2**32),
)
def test_few_of_one_row_are_those_that_are_kept(
    size: int, temperature: int, top_p: int, min_p: int, top_k: int, shape: str, random: int
) -> None:
    draw = np.random.default_rng(random)
    logits = draw.normal(0, draw.choice([0.01, 1, 3, 8]), size)
    match shape:
        case "ties":
            logits = np.round(logits)
        case "peaked":
            logits[draw.integers(size, size=30)] += 8
        case "masked":
            logits[draw.random(size) < draw.choice([0.9, 0.999, 0.9999])] = -np.inf
        case "flat":
            logits[:] = 1.5
        case "huge":
            logits *= 1e36
        case "tiny":
            logits *= 1e-42
        case "signs":
            logits = np.where(logits < 0, -0.0, 0.0)
    row, sampling = logits.astype(np.float32), Sampling(temperature, top_p, min_p, top_k)
    few = few_drawable(row, sampling) if np.isfinite(row.max()) else None
    if few is not None:
        inside = kept(row, sampling)
        assert sorted(zip(*few, strict=True)) == sorted(zip(inside.ids.tolist(), inside.logits.tolist(), strict=True))


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 8.0])
def test_few_of_one_row_are_told_as_a_rule(spread: float) -> None:
    draw = np.random.default_rng(4)
    for top_p, top_k in itertools.product((500_000, 950_000, 1_000_000), (1, 10, 20, 30, 40)):
        sampling = Sampling(1_000_000, top_p, 0, top_k)
        logits = draw.normal(0, spread, 32_000).astype(np.float32)
        few = few_drawable(logits, sampling)
        assert few is not None
        assert few[0] == kept(logits, sampling).ids.tolist()


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 12_345, 39_999, 40_000])
def test_few_of_a_row_with_a_fault_are_not_told(value: float, place: int) -> None:
    logits = np.random.default_rng(9).normal(0, 2, 40_001).astype(np.float32)
    logits[place] = value
    sampling = Sampling(1_000_000, 950_000, 0, 40)
    assert few_drawable(logits, sampling) is None
    assert sample_block(logits[None], [sampling], [1], [1]) == [NOTHING]


@pytest.mark.parametrize("size", [5, 10_240, 65_536])
def test_few_are_looked_for_where_that_pays(size: int) -> None:
    assert few_drawable(np.zeros(size, np.float32), Sampling(1_000_000, 950_000, 0, 40)) is None
    assert few_drawable(np.zeros(size, np.float32), PLAIN) is None
    assert few_drawable(np.zeros(size, np.float32), GREEDY) is None


def test_one_row_is_cut_by_the_exact_mass_where_less_does_not_tell() -> None:
    # Half of the mass is just above that of the first two tokens, by less than single precision tells.
    logits = np.full(32_000, -200.0, np.float32)
    logits[[7, 70, 700]] = 0.0
    logits[1_000:3_000] = np.float32(10 * math.log(1 / 2_000) + 1e-6)
    sampling = Sampling(10_000_000, 500_000, 0, 3)
    assert few_drawable(logits, sampling) is None
    for seed in range(20):
        assert sample(logits, sampling, seed, 5) == plainly(logits, sampling, seed, 5)


@settings(deadline=None, max_examples=100)
@given(
    size=st.integers(1, 40_000),
    top_p=st.sampled_from([1, 500_000, 950_000, 999_999]) | st.integers(1, 999_999),
    temperature=st.integers(1, 10_000_000),
    spread=st.sampled_from([0.0, 1e-30, 0.01, 1.0, 5.0, 1e37]),
    random=st.integers(0, 2**32),
)
def test_the_edge_of_a_nucleus_is_where_ranking_cuts(
    size: int, top_p: int, temperature: int, spread: float, random: int
) -> None:
    logits = np.random.default_rng(random).normal(0, spread, size).astype(np.float32)
    sampling = Sampling(temperature, top_p, 0, 0)
    with np.errstate(over="ignore"):
        edge = lowest_of_nucleus(logits, sampling, float(logits.max()))
    if edge is not None:
        edge = max(edge, lowest(float(logits.max()), sampling))
        assert sorted(kept(logits, sampling).ids) == list((logits >= edge).nonzero()[0])


def test_a_nucleus_has_an_edge_unless_it_ends_between_equals_or_too_near_to_tell() -> None:
    logits = np.random.default_rng(3).normal(0, 1, 20_000).astype(np.float32)
    assert lowest_of_nucleus(logits, Sampling(1_000_000, 950_000, 0, 0), float(logits.max())) is not None
    pairs = np.repeat(np.array([0, -1], np.float32), 2)
    edges = [
        lowest_of_nucleus(pairs, Sampling(1_000_000, top_p, 0, 0), 0.0)
        for top_p in (300_000, 700_000, 800_000, 900_000)
    ]
    assert edges == [None, 0, None, -1]
    # The first weighs what the others do together, to the last bit or nearly.
    halves = np.array([0, -math.exp(-30), -30], np.float32)
    edges = [lowest_of_nucleus(halves, Sampling(1_000_000, top_p, 0, 0), 0.0) for top_p in (499_999, 500_000, 500_001)]
    assert edges == [0, None, halves[1]]


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
