"""The seeded sampler: vectors, edges, cutoffs, and that it is ordinary sampling after all."""

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
from verify.cutoffs import kept
from verify.noise import gumbel
from verify.sampler import MANY, SAMPLER, BadLogits, sample

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
    assert kept(logits, sampling).ids.size > MANY
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
