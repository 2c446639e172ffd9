"""The thread and its line: who begins when, and what the owners of jobs see of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from ledger.records import Sampling
from node.engine.batch import Batcher
from node.engine.outlet import Outlet
from node.engine.port import EngineBusy, EngineClosed, EngineFailed, Job, Piece, Rows
from node.engine.tasks import Replay, Stream
from node.engine.thread import EngineThread
from node.models.weights import Run
from tests.node.engine.hashed_cells import HashedCells, answer_alone

HOT = Sampling(temperature=1_000_000, top_p=1_000_000, min_p=0, top_k=0)
ENDLESS: frozenset[int] = frozenset()
CONTEXT = 5_000


class GatedCells(HashedCells):
    """Cells that compute only while the gate is open."""

    def __init__(self) -> None:
        super().__init__(20_000, batch=64, sequences=8, rows=8)
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def compute(self, runs: Sequence[Run]) -> Rows:
        self.gate.wait(30)
        if self.broken:
            raise ZeroDivisionError
        return super().compute(runs)


@pytest.fixture
def cells() -> GatedCells:
    return GatedCells()


@pytest.fixture
async def thread(cells: GatedCells) -> AsyncIterator[EngineThread]:
    made = EngineThread("test", slots=2, waiting=3)
    await made.call(lambda: made.serve(Batcher(cells, ENDLESS, kept=1_000)))
    yield made
    cells.gate.set()
    await made.close(nothing)


def nothing() -> None:
    return None


def job(first: int, *, tokens: int = 5, sold: bool = False) -> Job:
    return Job((first, 2, 3), HOT, 7, tokens, sold=sold)


def stream_of(thread: EngineThread, asked: Job) -> Stream:
    outlet: Outlet[Piece] = Outlet(256, thread.changed)
    return Stream(asked, outlet, CONTEXT)


def submitted(thread: EngineThread, asked: Job) -> Stream:
    stream = stream_of(thread, asked)
    thread.submit(stream)
    return stream


async def ids_of(stream: Stream) -> list[int]:
    ids: list[int] = []
    while pieces := await stream.outlet.take():
        ids += [token for piece in pieces for token in piece.ids]
    return ids


def alone(asked: Job) -> list[int]:
    return answer_alone(asked.prompt, asked.sampling, asked.seed, asked.max_tokens, ENDLESS)


async def test_jobs_at_once_are_answered_as_alone(thread: EngineThread) -> None:
    jobs = [job(first) for first in range(1, 6)]
    streams = [submitted(thread, asked) for asked in jobs]
    assert [await ids_of(stream) for stream in streams] == [alone(asked) for asked in jobs]
    assert thread.free_slots() == 2


async def test_free_slots_are_counted_as_jobs_come_and_go(thread: EngineThread) -> None:
    streams = [submitted(thread, job(first, tokens=4_000)) for first in (1, 2)]
    assert thread.free_slots() == 0
    await streams[0].outlet.take()
    thread.withdraw(streams[0])
    assert thread.free_slots() == 1
    thread.withdraw(streams[1])
    assert thread.free_slots() == 2


async def test_more_than_may_wait_are_refused_with_an_estimate(thread: EngineThread, cells: GatedCells) -> None:
    cells.gate.clear()
    streams = [submitted(thread, job(first)) for first in (1, 2, 3, 4, 5)]
    with pytest.raises(EngineBusy) as caught:
        thread.submit(stream_of(thread, job(6)))
    assert caught.value.retry_after >= 1
    thread.withdraw(streams[4])
    streams[4] = submitted(thread, job(6))
    cells.gate.set()
    assert [await ids_of(stream) for stream in streams] == [alone(job(first)) for first in (1, 2, 3, 4, 6)]


async def test_a_thousand_at_once_leave_no_more_than_may_wait(thread: EngineThread, cells: GatedCells) -> None:
    cells.gate.clear()
    taken: list[Stream] = []
    refused = 0
    for number in range(1_000):
        try:
            taken.append(submitted(thread, job(1 + number % 9)))
        except EngineBusy:
            refused += 1
    assert (len(taken), refused) == (5, 995)
    cells.gate.set()
    assert [len(await ids_of(stream)) for stream in taken] == [5] * 5


async def test_the_owners_jobs_begin_before_sold_ones(thread: EngineThread, cells: GatedCells) -> None:
    cells.gate.clear()
    running = [submitted(thread, job(first, sold=True)) for first in (1, 2)]
    waiting = [submitted(thread, job(first, sold=first != 5)) for first in (3, 4, 5)]
    cells.gate.set()
    await asyncio.gather(*(ids_of(stream) for stream in running + waiting))
    first = [run.ids[0] for batch in cells.batches for run in batch if run.position == 0]
    assert set(first) == {1, 2, 3, 4, 5}
    assert [number for number in first if number in (3, 4, 5)] == [5, 3, 4]


async def test_a_job_withdrawn_from_the_line_never_runs(thread: EngineThread, cells: GatedCells) -> None:
    cells.gate.clear()
    streams = [submitted(thread, job(first)) for first in (1, 2, 3)]
    thread.withdraw(streams[2])
    cells.gate.set()
    await asyncio.gather(*(ids_of(stream) for stream in streams[:2]))
    assert {run.ids[0] for batch in cells.batches for run in batch if run.position == 0} == {1, 2}


async def test_a_reader_who_stops_stops_only_his_stream(thread: EngineThread) -> None:
    slow, quick = submitted(thread, job(1, tokens=600)), submitted(thread, job(2, tokens=600))
    assert len(await ids_of(quick)) == 600
    assert len(slow.outlet.drain()) == 256
    assert await ids_of(slow) == alone(job(1, tokens=600))[256:]


async def test_replays_take_no_slot_and_wait_for_their_reader(thread: EngineThread, cells: GatedCells) -> None:
    outlet: Outlet[Rows] = Outlet(2, thread.changed)
    replay = Replay([1] * 400, 0, outlet)
    thread.submit(replay)
    assert thread.free_slots() == 2
    streams = [submitted(thread, job(first)) for first in (1, 2)]
    assert [await ids_of(stream) for stream in streams] == [alone(job(1)), alone(job(2))]
    rows = 0
    while blocks := await outlet.take():
        assert len(blocks) <= 2
        rows += sum(len(block) for block in blocks)
    assert rows == 400


async def test_an_error_in_a_call_is_its_own(thread: EngineThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda: 1 // 0)
    assert await thread.call(lambda: "next") == "next"


async def test_a_surprise_in_a_step_fails_what_ran_and_nothing_else(thread: EngineThread, cells: GatedCells) -> None:
    cells.gate.clear()
    stream = submitted(thread, job(1, tokens=4_000))
    cells.broken = True
    cells.gate.set()
    with pytest.raises(EngineFailed, match="ZeroDivisionError"):
        await ids_of(stream)
    cells.broken = False
    assert await ids_of(submitted(thread, job(2))) == alone(job(2))


async def test_closing_ends_what_runs_and_what_waits_and_runs_the_last_function(cells: GatedCells) -> None:
    thread = EngineThread("test", slots=1, waiting=2)
    await thread.call(lambda: thread.serve(Batcher(cells, ENDLESS, kept=1_000)))
    streams = [submitted(thread, job(first, tokens=4_000)) for first in (1, 2)]
    await streams[0].outlet.take()
    last = threading.Event()
    await thread.close(last.set)
    await thread.close(nothing)
    for stream in streams:
        with pytest.raises(EngineClosed):
            await ids_of(stream)
    assert last.is_set()
    assert thread.free_slots() == 0
    with pytest.raises(EngineClosed):
        thread.submit(stream_of(thread, job(3)))
    with pytest.raises(EngineClosed):
        await thread.call(nothing)
