"""One step after the other over all tasks: what goes into a batch, what comes of it, and who has to give way.

Theory of operation. Each task is a row of ids, of which the KV cache holds the first `computed`. A step computes the
next id of every running stream and, as far as `pace` allows, the next ids of prompts; a task whose last id is computed
gets its next from the sampler. Streams that came together also begin together. Nothing else distinguishes a prompt
from an answer, so a task that had to give up its place in the cache is simply computed again from the start: seed and
positions are the same, and so is the answer.

Work that nobody waits for word by word (replays) gets what is left of a step, and a whole one now and then.
Where the tasks share the cache and it is full, the replays give way first, then the youngest streams: sold ones before
the owner's. They go back into the line and begin again. The oldest always gets on, so all end. Where each has a part of
its own, llama.cpp computes only neighbours together: streams begin in the lowest free place, and the highest moves
down where one has ended and nobody follows.
When llama.cpp cannot compute a batch, each task is tried alone, and those that fail alone have failed.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
from attrs import frozen

from node.engine.outlet import Outlet
from node.engine.pace import Pace
from node.engine.port import EngineFailed, Piece, Rows
from node.engine.prefixes import Ids, Prefix, Prefixes, as_ids, common
from node.engine.tasks import Replay, Stream, Work
from node.models.weights import DecodeFailed, Run, State
from verify.cutoffs import BadLogits, peak_of
from verify.sampler import NOTHING, sample_block

_NO_ROOM: Final = 1  # llama_decode's code
_PATIENCE: Final = 8  # steps after which a replay is computed even if prompts wait
_BURST: Final = 1_024  # tokens of prompts at most that streams wait for before their second token
_WORTH: Final = 16  # copying so many tokens takes no longer than computing one
_SLACK: Final = 64  # cells that a task should find free beyond its ids, to begin

Results = Outlet[Piece] | Outlet[Rows]


def _nothing() -> None:
    return None


class Cells(Protocol):
    """What is asked of a KV cache; `node.models.weights.Context` is one."""

    tokens: int
    batch: int
    sequences: int
    rows: int
    shared: bool

    def compute(self, runs: Sequence[Run]) -> Rows:
        """See `Context.compute`."""
        ...

    def save(self, sequence: int) -> State:
        """See `Context.save`."""
        ...

    def restore(self, sequence: int, state: State) -> bool:
        """See `Context.restore`."""
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


@frozen
class _Batch:
    """Tasks and what is computed of each; how many are streams, and how many ids are of prompts and replays."""

    parts: list[tuple[Work, Run]]
    streams: int
    chunk: int


class Batcher:
    """The tasks at work and the cache they share. Of one thread at a time."""

    def __init__(
        self, cells: Cells, eog: frozenset[int], kept: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`kept`: tokens of prefixes that are kept for later, at most."""
        self._cells, self._eog, self._clock = cells, eog, clock
        self._free = set(range(cells.sequences))
        self._prefixes, self._pace = Prefixes(kept), Pace()
        self._tasks: list[Work] = []  # the oldest first
        self._turn = 0  # whose prompt is next
        self._waited = 0  # steps since a replay was computed
        self._told: list[Results] = []  # with results to tell of
        self._ends: list[tuple[Results, BaseException | None]] = []
        self._leaving: list[Work] = []  # ended, with a place in the cache
        self._left = False  # whether a place came free since the ranks were closed
        self._given_way: list[Work] = []  # in this step

    @property
    def tasks(self) -> Sequence[Work]:
        """Those at work, the oldest first."""
        return self._tasks

    @property
    def prefixes(self) -> Prefixes:
        """What is kept for later."""
        return self._prefixes

    def fits(self, task: Work) -> bool:
        """Whether there is room to begin with it."""
        if not self._tasks or not self._cells.shared:
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

    def step(self, ready: Callable[[], None] = _nothing) -> list[Work]:
        """Compute one batch; the tasks that had to give way, to be begun again. Those that have ended are gone.

        `ready` is called right before the computation. `announce` and `settle` have to follow, before anything begins.
        """
        self._let_go()
        self.settle()
        self._close_ranks()
        batches = self._plan()
        ready()
        for batch in batches:
            began = self._clock()
            # What the batch before did may have cost one of these its place.
            parts = [(task, run) for task, run in batch.parts if self._still_fits(task, run)]
            self._advance(*self._computed([run for _, run in parts], [task for task, _ in parts]))
            if not self._given_way:
                self._pace.note(batch.streams, batch.chunk, self._clock() - began)
        self._let_go()
        given_way, self._given_way = self._given_way, []
        return given_way

    def announce(self) -> list[Results]:
        """End the outlets of the tasks that have ended; all whose owners are to be told of something new."""
        for outlet, error in self._ends:
            outlet.end(error)
        told = self._told + [outlet for outlet, _ in self._ends]
        self._told, self._ends = [], []
        return told

    @property
    def unsettled(self) -> bool:
        """Whether `settle` would do anything."""
        return bool(self._leaving)

    def settle(self) -> None:
        """Keep for later what the cache holds of the tasks that have ended: it takes time, and nobody waits for it."""
        while self._leaving:
            self._keep(self._leaving.pop())

    def allowance(self, most: int) -> int:
        """How many tokens something else may compute between two steps."""
        running = sum(isinstance(task, Stream) and not task.outlet.full for task in self._tasks)
        return self._pace.chunk(running, most)

    def fail_all(self, error: BaseException) -> None:
        """End every task with this error, and begin anew with an empty cache."""
        self._ends += [(task.outlet, error) for task in [*self._tasks, *self._given_way]]
        self._tasks.clear()
        self._given_way.clear()
        self._leaving.clear()
        self._prefixes.clear()
        self._free = set(range(self._cells.sequences))
        self._cells.clear()

    # What goes into a batch.

    def _plan(self) -> list["_Batch"]:
        """The next batches."""
        running: list[Stream] = []
        prompts: list[Stream] = []
        replays: list[Replay] = []
        for task in self._tasks:
            if task.outlet.full:
                continue
            if isinstance(task, Replay):
                replays.append(task)
            else:
                (prompts if task.rest > 1 else running).append(task)
        del running[self._cells.batch :]
        if self._is_burst(running, prompts):
            running = []
        parts: list[tuple[Work, int]] = []
        if prompts or replays:
            room = self._pace.chunk(len(running), self._cells.batch - len(running))
            parts = self._parts(prompts, replays, room, len(running))
        next_tokens: list[tuple[Work, int]] = [(task, 1) for task in running]
        # What stands in one batch takes as long as what has the longest context in it, where contexts are apart; and
        # llama.cpp splits a batch whose runs differ in length anyway.
        kinds = [(next_tokens, parts)] if self._cells.shared else [([], parts), (next_tokens, [])]
        return [self._batch(streams, chunk) for streams, chunk in kinds if streams or chunk]

    def _batch(self, streams: list[tuple[Work, int]], chunk: list[tuple[Work, int]]) -> "_Batch":
        # In the order of their places: llama.cpp takes neighbours together only as they come.
        ordered = sorted(streams + chunk, key=lambda part: part[0].sequence or 0)
        parts = [(task, self._run(task, size)) for task, size in ordered]
        return _Batch(parts, len(streams), sum(size for _, size in chunk))

    @staticmethod
    def _is_burst(running: Sequence[Stream], prompts: Sequence[Stream]) -> bool:
        """Whether streams that have only begun should wait for prompts that came with them: all take as many steps
        together as one alone, and each step costs nearly the same for few streams as for many."""
        if not prompts or any(len(stream.ids) > stream.job.start + 1 for stream in running):
            return False
        return sum(prompt.rest for prompt in prompts) <= _BURST

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

    def _computed(self, runs: list[Run], tasks: list[Work]) -> tuple[list[Run], list[Work], Rows]:
        """The runs and tasks that got logits, and these; some tasks may have had to give way."""
        while runs:
            try:
                return runs, tasks, self._cells.compute(runs)
            except DecodeFailed as error:
                if error.code != _NO_ROOM:
                    return self._one_by_one(runs, tasks)
                self._cut_back(tasks)
                self._give_way(error)
                left = [place for place, task in enumerate(tasks) if self._still_fits(task, runs[place])]
                runs, tasks = [runs[place] for place in left], [tasks[place] for place in left]
        return [], [], np.empty((0, 0), np.float32)

    def _still_fits(self, task: Work, run: Run) -> bool:
        return task.sequence == run.sequence and task.computed == run.position

    def _give_way(self, error: DecodeFailed) -> None:
        """Take the cache from the task that can best wait for it; if there is but one, it has failed."""
        if len(self._tasks) == 1:
            self._fail(self._tasks[0], error)
            return
        task = max(self._tasks, key=lambda one: (isinstance(one, Replay), one.sold, self._tasks.index(one)))
        self._tasks.remove(task)
        self._given_way.append(task)
        self._drop(task)

    def _one_by_one(self, runs: list[Run], tasks: list[Work]) -> tuple[list[Run], list[Work], Rows]:
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
        return [run for run, _ in good], [task for _, task in good], block

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
            # As a rule they are all rows or the first ones, and need not be copied.
            count = len(drawn)
            if count < len(logits):
                logits = logits[:count] if places[-1] == count - 1 else logits[places]
            self._draw(drawn, logits)

    def _draw(self, streams: list[Stream], logits: Rows) -> None:
        if any(stream.steered for stream in streams):
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
        for stream, row, token in zip(streams, logits, tokens, strict=True):
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
        """A sequence for the task, and how many of its ids are in it already. Streams stand side by side."""
        if not self._free:
            raise EngineFailed("no sequence is free")
        sequence = min(self._free) if isinstance(task, Stream) else max(self._free)
        self._free.remove(sequence)
        return sequence, self._resume(task, sequence)

    def _resume(self, task: Work, sequence: int) -> int:
        """Put what is known of the task's ids into its sequence; how many those are.

        The last id is never among them, since its logits have to be computed.
        """
        known = self._known(task.client, as_ids(task.ids[:-1])) if task.client is not None else None
        if known is None:
            return 0
        state, tokens, shared = known
        if state is not None and self._cells.restore(sequence, state) and self._cut(sequence, tokens, shared):
            return shared
        self._cells.remove(sequence)
        return 0

    def _known(self, client: str, ids: Ids) -> tuple[State | None, int, int] | None:
        """Of the client's prefixes and streams that with the most of these ids: its state, all its ids, and those."""
        kept = self._prefixes.longest(client, ids)
        running = [
            (common(as_ids(other.ids[: other.computed]), ids), other) for other in self._tasks if other.client == client
        ]
        shared, other = max(running, key=lambda one: one[0], default=(0, None))
        if kept is not None and kept[1] >= shared:
            prefix, shared = kept
            self._prefixes.touch(prefix)
            return (prefix.state, prefix.tokens, shared) if shared * _WORTH >= prefix.tokens else None
        if other is None or shared * _WORTH < max(other.computed, 1):
            return None
        return self._saved(other), other.computed, shared

    def _cut(self, sequence: int, tokens: int, shared: int) -> bool:
        """Leave the first `shared` ids; false where the cache cannot: states of recurrent models cannot be cut."""
        first, last = self._cells.extent(sequence)
        if last + 1 != tokens:
            return False
        return shared == tokens or (first == 0 and self._cells.remove(sequence, shared))

    def _saved(self, task: Work) -> State | None:
        assert task.sequence is not None
        try:
            return self._cells.save(task.sequence)
        except MemoryError:
            return None

    def _close_ranks(self) -> None:
        """Move the stream in the highest place into the lowest free one, if that is lower."""
        if self._cells.shared or not self._left:
            return
        self._left = False
        streams = [task for task in self._tasks if isinstance(task, Stream) and task.sequence is not None]
        if not streams or not self._free:
            return
        last = max(streams, key=lambda task: task.sequence or 0)
        place = min(self._free)
        assert last.sequence is not None
        if last.sequence < place:
            return
        state = self._saved(last)
        if state is not None and self._cells.restore(place, state):
            self._empty(last.sequence)
            self._free.remove(place)
            last.sequence = place
        else:
            self._cells.remove(place)

    def _let_go(self) -> None:
        """Part with the tasks that are done or no longer wanted."""
        for task in [one for one in self._tasks if one.ended or one.outlet.cancelled]:
            self._tasks.remove(task)
            self._leaving.append(task)
            self._ends.append((task.outlet, None))

    def _keep(self, task: Work) -> None:
        assert task.sequence is not None
        if task.client is None or task.computed == 0:
            self._drop(task)
            return
        state = self._saved(task)
        if state is not None:
            self._prefixes.keep(Prefix(task.client, as_ids(task.ids[: task.computed]), state))
        self._drop(task)

    def _drop(self, task: Work) -> None:
        assert task.sequence is not None
        self._empty(task.sequence)
        task.sequence, task.computed = None, 0

    def _empty(self, sequence: int) -> None:
        self._cells.remove(sequence)
        self._free.add(sequence)
        self._left = True

    def _fail(self, task: Work, error: Exception) -> None:
        """The task alone has failed; nothing of what the cache holds of it is kept."""
        self._tasks.remove(task)
        self._drop(task)
        failed = error if isinstance(error, EngineFailed) else EngineFailed(f"{type(error).__name__}: {error}")
        failed.__cause__ = error
        self._ends.append((task.outlet, failed))
