"""One thread that works off a line of jobs, and the way of their results into an event loop.

Theory of operation. A job is a generator that the thread steps through; what it yields is handed to the job's
owner, None is only a pause. Between two steps the thread looks whether the job was cancelled, so a job ends
within one step of its owner's wish. Nothing polls: the thread sleeps on a condition, the owner on an asyncio
event. A job with `room` stops the thread while its owner has that many results untaken; only jobs with large
results have one.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Any, Final, Generic, TypeVar

from node.engine.port import EngineBusy, EngineClosed

T = TypeVar("T")
_WEIGHT: Final = 0.2  # of the last job in the mean duration
_FIRST_GUESS: Final = 5.0  # seconds a job takes, before any was done

Steps = Callable[[], Generator[T | None, None, None]]


class Work(Generic[T]):
    """One job: stepped through by the thread, its results taken by its owner in an event loop."""

    def __init__(self, steps: Steps[T], room: int | None = None) -> None:
        self.steps = steps
        self._cancelled = False
        self._room = threading.Semaphore(room) if room is not None else None
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._lock = threading.Lock()
        self._results: list[T] = []
        self._ended = False
        self._failure: BaseException | None = None

    async def take(self) -> list[T]:
        """All results that are there, waiting for one; empty at the end. Raises what the steps raised."""
        while True:
            await self._news.wait()
            with self._lock:
                self._news.clear()
                results, self._results = self._results, []
                ended = self._ended
            if self._room is not None and results:
                self._room.release(len(results))
            if ended:
                self._news.set()
            if results:
                return results
            if ended:
                if self._failure is not None:
                    raise self._failure
                return []

    def cancelled(self) -> bool:
        """Whether nobody wants more results."""
        return self._cancelled

    def cancel(self) -> None:
        """No more results are wanted."""
        self._cancelled = True
        if self._room is not None:
            self._room.release()

    def put(self, result: T) -> None:
        """From the thread: one more result."""
        if self._room is not None:
            self._room.acquire()
        with self._lock:
            self._results.append(result)
            first = len(self._results) == 1
        if first:
            self._tell()

    def end(self, failure: BaseException | None = None) -> None:
        """From the thread, or instead of it: no more results will come."""
        with self._lock:
            self._ended, self._failure = True, failure
        self._tell()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the owner's event loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._news.set)


class WorkThread:
    """The thread and its line: one job runs, at most `waiting` wait."""

    def __init__(self, name: str, waiting: int) -> None:
        self._waiting = waiting
        self._line: deque[Work[Any]] = deque()
        self._running: Work[Any] | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._mean = _FIRST_GUESS
        # A daemon: a node that forgot to close its engine must still be able to end.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def idle(self) -> bool:
        """Whether a job would begin at once."""
        return self._running is None and not self._line and not self._closed

    def check(self) -> None:
        """Raises EngineBusy, EngineClosed, if `submit` would now."""
        if self._closed:
            raise EngineClosed
        if len(self._line) >= self._waiting + (self._running is None):
            raise EngineBusy(len(self._line), max(1.0, self._mean * (len(self._line) + 1)))

    def submit(self, work: Work[Any]) -> None:
        """Put a job at the end of the line. Raises EngineBusy, EngineClosed."""
        with self._changed:
            self.check()
            self._line.append(work)
            self._changed.notify()

    def withdraw(self, work: Work[Any]) -> None:
        """Cancel a job: at once if it waits, within a step if it runs."""
        work.cancel()
        with self._changed, suppress(ValueError):
            self._line.remove(work)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in the thread, in turn. Raises what it raises, EngineBusy, EngineClosed."""
        work = Work(_once(lambda: (function(),)))  # in a tuple, for a bare None would be a pause
        self.submit(work)
        try:
            ((result,),) = await work.take()
            await work.take()  # its end: then the thread is free again
            return result
        finally:
            self.withdraw(work)

    async def close(self, last: Callable[[], None]) -> None:
        """End every job with EngineClosed, run `last` in the thread and end it; again only waits for that."""
        with self._changed:
            left = [] if self._closed else [*self._line, *([self._running] if self._running else [])]
            if not self._closed:
                self._closed = True
                self._line = deque([Work(_once(last))])
            self._changed.notify()
        for work in left:
            work.cancel()
            work.end(EngineClosed())
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            began = time.monotonic()
            failure = self._step_through(work)
            self._mean += _WEIGHT * (time.monotonic() - began - self._mean)
            with self._changed:
                self._running = None  # before the owner hears of the end, who may look for a free slot then
                closed = self._closed
            work.end(EngineClosed() if work.cancelled() and closed else failure)

    def _next(self) -> Work[Any] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._closed)
            self._running = self._line.popleft() if self._line else None
            return self._running

    def _step_through(self, work: Work[Any]) -> BaseException | None:
        try:
            if work.cancelled():
                return None
            with closing(work.steps()) as steps:
                for result in steps:
                    if work.cancelled():
                        return None
                    if result is not None:
                        work.put(result)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is this job's; the thread goes on)
            return error
        return None


def _once(function: Callable[[], T]) -> Steps[T]:
    def steps() -> Generator[T | None, None, None]:
        yield function()

    return steps
