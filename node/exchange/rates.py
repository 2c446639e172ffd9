"""How often somebody may ask for something that costs us work: a bucket for each, or one for all, filled steadily."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

# Who asked longest ago is forgotten first, and has a full bucket again.
_MOST: Final = 4_096
# So many wait for a turn at a time, and look so often whether it has come.
_LONGEST_LINE: Final = 64
_LOOK_S: Final = 0.05


class Rates:
    """A bucket for each name. Times are the clock's seconds; a clock that was set back fills none."""

    def __init__(self, now: Callable[[], float], per_s: float, burst: float, most: int = _MOST) -> None:
        """`most` is how many names are remembered."""
        self._now = now
        self._per_s = per_s
        self._burst = burst
        self._most = most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def charge(self, who: str, cost: float = 1) -> float:
        """What is left of a bucket after this; below 0, it was too much, and the bucket is empty."""
        left, now = self._filled(who)
        self._keep(who, max(left - cost, 0), now)
        return left - cost

    def admits(self, who: str) -> bool:
        """Whether one more may pass; one that may not takes nothing from the bucket."""
        left, now = self._filled(who)
        admitted = left >= 1
        self._keep(who, left - 1 if admitted else left, now)
        return admitted

    def _filled(self, who: str) -> tuple[float, float]:
        """A bucket by now, taken out; and the time."""
        now = self._now()
        left, since = self._left.pop(who, (self._burst, now))
        return min(self._burst, left + max(now - since, 0) * self._per_s), now

    def _keep(self, who: str, left: float, now: float) -> None:
        self._left[who] = (left, now)
        while len(self._left) > self._most:
            self._left.popitem(last=False)


class Turns:
    """One bucket for all, shared fairly: of those who wait, whoever had the last turn longest ago, or none, is next.

    So whoever asks without end under some names delays a new one by one turn of each. Under so many names that each is
    new it is as good as anybody.
    """

    def __init__(self, now: Callable[[], float], per_s: float, burst: float, patience_s: float) -> None:
        """Who waits as long as `patience_s` in vain has no turn."""
        self._all = Rates(now, per_s, burst)
        self._patience_s = patience_s
        self._last: OrderedDict[str, int] = OrderedDict()  # turns by name, counted; the oldest first
        self._count = 0
        self._line: dict[str, object] = {}

    async def take(self, who: str) -> bool:
        """Wait for a turn. A name that waits already gets no second place, and of too many the last in line goes."""
        if who in self._line:
            return False
        place = self._line[who] = object()
        if len(self._line) > _LONGEST_LINE:
            del self._line[max(reversed(self._line), key=self._turn_of)]
        try:
            async with asyncio.timeout(self._patience_s):
                while self._line.get(who) is place:
                    if min(self._line, key=self._turn_of) == who and self._all.admits(""):
                        self._had(who)
                        return True
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            pass
        finally:
            if self._line.get(who) is place:
                del self._line[who]
        return False

    def _turn_of(self, who: str) -> int:
        """The number of its last turn: 0 for none."""
        return self._last.get(who, 0)

    def _had(self, who: str) -> None:
        self._count += 1
        self._last.pop(who, None)
        self._last[who] = self._count
        while len(self._last) > _MOST:
            self._last.popitem(last=False)
