"""Money: whole numbers, one rounding rule, and amounts that people write with their unit."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.money import MAX_AMOUNT, MILLION, UNITS, Amount, MoneyError, Price, cost, parse_amount, parse_price

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "money.json").read_text())
AMOUNTS = st.integers(0, MAX_AMOUNT)


@pytest.mark.parametrize("vector", VECTORS["cost"], ids=str)
def test_a_cost_is_what_the_vectors_say(vector: dict[str, int]) -> None:
    price = Price(vector["input"], vector["output"], "uusd")
    assert cost(price, vector["prompt_tokens"], vector["output_tokens"]) == vector["cost"]


@given(AMOUNTS, AMOUNTS, st.integers(0, 2**24), st.integers(0, 2**24))
def test_a_cost_is_rounded_up_once(into: int, out: int, prompt: int, output: int) -> None:
    exact = Fraction(into * prompt + out * output, MILLION)
    assert 0 <= cost(Price(into, out, "msat"), prompt, output) - exact < 1


@pytest.mark.parametrize("vector", VECTORS["amounts"], ids=lambda v: repr(v["text"]))
def test_an_amount_is_read_with_its_unit(vector: dict[str, Any]) -> None:
    assert parse_amount(vector["text"]) == Amount(vector["value"], vector["unit"])


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda v: v["why"])
def test_what_is_no_amount_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(MoneyError):
        parse_amount(vector["text"])


@pytest.mark.parametrize("vector", VECTORS["written"], ids=lambda v: v["text"])
def test_an_amount_is_written_exactly(vector: dict[str, Any]) -> None:
    assert str(Amount(vector["value"], vector["unit"])) == vector["text"]


@given(st.builds(Amount, AMOUNTS, st.sampled_from(UNITS)))
def test_a_written_amount_reads_as_itself(amount: Amount) -> None:
    assert parse_amount(str(amount)) == amount


@given(st.builds(Price, AMOUNTS, AMOUNTS, st.sampled_from(UNITS)))
def test_a_written_price_reads_as_itself(price: Price) -> None:
    assert parse_price(str(price)) == price


@pytest.mark.parametrize("vector", VECTORS["prices"], ids=lambda v: v["text"])
def test_a_price_is_one_amount_for_prompts_and_one_for_answers(vector: dict[str, Any]) -> None:
    assert parse_price(vector["text"]) == Price(vector["input"], vector["output"], vector["unit"])


@pytest.mark.parametrize("vector", VECTORS["refused_prices"], ids=lambda v: v["why"])
def test_what_is_no_price_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(MoneyError):
        parse_price(vector["text"])


@given(st.text() | st.text("0123456789.-+eE_ ausdtbc"))
def test_any_text_is_an_amount_or_a_money_error(text: str) -> None:
    try:
        amount = parse_amount(text)
    except MoneyError:
        return
    assert 0 <= amount.value <= MAX_AMOUNT


@pytest.mark.parametrize("value", [-1, MAX_AMOUNT + 1])
def test_an_amount_outside_its_range_cannot_exist(value: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Amount(value, "msat")


def test_an_amount_is_never_a_float() -> None:
    with pytest.raises(TypeError):
        Amount(1.0, "msat")  # type: ignore[arg-type]
