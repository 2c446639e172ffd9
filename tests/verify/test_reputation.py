"""A score that conduct moves the right way."""

from functools import reduce

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from verify.reputation import Event, History, observe, score

counts = st.integers(0, 10_000)
histories = st.builds(
    History,
    delivered=counts,
    failed=counts,
    refused=counts,
    tokens=counts,
    honest=counts,
    condemned=st.booleans(),
)
trusted = histories.map(lambda history: evolve(history, condemned=False))


@given(histories)
def test_a_score_lies_between_0_and_1(history: History) -> None:
    assert 0 <= score(history) < 1


def test_a_stranger_scores_moderately_low() -> None:
    assert score(History()) == pytest.approx(1 / 3)


@given(histories)
def test_the_condemned_score_nothing_whatever_they_did_before_or_do_after(history: History) -> None:
    fallen = observe(history, "dishonest")
    assert score(fallen) == 0
    assert score(observe(observe(fallen, "delivered", tokens=9), "honest")) == 0


@pytest.mark.parametrize("event", ["delivered", "honest"])
@given(history=trusted)
def test_good_conduct_raises_the_score(event: Event, history: History) -> None:
    assert score(observe(history, event)) > score(history)


@pytest.mark.parametrize("event", ["failed", "refused"])
@given(history=trusted)
def test_bad_conduct_lowers_the_score(event: Event, history: History) -> None:
    assert score(observe(history, event)) < score(history)


@given(trusted)
def test_a_failure_outweighs_a_delivery_and_a_refusal(history: History) -> None:
    failed = score(observe(history, "failed"))
    assert failed < score(observe(history, "refused"))
    # From a stranger on: below that there is little left to lose.
    if score(history) >= score(History()):
        assert score(history) - failed > score(observe(history, "delivered")) - score(history)


@given(st.permutations(["delivered", "failed", "refused", "honest", "dishonest", "delivered"]))
def test_the_order_of_events_does_not_matter(events: list[Event]) -> None:
    expected = History(delivered=2, failed=1, refused=1, honest=1, condemned=True)
    assert reduce(observe, events, History()) == expected


def test_delivered_tokens_are_counted() -> None:
    assert observe(observe(History(), "delivered", tokens=64), "delivered", tokens=6).tokens == 70


def test_a_negative_count_cannot_exist() -> None:
    with pytest.raises(ValueError, match="failed"):
        History(failed=-1)
