"""All unproven payers together have one bound."""

import pytest

from ledger.account import Account, AccountKey, apply
from ledger.changes import Admitted, Authorized, Change, Drawn, Earned, Funded, Granted, Netted, Reserved, Settled
from ledger.exposure import AboveExposure, check_exposure, exposure, unproven_exposure
from ledger.money import Unit

ORDER = b"1" * 32
NOBODY: frozenset[str] = frozenset()


def account(payer: str, *changes: Change, rail: str = "credit", unit: Unit = "msat", payee: str = "us") -> Account:
    found = Account(AccountKey(payer, payee, rail, unit))
    for change in changes:
        found = apply(found, change)
    return found


def owing(payer: str, amount: int, *more: Change, unit: Unit = "msat", payee: str = "us") -> Account:
    changes = Granted(1000, 1000, 1), Reserved(ORDER, amount, 9), Earned(ORDER, amount // 2), *more
    return account(payer, *changes, unit=unit, payee=payee)


def test_what_is_owed_and_what_is_reserved_is_exposed() -> None:
    assert exposure(owing("a", 60)) == 60


def test_fresh_identities_share_the_bound() -> None:
    known = [owing("a", 60), owing("b", 30)]
    check_exposure(known, account("c"), 10, 100, NOBODY)
    with pytest.raises(AboveExposure) as refused:
        check_exposure(known, account("c"), 11, 100, NOBODY)
    assert (refused.value.amount, refused.value.left) == (11, 10)
    assert "11" in str(refused.value)
    assert "10" in str(refused.value)


@pytest.mark.parametrize("proof", [Settled(1), Netted(1)])
def test_who_has_paid_or_worked_for_something_is_not_bound(proof: Change) -> None:
    known = [owing("a", 100), owing("b", 500, proof)]
    assert unproven_exposure(known, known[0], NOBODY) == 100
    check_exposure(known, known[1], 500, 100, NOBODY)


def test_who_is_named_is_not_bound() -> None:
    known = [owing("a", 100), owing("b", 500)]
    assert unproven_exposure(known, known[0], {"b"}) == 100
    check_exposure(known, known[1], 500, 100, {"b"})


def test_a_promise_proves_nothing() -> None:
    known = [owing("a", 100)]
    with pytest.raises(AboveExposure):
        check_exposure(known, known[0], 1, 100, NOBODY)


DEPOSITED = Granted(0, 50, 1), Funded(100, 1), Admitted(ORDER, 80, 20, 9)


def test_of_a_deposit_what_has_no_voucher_is_exposed_as_far_as_the_window() -> None:
    paid = Earned(ORDER, 20), Authorized(20), Drawn(ORDER, 60), Earned(ORDER, 60), Authorized(60)
    assert exposure(account("a", *DEPOSITED, rail="lightning")) == 50
    assert exposure(account("a", *DEPOSITED, *paid, rail="lightning")) == 20


def test_a_deposit_proves_nothing_until_something_of_it_was_paid_out() -> None:
    fresh = account("a", *DEPOSITED[:2], rail="lightning")
    with pytest.raises(AboveExposure) as refused:
        check_exposure([fresh], fresh, 80, 49, NOBODY)
    assert (refused.value.amount, refused.value.left) == (50, 49)
    check_exposure([fresh], fresh, 80, 50, NOBODY)
    check_exposure([fresh], apply(fresh, Settled(1)), 80, 0, NOBODY)


def test_other_units_and_what_we_owe_ourselves_do_not_count() -> None:
    known = [owing("a", 60, unit="uusd"), owing("us", 60, payee="a")]
    assert unproven_exposure(known, account("c"), NOBODY) == 0
