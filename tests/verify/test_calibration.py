"""Bins, bounds and odds: what honest engines may show, and what is made of it."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.records import Fingerprint, Sampling
from verify.calibration import (
    BETS,
    BINS,
    E_MAX,
    EDGES,
    MAX_BYTES,
    PROFILE,
    STRATA,
    BadCalibration,
    Calibration,
    NotMargins,
    Stratum,
    bins_of,
    decode,
    encode,
    incomplete_beta,
    upper_bound,
)
from verify.replay import LOST_TIE, MASKED
from verify.sampler import SAMPLER

F16, Q8 = (Fingerprint("build", "cpu", kv, SAMPLER) for kv in ("f16", "q8_0"))
MODEL = bytes(range(32))
PLAIN = Sampling(1_000_000, 1_000_000, 0, 0)
HOT = Sampling(1_500_000, 1_000_000, 0, 0)
HONEST = (99_900, 30, 30, 30, 8, 2, 0, 0, 0, 0)

counts = st.tuples(st.integers(0, 10**6), *[st.integers(0, 2_000)] * (BINS - 1))


def calibration(one: tuple[int, ...] = HONEST) -> Calibration:
    return Calibration(F16, Q8, MODEL, dict.fromkeys(STRATA, one))


def test_each_margin_has_its_bin() -> None:
    margins = [0.0, LOST_TIE, 0.01, 0.010001, 0.1, 0.11, 1.6, 1.7, MASKED * 0.999, MASKED]
    assert list(bins_of(np.array(margins))) == [0, 1, 1, 2, 3, 4, 7, 8, 8, 9]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.001])
def test_what_is_no_margin_has_no_bin(wrong: float) -> None:
    with pytest.raises(NotMargins, match="margin 1 is"):
        bins_of(np.array([0.0, wrong]))


@pytest.mark.parametrize(
    ("sampling", "cutoffs"),
    [
        (PLAIN, False),
        (evolve(PLAIN, top_k=40), True),
        (evolve(PLAIN, top_p=999_999), True),
        (evolve(PLAIN, min_p=1), True),
        (evolve(PLAIN, temperature=0, top_k=40), False),
    ],
)
def test_a_sampling_has_cutoffs_where_something_can_be_cut(sampling: Sampling, cutoffs: bool) -> None:
    assert Stratum.of(sampling, long=True) == Stratum(sampling.temperature, cutoffs, True)


@pytest.mark.parametrize(
    ("a", "b", "x", "value"),
    [
        (2, 3, 0.4, 0.5248),
        (0.5, 0.5, 0.3, 2 / math.pi * math.asin(math.sqrt(0.3))),
        (1, 7, 0.2, 1 - 0.8**7),
        (5, 1, 0.9, 0.9**5),
        (3, 4, 0.0, 0.0),
        (3, 4, 1.0, 1.0),
    ],
)
def test_the_incomplete_beta_function_has_its_known_values(a: float, b: float, x: float, value: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("hits", "trials", "delta", "bound"),
    [
        (0, 100, 0.05, 1 - 0.05**0.01),
        (0, 10**6, 1e-5, 1 - 1e-5 ** (1 / 10**6)),
        (1, 10, 0.05, 0.394163),
        (5, 20, 0.025, 0.491046),
        (10, 10, 0.05, 1.0),
        (0, 0, 0.05, 1.0),
    ],
)
def test_the_bound_is_that_of_clopper_and_pearson(hits: int, trials: int, delta: float, bound: float) -> None:
    assert upper_bound(hits, trials, delta) == pytest.approx(bound, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 30), st.integers(60, 2_000), st.floats(1e-5, 0.2))
def test_the_bound_is_where_so_few_hits_have_the_chance_delta(hits: int, trials: int, delta: float) -> None:
    p = upper_bound(hits, trials, delta)
    chance = sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits + 1))
    assert chance == pytest.approx(delta, rel=1e-4)


def test_what_is_bet_adds_up_to_one() -> None:
    assert len(PROFILE) == BINS - 1 == len(EDGES) + 1
    assert sum(PROFILE) == pytest.approx(1)
    assert all(0 < share < 1 for share in BETS)


@settings(deadline=None, max_examples=8)
@given(st.lists(counts, min_size=len(STRATA), max_size=len(STRATA)))
def test_for_the_worst_honest_engine_the_odds_average_at_most_one(drawn: list[tuple[int, ...]]) -> None:
    found = Calibration(F16, F16, MODEL, dict(zip(STRATA, drawn, strict=True)))
    for sampling in (PLAIN, HOT):
        bounds, e = found.bounds(sampling), np.exp(found.odds(sampling).log_e)
        assert (np.diff(bounds) <= 0).all()
        u = -np.diff(bounds, append=0.0)
        assert (e @ u <= 1 + 1e-9).all()
        assert (np.diff(e, axis=1) >= -1e-12).all(), "odds grow with the margin"
        assert (e[:, 0] < 1).all()
        assert e.max() <= E_MAX + 1e-9
        # Whoever stays below the bounds in each tail is no worse: here, who has half of what is allowed.
        half = np.array([1.0, *bounds[1:] / 2])
        assert (e @ -np.diff(half, append=0.0) <= 1 + 1e-9).all()


def test_the_bounds_hold_what_was_seen_in_the_worst_kind_of_sampling_and_are_not_far_above() -> None:
    worst = evolve(calibration(), counts={**calibration().counts, STRATA[-1]: (90_000, *(0,) * 4, 1_000, *(0,) * 4)})
    assert 0.005 < worst.bounds(HOT)[5] < 0.007, "both lengths of it together"
    assert worst.bounds(PLAIN)[5] < 0.0002, "cooler orders are not judged by it"


def test_an_order_is_judged_by_all_temperatures_up_to_the_next_calibrated_one() -> None:
    one = calibration()
    hotter = {stratum: HONEST if stratum.temperature <= 700_000 else (9, *HONEST[1:]) for stratum in STRATA}
    found = evolve(one, counts=hotter)
    assert (found.bounds(evolve(PLAIN, temperature=400_000)) == found.bounds(evolve(PLAIN, temperature=700_000))).all()
    assert found.bounds(evolve(PLAIN, temperature=700_001))[1] > 0.5


def test_more_honest_tokens_bound_more_closely() -> None:
    many = calibration(tuple(100 * n for n in HONEST))
    assert (many.bounds(PLAIN)[1:] < calibration().bounds(PLAIN)[1:]).all()


def test_of_nothing_nothing_is_known() -> None:
    nothing = Calibration(F16, F16, MODEL)
    assert not nothing.covers(evolve(PLAIN, temperature=0))
    assert (nothing.bounds(PLAIN) == 1).all()
    assert (nothing.odds(PLAIN).log_e < 0).all()


def test_a_calibration_covers_a_sampling_when_each_stratum_up_to_it_has_enough() -> None:
    hot = evolve(PLAIN, temperature=1_500_000)
    assert calibration().covers(hot)
    assert not calibration().covers(evolve(hot, temperature=1_500_001))
    assert not evolve(calibration(), counts={**calibration().counts, STRATA[0]: (499, *(0,) * 9)}).covers(hot)
    without_the_last = evolve(
        calibration(), counts={one: n for one, n in calibration().counts.items() if one != STRATA[-1]}
    )
    assert [without_the_last.covers(evolve(PLAIN, temperature=t)) for t in (0, 1_000_000, 1_000_001)] == [
        True,
        True,
        False,
    ]


def test_honest_margins_are_counted_in_their_stratum() -> None:
    found = Calibration(F16, F16, MODEL).add(STRATA[3], np.array([0.0, 0.05])).add(STRATA[3], np.array([0.0, 3.0]))
    assert found.counts == {STRATA[3]: (2, 0, 0, 1, 0, 0, 0, 0, 1, 0)}
    assert found.tokens == 4


def test_it_covers_what_is_no_hotter_than_what_was_calibrated() -> None:
    assert calibration().covers(HOT)
    assert not calibration().covers(evolve(HOT, temperature=1_500_001))


def test_what_is_written_is_read_again() -> None:
    pairs = (calibration(), evolve(calibration(), checker=F16))
    assert set(map(repr, decode(encode(pairs)))) == set(map(repr, pairs))
    assert encode(pairs) == encode(pairs[::-1])


def changed(change: Callable[[Any], Any]) -> bytes:
    body = json.loads(encode([calibration()]))
    change(body)
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b" " * (MAX_BYTES + 1),
        changed(lambda body: body.update(format="idlemesh calibration 2")),
        changed(lambda body: body.update(more=1)),
        changed(lambda body: body.pop("edges")),
        changed(lambda body: body["edges"].pop()),
        changed(lambda body: body.update(model="00")),
        changed(lambda body: body.update(model=7)),
        changed(lambda body: body.update(pairs={})),
        changed(lambda body: body.update(pairs=2 * body["pairs"])),
        changed(lambda body: body["pairs"][0].pop("seller")),
        changed(lambda body: body["pairs"][0]["seller"].update(kv="x" * 65)),
        changed(lambda body: body["pairs"][0]["seller"].update(kv=8)),
        changed(lambda body: body["pairs"][0].update(strata=7)),
        changed(lambda body: body["pairs"][0]["strata"].append(body["pairs"][0]["strata"][0])),
        changed(lambda body: body["pairs"][0]["strata"][1].update(temperature=0, cutoffs=True)),
        changed(lambda body: body["pairs"][0]["strata"][0].update(temperature=True)),
        changed(lambda body: body["pairs"][0]["strata"][0].update(long=1)),
        changed(lambda body: body["pairs"][0]["strata"][0].update(counts="9")),
        changed(lambda body: body["pairs"][0]["strata"][0]["counts"].pop()),
        changed(lambda body: body["pairs"][0]["strata"][0]["counts"].__setitem__(0, -1)),
        changed(lambda body: body["pairs"][0]["strata"][0]["counts"].__setitem__(0, 1.0)),
        changed(lambda body: body["pairs"][0]["strata"][0]["counts"].__setitem__(0, 2**60)),
    ],
)
def test_anything_else_is_no_calibration(raw: bytes) -> None:
    with pytest.raises(BadCalibration, match="idlemesh calibrate"):
        decode(raw)
