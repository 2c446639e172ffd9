"""What is let go: within the dispute, once, and by the payee's word alone."""

import pytest
from attrs import evolve

from ledger.account import Account, AccountKey, apply
from ledger.changes import (
    Acknowledged,
    Authorized,
    Change,
    Disputed,
    Earned,
    Forgiven,
    Granted,
    Released,
    Reserved,
    Resolved,
    VoucherReceived,
)
from ledger.identity import Identity
from ledger.records import Forgiveness, sign
from ledger.waivers import (
    Dispute,
    LetGoBefore,
    NotDisputed,
    NotFitting,
    OutsideDispute,
    answer_forgiveness,
    ask_forgiveness,
    disputes,
    let_go_before,
    resolve,
    take_forgiveness,
)

PAYER, PAYEE, STRANGER = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
KEY = AccountKey(PAYER.did, PAYEE.did, "credit", "uusd")
ORDER, OTHER, LOST = (bytes([number]) * 32 for number in (7, 8, 9))
OPENED = Granted(1000, 1000, 1), Reserved(ORDER, 100, 9), Earned(ORDER, 100), Released(ORDER)


def after(*changes: Change) -> Account:
    account = Account(KEY)
    for change in changes:
        account = apply(account, change)
    return account


def payee(*more: Change) -> Account:
    """It asks 100 for an order of which 60 are granted and promised."""
    return after(*OPENED, Disputed(ORDER, 100, 60), VoucherReceived(60), *more)


def payer(*more: Change) -> Account:
    """The other side of it."""
    opened = OPENED[:2] + OPENED[3:]
    return after(*opened, Acknowledged(ORDER, 60), Disputed(ORDER, 100, 60), Authorized(60), *more)


@pytest.mark.parametrize("account", [payee(), payer()], ids=["payee", "payer"])
def test_both_sides_see_the_same_dispute(account: Account) -> None:
    assert disputes(account) == [Dispute(KEY, ORDER, 100, 60)]


@pytest.mark.parametrize("total", [60, 75, 100])
def test_a_resolution_lies_between_what_is_granted_and_what_is_asked(total: int) -> None:
    account = apply(payee(), resolve(payee(), ORDER, total).change)
    assert (account.owed, account.disputed) == (total, total - 60)


@pytest.mark.parametrize("total", [0, 59, 101])
def test_another_one_is_refused(total: int) -> None:
    with pytest.raises(OutsideDispute):
        resolve(payee(), ORDER, total)


def test_what_is_not_in_dispute_is_not_resolved() -> None:
    for order in (OTHER, ORDER):
        with pytest.raises(NotDisputed, match="idlemesh disputes"):
            resolve(after(*OPENED), order, 60)
    with pytest.raises(NotDisputed):
        resolve(payee(Resolved(ORDER, 60)), ORDER, 60)


def test_what_was_forgiven_before_the_dispute_is_not_let_go_of_again_unasked() -> None:
    account = after(*OPENED, Forgiven(30), Disputed(ORDER, 100, 60), VoucherReceived(60))
    assert let_go_before(account, ORDER, 60) == 30
    with pytest.raises(LetGoBefore, match="30 of it was forgiven before"):
        resolve(account, ORDER, 60)
    assert resolve(account, ORDER, 60, twice=True).change == Resolved(ORDER, 60)
    assert let_go_before(payee(), ORDER, 60) == 0


def told(there: Account, here: Account) -> int:
    """What a payer has been forgiven after it asked."""
    answer = answer_forgiveness(ask_forgiveness(here, 5), there, 6)
    moved = apply(here, take_forgiveness(sign(answer, PAYEE), here).change)
    return moved.forgiven


def test_a_payer_that_comes_back_is_told_all_that_was_forgiven() -> None:
    there = after(*OPENED, Forgiven(40))
    here = after(*OPENED)
    assert told(there, here) == 40
    owed = apply(
        here, take_forgiveness(sign(answer_forgiveness(ask_forgiveness(here, 5), there, 6), PAYEE), here).change
    )
    assert owed.owed == there.owed == 60


def test_what_the_payer_never_counted_is_not_let_go_of_a_second_time() -> None:
    # The payee has delivered 5 more, on a line that broke, and let go of them.
    there = after(*OPENED, VoucherReceived(100), Reserved(LOST, 5, 9), Earned(LOST, 5), Released(LOST), Forgiven(5))
    here = after(*OPENED, Authorized(100))
    assert told(there, here) == 0
    assert here.owed == there.owed == 100


def test_of_both_kinds_the_payer_owes_what_its_payee_asks() -> None:
    there = after(*OPENED, Reserved(LOST, 5, 9), Earned(LOST, 5), Released(LOST), Forgiven(45))
    here = after(*OPENED)
    assert told(there, here) == 40


def test_a_payer_that_counts_more_is_told_no_more_than_was_forgiven() -> None:
    assert (
        told(after(Granted(1000, 1000, 1), Reserved(OTHER, 50, 9), Earned(OTHER, 50), Forgiven(10)), after(*OPENED))
        == 10
    )


def said(**changes: object) -> Forgiveness:
    fields: dict[str, object] = {"payer": PAYER.did, "payee": PAYEE.did, "rail": "credit", "unit": "uusd"}
    return Forgiveness(**(fields | {"counted": 100, "total": 40, "issued": 1} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "signer"),
    [
        (said(), PAYER),
        (said(), STRANGER),
        (said(counted=99), PAYEE),
        (said(unit="msat"), PAYEE),
        (said(rail="lightning"), PAYEE),
        (said(payer=STRANGER.did), PAYEE),
    ],
)
def test_the_word_of_others_and_about_something_else_forgives_nothing(answer: Forgiveness, signer: Identity) -> None:
    with pytest.raises(NotFitting):
        take_forgiveness(sign(answer, signer), after(*OPENED))


def test_more_than_was_counted_is_never_forgiven() -> None:
    with pytest.raises(ValueError, match="total must not be above counted"):
        evolve(said(), total=101)
