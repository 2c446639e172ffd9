"""Time and entropy as arguments: the system's own, and versions that do as they are told.

The other ports stand beside what they describe: `engine.port`, `wire.peer`, `ledger.journal`, `ledger.rails.port`.
"""

import hashlib
import os
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Seconds since 1970."""
        ...


class Entropy(Protocol):
    """Gives bytes that nobody can guess."""

    def bytes(self, count: int) -> bytes:
        """So many of them."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()


class SystemEntropy:
    """The operating system's entropy."""

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)


class ManualClock:
    """A clock that stands until it is moved: for tests and simulations."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass; negative ones set the clock back."""
        self._now += seconds


class SeededEntropy:
    """The same bytes every time for one seed: for tests and simulations, never for a node that trades."""

    def __init__(self, seed: int) -> None:
        self._state = hashlib.sha256(seed.to_bytes(16, "little", signed=True)).digest()

    def bytes(self, count: int) -> bytes:
        out = b""
        while len(out) < count:
            self._state = hashlib.sha256(self._state).digest()
            out += self._state
        return out[:count]
