"""The detector: what condemns, what does not, and that each context counts once."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.records import Margins
from verify.calibration import BETS, BINS, EDGES, Odds
from verify.evidence import LOG_DOUBT, Evidence, NotMargins, advance, contexts, fresh, observe, summarise

GOOD, ODD = 0.0, 0.3
# One good bin, and one odd one: what follows is about the detectors, whatever the odds.
E_ODD = (8.0, 20.0, 100.0)
ODDS = Odds(np.log(np.array([[1 - share, *[e] * (BINS - 1)] for share, e in zip(BETS, E_ODD, strict=True)])))
runs = st.lists(st.sampled_from([GOOD, ODD]), max_size=60)


def seen(*margins: float) -> Evidence:
    return observe(Evidence(), np.array(margins), ODDS)


def mean(m: list[float]) -> float:
    return sum(m) / len(m)


@settings(deadline=None)
@given(runs)
def test_each_detector_follows_the_recursion_and_their_mean_is_what_counts(margins: list[float]) -> None:
    m, peak = [0.0] * len(BETS), 0.0
    for margin in margins:
        m = [(1 + one) * (e if margin == ODD else 1 - share) for one, e, share in zip(m, E_ODD, BETS, strict=True)]
        peak = max(peak, mean(m))
    found = seen(*margins)
    assert [math.exp(log_m) for log_m in found.log_ms] == pytest.approx(m)
    assert math.exp(found.log_m) == pytest.approx(mean(m))
    assert math.exp(found.peak) == pytest.approx(peak)
    assert (found.tokens, found.odd) == (len(margins), sum(x > 0.1 for x in margins))
    assert found.condemned == (peak >= 1e9)


def test_each_bin_weighs_what_the_odds_say() -> None:
    odds = Odds(np.log(np.outer(np.ones(len(BETS)), 0.99 + np.arange(BINS) / 7)))
    for bin_, margin in enumerate([0.0, *EDGES[1:], 9.0, 1e6]):
        assert math.exp(observe(Evidence(), np.array([margin]), odds).log_m) == pytest.approx(0.99 + bin_ / 7)


@settings(deadline=None)
@given(runs, runs)
def test_evidence_is_the_same_in_one_piece_or_two(first: list[float], second: list[float]) -> None:
    whole, parts = seen(*first, *second), observe(seen(*first), np.array(second), ODDS)
    assert parts.log_ms == pytest.approx(whole.log_ms)
    assert parts.peak == pytest.approx(whole.peak)
    assert (parts.tokens, parts.odd) == (whole.tokens, whole.odd)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2_000), st.integers(1, BINS - 1)), min_size=1, max_size=20))
def test_many_sellers_at_once_are_judged_like_each_alone(steps: list[tuple[int, int]]) -> None:
    margin = [0.0, *EDGES[1:], 9.0, 1e6]
    alone, together = Evidence(), np.full((3, len(BETS)), -np.inf)
    for good, bin_ in steps:
        alone = observe(alone, np.array([*[0.0] * good, margin[bin_]]), ODDS)
        together = advance(together, np.full(3, good), np.full(3, bin_), ODDS)
    assert together == pytest.approx(np.tile(alone.log_ms, (3, 1)))


def test_a_margin_of_exactly_a_tenth_is_not_odd() -> None:
    assert seen(0.1).odd == 0
    assert seen(math.nextafter(0.1, 1)).odd == 1


def test_nothing_checked_is_nothing_held_against_anyone() -> None:
    assert seen() == Evidence()
    assert Evidence().outcome == "honest"
    assert not Evidence().condemned


@pytest.mark.parametrize("past", [0, 10, 5_000, 10**6])
def test_one_odd_token_is_no_doubt_yet_after_any_past(past: int) -> None:
    assert observe(Evidence(), np.array([*np.zeros(past), ODD]), ODDS).outcome == "honest"


def test_a_few_odd_tokens_leave_the_question_open_and_good_ones_close_it() -> None:
    assert seen(*[ODD] * 4).outcome == "undecided"
    assert seen(*[ODD] * 4, *[GOOD] * 3_000).outcome == "honest"


def test_no_four_odd_tokens_in_a_row_condemn_and_some_more_do() -> None:
    assert seen(*[ODD] * 4).outcome == "undecided"
    assert seen(*[ODD] * 7).outcome == "dishonest"


def test_a_condemned_seller_stays_condemned() -> None:
    later = observe(seen(*[ODD] * 7), np.zeros(50_000), ODDS)
    assert later.log_m < LOG_DOUBT
    assert later.outcome == "dishonest"


def test_condemnation_in_the_middle_of_one_receipt_is_not_missed() -> None:
    assert seen(*[ODD] * 7, *[GOOD] * 50_000).condemned


def test_a_long_honest_past_does_not_pay_for_a_dishonest_present() -> None:
    cheat = [GOOD] * 8 + [ODD]
    fresh_start = seen(*cheat * 20)
    after_years = seen(*[GOOD] * 20_000, *cheat * 20)
    assert after_years.log_m >= fresh_start.log_m
    assert after_years.condemned


def test_evidence_never_overflows() -> None:
    assert math.isfinite(seen(*[ODD] * 20_000).log_m)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.001])
def test_what_is_no_margin_is_refused(wrong: float) -> None:
    for use in (summarise, lambda margins: observe(Evidence(), margins, ODDS)):
        with pytest.raises(NotMargins, match="margin 1 is"):
            use(np.array([0.0, wrong]))


def test_a_verdict_carries_the_evidence_in_thousandths() -> None:
    assert seen(ODD).thousandths == round(1000 * math.log(128 / 3))
    assert seen(GOOD).thousandths == -9
    assert Evidence().thousandths == -(2**53 - 1)


def test_a_summary_is_in_millionths_and_clips_the_mean_alone() -> None:
    assert summarise(np.array([0.0, 0.05, 0.2, 13.0])) == Margins(tokens=4, odd=2, mean=187_500, largest=13_000_000)


def test_a_summary_of_nothing_is_all_zero() -> None:
    assert summarise(np.zeros(0)) == Margins(tokens=0, odd=0, mean=0, largest=0)


ids = st.lists(st.integers(0, 5), max_size=8)


@given(ids, ids)
def test_each_answer_token_has_the_context_of_all_that_stands_before_it(prompt: list[int], answer: list[int]) -> None:
    found = contexts(prompt, answer)
    assert [len(context) for context in found] == [8] * len(answer)
    for index, context in enumerate(found):
        # As if the tokens so far had been the prompt.
        assert contexts(prompt + answer[:index], answer[index:])[0] == context


@given(ids, ids)
def test_different_contexts_have_different_digests(one: list[int], other: list[int]) -> None:
    assert (contexts(one, [0]) == contexts(other, [0])) == (one == other)


def test_ids_do_not_run_together() -> None:
    assert contexts([1, 256], [0]) != contexts([256, 1], [0])
    assert contexts([0, 0], [0]) != contexts([0], [0])


def test_only_contexts_not_seen_before_are_fresh() -> None:
    first = contexts([1, 2], [3, 4, 5])
    assert fresh(first, set()).all()
    # The second answer leaves the first after two tokens: three contexts are old.
    second = contexts([1, 2], [3, 4, 6, 7])
    assert list(fresh(second, set(first))) == [False, False, False, True]


def test_a_context_that_comes_twice_in_one_batch_counts_once() -> None:
    batch = contexts([1], [2, 3]) + contexts([1], [2, 4])
    assert list(fresh(batch, set())) == [True, True, False, False]
