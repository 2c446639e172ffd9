"""Penalties, bias and masks: vectors to the bit, and what they must never do."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from verify.steering import MAX_BIAS, MAX_BIASED, MAX_GRAMMAR, MAX_PENALTY, BadSteering, Steering, count, steer

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "steering.json").read_text())
SIZE = 12

penalties = st.integers(-MAX_PENALTY, MAX_PENALTY)
biases = st.dictionaries(st.integers(0, SIZE + 3), st.integers(-MAX_BIAS, MAX_BIAS), max_size=8)
steerings = st.builds(
    Steering, frequency=penalties, presence=penalties, bias=biases.map(lambda found: tuple(sorted(found.items())))
)
rows = st.lists(st.floats(-100, 100, width=32), min_size=SIZE, max_size=SIZE).map(lambda v: np.array(v, np.float32))
masks = st.none() | st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(lambda v: np.array(v, np.bool_))
answers = st.lists(st.integers(0, SIZE - 1), max_size=30)


def bits_of(values: list[str | None]) -> NDArray[np.float32]:
    return np.array([-np.inf if value is None else float.fromhex(value) for value in values], np.float32)


@pytest.mark.parametrize("vector", VECTORS["rows"], ids=lambda vector: vector["case"])
def test_rows_are_steered_as_the_vectors_say(vector: dict[str, Any]) -> None:
    steering = Steering(vector["frequency"], vector["presence"], tuple((i, v) for i, v in vector["bias"]))
    allowed = None if vector["allowed"] is None else np.isin(np.arange(len(vector["logits"])), vector["allowed"])
    found = steer(bits_of(vector["logits"]), steering, count(vector["answer"]), allowed)
    assert found.dtype == np.float32
    assert found.tobytes() == bits_of(vector["steered"]).tobytes()


@given(rows, steerings, answers, masks)
def test_each_logit_moves_by_the_formula_and_is_rounded_once(
    logits: NDArray[np.float32], steering: Steering, answer: list[int], allowed: NDArray[np.bool_] | None
) -> None:
    before = logits.copy()
    found = steer(logits, steering, count(answer), allowed)
    bias = dict(steering.bias)
    for token in range(SIZE):
        times = answer.count(token)
        by = bias.get(token, 0) - steering.frequency * times - steering.presence * (times > 0)
        expected = np.float32(float(logits[token]) + float(Fraction(by, 1_000_000)))
        if allowed is not None and not allowed[token]:
            expected = np.float32(-np.inf)
        assert found[token] == expected
    assert (logits == before).all()


@given(rows, penalties, penalties)
def test_a_row_that_nothing_steers_is_not_copied(logits: NDArray[np.float32], frequency: int, presence: int) -> None:
    assert steer(logits, Steering(), {3: 1}, None) is logits
    assert steer(logits, Steering(frequency, presence), {}, None) is logits
    assert steer(logits, Steering(grammar='root ::= "a"'), {3: 1}, None) is logits


def test_a_token_that_was_impossible_stays_so() -> None:
    logits = np.array([-np.inf, 0.0], np.float32)
    assert steer(logits, Steering(bias=((0, MAX_BIAS),)), {}, None)[0] == -np.inf


def test_a_bias_for_no_token_of_the_vocabulary_is_passed_over() -> None:
    found = steer(np.zeros(2, np.float32), Steering(bias=((1, 1_000_000), (2, 1), (2**32 - 1, 1))), {}, None)
    assert list(found) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency", MAX_PENALTY + 1),
        ("presence", -MAX_PENALTY - 1),
        ("frequency", 1.0),
        ("presence", True),
        ("bias", ((1, MAX_BIAS + 1),)),
        ("bias", ((1, -MAX_BIAS - 1),)),
        ("bias", ((1, 0.5),)),
        ("bias", ((-1, 0),)),
        ("bias", ((2**32, 0),)),
        ("bias", ((True, 0),)),
        ("bias", ((2, 0), (1, 0))),
        ("bias", ((1, 0), (1, 0))),
        ("bias", tuple((n, 0) for n in range(MAX_BIASED + 1))),
        ("grammar", "x" * (MAX_GRAMMAR + 1)),
    ],
)
def test_what_is_outside_its_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(BadSteering):
        Steering(**{field: value})


@given(st.lists(st.integers(0, 5)))
def test_counts_are_of_every_token(tokens: list[int]) -> None:
    assert count(tokens) == {token: tokens.count(token) for token in tokens}


def test_what_steers_is_not_shown() -> None:
    assert "hush" not in repr(Steering(bias=((1, 5),), grammar='root ::= "hush"'))
