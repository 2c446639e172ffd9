"""The watch over the owner's machine: whether sold work may start, and when running orders have to be handed back."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from attrs import frozen

from node.engine.load import Sensors
from node.market.idle import (
    DAY_MINUTES,
    IdleRule,
    Load,
    Paused,
    Selling,
    State,
    begin,
    grace_is_over,
    resumes_at,
    step,
)
from node.wire.messages import Refused

LOOK_EVERY_S: Final = 2.0
_MAX_RETRY_S: Final = 3_600

_log = logging.getLogger(__name__)


@frozen
class Reading:
    """One reading, and the names of the sensors that this machine does not have."""

    load: Load
    missing: tuple[str, ...] = ()


Read = Callable[[], Awaitable[Reading]]


def reader(sensors: Sensors) -> Read:
    """Readings of this machine, by the clock on its wall."""

    async def read() -> Reading:
        use = await asyncio.to_thread(sensors.read)
        now = time.localtime()
        minute = now.tm_wday * DAY_MINUTES + now.tm_hour * 60 + now.tm_min
        return Reading(Load(time.monotonic(), minute, use.cpu, use.gpu, use.on_battery), use.missing)

    return read


class IdleWatch:
    """Looks at the machine all the time, and applies the owner's rule. Until it has looked once nothing is sold."""

    def __init__(self, rule: IdleRule, read: Read) -> None:
        self._rule = rule
        self._read = read
        self._state: State | None = None
        self._last: Reading | None = None

    async def run(self, hand_back: Callable[[], None]) -> None:
        """Look until cancelled; `hand_back` is called, again and again, while the grace period is over."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()
            if self.must_hand_back:
                hand_back()

    async def look(self) -> None:
        """Take one reading. One that fails stops the selling, as nobody can say that the machine is idle."""
        try:
            self._last = reading = await self._read()
        except Exception:  # noqa: BLE001 - whatever a sensor does, the watch goes on
            _log.exception("the machine's load could not be read; it is tried again")
            self._state = self._last = None
            return
        before, load = self._state, reading.load
        self._state = begin(self._rule, load) if before is None else step(self._rule, before, load)
        if type(self._state) is not type(before):
            _log.info("%s", self.words())

    @property
    def must_hand_back(self) -> bool:
        """Whether the owner has been back for longer than the grace period."""
        if self._state is None or self._last is None:
            return False
        return grace_is_over(self._rule, self._state, self._last.load.at)

    def may_sell(self) -> Refused | None:
        """Why no sold work may start now, as buyers are told it: that the owner is back, not what the owner does."""
        if isinstance(self._state, Selling):
            return None
        return Refused("not_selling", "the owner of this machine needs it now: try elsewhere", self._retry_after())

    def _retry_after(self) -> int:
        if self._state is None or self._last is None:
            return 1
        at = resumes_at(self._rule, self._state)
        wait_s = self._rule.calm_s if at is None else at - self._last.load.at
        return min(max(math.ceil(wait_s), 1), _MAX_RETRY_S)

    def words(self) -> str:
        """What the owner is told."""
        match self._state:
            case None:
                return "paused: the machine's use is not known now, resumes by itself"
            case Selling():
                return "selling"
            case Paused(why=why):
                at, now = resumes_at(self._rule, self._state), self._last.load.at if self._last else 0.0
                if at is None:
                    return f"paused: {why}, resumes by itself"
                return f"paused: the machine is calm again, resumes in {max(math.ceil(at - now), 0)} s"

    def status(self) -> dict[str, Any]:
        """The state for the owner's commands."""
        load, missing = (self._last.load, self._last.missing) if self._last else (None, ())
        return {
            "state": "selling" if isinstance(self._state, Selling) else "paused",
            "words": self.words(),
            "cpu_by_others": load.cpu if load else None,
            "gpu_by_others": load.gpu if load else None,
            "on_battery": load.on_battery if load else None,
            "not_measured": list(missing),
        }


def selling_now(sells: bool, watch: IdleWatch | None, trouble: str | None = None) -> dict[str, Any]:
    """Whether this node sells now, for the owner's commands; `watch` None where it sells at any time.

    `trouble` is what is wrong with the ledger now.
    """
    if not sells:
        return {"state": "off", "words": "not selling: no price is set"}
    if trouble is not None:
        return {"state": "paused", "words": f"paused: {trouble}; resumes by itself"}
    return watch.status() if watch is not None else {"state": "selling", "words": "selling, at any time"}
