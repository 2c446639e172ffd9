"""The thread takes one job after another, and nothing one job does harms the next."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator

import pytest

from node.engine.port import EngineBusy, EngineClosed
from node.engine.thread import Work, WorkThread

Numbers = Generator[int | None, None, None]


def nothing() -> None:
    return None


@pytest.fixture
async def thread() -> AsyncIterator[WorkThread]:
    made = WorkThread("test", waiting=2)
    yield made
    await made.close(nothing)


def count_to(last: int) -> Callable[[], Numbers]:
    def steps() -> Numbers:
        for number in range(last):
            yield None
            yield number

    return steps


def blocked(gate: threading.Event) -> Callable[[], Numbers]:
    def steps() -> Numbers:
        yield 1
        gate.wait()
        yield 2

    return steps


async def all_of(work: Work[int]) -> list[int]:
    taken: list[int] = []
    while results := await work.take():
        taken += results
    return taken


async def test_results_come_in_order_and_pauses_do_not_come(thread: WorkThread) -> None:
    works = [Work(count_to(50)) for _ in range(2)]
    for work in works:
        thread.submit(work)
    assert [await all_of(work) for work in works] == [list(range(50))] * 2
    assert thread.idle()


async def test_an_error_is_the_jobs_own(thread: WorkThread) -> None:
    def fails() -> Numbers:
        yield 1
        raise ZeroDivisionError

    bad, good = Work(fails), Work(count_to(3))
    thread.submit(bad)
    thread.submit(good)
    with pytest.raises(ZeroDivisionError):
        await all_of(bad)
    assert await all_of(good) == [0, 1, 2]


async def test_more_than_may_wait_are_refused(thread: WorkThread) -> None:
    gate = threading.Event()
    works = [Work(blocked(gate)) for _ in range(3)]
    thread.submit(works[0])
    assert await works[0].take() == [1]
    thread.submit(works[1])
    thread.submit(works[2])
    with pytest.raises(EngineBusy) as caught:
        thread.submit(Work(count_to(1)))
    assert (caught.value.waiting, caught.value.retry_after >= 1) == (2, True)
    gate.set()
    assert [await all_of(work) for work in works] == [[2], [1, 2], [1, 2]]


async def test_a_job_withdrawn_from_the_line_makes_room_and_never_runs(thread: WorkThread) -> None:
    gate, began = threading.Event(), threading.Event()

    def tells() -> Numbers:
        began.set()
        yield 1

    running, waiting = Work(blocked(gate)), Work(tells)
    thread.submit(running)
    assert await running.take() == [1]
    thread.submit(waiting)
    thread.withdraw(waiting)
    gate.set()
    assert await all_of(running) == [2]
    assert thread.idle()
    assert not began.is_set()


async def test_a_running_job_ends_within_a_step_of_its_withdrawal(thread: WorkThread) -> None:
    steps_done: list[int] = []
    closed = threading.Event()

    def endless() -> Numbers:
        try:
            while True:
                steps_done.append(1)
                yield 1
        finally:
            closed.set()

    work = Work(endless)
    thread.submit(work)
    await work.take()
    thread.withdraw(work)
    before = len(steps_done)
    assert await asyncio.to_thread(closed.wait, 30)
    assert len(steps_done) <= before + 2


async def test_large_results_wait_until_they_are_taken(thread: WorkThread) -> None:
    made: list[int] = []

    def steps() -> Numbers:
        for number in range(10):
            made.append(number)
            yield number

    work = Work(steps, room=2)
    thread.submit(work)
    ahead = []
    taken: list[int] = []
    while results := await work.take():
        taken += results
        ahead.append(len(made) - len(taken))
    assert taken == list(range(10))
    assert max(ahead) <= 3


async def test_a_job_that_waits_for_room_can_be_withdrawn(thread: WorkThread) -> None:
    work = Work(count_to(10), room=1)
    thread.submit(work)
    await work.take()
    thread.withdraw(work)
    assert await thread.call(lambda: "next") == "next"


async def test_closing_ends_what_runs_and_what_waits_and_runs_the_last_function() -> None:
    thread = WorkThread("test", waiting=2)
    gate, last = threading.Event(), threading.Event()
    works = [Work(blocked(gate)), Work(count_to(1))]
    for work in works:
        thread.submit(work)
    assert await works[0].take() == [1]
    closing = asyncio.create_task(thread.close(last.set))
    for work in works:
        with pytest.raises(EngineClosed):
            await work.take()
    gate.set()
    await closing
    await thread.close(nothing)
    assert last.is_set()
    with pytest.raises(EngineClosed):
        thread.submit(Work(count_to(1)))
