"""When a node may sell: the owner's hours, the limits, and that it neither flutters nor disturbs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from node.market.idle import (
    DAY_MINUTES,
    WEEK_MINUTES,
    BadSchedule,
    IdleRule,
    Load,
    Paused,
    Selling,
    State,
    begin,
    grace_is_over,
    parse_schedule,
    resumes_at,
    step,
)

RULE = IdleRule(calm_s=60, grace_s=30)
CALM = Load(at=0, minute=0, cpu=0.1, gpu=0.0, on_battery=False)
FRIDAY, SATURDAY, SUNDAY = (day * DAY_MINUTES for day in (4, 5, 6))


def load(at: float, cpu: float | None = 0.1, gpu: float | None = None, battery: bool | None = None) -> Load:
    return Load(at, 0, cpu, gpu, battery)


def open_at(schedule: str, minute: int) -> bool:
    return any(window.holds(minute) for window in parse_schedule(schedule))


def test_the_night_that_begins_on_friday_ends_on_saturday_morning() -> None:
    nights = "mon-fri 18:00-08:00"

    assert open_at(nights, FRIDAY + 18 * 60)
    assert open_at(nights, SATURDAY + 8 * 60 - 1)
    assert not open_at(nights, SATURDAY + 8 * 60)
    assert not open_at(nights, FRIDAY + 12 * 60)


def test_the_night_that_begins_on_sunday_ends_on_monday() -> None:
    assert open_at("sun 22:00-06:00", 5 * 60)
    assert not open_at("sun 22:00-06:00", SUNDAY + 5 * 60)


def test_days_without_hours_are_whole_days() -> None:
    assert open_at("mon-fri 18:00-08:00, sat-sun", SUNDAY + 12 * 60)


def test_hours_without_days_hold_every_day() -> None:
    assert all(open_at("01:00-02:00", day * DAY_MINUTES + 90) for day in range(7))


def test_days_may_pass_the_end_of_the_week() -> None:
    assert [open_at("fri-mon", day * DAY_MINUTES) for day in range(7)] == [True, False, False, False, True, True, True]


@pytest.mark.parametrize(
    "text", ["", "mon-", "noday", "mon 25:00-26:00", "18:00", "mon,,tue", "mon 8:0-9:00", "x" * 99]
)
def test_a_schedule_that_makes_no_sense_is_refused_in_words(text: str) -> None:
    with pytest.raises(BadSchedule, match="mon-fri 18:00-08:00, sat-sun"):
        parse_schedule(text)


@given(
    st.integers(0, 6), st.integers(0, DAY_MINUTES - 1), st.integers(0, DAY_MINUTES - 1), st.integers(0, WEEK_MINUTES)
)
def test_a_window_holds_as_many_minutes_as_its_hours_have(day: int, start: int, end: int, probe: int) -> None:
    name = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[day]
    text = f"{name} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    (window,) = parse_schedule(text)

    since = (probe - day * DAY_MINUTES - start) % WEEK_MINUTES
    assert window.holds(probe % WEEK_MINUTES) == (since < ((end - start) % DAY_MINUTES or DAY_MINUTES))


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        (load(0, cpu=0.83), "CPU 83% by others"),
        (load(0, gpu=0.7), "GPU 70% by others"),
        (load(0, battery=True), "on battery"),
    ],
)
def test_a_machine_in_use_does_not_sell_and_says_why(reading: Load, why: str) -> None:
    state = begin(RULE, reading)

    assert isinstance(state, Paused)
    assert why in state.why


def test_outside_the_owners_hours_nothing_is_sold() -> None:
    state = begin(IdleRule(schedule=parse_schedule("tue")), load(0))

    assert isinstance(state, Paused)
    assert "hours" in state.why


def test_a_machine_without_sensors_sells_by_the_schedule_alone() -> None:
    assert isinstance(begin(RULE, load(0, cpu=None)), Selling)


def test_a_battery_is_no_reason_where_the_owner_allows_it() -> None:
    assert isinstance(begin(IdleRule(on_battery=True), load(0, battery=True)), Selling)


def test_selling_starts_again_after_the_calm_down_time_and_not_before() -> None:
    state: State = begin(RULE, load(0, cpu=0.9))
    state = step(RULE, state, load(10))
    assert resumes_at(RULE, state) == 70
    assert isinstance(step(RULE, state, load(69)), Paused)
    assert isinstance(step(RULE, state, load(70)), Selling)


def test_use_during_the_calm_down_time_begins_it_anew() -> None:
    state: State = step(RULE, begin(RULE, load(0, cpu=0.9)), load(10))
    state = step(RULE, state, load(40, cpu=0.9))
    assert resumes_at(RULE, state) is None
    state = step(RULE, state, load(50))
    assert isinstance(step(RULE, state, load(109)), Paused)
    assert isinstance(step(RULE, state, load(110)), Selling)


def test_a_load_just_under_the_limit_keeps_selling_but_does_not_start_it_again() -> None:
    assert isinstance(step(RULE, Selling(0), load(1, cpu=0.45)), Selling)
    state: State = Paused(0, "in use")
    for at in range(1, 500):
        state = step(RULE, state, load(at, cpu=0.45))
    assert isinstance(state, Paused)


def test_running_orders_have_the_grace_period() -> None:
    state = begin(RULE, load(100, cpu=0.9))
    assert not grace_is_over(RULE, state, 129)
    assert grace_is_over(RULE, state, 130)
    assert not grace_is_over(RULE, Selling(0), 1_000)


SHARES = st.none() | st.floats(0, 1)


class OwnersMachine(RuleBasedStateMachine):
    """Whatever the machine does: sold work never starts while the rule is broken, nor before the machine was calm."""

    @initialize(calm=st.integers(0, 100), max_cpu=st.floats(0, 1), cpu=SHARES, battery=st.none() | st.booleans())
    def begins(self, calm: int, max_cpu: float, cpu: float | None, battery: bool | None) -> None:
        self.rule = IdleRule(max_cpu=max_cpu, calm_s=calm)
        self.loads = [load(0, cpu, None, battery)]
        self.states: list[State] = [begin(self.rule, self.loads[0])]

    @rule(passed=st.integers(-5, 40), cpu=SHARES, gpu=SHARES, battery=st.none() | st.booleans())
    def reads(self, passed: int, cpu: float | None, gpu: float | None, battery: bool | None) -> None:
        self.loads.append(load(self.loads[-1].at + passed, cpu, gpu, battery))
        self.states.append(step(self.rule, self.states[-1], self.loads[-1]))

    def kept(self, reading: Load) -> bool:
        return (
            not reading.on_battery
            and (reading.cpu or 0.0) <= self.rule.max_cpu
            and (reading.gpu or 0.0) <= self.rule.max_gpu
        )

    @invariant()
    def never_sells_against_the_rule(self) -> None:
        assert not isinstance(self.states[-1], Selling) or self.kept(self.loads[-1])

    @invariant()
    def keeps_selling_while_the_rule_is_kept(self) -> None:
        if len(self.states) > 1 and isinstance(self.states[-2], Selling) and self.kept(self.loads[-1]):
            assert self.states[-1] == self.states[-2]

    @invariant()
    def starts_again_only_after_a_calm_time(self) -> None:
        if len(self.states) < 2 or not (isinstance(self.states[-1], Selling) and isinstance(self.states[-2], Paused)):
            return
        calm: list[Load] = []
        for reading, state in zip(reversed(self.loads), reversed(self.states[:-1]), strict=False):
            calm.append(reading)
            if isinstance(state, Paused) and state.calm_since is None:
                break
        assert all(self.kept(reading) for reading in calm)
        assert max(one.at for one in calm) - min(one.at for one in calm) >= self.rule.calm_s


TestOwnersMachine = OwnersMachine.TestCase
