"""How often somebody may ask for something that costs us work: a bucket for each, filled at a steady rate."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

# Who asked longest ago is forgotten first, and has a full bucket again.
_MOST: Final = 4_096


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
