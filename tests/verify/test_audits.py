"""Which receipts are audited."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verify.audits import LEAST_SHARE, AuditPlan, NotARate, NotAStake, TooLittleEntropy, plan, rate_with_stake

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


amounts = st.integers(0, 2**53 - 1)
shares = st.floats(0, 1)


@given(rates, amounts, amounts, shares, shares)
def test_a_stake_lowers_the_rate_and_never_to_nothing(
    rate: float, gain: int, stake: int, power: float, colluding: float
) -> None:
    lowered = rate_with_stake(rate, gain, stake, power, colluding)
    assert LEAST_SHARE * rate <= lowered <= rate


@given(rates, amounts, amounts, amounts)
def test_a_larger_stake_never_asks_for_more_audits(rate: float, gain: int, one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert rate_with_stake(rate, gain, large) <= rate_with_stake(rate, gain, small)


def test_without_a_stake_that_can_be_lost_the_rate_is_the_owners() -> None:
    assert rate_with_stake(0.05, 10, 0) == rate_with_stake(0.05, 10, 10**9, power=0.0) == 0.05
    assert rate_with_stake(0.05, 10, 10**9, colluding=1.0) == 0.05


@given(st.floats(0.01, 1), st.integers(1, 10**9), st.integers(0, 10**9), st.floats(0.1, 1), st.floats(0, 0.5))
def test_what_a_cheat_expects_to_lose_is_what_the_owners_rate_alone_would_cost_it(
    rate: float, gain: int, bond: int, power: float, colluding: float
) -> None:
    lowered = rate_with_stake(rate, gain, bond, power, colluding)
    reach = power * (1 - colluding)
    at_stake = gain / (rate * reach)  # R + S, as the owner's rate takes it to be
    # p d (1 - r) (R + S + B) >= C; just enough, but where the floor asks for more.
    loss = lowered * reach * (at_stake + bond)
    assert loss >= gain * (1 - 1e-9)
    if lowered > LEAST_SHARE * rate:
        assert loss == pytest.approx(gain)


def test_a_bond_weighs_less_the_more_was_bought() -> None:
    a_hundred_dollars = 100_000_000
    rates_by_turnover = [rate_with_stake(0.05, 10**n, a_hundred_dollars) for n in range(4, 9)]
    assert rates_by_turnover == sorted(rates_by_turnover)
    assert rates_by_turnover[0] == pytest.approx(0.005)
    assert rates_by_turnover[-1] > 0.049


@pytest.mark.parametrize("wrong", [{"gain": -1}, {"stake": -1}, {"power": 1.1}, {"colluding": -0.1}], ids=str)
def test_numbers_that_no_stake_has_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(NotAStake, match="stake"):
        rate_with_stake(**{"rate": 0.05, "gain": 1, "stake": 1, **wrong})  # type: ignore[arg-type]
