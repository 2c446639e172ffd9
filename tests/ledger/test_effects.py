"""Effects: what may be planned, what may be heard of them, and that nothing is counted twice."""

from typing import Any, get_args

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ledger.account import AboveDue, Account, AccountError, AccountKey, apply
from ledger.changes import Claimed, Funded, Reserved, Settled, VoucherReceived, Withdrawn
from ledger.effect_maps import decode_effect, decode_tracked, encode_effect, encode_tracked
from ledger.effects import (
    AboveAskedFor,
    AboveFree,
    CounterMoved,
    Effect,
    EffectPlanned,
    EffectTold,
    EffectUnderWay,
    EffectUnknown,
    InvalidEffect,
    Kind,
    News,
    NewsUnfit,
    OrdersOpen,
    State,
    Tracked,
    counted_at_once,
    draw_up,
    follow,
    free_collateral,
)
from ledger.events import AccountChanged, Books
from ledger.payload import decode_events, encode_events

KEY = AccountKey("payer", "payee", "stablecoin", "uusd")
ONE, OTHER = b"1" * 32, b"2" * 32
# Of 100 in collateral, 60 is owed and promised, and nothing paid.
OWING = evolve(Account(KEY), funded=100, funded_sequence=1, window=100, earned=60, authorized=60)
STATES, NEWS, KINDS = (get_args(kind) for kind in (State, News, Kind))
# As the table in the module says; what is not here cannot be heard.
HEARD: dict[State, dict[News, State | None]] = {
    "planned": {"settled": "settled", "failed": "failed", "unknown": "unknown", "contradicted": "contradicted"},
    "unknown": {"settled": "settled", "failed": "failed", "unknown": "unknown", "contradicted": "contradicted"},
    "failed": {"retried": "planned", "contradicted": "contradicted", "dismissed": None},
    "settled": {"contradicted": "contradicted", "vanished": "planned", "confirmed": None},
    "contradicted": {"retried": "planned", "dismissed": None},
}


def effect(kind: Kind = "claim", amount: int = 60, key: bytes = ONE) -> Effect:
    return draw_up(OWING, kind, amount, key)


def told(news: News, moved: int = 0, key: bytes = ONE, settled: int = 0) -> EffectTold:
    return EffectTold(KEY, key, news, 9, moved, settled)


class TestStates:
    @pytest.mark.parametrize("state", STATES)
    @pytest.mark.parametrize("news", NEWS)
    def test_what_is_heard_moves_it_as_the_table_says(self, state: State, news: News) -> None:
        tracked = Tracked(effect(), 5, state)
        if news not in HEARD[state]:
            with pytest.raises(NewsUnfit):
                follow(tracked, told(news), OWING)
            return
        after = follow(tracked, told(news), OWING)
        assert (after and after.state) == HEARD[state][news]

    def test_another_try_is_counted(self) -> None:
        after = follow(Tracked(effect(), 5, "failed"), told("retried"), OWING)
        assert after is not None
        assert (after.tries, after.effect) == (2, effect())

    @pytest.mark.parametrize("kind", sorted(set(KINDS) - {"claim"}))
    def test_only_a_claim_is_made_again_after_it_vanished(self, kind: Kind) -> None:
        with pytest.raises(NewsUnfit):
            follow(Tracked(effect(kind, 40), 5, "settled"), told("vanished"), OWING)

    def test_what_was_counted_of_a_claim_that_vanished_is_not_counted_again(self) -> None:
        again = follow(Tracked(effect(), 5, "settled", moved=60), told("vanished"), OWING)
        assert again is not None
        assert (again.moved, again.tries) == (60, 2)
        with pytest.raises(AboveAskedFor):
            follow(again, told("settled", moved=1), OWING)

    def test_news_of_another_effect_are_refused(self) -> None:
        for tracked in (None, Tracked(effect(), 5)):
            with pytest.raises(EffectUnknown):
                follow(tracked, told("settled", key=OTHER), OWING)

    @pytest.mark.parametrize("state", STATES)
    def test_an_account_has_one_effect_at_a_time(self, state: State) -> None:
        tracked = Tracked(effect("pay"), 5, state)
        with pytest.raises(EffectUnderWay):
            follow(tracked, EffectPlanned(effect("pay", key=OTHER), 6), OWING)

    def test_a_claim_that_failed_may_be_planned_anew(self) -> None:
        again = EffectPlanned(effect(key=OTHER), 6)
        assert follow(Tracked(effect(), 5, "failed"), again, OWING) == Tracked(effect(key=OTHER), 6, heard=6)
        with pytest.raises(EffectUnderWay):
            follow(Tracked(effect("pay"), 5, "failed"), again, OWING)

    def test_a_claim_may_be_planned_anew_for_less_and_what_was_to_be_claimed_stays_counted(self) -> None:
        before = apply(OWING, *counted_at_once(effect(), OWING))
        less = effect(amount=50, key=OTHER)
        assert follow(Tracked(effect(), 5, "failed"), EffectPlanned(less, 6), before) is not None
        assert (counted_at_once(less, before), before.claimed) == ((), 60)


class TestCounting:
    def test_no_more_is_counted_than_was_asked_for(self) -> None:
        tracked = Tracked(effect(amount=20), 5)
        with pytest.raises(AboveAskedFor):
            follow(tracked, told("settled", moved=21), OWING)
        whole = follow(tracked, told("settled", moved=20), OWING)
        assert whole is not None
        with pytest.raises(AboveAskedFor):
            follow(whole, told("contradicted", moved=1), OWING)

    def test_what_was_settled_meanwhile_is_not_overwritten(self) -> None:
        with pytest.raises(CounterMoved, match="settled 0"):
            follow(Tracked(effect(), 5), told("settled", moved=60), apply(OWING, Settled(10)))


class TestPlanning:
    @pytest.mark.parametrize("kind", ["pay", "claim"])
    def test_no_more_is_paid_than_is_unsettled(self, kind: Kind) -> None:
        with pytest.raises(AboveDue):
            follow(None, EffectPlanned(effect(kind, 61), 5), OWING)

    def test_no_collateral_goes_back_that_covers_something(self) -> None:
        assert free_collateral(OWING) == 40
        with pytest.raises(AboveFree):
            follow(None, EffectPlanned(effect("refund", 41), 5), OWING)

    def test_a_voucher_above_the_debt_holds_its_collateral_back(self) -> None:
        assert free_collateral(apply(OWING, VoucherReceived(90))) == 10

    def test_what_goes_back_covers_nothing_from_then_on(self) -> None:
        asked = effect("refund", 40)
        books = Books({KEY: OWING}).apply(
            [EffectPlanned(asked, 5), *(AccountChanged(KEY, change) for change in counted_at_once(asked, OWING))]
        )
        assert books.account(KEY).available == 0

    def test_an_account_is_closed_when_its_orders_are(self) -> None:
        open_ = apply(OWING, Reserved(b"o" * 32, 5, 9))
        with pytest.raises(OrdersOpen):
            follow(None, EffectPlanned(effect("close"), 5), open_)
        with pytest.raises(CounterMoved, match="unsettled"):
            follow(None, EffectPlanned(effect("close", 50), 5), OWING)

    def test_closing_claims_the_last_and_gives_the_rest_back(self) -> None:
        assert counted_at_once(effect("close"), OWING) == (Claimed(60), Withdrawn(40, 1))

    def test_an_effect_reckoned_on_older_counters_is_refused(self) -> None:
        with pytest.raises(CounterMoved):
            follow(None, EffectPlanned(effect("top_up", 5), 5), apply(OWING, Funded(120, 2)))

    def test_what_was_paid_in_another_way_is_not_tried_again(self) -> None:
        with pytest.raises(AboveDue):
            follow(Tracked(effect("pay"), 5, "failed"), told("retried"), apply(OWING, Settled(10)))


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"short"},
        {"key": "text" * 8},
        {"kind": "steal"},
        {"before": -1},
        {"before": True},
        {"before": 60},
        {"total": 2**53},
        {"more": 1},
        {"account": ["payer", "payee", "stablecoin"]},
        {"account": ["payer", "payee", "stablecoin", "shells"]},
        {"time": None},
        {"time": -1},
    ],
    ids=str,
)
def test_what_is_no_effect_is_not_read(change: dict[str, Any]) -> None:
    right = encode_effect(EffectPlanned(effect(), 5))
    assert decode_effect(right) == EffectPlanned(effect(), 5)
    with pytest.raises((InvalidEffect, ValueError)):
        decode_effect(right | change)


@pytest.mark.parametrize("change", [{"news": "lost"}, {"why": "y" * 257}, {"moved": -1}, {"why": 1}], ids=str)
def test_what_cannot_be_heard_is_not_read(change: dict[str, Any]) -> None:
    right = encode_effect(told("settled"))
    assert decode_effect(right) == told("settled")
    with pytest.raises(InvalidEffect):
        decode_effect(right | change)


@pytest.mark.parametrize("change", [{"state": "lost"}, {"tries": -1}, {"more": 1}], ids=str)
def test_what_cannot_be_tracked_is_not_read(change: dict[str, Any]) -> None:
    right = encode_tracked(Tracked(effect(), 5, "failed", 6, 2, 0, "why"))
    assert decode_tracked(right) == Tracked(effect(), 5, "failed", 6, 2, 0, "why")
    with pytest.raises(InvalidEffect):
        decode_tracked(right | change)


events = st.one_of(
    st.builds(
        EffectPlanned,
        st.builds(effect, st.sampled_from(KINDS), st.integers(1, 70), st.sampled_from([ONE, OTHER])),
        st.just(5),
    ),
    st.builds(told, st.sampled_from(NEWS), st.integers(0, 70), st.sampled_from([ONE, OTHER]), st.sampled_from([0, 10])),
)


@given(st.lists(events, max_size=12))
def test_no_order_of_events_counts_more_than_was_asked_and_the_journal_reads_back_as_it_was(tried: list[Any]) -> None:
    books, asked, counted = Books({KEY: OWING}), set(), 0
    for event in tried:
        try:
            books = books.apply([event])
        except AccountError:
            continue
        assert decode_events(encode_events([event])) == (event,)
        if isinstance(event, EffectPlanned):
            asked.add(event.effect.key)
        tracked = books.effects.get(KEY)
        counted = max(counted, tracked.moved if tracked else 0)
        assert tracked is None or (tracked.effect.key in asked and tracked.moved <= tracked.effect.amount)
