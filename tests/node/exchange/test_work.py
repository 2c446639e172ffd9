"""Work that rests is the same work."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from attrs import evolve

from node.engine.memory import MemoryEngine
from node.engine.pool import Pool
from node.engine.port import EngineBusy, Job
from node.engine.turns import Pace
from node.exchange.work import NoSlotLeft, Work
from tests.node.trading import HOT, pooled, until
from verify.steering import Steering

PROMPT = (11, 12, 13)
NEVER = frozenset[int]()


def job(tokens: int) -> Job:
    return Job(PROMPT, HOT, 5, tokens, steering=Steering(200_000, 100_000))


async def done(work: Work, rests: frozenset[int] = frozenset()) -> list[int]:
    """All ids; it rests behind the numbers of them that are given."""
    ids: list[int] = []
    async with aclosing(work.pieces()) as pieces:
        async for piece in pieces:
            ids += piece.ids
            if len(ids) in rests:
                await work.aclose()
    return ids


@pytest.mark.parametrize("rests", [{1}, {1, 2, 3}, {39}, {40}, set(range(41))], ids=str)
async def test_the_ids_are_those_of_work_without_a_rest(rests: set[int]) -> None:
    engine = MemoryEngine(eog=NEVER)
    assert await done(Work(engine, job(40), NEVER), frozenset(rests)) == await done(Work(engine, job(40), NEVER))
    assert engine.free_slots() == 1


async def test_of_a_continued_answer_the_earlier_part_counts_as_before() -> None:
    engine = MemoryEngine(eog=NEVER)
    whole = await done(Work(engine, job(40), NEVER))
    earlier = Job((*PROMPT, *whole[:10]), HOT, 5, 30, steering=job(1).steering, earlier=10)
    assert await done(Work(engine, earlier, NEVER), frozenset({5})) == whole[10:]


async def test_it_does_not_go_on_behind_the_end_of_the_answer() -> None:
    whole = await done(Work(MemoryEngine(eog=NEVER), job(40), NEVER))
    end = frozenset({whole[20]})
    first = whole.index(whole[20]) + 1
    assert await done(Work(MemoryEngine(eog=end), job(40), end), frozenset({first})) == whole[:first]


async def test_a_rest_gives_the_slot_back_and_it_is_asked_for_again_until_it_is_free() -> None:
    engine = MemoryEngine(eog=NEVER, slots=1, waiting=0)
    work = Work(engine, job(40), NEVER)
    pieces = work.pieces()
    await anext(pieces)
    await work.aclose()
    assert engine.free_slots() == 1
    other = engine.generate(job(10))
    await anext(other)
    following = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0.05)
    assert not following.done()
    await other.aclose()
    assert (await following).ids
    await pieces.aclose()
    await until(lambda: engine.free_slots() == 1)


async def test_work_whose_model_was_dropped_while_it_rested_gets_it_back_in_its_turn(tmp_path: Path) -> None:
    pool = Pool(100, pace=Pace(after=0, residence=0.05, pause=0))
    engine = pooled(pool, tmp_path, "mine", lambda: MemoryEngine(eog=NEVER))
    other = pooled(pool, tmp_path, "other", lambda: MemoryEngine(eog=NEVER))
    work = Work(engine, job(40), NEVER, engine.miss)
    pieces = work.pieces()
    ids = list((await anext(pieces)).ids)
    await work.aclose()
    running = other.generate(evolve(job(30), sold=True))
    await anext(running)
    following = asyncio.ensure_future(anext(pieces))
    await until(lambda: not other.free_slots() and engine.state == "on disk")
    late = asyncio.ensure_future(anext(other.generate(evolve(job(30), sold=True))))
    await running.aclose()
    ids += (await following).ids
    ids += [token async for piece in pieces for token in piece.ids]
    assert (await late).ids
    await pool.close()
    assert ids == await done(Work(MemoryEngine(eog=NEVER), job(40), NEVER))


async def test_work_that_finds_no_slot_after_a_rest_says_so() -> None:
    engine = MemoryEngine(eog=NEVER, slots=1)
    work = Work(engine, job(40), NEVER)
    pieces = work.pieces()
    await anext(pieces)
    await work.aclose()
    work.patience_s = 0.05
    other = engine.generate(job(10))
    await anext(other)
    with pytest.raises(NoSlotLeft, match="elsewhere"):
        await anext(pieces)
    await other.aclose()


async def test_work_that_has_not_begun_is_refused_at_once_where_there_is_no_slot() -> None:
    engine = MemoryEngine(eog=NEVER, slots=1, waiting=0)
    other = engine.generate(job(10))
    await anext(other)
    with pytest.raises(EngineBusy):
        await anext(Work(engine, job(40), NEVER).pieces())
    await other.aclose()
