"""One step after the other over all tasks: what goes into a batch, what comes of it, and who has to give way.

Theory of operation. Each task is a row of ids, of which the KV cache holds the first `computed`. A step computes the
next id of every running stream and, as far as `pace` allows, the next ids of prompts; a task whose last id is computed
gets its next from the sampler. Streams that came together also begin together. Nothing else distinguishes a prompt
from an answer, so a task that had to give up its place in the cache is simply computed again from the start: seed and
positions are the same, and so is the answer.

Work that nobody waits for word by word (replays) gets what is left of a step, and a whole one now and then.
When the cache is full, the prefixes kept for later go first, then the replays, then the youngest streams: sold ones
before the owner's. They go back into the line and begin again. The oldest always gets on, so all end.
When llama.cpp cannot compute a batch, each task is tried alone, and those that fail alone have failed.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np

from node.engine.outlet import Outlet
from node.engine.pace import Pace
from node.engine.port import EngineFailed, Piece, Rows
from node.engine.prefixes import Prefix, Prefixes, as_ids
from node.engine.tasks import Replay, Stream, Work
from node.models.weights import DecodeFailed, Run
from verify.cutoffs import BadLogits, peak_of
from verify.sampler import NOTHING, sample_block

_NO_ROOM: Final = 1  # llama_decode's code
_PATIENCE: Final = 8  # steps after which a replay is computed even if prompts wait
_BURST: Final = 1_024  # tokens of prompts at most that streams wait for before their second token
_SLACK: Final = 64  # cells that a task should find free beyond its ids, to begin

Results = Outlet[Piece] | Outlet[Rows]


class Cells(Protocol):
    """What is asked of a KV cache; `node.models.weights.Context` is one."""

    tokens: int
    batch: int
    sequences: int
    rows: int

    def compute(self, runs: Sequence[Run]) -> Rows:
        """See `Context.compute`."""
        ...

    def copy(self, source: int, target: int, tokens: int) -> None:
        """See `Context.copy`."""
        ...

    def remove(self, sequence: int, position: int = 0) -> bool:
        """See `Context.remove`."""
        ...

    def extent(self, sequence: int) -> tuple[int, int]:
        """See `Context.extent`."""
        ...

    def clear(self) -> None:
        """See `Context.clear`."""
        ...


class Batcher:
    """The tasks at work and the cache they share. Of one thread at a time."""

    def __init__(self, cells: Cells, eog: frozenset[int], clock: Callable[[], float] = time.perf_counter) -> None:
        self._cells, self._eog, self._clock = cells, eog, clock
        self._free = list(range(cells.sequences))[::-1]
        self._prefixes, self._pace = Prefixes(), Pace()
        self._tasks: list[Work] = []  # the oldest first
        self._turn = 0  # whose prompt is next
        self._waited = 0  # steps since a replay was computed
        self._told: list[Results] = []  # with results to tell of
        self._ends: list[tuple[Results, BaseException | None]] = []

    @property
    def tasks(self) -> Sequence[Work]:
        """Those at work, the oldest first."""
        return self._tasks

    @property
    def prefixes(self) -> Prefixes:
        """What is kept for later."""
        return self._prefixes

    def fits(self, task: Work) -> bool:
        """Whether there is room to begin with it, if need be by forgetting prefixes."""
        if not self._tasks:
            return True
        held = sum(len(other.ids) for other in self._tasks)
        return held + len(task.ids) + _SLACK <= self._cells.tokens

    def begin(self, task: Work) -> None:
        """Put a task to work, with what is known of its ids already. There must be fewer than `sequences`."""
        self._tasks.append(task)
        task.sequence, task.computed = self._place(task)
        if isinstance(task, Stream) and task.cached is None:
            task.cached = task.computed

    def ready(self) -> bool:
        """Whether a step would do anything."""
        return any(task.ended or task.outlet.cancelled or not task.outlet.full for task in self._tasks)

    def step(self) -> list[Work]:
        """Compute one batch; the tasks that had to give way, to be begun again. Those that have ended are gone.

        `announce` has to follow.
        """
        self._let_go()
        runs, tasks, streams, chunk = self._plan()
        given_way: list[Work] = []
        if runs:
            began = self._clock()
            logits, runs, tasks, given_way = self._computed(runs, tasks)
            if not given_way:
                self._pace.note(streams, chunk, self._clock() - began)
            self._advance(runs, tasks, logits)
            self._let_go()
        return given_way

    def announce(self) -> list[Results]:
        """End the outlets of the tasks that have ended; all whose owners are to be told of something new."""
        for outlet, error in self._ends:
            outlet.end(error)
        told = self._told + [outlet for outlet, _ in self._ends]
        self._told, self._ends = [], []
        return told

    def allowance(self, most: int) -> int:
        """How many tokens something else may compute between two steps."""
        running = sum(isinstance(task, Stream) and not task.outlet.full for task in self._tasks)
        return self._pace.chunk(running, most)

    def fail_all(self, error: BaseException) -> None:
        """End every task with this error, and begin anew with an empty cache."""
        self._ends += [(task.outlet, error) for task in self._tasks]
        self._tasks.clear()
        self._prefixes = Prefixes()
        self._free = list(range(self._cells.sequences))[::-1]
        self._cells.clear()

    # What goes into a batch.

    def _plan(self) -> tuple[list[Run], list[Work], int, int]:
        """The runs of the next batch and their tasks; how many streams, and how many ids of prompts."""
        able = [task for task in self._tasks if not task.outlet.full]
        streams = [task for task in able if isinstance(task, Stream)]
        running = [task for task in streams if task.rest == 1][: self._cells.batch]
        prompts = [task for task in streams if task.rest > 1]
        if self._is_burst(running, prompts):
            running = []
        replays = [task for task in able if isinstance(task, Replay)]
        room = self._pace.chunk(len(running), self._cells.batch - len(running))
        chosen: list[tuple[Work, int]] = [(task, 1) for task in running]
        parts = self._parts(prompts, replays, room, len(running))
        runs = [self._run(task, size) for task, size in chosen + parts]
        return runs, [*running, *(task for task, _ in parts)], len(running), sum(size for _, size in parts)

    @staticmethod
    def _is_burst(running: Sequence[Stream], prompts: Sequence[Stream]) -> bool:
        """Whether streams that have only begun should wait for prompts that came with them: all take as many steps
        together as one alone, and each step costs nearly the same for few streams as for many."""
        begun = all(len(stream.ids) <= stream.job.start + 1 for stream in running)
        return bool(prompts) and begun and sum(prompt.rest for prompt in prompts) <= _BURST

    def _parts(
        self, prompts: Sequence[Stream], replays: Sequence[Replay], room: int, running: int
    ) -> list[tuple[Work, int]]:
        """How the room of a step is shared out: to the prompts in turn, what they leave to the replays."""
        self._waited = self._waited + 1 if replays and prompts else 0
        parts: list[tuple[Work, int]] = []
        rows = self._cells.rows - running
        if self._waited < _PATIENCE:
            self._turn += 1
            for place in range(len(prompts)):
                task = prompts[(self._turn + place) % len(prompts)]
                size = min(room, task.rest)
                if size > 0 and rows > 0:
                    parts.append((task, size))
                    room, rows = room - size, rows - task.wanted(size)
        else:
            self._waited = 0
        for replay in replays:
            size = min(room, replay.rest, replay.plain() + max(rows, 0))
            if size > 0:
                parts.append((replay, size))
                room, rows = room - size, rows - replay.wanted(size)
        return parts

    @staticmethod
    def _run(task: Work, size: int) -> Run:
        assert task.sequence is not None
        start = task.computed
        return Run(task.ids[start : start + size], start, task.sequence, task.wanted(size))

    # What comes of it.

    def _computed(self, runs: list[Run], tasks: list[Work]) -> tuple[Rows, list[Run], list[Work], list[Work]]:
        """The logits, the runs and tasks that got them, and the tasks that had to give way."""
        given_way: list[Work] = []
        while runs:
            try:
                return self._cells.compute(runs), runs, tasks, given_way
            except DecodeFailed as error:
                if error.code != _NO_ROOM:
                    return *self._one_by_one(runs, tasks), given_way
                self._cut_back(tasks)
                if not self._forget_oldest():
                    given_way += self._give_way(error)
                left = [place for place, task in enumerate(tasks) if self._still_fits(task, runs[place])]
                runs, tasks = [runs[place] for place in left], [tasks[place] for place in left]
        return np.empty((0, 0), np.float32), [], [], given_way

    def _still_fits(self, task: Work, run: Run) -> bool:
        return task.sequence == run.sequence and task.computed == run.position

    def _give_way(self, error: DecodeFailed) -> list[Work]:
        """Take the cache from the task that can best wait for it; if there is but one, it has failed."""
        if len(self._tasks) == 1:
            self._fail(self._tasks[0], error)
            return []
        task = max(self._tasks, key=lambda one: (isinstance(one, Replay), one.sold, self._tasks.index(one)))
        self._tasks.remove(task)
        self._drop(task)
        return [task]

    def _one_by_one(self, runs: list[Run], tasks: list[Work]) -> tuple[Rows, list[Run], list[Work]]:
        """Compute each run alone: those that fail so are guilty."""
        self._cut_back(tasks)
        rows: list[Rows] = []
        good: list[tuple[Run, Work]] = []
        for run, task in zip(runs, tasks, strict=True):
            if not self._still_fits(task, run):
                continue  # it has to be computed from the start
            try:
                rows.append(self._cells.compute([run]).copy())
                good.append((run, task))
            except DecodeFailed as error:
                if error.code != _NO_ROOM:  # that is nobody's fault, and the next step makes some
                    self._fail(task, error)
        block = np.concatenate(rows) if rows else np.empty((0, 0), np.float32)
        return block, [run for run, _ in good], [task for _, task in good]

    def _cut_back(self, tasks: Sequence[Work]) -> None:
        """Bring the cache back to where the tasks believe it to be, after a batch of which part may have been done."""
        for task in tasks:
            assert task.sequence is not None
            if task.computed == 0 or not self._cells.remove(task.sequence, task.computed):
                self._cells.remove(task.sequence)
                task.computed = 0

    def _advance(self, runs: Sequence[Run], tasks: Sequence[Work], logits: Rows) -> None:
        """Give each task its rows: streams their next token, replays the rows themselves."""
        drawn: list[Stream] = []
        places: list[int] = []
        row = 0
        for run, task in zip(runs, tasks, strict=True):
            task.computed += len(run.ids)
            if isinstance(task, Replay):
                task.give(logits[row : row + run.wanted])
                if run.wanted:
                    self._told.append(task.outlet)
            elif run.wanted:
                drawn.append(task)
                places.append(row)
            row += run.wanted
        if drawn:
            # As a rule they are the first rows, and need not be copied.
            first = places == list(range(len(places)))
            self._draw(drawn, logits[: len(places)] if first else logits[places])

    def _draw(self, streams: list[Stream], logits: Rows) -> None:
        good = [place for place, stream in enumerate(streams) if self._steer(stream, logits[place])]
        if len(good) < len(streams):
            streams, logits = [streams[place] for place in good], logits[good]
        if not streams:
            return
        tokens = sample_block(
            logits,
            [stream.job.sampling for stream in streams],
            [stream.job.seed for stream in streams],
            [len(stream.ids) for stream in streams],
        )
        for stream, row, token in zip(streams, logits, tokens.tolist(), strict=True):
            self._take(stream, row, token)

    def _steer(self, stream: Stream, row: Rows) -> bool:
        """Move the logits as the job says, in place; false if the stream has failed at that."""
        if stream.steered:
            try:
                row[:] = stream.steer(row)
            except Exception as error:  # noqa: BLE001  (whatever it is, it is this stream's)
                self._fail(stream, error)
                return False
        return True

    def _take(self, stream: Stream, row: Rows, token: int) -> None:
        try:
            if token == NOTHING:
                peak_of(row)  # says what is wrong with them
                raise BadLogits(row.size, float(row.max()))
            stream.take(token, row, self._eog)
            self._told.append(stream.outlet)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this stream's)
            self._fail(stream, error)

    # Who has a place in the cache.

    def _place(self, task: Work) -> tuple[int, int]:
        """A sequence for the task, and how many of its ids are in it already."""
        known = self._known(task)
        if known is None:
            return self._vacant(None), 0
        prefix, shared, kept = known
        whole = shared == prefix.tokens
        if kept and whole:
            self._prefixes.take(prefix.sequence)
            return prefix.sequence, shared
        if kept:
            self._prefixes.touch(prefix.sequence)
        sequence = self._vacant(prefix.sequence)
        self._cells.copy(prefix.sequence, sequence, shared)
        return sequence, shared

    def _known(self, task: Work) -> tuple[Prefix, int, bool] | None:
        """Of the client's sequences that with the most of the task's ids, and how many; whether it is idle.

        The last id is never among them, since its logits have to be computed.
        """
        if task.client is None:
            return None
        ids = as_ids(task.ids[:-1])
        kept = self._prefixes.longest(task.client, ids)
        running = Prefixes()
        for other in self._tasks:
            if other.client == task.client and other.sequence is not None and other.computed:
                running.keep(Prefix(other.sequence, task.client, as_ids(other.ids[: other.computed])))
        shared = running.longest(task.client, ids)
        best = max((one for one in (kept, shared) if one is not None), key=lambda one: one[1], default=None)
        if best is None or not self._usable(*best):
            return None
        return *best, best is kept

    def _usable(self, prefix: Prefix, shared: int) -> bool:
        """Whether the cache can give its first `shared` ids: states of recurrent models cannot be cut."""
        first, last = self._cells.extent(prefix.sequence)
        return last + 1 == prefix.tokens and (first == 0 or shared == prefix.tokens)

    def _vacant(self, spared: int | None) -> int:
        """A sequence that holds nothing."""
        while not self._free:
            if not self._forget_oldest(spared):
                raise EngineFailed("no sequence is free")
        return self._free.pop()

    def _forget_oldest(self, spared: int | None = None) -> bool:
        oldest = self._prefixes.oldest(spared)
        if oldest is None:
            return False
        self._prefixes.take(oldest)
        self._empty(oldest)
        return True

    def _let_go(self) -> None:
        """Part with the tasks that are done or no longer wanted; what the cache holds of them is kept for later."""
        for task in [one for one in self._tasks if one.ended or one.outlet.cancelled]:
            self._tasks.remove(task)
            self._keep(task)
            self._ends.append((task.outlet, None))

    def _keep(self, task: Work) -> None:
        assert task.sequence is not None
        if task.client is None or task.computed == 0:
            self._drop(task)
            return
        prefix = Prefix(task.sequence, task.client, as_ids(task.ids[: task.computed]))
        task.sequence = None
        for sequence in self._prefixes.keep(prefix):
            self._empty(sequence)

    def _drop(self, task: Work) -> None:
        assert task.sequence is not None
        self._empty(task.sequence)
        task.sequence, task.computed = None, 0

    def _empty(self, sequence: int) -> None:
        self._cells.remove(sequence)
        self._free.append(sequence)

    def _fail(self, task: Work, error: Exception) -> None:
        """The task alone has failed; nothing of what the cache holds of it is kept."""
        self._tasks.remove(task)
        self._drop(task)
        failed = error if isinstance(error, EngineFailed) else EngineFailed(f"{type(error).__name__}: {error}")
        failed.__cause__ = error
        self._ends.append((task.outlet, failed))
