"""The way of one job's results from the engine's thread to its owner in an event loop."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Outlet(Generic[T]):
    """The thread puts results and tells of them; the owner takes them, in `loop`, by default the running one.

    While `room` results are untaken it is full, and the thread should let the job rest: `on_change` is called, in
    the event loop, when it no longer is, and when the owner wants no more.
    """

    def __init__(self, room: int, on_change: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop or asyncio.get_running_loop()
        self.cancelled = False
        self._waiting: asyncio.Future[None] | None = None
        self._room, self._on_change = room, on_change
        self._lock = threading.Lock()
        self._results: list[T] = []
        self._ended = False
        self._failure: BaseException | None = None

    @property
    def full(self) -> bool:
        """Whether the owner has to take something first."""
        return len(self._results) >= self._room

    async def take(self) -> list[T]:
        """All results that are there, waiting for one; empty at the end. Raises what the job failed with."""
        while True:
            ended = self._ended  # before: then what is drained after it is all
            if results := self.drain():
                return results
            if ended:
                if self._failure is not None:
                    raise self._failure
                return []
            self._waiting = self.loop.create_future()
            if not (self._results or self._ended):
                await self._waiting

    def wake(self) -> None:
        """In the event loop: if the owner waits, there is something new."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def drain(self) -> list[T]:
        """All results that are there now."""
        with self._lock:
            results, self._results = self._results, []
        if len(results) >= self._room:
            self._on_change()
        return results

    @property
    def failure(self) -> BaseException | None:
        """What the job failed with, if it has."""
        return self._failure

    @property
    def ended(self) -> bool:
        """Whether no more results will come."""
        return self._ended

    def cancel(self) -> None:
        """By the owner: no more results are wanted."""
        self.cancelled = True
        self._on_change()

    def put(self, result: T) -> None:
        """By the thread: one more result. `tell` has to follow."""
        with self._lock:
            self._results.append(result)

    def end(self, failure: BaseException | None = None) -> None:
        """By the thread: no more results will come. `tell` has to follow. The first end counts."""
        with self._lock:
            if not self._ended:
                self._ended, self._failure = True, failure


def tell(outlets: Iterable[Outlet[Any]]) -> None:
    """By the thread: wake the owners, each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[Outlet[Any]]] = {}
    for outlet in outlets:
        loops.setdefault(outlet.loop, []).append(outlet)
    for loop, told in loops.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_wake, told)


def _wake(outlets: list[Outlet[Any]]) -> None:
    for outlet in outlets:
        outlet.wake()
