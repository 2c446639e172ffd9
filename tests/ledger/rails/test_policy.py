"""What moves by itself: together where that is cheap, never for more than the owner's share, at once where it must."""

from collections.abc import Iterable
from itertools import combinations
from typing import get_args

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ledger.account import Account, AccountKey
from ledger.effects import Kind
from ledger.rails.policy import Fees, Policy, Wish, together, wanted

KEY = AccountKey("payer", "payee", "stablecoin", "uusd")
ALL: frozenset[Kind] = frozenset(get_args(Kind))
PPM = 20_000

wishes = st.lists(
    st.builds(Wish, st.just("claim"), st.integers(1, 10_000), st.just(False), st.booleans()), max_size=6
).map(lambda found: dict(enumerate(found)))
hurried = st.builds(Wish, st.just("claim"), st.integers(1, 10_000), st.just(True))
fees = st.builds(Fees, st.integers(0, 300), st.integers(0, 60))


def is_worth_it(chosen: Iterable[Wish], charged: Fees) -> bool:
    found = list(chosen)
    return charged.of(len(found)) * 1_000_000 <= PPM * sum(wish.amount for wish in found)


@given(wishes, fees)
def test_what_goes_is_worth_its_fee_and_so_is_each_of_it(found: dict[int, Wish], charged: Fees) -> None:
    chosen = [found[key] for key in together(found, charged, PPM, 50)]
    assert not chosen or is_worth_it(chosen, charged)
    assert all(is_worth_it([wish], Fees(each=charged.each)) for wish in chosen)
    assert not chosen or any(wish.ripe for wish in chosen)


@given(wishes, fees)
def test_nothing_stays_that_could_go(found: dict[int, Wish], charged: Fees) -> None:
    if together(found, charged, PPM, 50):
        return
    able = [wish for wish in found.values() if is_worth_it([wish], Fees(each=charged.each))]
    for count in range(1, len(able) + 1):
        for some in combinations(able, count):
            assert not (any(wish.ripe for wish in some) and is_worth_it(some, charged))


@given(wishes, hurried, fees)
def test_what_is_urgent_goes_unless_it_costs_more_than_all_of_it_brings(
    found: dict[int, Wish], urgent: Wish, charged: Fees
) -> None:
    chosen = together({**found, -1: urgent}, charged, PPM, 50)
    amount = sum({**found, -1: urgent}[key].amount for key in chosen)
    assert (-1 in chosen) == (urgent.amount > charged.each and amount > charged.of(len(chosen)))
    assert not chosen or amount >= charged.of(len(chosen))


@given(wishes, hurried)
def test_without_a_known_fee_only_what_is_urgent_goes(found: dict[int, Wish], urgent: Wish) -> None:
    assert together({**found, -1: urgent}, None, PPM, 50) == [-1]


@given(fees, st.integers(1, 50), st.integers(1, 50))
def test_fees_are_known_from_one_and_from_many(charged: Fees, accounts: int, more: int) -> None:
    found = Fees.between(charged.of(1), charged.of(accounts), accounts)
    assert found.of(1) == charged.of(1)
    assert accounts == 1 or found == charged
    assert found.of(more) <= charged.of(more)


def test_the_largest_go_first_where_not_all_can() -> None:
    found = {amount: Wish("claim", amount) for amount in (5_000, 9_000, 7_000)}
    assert together(found, Fees(), PPM, 2) == [9_000, 7_000]


def test_what_a_payee_is_due_is_a_wish_from_the_first_unit_and_ripe_by_amount_or_age() -> None:
    account = evolve(Account(KEY), funded=100, earned=60, authorized=60)
    policy = Policy(move_at=61, move_after_s=10)
    assert wanted(account, "payee", ALL, policy, 9, 0) == Wish("claim", 60, ripe=False)
    assert wanted(account, "payee", ALL, policy, 10, 0) == Wish("claim", 60)
    assert wanted(account, "payee", ALL, policy, 0, 1) == Wish("claim", 60, urgent=True)
    assert wanted(account, "payer", ALL, policy, 9, 1) is None


def test_of_a_deposit_that_left_unseen_what_still_lies_there_is_claimed() -> None:
    """Its payer was promised for 80 of 100, and took 50 back while nobody looked; then 20 more are leaving."""
    account = evolve(Account(KEY), funded=100, withdrawn=50, earned=80, authorized=80)
    assert wanted(account, "payee", ALL, Policy(), 0, 0) == Wish("claim", 50, ripe=False)
    assert wanted(evolve(account, settled=50), "payee", ALL, Policy(), 0, 0) is None
    assert wanted(evolve(account, withdrawn=70), "payee", ALL, Policy(), 0, 20) == Wish("claim", 50, urgent=True)
