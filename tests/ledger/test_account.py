"""The settlement state machine: its guards one by one. Payer and payee against each other: `test_account_pair`."""

import inspect
from typing import get_args

import pytest
from attrs import astuple, evolve, fields_dict
from hypothesis import given
from hypothesis import strategies as st

from ledger import account as guards
from ledger.account import Account, AccountError, AccountKey, Reservation, apply, apply_plain
from ledger.changes import (
    Acknowledged,
    Act,
    Admitted,
    Authorized,
    Change,
    Claimed,
    Disputed,
    Drawn,
    Earned,
    Expired,
    Forgiven,
    ForgivenessReceived,
    Forgotten,
    Funded,
    Granted,
    InvalidAmount,
    InvalidChange,
    InvalidChangeFields,
    InvalidOrderDigest,
    InvalidUnit,
    Netted,
    Recovered,
    Released,
    Reserved,
    Resolved,
    Settled,
    UnknownChange,
    VoucherReceived,
    Withdrawn,
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
        assert account.window_left == 20
        assert apply(account, VoucherReceived(80)).window_left == 100

    def test_a_voucher_above_what_is_owed_does_not_widen_the_window(self) -> None:
        account = apply(delivered(80, limit=1000, window=100), VoucherReceived(500))
        assert account.window_left == 100
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


class TestDrawing:
    """An order of 90 through a window of 50, of which it draws 30 to begin with."""

    begun = (Granted(1000, 50, 1), Admitted(ORDER, 90, 30, 9))

    def test_an_order_above_the_window_is_admitted_if_what_it_draws_first_is_not(self) -> None:
        account = after(*self.begun)
        assert (account.reserved, account.orders.ahead, account.window_left) == (90, 30, 20)

    def test_the_collateral_bears_the_whole_order(self) -> None:
        with pytest.raises(guards.AboveCapacity):
            after(Granted(80, 50, 1), Admitted(ORDER, 90, 30, 9))

    def test_what_it_draws_first_is_bounded_by_the_window(self) -> None:
        with pytest.raises(guards.AboveWindow) as refused:
            after(*self.begun, Admitted(OTHER, 90, 21, 9))
        assert (refused.value.amount, refused.value.left) == (21, 20)

    def test_it_draws_first_no_more_than_it_may_cost(self) -> None:
        with pytest.raises(guards.AboveReservation):
            after(Granted(1000, 50, 1), Admitted(ORDER, 9, 10, 9))

    def test_what_is_delivered_and_not_paid_stays_drawn(self) -> None:
        account = after(*self.begun, Earned(ORDER, 30))
        assert (account.orders.ahead, account.window_left) == (0, 20)
        with pytest.raises(guards.AboveWindow) as refused:
            apply(account, Drawn(ORDER, 60))
        assert (refused.value.amount, refused.value.left) == (30, 20)

    def test_what_is_paid_can_be_drawn_again(self) -> None:
        account = after(*self.begun, Earned(ORDER, 30), VoucherReceived(30), Drawn(ORDER, 60))
        assert (account.orders.ahead, account.window_left) == (30, 20)

    def test_all_orders_of_an_account_draw_from_one_window(self) -> None:
        account = after(*self.begun, Admitted(OTHER, 90, 20, 9))
        with pytest.raises(guards.AboveWindow):
            apply(account, Drawn(ORDER, 31))
        assert apply(apply(account, Released(OTHER)), Drawn(ORDER, 31)).window_left == 19

    def test_nothing_is_delivered_that_is_not_drawn(self) -> None:
        with pytest.raises(guards.AboveDrawn) as refused:
            after(*self.begun, Earned(ORDER, 31))
        assert (refused.value.drawn, refused.value.total) == (30, 31)

    def test_what_is_drawn_is_not_given_back(self) -> None:
        with pytest.raises(guards.DrawnFell):
            after(*self.begun, Drawn(ORDER, 29))

    def test_no_more_is_drawn_than_was_reserved(self) -> None:
        with pytest.raises(guards.AboveReservation):
            after(Granted(1000, 500, 1), Admitted(ORDER, 90, 30, 9), Drawn(ORDER, 91))

    def test_a_closed_order_draws_nothing(self) -> None:
        account = after(*self.begun, Released(ORDER))
        assert (account.orders.ahead, account.window_left) == (0, 50)
        with pytest.raises(guards.OrderClosed):
            apply(account, Drawn(ORDER, 40))

    def test_the_same_draw_again_is_none_also_where_the_window_was_made_smaller(self) -> None:
        account = after(*self.begun, Granted(1000, 10, 2))
        assert apply(account, Drawn(ORDER, 30)) == account

    def test_what_the_payer_acknowledges_beyond_it_is_a_fact(self) -> None:
        account = after(*self.begun, Acknowledged(ORDER, 40))
        assert (account.owed, account.orders.ahead, account.reserved) == (40, 0, 50)


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
        assert apply(delivered(5), Acknowledged(ORDER, 3)).owed == 5

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


def disputed(asked: int, granted: int) -> Account:
    """The payee's account after a dispute: it has delivered what it asks."""
    return apply(delivered(asked), Disputed(ORDER, asked, granted))


def objecting(asked: int, granted: int) -> Account:
    """The payer's account of the same."""
    reserved = after(Granted(100, 100, 1), Reserved(ORDER, asked, 9), Earned(ORDER, granted), Released(ORDER))
    return apply(reserved, Disputed(ORDER, asked, granted))


class TestDisputes:
    def test_both_sides_see_the_same_part_in_dispute(self) -> None:
        payee, payer = disputed(50, 30), objecting(50, 30)
        assert (payee.disputed, payee.owed) == (20, 50)
        assert (payer.disputed, payer.owed) == (20, 30)

    def test_what_the_payee_lets_go_is_not_owed(self) -> None:
        resolved = Resolved(ORDER, 30)
        payee, payer = apply(disputed(50, 30), resolved), apply(objecting(50, 30), resolved)
        assert (payee.owed, payee.disputed, payee.waived) == (payer.owed, payer.disputed, 20) == (30, 0, 20)

    def test_what_the_payer_concedes_is_owed_after_all(self) -> None:
        conceded = Acknowledged(ORDER, 50)
        payee, payer = apply(disputed(50, 30), conceded), apply(objecting(50, 30), conceded)
        assert (payee.owed, payee.disputed) == (payer.owed, payer.disputed) == (50, 0)

    def test_a_dispute_can_be_settled_half_way(self) -> None:
        messages = Resolved(ORDER, 40), Acknowledged(ORDER, 40)
        for first, second in (messages, messages[::-1]):
            payee, payer = disputed(50, 30), objecting(50, 30)
            assert apply(apply(payee, first), second).owed == apply(apply(payer, first), second).owed == 40

    def test_where_both_give_way_the_lower_word_counts_whatever_came_first(self) -> None:
        messages = Resolved(ORDER, 35), Acknowledged(ORDER, 45)
        for first, second in (messages, messages[::-1]):
            for account in (disputed(50, 30), objecting(50, 30)):
                after_both = apply(apply(account, first), second)
                assert (after_both.owed, after_both.disputed) == (35, 0)

    def test_a_dispute_that_is_heard_of_after_it_was_conceded_is_none(self) -> None:
        account = apply(apply(delivered(50), Acknowledged(ORDER, 50)), Disputed(ORDER, 50, 30))
        assert (account.owed, account.disputed) == (50, 0)

    def test_a_dispute_is_remembered_until_it_is_resolved(self) -> None:
        for account in (disputed(50, 30), objecting(50, 30)):
            assert ORDER in apply(account, Forgotten(100)).orders
            assert ORDER not in apply(apply(account, Resolved(ORDER, 30)), Forgotten(100)).orders

    def test_an_open_order_is_not_disputed(self) -> None:
        with pytest.raises(guards.OrderOpen):
            after(Granted(100, 100, 1), Reserved(ORDER, 50, 9), Disputed(ORDER, 50, 30))

    def test_an_undisputed_order_is_not_resolved(self) -> None:
        with pytest.raises(guards.OrderUndisputed):
            apply(delivered(50), Resolved(ORDER, 30))

    def test_a_dispute_is_about_more_than_is_granted(self) -> None:
        with pytest.raises(guards.AboveAsked):
            apply(delivered(50), Disputed(ORDER, 30, 31))

    def test_no_more_is_asked_than_was_reserved(self) -> None:
        with pytest.raises(guards.AboveReservation):
            apply(delivered(50), Disputed(ORDER, 51, 30))

    def test_what_is_granted_of_a_delivery_that_was_lost_counts(self) -> None:
        account = after(Granted(100, 100, 1), Reserved(ORDER, 50, 9), Released(ORDER), Disputed(ORDER, 50, 30))
        assert account.owed == 30

    def test_what_was_claimed_is_not_let_go(self) -> None:
        claimed = apply(apply(disputed(50, 30), VoucherReceived(50)), Claimed(45))
        assert apply(claimed, Resolved(ORDER, 45)).owed == 45
        with pytest.raises(guards.BelowClaimed):
            apply(claimed, Resolved(ORDER, 44))
        with pytest.raises(guards.BelowClaimed):
            apply(claimed, ForgivenessReceived(6))

    def test_what_is_disputed_is_resolved_and_not_forgiven(self) -> None:
        account = apply(disputed(50, 30), VoucherReceived(10))
        assert apply(account, Forgiven(20)).owed == 30
        with pytest.raises(guards.ForgivenAboveUnpaid):
            apply(account, Forgiven(21))


class TestExpiring:
    def test_an_open_order_is_released_when_it_has_expired(self) -> None:
        account = after(Granted(100, 100, 1), Reserved(ORDER, 60, 9), Earned(ORDER, 20), Reserved(OTHER, 30, 10))
        expired = apply(account, Expired(10))
        assert (expired.reserved, expired.earned) == (30, 20)
        with pytest.raises(guards.OrderClosed):
            apply(expired, Earned(ORDER, 21))

    def test_its_cost_can_still_be_acknowledged(self) -> None:
        account = after(Granted(100, 100, 1), Reserved(ORDER, 60, 9), Expired(10), Acknowledged(ORDER, 60))
        assert account.owed == 60


class TestCapacity:
    @pytest.mark.parametrize("rail", ["lightning", "stablecoin", "prepaid"])
    def test_deposits_bear_the_work_until_they_go_back(self, rail: str) -> None:
        account = Account(evolve(KEY, rail=rail))
        for change in (Granted(0, 1000, 1), Funded(100, 1), Withdrawn(30, 1)):
            account = apply(account, change)
        assert (account.capacity, account.available) == (70, 70)

    def test_a_deposit_may_vanish_and_leaves_a_shortfall(self) -> None:
        account = Account(evolve(KEY, rail="stablecoin"))
        for change in (Granted(0, 100, 1), Funded(100, 1), Reserved(ORDER, 80, 9), Funded(20, 2), Funded(100, 1)):
            account = apply(account, change)
        assert (account.capacity, account.shortfall, account.available) == (20, 60, 0)

    def test_a_withdrawal_may_be_called_off(self) -> None:
        account = Account(evolve(KEY, rail="stablecoin"))
        for change in (Funded(100, 1), Withdrawn(100, 1), Withdrawn(0, 2)):
            account = apply(account, change)
        assert account.capacity == 100

    def test_trust_is_no_deposit_and_deposits_are_no_trust(self) -> None:
        assert apply(Account(evolve(KEY, rail="lightning")), Granted(100, 100, 1)).capacity == 0
        assert after(Funded(100, 1)).capacity == 0

    def test_what_was_set_off_makes_room_as_payment_does(self) -> None:
        account = apply(apply(delivered(80), Authorized(80)), Netted(50))
        assert (account.available, account.unsettled) == (70, 30)
        assert apply(account, Netted(40)) == account


class TestForgiveness:
    def test_the_payer_hears_of_it_as_a_total(self) -> None:
        account = apply(delivered(80), ForgivenessReceived(30))
        assert apply(account, ForgivenessReceived(30)).owed == 50

    def test_it_may_be_heard_of_before_the_delivery(self) -> None:
        account = apply(after(Granted(100, 100, 1), Reserved(ORDER, 80, 9)), ForgivenessReceived(30))
        assert account.owed == 0
        assert apply(account, Earned(ORDER, 80)).owed == 50


class TestRecovering:
    def test_an_order_of_which_the_journal_knew_nothing_is_known_and_closed_and_owed_once(self) -> None:
        account = after(Recovered(ORDER, 50, 9, 30), Recovered(ORDER, 50, 9, 30))
        assert (account.owed, account.reserved, account.orders[ORDER].open) == (30, 0, False)
        with pytest.raises(guards.OrderKnown):
            apply(apply(account, Granted(1000, 1000, 1)), Reserved(ORDER, 1, 9))

    def test_an_order_that_is_open_is_closed_and_nothing_is_taken_back(self) -> None:
        account = after(Granted(100, 100, 1), Reserved(ORDER, 50, 9), Earned(ORDER, 40), Recovered(ORDER, 99, 9, 30))
        assert (account.owed, account.reserved) == (40, 0)

    def test_an_order_costs_no_more_than_it_reserved(self) -> None:
        with pytest.raises(guards.AboveReservation):
            after(Recovered(ORDER, 50, 9, 51))

    def test_a_promise_above_what_is_owed_stands_and_is_not_raised(self) -> None:
        promised = after(Recovered(ORDER, 50, 9, 30), VoucherReceived(40))
        assert apply(promised, Authorized(40)) == promised
        with pytest.raises(guards.AboveOwed):
            apply(promised, Authorized(41))


orders = st.sampled_from([ORDER, OTHER, b"3" * 32])
amounts = st.integers(0, 40)
any_change: st.SearchStrategy[Change] = st.one_of(
    st.builds(Reserved, orders, amounts, amounts),
    st.builds(Admitted, orders, amounts, amounts, amounts),
    st.builds(Drawn, orders, amounts),
    st.builds(Earned, orders, amounts),
    st.builds(Released, orders),
    st.builds(Forgotten, amounts),
    st.builds(Authorized, amounts),
    st.builds(Forgiven, amounts),
    st.builds(Claimed, amounts),
    st.builds(Granted, amounts, amounts, amounts),
    st.builds(Acknowledged, orders, amounts),
    st.builds(VoucherReceived, amounts),
    st.builds(ForgivenessReceived, amounts),
    st.builds(Settled, amounts),
    st.builds(Netted, amounts),
    st.builds(Expired, amounts),
    st.builds(Funded, amounts, amounts),
    st.builds(Withdrawn, amounts, amounts),
    st.builds(Disputed, orders, amounts, amounts),
    st.builds(Resolved, orders, amounts),
    st.builds(Recovered, orders, amounts, amounts, amounts),
)
GROWING = ("authorized", "earned", "waived", "forgiven", "claimed", "settled", "netted", "grant_sequence")


@pytest.mark.parametrize("kind", get_args(Change))
def test_each_change_moves_an_account_by_its_fields(kind: type[Change]) -> None:
    _, *taken = inspect.signature(guards._MOVES[kind]).parameters
    assert taken == list(fields_dict(kind))


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
    counters = [getattr(account, name) for name in GROWING]
    assert (
        min(
            *counters,
            account.disputed,
            account.unsettled,
            account.capacity,
            account.owed,
            account.reserved,
            account.available,
            account.window_left,
            account.orders.ahead,
            account.shortfall,
        )
        >= 0
    )
    assert account.claimed <= account.due
    assert all(0 <= order.earned <= order.amount for order in account.orders.values())
    assert account.shortfall == 0 or account.available == 0
    assert account.orders.ahead <= account.reserved


def overdraft(account: Account) -> int:
    return max(account.owed + account.orders.ahead - account.authorized - account.window, 0)


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
    assert apply_plain(account, type(change), astuple(change)) == moved
    if isinstance(change, get_args(Act)):
        assert moved.shortfall <= account.shortfall
        assert overdraft(moved) <= overdraft(account)
    for growing in GROWING:
        assert getattr(moved, growing) >= getattr(account, growing)
    return moved


@given(st.lists(any_change, max_size=30), st.integers(1, 100), st.integers(1, 100))
def test_exactly_the_available_amounts_are_admitted(history: list[Change], amount: int, first: int) -> None:
    account = Account(KEY)
    for change in history:
        account = try_to(account, change)
    fits = first <= amount <= account.available and first <= account.window_left
    assert (try_to(account, Admitted(b"4" * 32, amount, first, 0)) != account) == fits
    fits = amount <= min(account.available, account.window_left)
    assert (try_to(account, Reserved(b"4" * 32, amount, 0)) != account) == fits


@pytest.mark.parametrize(
    "broken",
    [
        guards.AboveCapacity(amount=7001, left=7002),
        guards.AboveWindow(amount=7001, left=7002),
        guards.EarnedFell(ORDER, earned=7001, total=7002),
        guards.AboveReservation(ORDER, amount=7001, total=7002),
        guards.AboveDrawn(ORDER, drawn=7001, total=7002),
        guards.DrawnFell(ORDER, drawn=7001, total=7002),
        guards.AuthorizedFell(authorized=7001, total=7002),
        guards.AboveOwed(owed=7001, total=7002),
        guards.ForgivenAboveUnpaid(unpaid=7001, amount=7002),
        guards.AboveAsked(asked=7001, granted=7002),
        guards.BelowClaimed(claimed=7001, owed=7002),
        guards.ClaimedFell(claimed=7001, total=7002),
        guards.AboveDue(due=7001, total=7002),
    ],
)
def test_a_broken_guard_says_both_of_its_values(broken: AccountError) -> None:
    assert "7001" in str(broken)
    assert "7002" in str(broken)


@pytest.mark.parametrize(
    "broken",
    [
        guards.OrderKnown(ORDER),
        guards.OrderUnknown(ORDER),
        guards.OrderClosed(ORDER),
        guards.OrderOpen(ORDER),
        guards.OrderUndisputed(ORDER),
    ],
)
def test_a_broken_guard_names_its_order(broken: AccountError) -> None:
    assert ORDER.hex()[:16] in str(broken)


def test_an_account_cannot_be_changed_in_place() -> None:
    with pytest.raises(TypeError):
        delivered(5).orders[OTHER] = Reservation(1, 1)  # type: ignore[index]
