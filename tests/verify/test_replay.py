"""Margins: the formula against a literal reading of it, and zero exactly for the sampler's own choice."""

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
from verify.cutoffs import BadLogits
from verify.noise import gumbel
from verify.replay import LOST_TIE, MASKED, OutsideVocabulary, UnevenRows, margins
from verify.sampler import sample

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sampler.json").read_text())
PLAIN = Sampling(temperature=1_000_000, top_p=1_000_000, min_p=0, top_k=0)
GREEDY = Sampling(temperature=0, top_p=1_000_000, min_p=0, top_k=0)

seeds = st.integers(0, 2**64 - 1)
positions = st.integers(0, 2**40)
# Quarters, so that ties and tokens right at a cutoff are common; or any float of 32 bits.
finite = st.integers(-60, 60).map(lambda n: n / 4) | st.floats(-30, 30, width=32)
vocabularies = st.lists(finite, min_size=1, max_size=16)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([300_000, 1_000_000, 1_500_000]) | st.integers(200_000, 5_000_000),
    top_p=st.sampled_from([1, 500_000, 999_999, 1_000_000]) | st.integers(1, 1_000_000),
    min_p=st.sampled_from([0, 50_000, 1_000_000]) | st.integers(0, 1_000_000),
    top_k=st.integers(0, 18),
)


def all_margins(logits: NDArray[np.float32], sampling: Sampling, seed: int, position: int) -> NDArray[np.float64]:
    """The margin that each token of the vocabulary would have, claimed for one position."""
    return np.array([margins(logits[None, :], np.array([c]), sampling, seed, position)[0] for c in range(logits.size)])


def literal_margins(logits: NDArray[np.float32], s: Sampling, seed: int, position: int) -> list[float]:
    """DESIGN.md's formula, token by token over the whole vocabulary."""
    values = [float(x) for x in logits]
    size, t = len(values), s.temperature / 1e6
    ranked = sorted(range(size), key=lambda i: (-values[i], i))
    rank = {token: r for r, token in enumerate(ranked)}
    weight = [math.exp((x - max(values)) / t) for x in values]
    before = [math.fsum(weight[o] for o in ranked[: rank[i]]) for i in range(size)]
    rest = [math.fsum(weight[o] for o in ranked[rank[i] :]) for i in range(size)]

    def slack(i: int) -> float:
        found = [values[i] - max(values) - t * math.log(max(s.min_p, 1) / 1e6)]
        if 0 < s.top_k < size:
            edge = ranked[s.top_k] if rank[i] < s.top_k else ranked[s.top_k - 1]
            found.append(values[i] - values[edge])
        if s.top_p < 1_000_000 and before[i]:
            found.append(t * (math.log(s.top_p / (1_000_000 - s.top_p)) - math.log(before[i] / rest[i])))
        return min(found)

    def is_kept(i: int) -> bool:
        in_k = not s.top_k or rank[i] < s.top_k
        return in_k and slack(i) >= 0

    z = [x + t * g for x, g in zip(values, gumbel(seed, position, np.arange(size)), strict=True)]
    found = []
    for c in range(size):
        rivals = [min(z[b] - z[c], slack(b)) for b in range(size) if is_kept(b) and z[b] > z[c]]
        found.append(max([0.0, *rivals] + ([] if is_kept(c) else [-slack(c)])))
    return found


@pytest.mark.parametrize("vector", VECTORS["choices"], ids=lambda v: f"{v['case']}, seed {v['seed']}")
def test_margins_are_what_the_vectors_say(vector: dict[str, Any]) -> None:
    logits = np.array([-np.inf if x is None else x for x in vector["logits"]], np.float32)
    sampling = Sampling(**{name: vector[name] for name in ("temperature", "top_p", "min_p", "top_k")})
    found = all_margins(logits, sampling, int(vector["seed"], 16), vector["position"])
    expected = [MASKED if m is None else m for m in vector["margins"]]
    assert found == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=300)
@given(vocabularies, samplings, seeds, positions)
def test_margins_follow_the_formula(values: list[float], sampling: Sampling, seed: int, position: int) -> None:
    logits = np.array(values, np.float32)
    expected = literal_margins(logits, sampling, seed, position)
    assert all_margins(logits, sampling, seed, position) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(finite | st.just(-math.inf), min_size=1, max_size=16).filter(lambda v: max(v) > -math.inf),
    samplings | st.just(GREEDY),
    seeds,
    positions,
)
def test_a_margin_is_zero_exactly_for_the_token_that_sampling_picks(
    values: list[float], sampling: Sampling, seed: int, position: int
) -> None:
    logits = np.array(values, np.float32)
    found = all_margins(logits, sampling, seed, position)
    assert list(np.flatnonzero(found == 0.0)) == [sample(logits, sampling, seed, position)]
    assert np.isfinite(found).all()
    assert (found >= 0).all()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
    st.builds(
        Sampling,
        temperature=st.integers(0, 10_000_000),
        top_p=st.integers(1, 1_000_000),
        min_p=st.integers(0, 1_000_000),
        top_k=st.integers(0, 9),
    ),
    seeds,
)
def test_margins_are_finite_at_any_logits_and_settings(values: list[float], sampling: Sampling, seed: int) -> None:
    found = all_margins(np.array(values, np.float32), sampling, seed, 0)
    assert np.isfinite(found).all()
    assert (found <= MASKED).all()


@pytest.mark.parametrize("temperature", [1_000_000, 4_000_000])
def test_margins_in_a_large_vocabulary_are_zero_for_the_choice_alone(temperature: int) -> None:
    sampling = Sampling(temperature, 1_000_000, 0, 0)
    logits = np.random.default_rng(8).normal(0, 2, (4, 40_000)).astype(np.float32)
    chosen = np.array([sample(row, sampling, 21, 10 + j) for j, row in enumerate(logits)])
    assert (margins(logits, chosen, sampling, 21, 10) == 0).all()
    others = (chosen + 1) % logits.shape[1]
    t = temperature / 1e6
    slack = logits - logits.max(axis=1, keepdims=True).astype(np.float64) - t * math.log(1e-6)
    z = logits + t * np.stack([gumbel(21, 10 + j, np.arange(40_000)) for j in range(4)])
    own = z[np.arange(4), others][:, None]
    expected = np.where((slack >= 0) & (z > own), np.minimum(z - own, slack), 0).max(axis=1)
    assert (slack[np.arange(4), others] >= 0).all()
    assert margins(logits, others, sampling, 21, 10) == pytest.approx(expected, abs=1e-9)


def test_each_row_is_replayed_at_its_own_position() -> None:
    logits = np.zeros((50, 8), np.float32)
    claimed = np.array([sample(row, PLAIN, 5, 100 + j) for j, row in enumerate(logits)])
    assert (margins(logits, claimed, PLAIN, 5, 100) == 0).all()
    assert (margins(logits, claimed, PLAIN, 5, 101) > 0).sum() > 30
    assert (margins(logits, claimed, PLAIN, 6, 100) > 0).sum() > 30


def test_a_small_shift_of_the_logits_gives_small_margins() -> None:
    rng = np.random.default_rng(1)
    sampling = Sampling(1_000_000, 950_000, 10_000, 40)
    logits = rng.normal(0, 2, (300, 500)).astype(np.float32)
    shifted = logits + rng.uniform(-0.01, 0.01, logits.shape).astype(np.float32)
    claimed = np.array([sample(row, sampling, 5, j) for j, row in enumerate(shifted)])
    found = margins(logits, claimed, sampling, 5, 0)
    assert found.max() < 0.05
    assert (found > 0).any()


def test_at_temperature_zero_the_margin_is_the_distance_to_the_largest_logit() -> None:
    logits = np.array([[1.0, 3.5, 3.5, -2.0]] * 4, np.float32)
    assert list(margins(logits, np.arange(4), GREEDY, 0, 0)) == [2.5, 0.0, LOST_TIE, 5.5]


def test_a_token_that_the_mask_forbids_has_the_largest_margin() -> None:
    logits = np.array([[0.0, -np.inf]] * 2, np.float32)
    for sampling in (PLAIN, GREEDY):
        assert list(margins(logits, np.array([0, 1]), sampling, 0, 0)) == [0.0, MASKED]


@pytest.mark.parametrize("token", [-1, 8])
def test_a_claimed_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(OutsideVocabulary, match="0 to 7") as caught:
        margins(np.zeros((2, 8), np.float32), np.array([0, token]), PLAIN, 0, 0)
    assert (caught.value.row, caught.value.token) == (1, token)


@pytest.mark.parametrize(("rows", "claims"), [(2, 3), (1, 0)])
def test_as_many_rows_as_claimed_tokens_are_needed(rows: int, claims: int) -> None:
    with pytest.raises(UnevenRows):
        margins(np.zeros((rows, 8), np.float32), np.zeros(claims, int), PLAIN, 0, 0)


def test_nothing_claimed_has_no_margins() -> None:
    assert margins(np.zeros((0, 8), np.float32), np.zeros(0, int), PLAIN, 0, 0).shape == (0,)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BadLogits):
        margins(np.full((1, 4), np.nan, np.float32), np.array([0]), PLAIN, 0, 0)
