"""The settlement state machine: its guards one by one, and payer and payee against each other."""

from typing import get_args

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from ledger import account as guards
from ledger.account import Account, AccountError, AccountKey, Reservation, apply
from ledger.changes import (
    Acknowledged,
    Act,
    Authorized,
    Change,
    Claimed,
    Earned,
    Forgiven,
    Forgotten,
    Granted,
    InvalidAmount,
    InvalidChange,
    InvalidChangeFields,
    InvalidOrderDigest,
    InvalidUnit,
    Released,
    Reserved,
    Settled,
    UnknownChange,
    VoucherReceived,
    decode_change,
    encode_change,
)
from ledger.money import MAX_AMOUNT

KEY = AccountKey("did:payer", "did:payee", "credit", "msat")
ORDER, OTHER = b"1" * 32, b"2" * 32


def after(*changes: Change) -> Account:
    account = Account(KEY)
    for change in changes:
        account = apply(account, change)
    return account


def delivered(total: int, *, limit: int = 100, window: int = 100) -> Account:
    return after(Granted(limit, window, 1), Reserved(ORDER, total, 9), Earned(ORDER, total), Released(ORDER))


class TestReserving:
    def test_nothing_is_admitted_before_a_grant(self) -> None:
        with pytest.raises(guards.AboveCapacity):
            after(Reserved(ORDER, 1, 9))

    def test_an_order_may_take_all_that_is_available(self) -> None:
        account = after(Granted(100, 100, 1), Reserved(ORDER, 100, 9))
        assert (account.reserved, account.available, account.shortfall) == (100, 0, 0)

    def test_an_order_above_the_limit_is_refused_with_what_is_left(self) -> None:
        with pytest.raises(guards.AboveCapacity) as refused:
            after(Granted(100, 1000, 1), Reserved(ORDER, 60, 9), Reserved(OTHER, 41, 9))
        assert (refused.value.amount, refused.value.left) == (41, 40)

    def test_an_order_above_the_window_is_refused_with_what_is_left(self) -> None:
        with pytest.raises(guards.AboveWindow) as refused:
            after(Granted(1000, 100, 1), Reserved(ORDER, 60, 9), Reserved(OTHER, 41, 9))
        assert (refused.value.amount, refused.value.left) == (41, 40)

    def test_the_same_order_is_reserved_once(self) -> None:
        with pytest.raises(guards.OrderKnown):
            after(Granted(100, 100, 1), Reserved(ORDER, 1, 9), Reserved(ORDER, 1, 9))

    def test_a_closed_order_is_not_reserved_again(self) -> None:
        with pytest.raises(guards.OrderKnown):
            apply(delivered(5), Reserved(ORDER, 5, 9))

    def test_a_forgotten_order_is_unknown_again(self) -> None:
        assert ORDER not in apply(delivered(5), Forgotten(10)).orders

    def test_closed_orders_are_remembered_until_they_expire(self) -> None:
        assert ORDER in apply(delivered(5), Forgotten(9)).orders

    def test_open_orders_are_never_forgotten(self) -> None:
        assert ORDER in after(Granted(9, 9, 1), Reserved(ORDER, 1, 5), Forgotten(100)).orders

    def test_a_paid_window_opens_again(self) -> None:
        account = delivered(80, limit=1000, window=100)
        assert account.available == 20
        assert apply(account, VoucherReceived(80)).available == 100

    def test_a_voucher_above_what_is_owed_does_not_widen_the_window(self) -> None:
        account = apply(delivered(80, limit=1000, window=100), VoucherReceived(500))
        assert account.window_left == account.available == 100
        with pytest.raises(guards.AboveWindow):
            apply(account, Reserved(OTHER, 101, 9))

    def test_credit_opens_again_when_it_is_settled(self) -> None:
        # The example of the design: limit 100, owed and authorized 80, nothing settled.
        account = apply(delivered(80, window=1000), Authorized(80))
        assert account.available == 20
        assert apply(account, Settled(80)).available == 100

    def test_an_unknown_rail_has_no_capacity(self) -> None:
        account = apply(Account(evolve(KEY, rail="barter")), Granted(100, 100, 1))
        assert (account.capacity, account.available) == (0, 0)


class TestEarning:
    def test_what_is_earned_is_no_longer_reserved(self) -> None:
        account = after(Granted(100, 100, 1), Reserved(ORDER, 50, 9), Earned(ORDER, 20))
        assert (account.earned, account.reserved, account.owed) == (20, 30, 20)

    def test_release_frees_the_rest_and_keeps_what_was_earned(self) -> None:
        account = after(Granted(100, 100, 1), Reserved(ORDER, 50, 9), Earned(ORDER, 20), Released(ORDER))
        assert (account.earned, account.reserved, account.available) == (20, 0, 80)

    def test_release_twice_is_release_once(self) -> None:
        assert apply(delivered(5), Released(ORDER)) == delivered(5)

    @pytest.mark.parametrize("change", [Earned(ORDER, 1), Released(ORDER), Acknowledged(ORDER, 1)])
    def test_an_unknown_order_has_nothing_to_move(self, change: Change) -> None:
        with pytest.raises(guards.OrderUnknown):
            after(change)

    def test_an_order_earns_no_more_than_it_reserved(self) -> None:
        with pytest.raises(guards.AboveReservation):
            after(Granted(100, 100, 1), Reserved(ORDER, 50, 9), Earned(ORDER, 51))

    def test_the_delivered_cost_does_not_fall(self) -> None:
        with pytest.raises(guards.EarnedFell):
            after(Granted(100, 100, 1), Reserved(ORDER, 50, 9), Earned(ORDER, 20), Earned(ORDER, 19))

    def test_a_closed_order_earns_nothing_by_our_own_act(self) -> None:
        with pytest.raises(guards.OrderClosed):
            apply(delivered(5), Earned(ORDER, 5))

    def test_a_late_acknowledgement_counts_on_a_closed_order(self) -> None:
        account = after(Granted(9, 9, 1), Reserved(ORDER, 9, 9), Earned(ORDER, 2), Released(ORDER))
        assert apply(account, Acknowledged(ORDER, 6)).owed == 6

    def test_an_acknowledgement_of_less_takes_nothing_back(self) -> None:
        assert apply(delivered(5), Acknowledged(ORDER, 3)) == delivered(5)

    def test_an_acknowledgement_is_bounded_by_the_reservation(self) -> None:
        with pytest.raises(guards.AboveReservation):
            apply(delivered(5), Acknowledged(ORDER, 6))


class TestPaying:
    def test_we_authorize_at_most_what_we_owe(self) -> None:
        with pytest.raises(guards.AboveOwed):
            apply(delivered(5), Authorized(6))

    def test_what_we_authorized_stays_authorized(self) -> None:
        with pytest.raises(guards.AuthorizedFell):
            apply(apply(delivered(5), Authorized(5)), Authorized(4))

    def test_a_voucher_above_the_debt_is_taken(self) -> None:
        assert apply(delivered(5), VoucherReceived(50)).authorized == 50

    def test_a_voucher_above_the_capacity_stops_new_work(self) -> None:
        account = apply(delivered(5), VoucherReceived(150))
        assert account.shortfall == 50
        with pytest.raises(guards.AboveCapacity):
            apply(account, Reserved(OTHER, 0, 9))

    def test_an_older_voucher_changes_nothing(self) -> None:
        account = apply(delivered(5), VoucherReceived(5))
        assert apply(account, VoucherReceived(4)) == account

    def test_only_the_unpaid_part_can_be_forgiven(self) -> None:
        account = apply(delivered(5), VoucherReceived(3))
        assert apply(account, Forgiven(2)).owed == 3
        with pytest.raises(guards.ForgivenAboveUnpaid):
            apply(account, Forgiven(3))

    @pytest.mark.parametrize("voucher", [3, 7])
    def test_we_claim_at_most_what_is_owed_and_authorized(self, voucher: int) -> None:
        account = apply(delivered(5), VoucherReceived(voucher))
        assert apply(account, Claimed(min(5, voucher))).claimed == min(5, voucher)
        with pytest.raises(guards.AboveDue):
            apply(account, Claimed(min(5, voucher) + 1))

    def test_what_we_claimed_stays_claimed(self) -> None:
        with pytest.raises(guards.ClaimedFell):
            apply(apply(apply(delivered(5), VoucherReceived(5)), Claimed(5)), Claimed(4))


class TestFacts:
    def test_an_older_grant_is_ignored(self) -> None:
        assert after(Granted(5, 5, 2), Granted(9, 9, 1), Granted(8, 8, 2)).limit == 5

    def test_a_lowered_limit_leaves_a_shortfall_in_which_no_work_starts(self) -> None:
        account = apply(delivered(80), Granted(50, 100, 2))
        assert (account.shortfall, account.available) == (30, 0)

    def test_a_smaller_settlement_is_an_old_one(self) -> None:
        assert after(Settled(9), Settled(3)).settled == 9


orders = st.sampled_from([ORDER, OTHER, b"3" * 32])
amounts = st.integers(0, 40)
any_change: st.SearchStrategy[Change] = st.one_of(
    st.builds(Reserved, orders, amounts, amounts),
    st.builds(Earned, orders, amounts),
    st.builds(Released, orders),
    st.builds(Forgotten, amounts),
    st.builds(Authorized, amounts),
    st.builds(Forgiven, amounts),
    st.builds(Claimed, amounts),
    st.builds(Granted, amounts, amounts, amounts),
    st.builds(Acknowledged, orders, amounts),
    st.builds(VoucherReceived, amounts),
    st.builds(Settled, amounts),
)


class TestStoredChanges:
    @given(any_change)
    def test_a_change_survives_being_stored(self, change: Change) -> None:
        assert decode_change(encode_change(change)) == change

    @pytest.mark.parametrize(
        ("stored", "broken"),
        [
            ({}, UnknownChange),
            ({"change": "Donated", "amount": 1}, UnknownChange),
            ({"change": 7}, UnknownChange),
            ({"change": "Settled"}, InvalidChangeFields),
            ({"change": "Settled", "total": 1, "tip": 1}, InvalidChangeFields),
            ({"change": "Settled", "total": -1}, InvalidAmount),
            ({"change": "Settled", "total": True}, InvalidAmount),
            ({"change": "Settled", "total": 1.0}, InvalidAmount),
            ({"change": "Settled", "total": MAX_AMOUNT + 1}, InvalidAmount),
            ({"change": "Released", "order": b"short"}, InvalidOrderDigest),
            ({"change": "Released", "order": "1" * 32}, InvalidOrderDigest),
        ],
    )
    def test_what_was_never_stored_is_refused(self, stored: dict[str, object], broken: type[InvalidChange]) -> None:
        with pytest.raises(broken):
            decode_change(stored)

    def test_an_account_is_kept_in_a_known_unit(self) -> None:
        with pytest.raises(InvalidUnit):
            AccountKey("did:payer", "did:payee", "credit", "shells")  # type: ignore[arg-type]


def check(account: Account) -> None:
    """What holds in every state, whatever happened."""
    counters = (account.authorized, account.earned, account.forgiven, account.claimed, account.settled)
    assert min(*counters, account.owed, account.reserved, account.available, account.shortfall) >= 0
    assert account.claimed <= account.due
    assert all(0 <= order.earned <= order.amount for order in account.orders.values())
    assert account.shortfall == 0 or account.available == 0


def overdraft(account: Account) -> int:
    return max(account.owed + account.reserved - account.authorized - account.window, 0)


def try_to(account: Account, change: Change) -> Account:
    """Apply a change; whatever it is, it is refused without a trace or takes effect within the rules."""
    before = evolve(account, orders=dict(account.orders))
    try:
        moved = apply(account, change)
    except AccountError:
        return before
    finally:
        assert account == before
    check(moved)
    if isinstance(change, get_args(Act)):
        assert moved.shortfall <= account.shortfall
        assert overdraft(moved) <= overdraft(account)
    for growing in ("authorized", "earned", "forgiven", "claimed", "settled", "grant_sequence"):
        assert getattr(moved, growing) >= getattr(account, growing)
    return moved


@given(st.lists(any_change, max_size=30), st.integers(1, 100))
def test_exactly_the_available_amounts_are_admitted(history: list[Change], amount: int) -> None:
    account = Account(KEY)
    for change in history:
        account = try_to(account, change)
    moved = try_to(account, Reserved(b"4" * 32, amount, 0))
    assert (moved != account) == (amount <= account.available)


class TwoSides(RuleBasedStateMachine):
    """A payer and a payee that move their own books and exchange facts: lost, doubled, in any order."""

    opened = Bundle("opened")
    to_payer = Bundle("to_payer")
    to_payee = Bundle("to_payee")

    @initialize(limit=st.integers(50, 200), window=st.integers(20, 200))
    def begin(self, limit: int, window: int) -> None:
        self.sequence = 1
        self.orders = 0
        self.payer = self.payee = apply(Account(KEY), Granted(limit, window, 1))

    @rule(target=to_payer, limit=st.integers(0, 300), window=st.integers(0, 200))
    def grant(self, limit: int, window: int) -> Change:
        self.sequence += 1
        granted = Granted(limit, window, self.sequence)
        self.payee = try_to(self.payee, granted)
        return granted

    @rule(target=opened, amount=st.integers(0, 120))
    def order(self, amount: int) -> bytes:
        self.orders += 1
        digest = self.orders.to_bytes(32, "big")
        reserved = Reserved(digest, amount, self.orders)
        self.payer = try_to(self.payer, reserved)
        if digest in self.payer.orders:
            self.payee = try_to(self.payee, reserved)
            if digest not in self.payee.orders:
                self.payer = apply(self.payer, Released(digest))
        return digest

    @rule(target=to_payer, order=opened, total=st.integers(0, 120))
    def deliver(self, order: bytes, total: int) -> object:
        before = self.payee.earned
        self.payee = try_to(self.payee, Earned(order, total))
        return Acknowledged(order, total) if self.payee.earned > before else multiple()

    @rule(order=opened, by_payer=st.booleans())
    def release(self, order: bytes, by_payer: bool) -> None:
        if by_payer:
            self.payer = try_to(self.payer, Released(order))
        else:
            self.payee = try_to(self.payee, Released(order))

    @rule(target=to_payee, total=st.integers(0, 300))
    def pay(self, total: int) -> object:
        self.payer = try_to(self.payer, Authorized(total))
        return VoucherReceived(total) if self.payer.authorized == total else multiple()

    @rule(target=to_payee)
    def pay_all(self) -> object:
        self.payer = apply(self.payer, Authorized(max(self.payer.owed, self.payer.authorized)))
        return VoucherReceived(self.payer.authorized)

    @rule(total=st.integers(0, 300))
    def claim(self, total: int) -> None:
        self.payee = try_to(self.payee, Claimed(total))

    @rule(amount=st.integers(0, 100))
    def forgive(self, amount: int) -> None:
        self.payee = try_to(self.payee, Forgiven(amount))

    @rule(target=to_payer)
    def settle(self) -> Change:
        settled = Settled(self.payee.due)
        self.payee = try_to(self.payee, settled)
        return settled

    @rule(message=to_payer)
    def payer_hears(self, message: Change) -> None:
        self.payer = try_to(self.payer, message)

    @rule(message=to_payee)
    def payee_hears(self, message: Change) -> None:
        self.payee = try_to(self.payee, message)

    @rule(message=consumes(to_payer))
    def message_is_lost(self, message: Change) -> None:
        pass

    @rule(before=st.integers(0, 10))
    def forget(self, before: int) -> None:
        self.payer = try_to(self.payer, Forgotten(before))
        self.payee = try_to(self.payee, Forgotten(before))

    @invariant()
    def both_sides_keep_the_rules(self) -> None:
        check(self.payer)
        check(self.payee)

    @invariant()
    def the_payer_promises_only_what_was_delivered(self) -> None:
        assert self.payer.authorized <= self.payer.owed <= self.payee.earned

    @invariant()
    def the_payee_holds_no_promise_that_was_not_made(self) -> None:
        assert self.payee.authorized <= self.payer.authorized

    @invariant()
    def a_reservation_is_remembered_while_it_binds(self) -> None:
        for account in (self.payer, self.payee):
            assert account.reserved == sum(r.amount - r.earned for r in account.orders.values() if r.open)


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    "broken",
    [
        guards.AboveCapacity(amount=7001, left=7002),
        guards.AboveWindow(amount=7001, left=7002),
        guards.EarnedFell(ORDER, earned=7001, total=7002),
        guards.AboveReservation(ORDER, amount=7001, total=7002),
        guards.AuthorizedFell(authorized=7001, total=7002),
        guards.AboveOwed(owed=7001, total=7002),
        guards.ForgivenAboveUnpaid(unpaid=7001, amount=7002),
        guards.ClaimedFell(claimed=7001, total=7002),
        guards.AboveDue(due=7001, total=7002),
    ],
)
def test_a_broken_guard_says_both_of_its_values(broken: AccountError) -> None:
    assert "7001" in str(broken)
    assert "7002" in str(broken)


@pytest.mark.parametrize("broken", [guards.OrderKnown(ORDER), guards.OrderUnknown(ORDER), guards.OrderClosed(ORDER)])
def test_a_broken_guard_names_its_order(broken: AccountError) -> None:
    assert ORDER.hex()[:16] in str(broken)


def test_an_account_cannot_be_changed_in_place() -> None:
    with pytest.raises(TypeError):
        delivered(5).orders[OTHER] = Reservation(1, 1)  # type: ignore[index]
