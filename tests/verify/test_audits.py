"""Which receipts are audited."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verify.audits import AuditPlan, NotARate, TooLittleEntropy, plan

entropies = st.binary(min_size=8, max_size=16)
rates = st.floats(0, 1)


@given(rates, st.integers(0, 4), entropies)
def test_the_first_receipts_are_audited_before_they_are_paid(rate: float, earlier: int, entropy: bytes) -> None:
    assert plan(rate, earlier, 5, entropy) == AuditPlan(audit=True, before_payment=True)


@given(rates, st.integers(5, 10_000), entropies)
def test_later_receipts_are_paid_at_once(rate: float, earlier: int, entropy: bytes) -> None:
    assert not plan(rate, earlier, 5, entropy).before_payment


@given(st.integers(5, 10_000), entropies)
def test_a_rate_of_one_audits_all_and_of_zero_none(earlier: int, entropy: bytes) -> None:
    assert plan(1.0, earlier, 5, entropy).audit
    assert not plan(0.0, earlier, 5, entropy).audit


@given(rates, rates, entropies)
def test_a_higher_rate_never_audits_less(one: float, other: float, entropy: bytes) -> None:
    low, high = sorted((one, other))
    assert plan(high, 9, 5, entropy).audit >= plan(low, 9, 5, entropy).audit


def test_the_rate_is_the_share_of_all_entropy_that_audits() -> None:
    share = [plan(0.05, 9, 5, n.to_bytes(2, "big") + bytes(6)).audit for n in range(2**16)]
    assert sum(share) == pytest.approx(0.05 * 2**16, abs=1)


@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(NotARate, match="0 to 1"):
        plan(rate, 0, 5, bytes(8))


def test_entropy_that_could_be_guessed_is_refused() -> None:
    with pytest.raises(TooLittleEntropy, match="at least 8"):
        plan(0.5, 0, 5, bytes(7))
