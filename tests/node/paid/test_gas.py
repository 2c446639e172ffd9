"""Strangers cannot make a node spend any amount of gas."""

import contextlib

import pytest

from ledger.rails.stablecoin.errors import Refused
from node.paid.gas import Gas
from node.paid.terms import PaymentRefused
from node.ports import ManualClock
from tests.node.trading import clock_at_noon


def test_a_wallet_that_goes_in_circles_has_to_wait() -> None:
    clock: ManualClock = clock_at_noon()
    gas = Gas(clock.now)
    for _ in range(4):
        with gas.spending(b"one", "code"):
            pass
    with pytest.raises(PaymentRefused, match="wait two minutes"):
        gas.check(b"one", "code")
    gas.check(b"other", "code")
    clock.advance(120)
    gas.check(b"one", "code")


def test_many_wallets_spend_no_more_together() -> None:
    gas = Gas(clock_at_noon().now)
    for number in range(40):
        with gas.spending(b"%d" % number, "code"):
            pass
    with pytest.raises(PaymentRefused, match="in a minute"):
        gas.check(b"another", "code")


def test_what_is_never_sent_counts_for_nothing() -> None:
    gas = Gas(clock_at_noon().now)
    for _ in range(1_000):
        gas.check(b"one", "code")
        with pytest.raises(Refused), gas.spending(b"one", "code"):
            raise Refused("the chain would revert it")


def test_of_many_at_once_no_more_are_sent_than_of_many_in_turn() -> None:
    gas = Gas(clock_at_noon().now)
    with contextlib.ExitStack() as at_once:
        for _ in range(4):
            at_once.enter_context(gas.spending(b"one", "code"))
        with pytest.raises(PaymentRefused, match="wait two minutes"), gas.spending(b"one", "code"):
            pass
