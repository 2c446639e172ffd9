"""How often somebody may ask for something that costs us work: a bucket for each, filled at a steady rate."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

# Who asked longest ago is forgotten first, and has a full bucket again.
_MOST: Final = 4_096


class Rates:
    """A bucket for each name. Times are the clock's seconds; a clock that was set back fills none."""

    def __init__(self, now: Callable[[], float], per_s: float, burst: float) -> None:
        self._now = now
        self._per_s = per_s
        self._burst = burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def charge(self, who: str, cost: float = 1) -> float:
        """What is left of a bucket after this; below 0, it was too much, and the bucket is empty."""
        now = self._now()
        left, since = self._left.pop(who, (self._burst, now))
        left = min(self._burst, left + max(now - since, 0) * self._per_s) - cost
        self._left[who] = (max(left, 0), now)
        while len(self._left) > _MOST:
            self._left.popitem(last=False)
        return left
