"""When the owner's machine is idle enough to sell: the owner's rule, and the state that follows from readings.

`begin` and `step` are pure: (rule, state, reading) -> state. Selling stops at the first reading that breaks the rule.
It starts again once every reading of the calm-down time has kept it, with a margin under the limits, so that a load
near a limit does not make the node open and close all the time. Times are seconds of any clock that does not jump.
"""

import re
from typing import Final

from attrs import evolve, field, frozen

DAY_MINUTES: Final = 24 * 60
WEEK_MINUTES: Final = 7 * DAY_MINUTES
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MAX_WINDOWS: Final = 64
# While paused, the load has to fall under so much of a limit.
_UNDER: Final = 0.8
_WINDOW: Final = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?)?\s*"
    r"(?:(?P<from>\d{1,2}:\d\d)-(?P<to>\d{1,2}:\d\d))?"
)


class BadSchedule(ValueError):
    """A schedule that is not of the form "mon-fri 18:00-08:00, sat-sun"."""

    def __init__(self, part: str) -> None:
        super().__init__(
            f'{part[:40]!r} is no window of a week: write days, hours or both, as "mon-fri 18:00-08:00, sat-sun"'
        )


@frozen
class Window:
    """A stretch of the week: minutes from Monday 0:00, local time, `end` not included; it may pass Sunday night."""

    start: int
    minutes: int

    def holds(self, minute: int) -> bool:
        """Whether this minute of the week lies in it."""
        return (minute - self.start) % WEEK_MINUTES < self.minutes


def parse_schedule(text: str) -> tuple[Window, ...]:
    """Read "mon-fri 18:00-08:00, sat-sun": days, hours or both; hours that end before they begin reach into the next
    day. Raises BadSchedule.
    """
    parts = [part.strip().lower() for part in text.split(",")]
    if len(parts) > _MAX_WINDOWS:
        raise BadSchedule(text)
    return tuple(window for part in parts for window in _windows(part))


def _windows(part: str) -> list[Window]:
    found = _WINDOW.fullmatch(part)
    if not part or found is None:
        raise BadSchedule(part)
    days = _days(found["first"], found["last"], part)
    if found["from"] is None:
        return [Window(day * DAY_MINUTES, DAY_MINUTES) for day in days]
    start, end = _minute(found["from"], part), _minute(found["to"], part)
    length = (end - start) % DAY_MINUTES or DAY_MINUTES
    return [Window((day * DAY_MINUTES + start) % WEEK_MINUTES, length) for day in days]


def _days(first: str | None, last: str | None, part: str) -> list[int]:
    if first is None:
        return list(range(7))
    if first not in _DAYS or (last or first) not in _DAYS:
        raise BadSchedule(part)
    start, end = _DAYS.index(first), _DAYS.index(last or first)
    return [(start + day) % 7 for day in range((end - start) % 7 + 1)]


def _minute(text: str, part: str) -> int:
    hour, _, minute = text.partition(":")
    if int(hour) > 24 or int(minute) > 59 or (int(hour) == 24 and int(minute)):
        raise BadSchedule(part)
    return int(hour) * 60 + int(minute)


@frozen
class IdleRule:
    """When the owner lets the machine sell. Shares are of the whole machine's, 0 to 1; times in seconds."""

    max_cpu: float = 0.5
    max_gpu: float = 0.5
    on_battery: bool = False
    schedule: tuple[Window, ...] = ()  # none: at any time
    calm_s: float = 60.0  # how long the machine has to be idle before selling starts again
    grace_s: float = 30.0  # how long running orders may go on after the owner is back


@frozen
class Load:
    """One reading of the machine; None where it has no such sensor."""

    at: float  # seconds
    minute: int  # of the local week, from Monday 0:00
    cpu: float | None = None  # used by others than this node
    gpu: float | None = None  # the busiest GPU, used by others
    on_battery: bool | None = None


@frozen
class Selling:
    """Sold work may start."""

    since: float


@frozen
class Paused:
    """Sold work may not start; `calm_since` is when the readings began to keep the rule, None while they break it."""

    since: float
    why: str
    calm_since: float | None = field(default=None)


State = Selling | Paused


def begin(rule: IdleRule, load: Load) -> State:
    """The state at the first reading: nobody has been disturbed yet, so there is no calm-down time."""
    why = _reason(rule, load, 1.0)
    return Selling(load.at) if why is None else Paused(load.at, why)


def step(rule: IdleRule, state: State, load: Load) -> State:
    """The state after one more reading."""
    match state:
        case Selling():
            why = _reason(rule, load, 1.0)
            return state if why is None else Paused(load.at, why)
        case Paused():
            why = _reason(rule, load, _UNDER)
            if why is not None:
                return evolve(state, why=why, calm_since=None)
            # A reading from before the calm began comes from a clock that was set back: the calm begins anew.
            calm_since = load.at if state.calm_since is None else min(state.calm_since, load.at)
            if load.at - calm_since >= rule.calm_s:
                return Selling(load.at)
            return evolve(state, calm_since=calm_since)


def resumes_at(rule: IdleRule, state: State) -> float | None:
    """When selling starts again if nothing happens; None while it sells, and while the rule is broken."""
    if isinstance(state, Paused) and state.calm_since is not None:
        return state.calm_since + rule.calm_s
    return None


def grace_is_over(rule: IdleRule, state: State, now: float) -> bool:
    """Whether running orders have to be handed back."""
    return isinstance(state, Paused) and now - state.since >= rule.grace_s


def _reason(rule: IdleRule, load: Load, part: float) -> str | None:
    """Why nothing may be sold at this reading, in words for the owner; `part` of the limits is allowed."""
    if rule.schedule and not any(window.holds(load.minute) for window in rule.schedule):
        return "it is outside the owner's hours"
    if load.on_battery and not rule.on_battery:
        return "the machine runs on battery"
    if load.cpu is not None and load.cpu > rule.max_cpu * part:
        return f"the machine is in use (CPU {load.cpu:.0%} by others)"
    if load.gpu is not None and load.gpu > rule.max_gpu * part:
        return f"the machine is in use (GPU {load.gpu:.0%} by others)"
    return None
