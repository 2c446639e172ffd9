"""Who waits for a slot: pure bookkeeping. The owner's own jobs go before sold ones; of each the first comes first."""

from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """Two lines, of which the sold one moves while the other is empty."""

    def __init__(self) -> None:
        self._own: deque[T] = deque()
        self._sold: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._own) + len(self._sold)

    def join(self, one: T, sold: bool) -> None:
        """Wait behind all of the same kind."""
        (self._sold if sold else self._own).append(one)

    def rejoin(self, one: T, sold: bool) -> None:
        """Wait before all of the same kind: it has had its turn, and lost it."""
        (self._sold if sold else self._own).appendleft(one)

    def leave(self, one: T) -> None:
        """Wait no longer; nothing happens if it does not."""
        for line in (self._own, self._sold):
            with suppress(ValueError):
                line.remove(one)

    def first(self) -> T | None:
        """Whose turn it is; None if nobody waits."""
        return self._own[0] if self._own else self._sold[0] if self._sold else None

    def empty(self) -> list[T]:
        """All who wait, in their order; afterwards nobody does."""
        left = [*self._own, *self._sold]
        self._own.clear()
        self._sold.clear()
        return left
