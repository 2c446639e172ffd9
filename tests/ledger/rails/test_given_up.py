"""A refund of prepaid money that failed, and that its owner gives up."""

import pytest
from attrs import evolve

from ledger.account import Account, AccountKey, apply
from ledger.changes import Withdrawn
from ledger.effects import State, Tracked, draw_up
from ledger.rails.answers import given_up

KEY = AccountKey("did:pkh:eip155:1:0x00", "did:key:z", "prepaid", "uusd")
PAID = evolve(Account(KEY), funded=100, funded_sequence=1)
FAILED = Tracked(draw_up(PAID, "refund", 40, b"1" * 32), 5, "failed")
LEAVING = apply(PAID, Withdrawn(40, 1))


def test_what_a_payer_does_not_get_back_is_in_its_balance_again() -> None:
    assert given_up(FAILED, "dismissed", LEAVING, KEY.payer) == (Withdrawn(0, 2),)


def test_what_a_payee_does_not_pay_back_stays_gone_for_its_signature_may_be_known() -> None:
    assert given_up(FAILED, "dismissed", LEAVING, KEY.payee) == ()


@pytest.mark.parametrize("state", ["planned", "unknown", "settled", "contradicted"])
def test_only_what_failed_can_be_given_up(state: State) -> None:
    assert given_up(evolve(FAILED, state=state), "dismissed", LEAVING, KEY.payer) == ()
    assert given_up(FAILED, "retried", LEAVING, KEY.payer) == ()
