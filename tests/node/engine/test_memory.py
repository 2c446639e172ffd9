"""The engine without weights does all that an engine does."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import numpy as np
import pytest

from ledger.records import Sampling
from node.engine.memory import MemoryEngine, memory_manifest
from node.engine.port import (
    BadPrompt,
    Engine,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    Job,
    PromptTooLong,
)
from verify.replay import margins

PROMPT = (1, 2, 3)


async def answer(engine: Engine, job: Job) -> list[int]:
    return [token async for piece in engine.generate(job) for token in piece.ids]


async def score(engine: Engine, prompt: Sequence[int], claimed: Sequence[int]) -> np.ndarray:
    return np.concatenate([rows async for rows in engine.score(prompt, claimed)])


async def test_the_same_job_gives_the_same_answer_and_another_seed_another(hot: Sampling) -> None:
    engine = MemoryEngine()
    first = await answer(engine, Job(PROMPT, hot, 7, 50))
    assert await answer(MemoryEngine(), Job(PROMPT, hot, 7, 50)) == first
    assert await answer(engine, Job(PROMPT, hot, 8, 50)) != first
    await engine.close()


async def test_an_answer_ends_with_its_end_or_its_limit(hot: Sampling) -> None:
    endless = MemoryEngine(eog=frozenset())
    assert len(await answer(endless, Job(PROMPT, hot, 7, 50))) == 50
    ending = MemoryEngine(eog=frozenset(range(32)))
    ids = await answer(ending, Job(PROMPT, hot, 7, 50))
    assert [token < 32 for token in ids] == [False] * (len(ids) - 1) + [True]
    small = MemoryEngine(memory_manifest(context=10), eog=frozenset())
    assert len(await answer(small, Job(PROMPT, hot, 7, 50))) == 7


async def test_a_continued_answer_goes_on_as_if_never_interrupted(hot: Sampling) -> None:
    engine = MemoryEngine(eog=frozenset())
    whole = await answer(engine, Job(PROMPT, hot, 7, 20))
    rest = await answer(engine, Job((*PROMPT, *whole[:8]), hot, 7, 12))
    assert whole == whole[:8] + rest


async def test_an_answer_replays_without_margin_and_a_cheats_does_not(hot: Sampling) -> None:
    honest, cheat = MemoryEngine(), MemoryEngine(weights=1)
    for engine, zero in ((honest, True), (cheat, False)):
        ids = await answer(engine, Job(PROMPT, hot, 7, 150))
        logits = await score(honest, PROMPT, ids)
        measured = margins(logits, np.array(ids), hot, 7, len(PROMPT))
        assert logits.shape == (len(ids), 64)
        assert bool((measured == 0).all()) is zero


async def test_more_than_may_wait_are_refused_and_closing_makes_room(hot: Sampling) -> None:
    engine = MemoryEngine(waiting=1, stall_after=1)
    job = Job(PROMPT, hot, 7, 5)
    running = engine.generate(job)
    assert engine.free_slots() == 1
    await anext(running)
    assert engine.free_slots() == 0
    waiting = asyncio.create_task(answer(engine, job))
    await asyncio.sleep(0)
    with pytest.raises(EngineBusy):
        engine.generate(job)
    waiting.cancel()
    await asyncio.wait([waiting])
    await running.aclose()
    assert engine.free_slots() == 1
    async with aclosing(engine.generate(job)) as again:
        assert len((await anext(again)).ids) == 1


async def test_it_fails_when_told_to_and_works_on(hot: Sampling) -> None:
    engine = MemoryEngine(fail_after=3)
    running = engine.generate(Job(PROMPT, hot, 7, 9))
    assert [len((await anext(running)).ids) for _ in range(3)] == [1, 1, 1]
    with pytest.raises(EngineFailed):
        await anext(running)
    assert engine.free_slots() == 1


async def test_a_stalled_job_ends_when_the_engine_is_closed(hot: Sampling) -> None:
    engine = MemoryEngine(stall_after=1)
    running = engine.generate(Job(PROMPT, hot, 7, 9))
    await anext(running)
    stalled = asyncio.ensure_future(anext(running))
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(EngineClosed):
        await stalled
    with pytest.raises(EngineClosed):
        engine.generate(Job(PROMPT, hot, 7, 9))


async def test_prompts_it_cannot_take_are_refused_at_once(hot: Sampling) -> None:
    engine = MemoryEngine(memory_manifest(context=8))
    for prompt in ((), (64,), (-1,)):
        with pytest.raises(BadPrompt):
            engine.generate(Job(prompt, hot, 7, 1))
    with pytest.raises(PromptTooLong):
        engine.generate(Job((1,) * 8, hot, 7, 1))
    with pytest.raises(PromptTooLong):
        engine.score((1,) * 5, (1,) * 4)
