"""The rail of trust: vouchers made and checked."""

from typing import Any

import pytest
from attrs import evolve

from ledger.account import AboveOwed, Account, AccountKey, AuthorizedFell, apply
from ledger.changes import Earned, Granted, Reserved, Settled, VoucherReceived
from ledger.identity import Identity
from ledger.rails import credit
from ledger.rails.port import (
    Rail,
    TotalTooLow,
    VoucherRefused,
    WrongNetwork,
    WrongParties,
    WrongRail,
    WrongSigner,
    WrongUnit,
)
from ledger.records import Voucher, open_record, sign

PAYER, PAYEE, STRANGER = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
KEY = AccountKey(PAYER.did, PAYEE.did, "credit", "msat")
RAIL: Rail = credit  # the module is a rail, says mypy
ORDER = b"1" * 32


def owing(total: int) -> Account:
    account = Account(KEY)
    for change in (Granted(100, 100, 1), Reserved(ORDER, total, 9), Earned(ORDER, total)):
        account = apply(account, change)
    return account


def test_a_voucher_arrives_as_the_fact_that_it_is() -> None:
    voucher = RAIL.make_voucher(PAYER, owing(60), 60)
    received = open_record(voucher.raw, Voucher)
    assert RAIL.check_voucher(received, owing(60), at_least=60) == VoucherReceived(60)


def test_capacity_is_the_limit_and_what_was_settled() -> None:
    assert RAIL.capacity(apply(owing(60), Settled(25))) == 125


def test_no_voucher_is_signed_above_the_debt() -> None:
    with pytest.raises(AboveOwed):
        RAIL.make_voucher(PAYER, owing(60), 61)


def test_no_voucher_is_signed_below_an_earlier_one() -> None:
    with pytest.raises(AuthorizedFell):
        RAIL.make_voucher(PAYER, apply(owing(60), VoucherReceived(60)), 59)


def test_what_was_promised_can_be_promised_again_however_little_is_owed() -> None:
    restored = apply(owing(60), VoucherReceived(90))
    assert RAIL.make_voucher(PAYER, restored, 90).record.total == 90
    with pytest.raises(AboveOwed):
        RAIL.make_voucher(PAYER, restored, 91)


def test_only_the_payer_makes_a_voucher() -> None:
    with pytest.raises(WrongSigner):
        RAIL.make_voucher(PAYEE, owing(60), 60)


@pytest.mark.parametrize(
    ("altered", "broken"),
    [
        ({"payer": STRANGER.did}, WrongParties),
        ({"payee": STRANGER.did}, WrongParties),
        ({"payer": PAYEE.did, "payee": PAYER.did}, WrongParties),
        ({"rail": "lightning"}, WrongRail),
        ({"network": "eip155:8453"}, WrongNetwork),
        ({"account": "0xchannel"}, WrongNetwork),
        ({"unit": "uusd"}, WrongUnit),
        ({"total": 59}, TotalTooLow),
    ],
)
def test_a_voucher_for_something_else_is_refused(altered: dict[str, Any], broken: type[VoucherRefused]) -> None:
    right = Voucher(PAYER.did, PAYEE.did, "credit", "", "", "msat", 60)
    with pytest.raises(broken) as refused:
        RAIL.check_voucher(sign(evolve(right, **altered), PAYER), owing(60), at_least=60)
    assert str(refused.value)


@pytest.mark.parametrize("signer", [PAYEE, STRANGER])
def test_a_voucher_signed_by_anybody_but_the_payer_is_refused(signer: Identity) -> None:
    voucher = Voucher(PAYER.did, PAYEE.did, "credit", "", "", "msat", 60)
    with pytest.raises(WrongSigner):
        RAIL.check_voucher(sign(voucher, signer), owing(60))


def test_a_voucher_below_what_was_promised_is_refused() -> None:
    voucher = sign(Voucher(PAYER.did, PAYEE.did, "credit", "", "", "msat", 50), PAYER)
    with pytest.raises(TotalTooLow):
        RAIL.check_voucher(voucher, apply(owing(60), VoucherReceived(60)))


def test_an_account_of_another_rail_takes_no_credit() -> None:
    voucher = sign(Voucher(PAYER.did, PAYEE.did, "credit", "", "", "msat", 50), PAYER)
    with pytest.raises(WrongRail):
        RAIL.check_voucher(voucher, Account(evolve(KEY, rail="lightning")))
