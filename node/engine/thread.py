"""The thread that owns a model, the line before it, and the calls it does between its steps.

Theory of operation. The thread does one step of its `Batcher` after the other as long as any task can get on, and
sleeps on a condition otherwise; nothing polls. Between two steps it parts with what was cancelled, begins with those
whose turn it is, and does at most one call (a part of an embedding, say), so that a step's time bounds how long
anything waits. It wakes the event loop once for all streams that a step brought on, right before it computes the next:
only while llama.cpp computes does the loop's thread get Python's lock and so on.

Jobs take a slot each, and wait in line for one. Replays, one at a time, and calls wait as well and count as
waiting, but take no slot: no audit keeps a customer out.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from node.engine.batch import Batcher
from node.engine.line import Line
from node.engine.outlet import Outlet, tell
from node.engine.port import EngineBusy, EngineClosed, EngineFailed
from node.engine.tasks import Replay, Stream, Work

T = TypeVar("T")
_WEIGHT: Final = 0.2  # of the last job in the mean duration
_FIRST_GUESS: Final = 5.0  # seconds a job takes, before any was done


class EngineThread:
    """One thread: loads, serves up to `slots` jobs at the same time, while `waiting` wait, and closes."""

    def __init__(self, name: str, slots: int, waiting: int) -> None:
        self.slots: Final = slots
        self._waiting = waiting
        self._batcher: Batcher | None = None
        self._jobs: Line[Stream] = Line()
        self._replays: Line[Replay] = Line()
        self._calls: deque[_Call[Any]] = deque()
        self._running: dict[Work, float] = {}  # when each began
        self._changed = threading.Condition()
        self._closed = False
        self._last: Callable[[], None] | None = None
        self._mean = _FIRST_GUESS
        # A daemon: a node that forgot to close its engine must still be able to end.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def serve(self, batcher: Batcher) -> None:
        """From a call: the batcher to be stepped from now on."""
        self._batcher = batcher

    def allowance(self, most: int) -> int:
        """From a call: how many tokens it may compute so that the streams hardly notice."""
        return self._batcher.allowance(most) if self._batcher is not None else most

    def changed(self) -> None:
        """Look again at what there is to do."""
        with self._changed:
            self._changed.notify()

    def free_slots(self) -> int:
        """How many jobs would begin at once."""
        with self._changed:
            if self._closed:
                return 0
            return max(0, self.slots - self._busy() - len(self._jobs))

    def check(self) -> None:
        """Raises EngineBusy, EngineClosed, if something more could not wait now."""
        with self._changed:
            self._check()

    def submit(self, work: Work) -> None:
        """Put a task into the line. Raises EngineBusy, EngineClosed."""
        with self._changed:
            self._check()
            if isinstance(work, Stream):
                self._jobs.join(work, work.sold)
            else:
                self._replays.join(work, sold=False)
            self._changed.notify()

    def withdraw(self, work: Work) -> None:
        """Its owner wants no more: at once if it waits, within a step if it runs."""
        with self._changed:
            if isinstance(work, Stream):
                self._jobs.leave(work)
            else:
                self._replays.leave(work)
        work.outlet.cancel()

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in the thread, between two steps. Raises what it raises, EngineBusy, EngineClosed."""
        call = _Call(function, self.changed)
        with self._changed:
            self._check()
            self._calls.append(call)
            self._changed.notify()
        try:
            ((result,),) = await call.outlet.take()
            return result
        finally:
            call.outlet.cancel()

    async def close(self, last: Callable[[], None]) -> None:
        """End everything with EngineClosed, run `last` in the thread and end it; again only waits for that."""
        with self._changed:
            left: list[Outlet[Any]] = []
            if not self._closed:
                self._closed, self._last = True, last
                works = [*self._jobs.empty(), *self._replays.empty(), *self._running]
                left = [*(work.outlet for work in works), *(call.outlet for call in self._calls)]
                self._calls.clear()
            self._changed.notify()
        for outlet in left:
            outlet.end(EngineClosed())
        tell(left)
        await asyncio.to_thread(self._thread.join)

    def _busy(self) -> int:
        """How many slots are taken, by jobs whose owners still want them."""
        return sum(isinstance(work, Stream) and not work.outlet.cancelled for work in self._running)

    def _check(self) -> None:
        if self._closed:
            raise EngineClosed
        queued = len(self._jobs) + len(self._replays) + len(self._calls)
        begin = max(0, self.slots - self._busy())  # so many of those in line are on their way to a slot
        if queued >= self._waiting + begin:
            raise EngineBusy(queued, max(1.0, self._mean * (queued + 1) / self.slots))

    # In the thread.

    def _serve(self) -> None:
        while self._wait():
            if self._calls:
                self._call()
            if self._batcher is not None:
                self._step(self._batcher)
        self._tell()
        if self._last is not None:
            self._last()

    def _wait(self) -> bool:
        """Sleep until there is something to do; false if that is to end."""
        if self._batcher is not None and self._batcher.ready():
            return not self._closed
        self._tell()
        with self._changed:
            self._changed.wait_for(self._has_work)
            return not self._closed

    def _has_work(self) -> bool:
        if self._closed or self._calls:
            return True
        return self._batcher is not None and (self._batcher.ready() or self._next(self._batcher) is not None)

    def _call(self) -> None:
        """The next call, if it is still there."""
        self._tell()
        with self._changed:
            call = self._calls.popleft() if self._calls else None
        if call is not None:
            call.run()
            tell([call.outlet])

    def _next(self, batcher: Batcher) -> Work | None:
        """Who can begin now."""
        running = [isinstance(work, Stream) for work in batcher.tasks]
        job, replay = self._jobs.first(), self._replays.first()
        if job is not None and sum(running) < self.slots and batcher.fits(job):
            return job
        if replay is not None and all(running) and batcher.fits(replay):
            return replay
        return None

    def _step(self, batcher: Batcher) -> None:
        self._guarded(batcher, self._compute)
        if batcher.unsettled:
            self._tell()
            self._guarded(batcher, self._settle)

    def _guarded(self, batcher: Batcher, part: Callable[[Batcher], list[Work]]) -> None:
        given_way: list[Work] = []
        try:
            given_way = part(batcher)
        except Exception as error:  # noqa: BLE001  (nothing may end the thread; what ran has failed)
            with suppress(Exception):
                batcher.fail_all(EngineFailed(f"{type(error).__name__}: {error}"))
        if given_way or len(batcher.tasks) < len(self._running):
            self._tidy(batcher, given_way)

    def _tell(self) -> None:
        """Wake who has something new, if they have not been woken."""
        if self._batcher is not None and (told := self._batcher.announce()):
            tell(told)

    def _compute(self, batcher: Batcher) -> list[Work]:
        if self._jobs or self._replays:
            self._tell()  # what is known of a prompt may take a while to be copied
            self._begin(batcher)
        return batcher.step(self._tell)

    @staticmethod
    def _settle(batcher: Batcher) -> list[Work]:
        batcher.settle()
        return []

    def _begin(self, batcher: Batcher) -> None:
        while True:
            with self._changed:
                work = self._next(batcher)
                if work is None or self._closed:
                    return
                (self._jobs if isinstance(work, Stream) else self._replays).leave(work)  # type: ignore[arg-type]
                self._running[work] = time.monotonic()
            batcher.begin(work)

    def _tidy(self, batcher: Batcher, given_way: list[Work]) -> None:
        """Note who has ended, before their owners hear of it, who may look for a free slot then."""
        now = time.monotonic()
        with self._changed:
            left = set(batcher.tasks)
            for work in [one for one in self._running if one not in left]:
                began = self._running.pop(work)
                if work not in given_way:
                    self._mean += _WEIGHT * (now - began - self._mean)
            for work in given_way:
                if work.outlet.cancelled or self._closed:
                    continue
                if isinstance(work, Stream):
                    self._jobs.rejoin(work, work.sold)
                else:
                    self._replays.rejoin(work, sold=False)


class _Call(Generic[T]):
    """A function to run between two steps, and the way of its result."""

    def __init__(self, function: Callable[[], T], on_change: Callable[[], None]) -> None:
        self.outlet: Final[Outlet[tuple[T]]] = Outlet(1, on_change)  # in a tuple, for it may be None
        self._function = function

    def run(self) -> None:
        """By the thread."""
        if self.outlet.cancelled:
            return
        try:
            self.outlet.put((self._function(),))
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is this call's; the thread goes on)
            self.outlet.end(error)
