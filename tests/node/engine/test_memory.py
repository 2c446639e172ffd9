"""The engine without weights does all that an engine does."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from ledger.records import Sampling
from node.engine.memory import MemoryEngine, memory_manifest
from node.engine.port import (
    BadPrompt,
    Engine,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    Job,
    Piece,
    PromptTooLong,
)
from node.models.vocab import open_vocab
from verify.replay import margins
from verify.steering import Steering, count, steer

PROMPT = (1, 2, 3)


async def pieces(engine: Engine, job: Job) -> list[Piece]:
    return [piece async for piece in engine.generate(job)]


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


async def test_the_owners_job_begins_before_sold_ones(hot: Sampling) -> None:
    engine = MemoryEngine(slots=1, eog=frozenset())
    running = engine.generate(Job(PROMPT, hot, 1, 5, sold=True))
    await anext(running)
    ended: list[int] = []

    async def wait(seed: int, sold: bool) -> None:
        await answer(engine, Job(PROMPT, hot, seed, 3, sold=sold))
        ended.append(seed)

    waiting = [asyncio.create_task(wait(seed, seed != 4)) for seed in (2, 3, 4)]
    await asyncio.sleep(0)
    await running.aclose()
    await asyncio.gather(*waiting)
    assert ended == [4, 2, 3]


async def test_several_jobs_run_at_the_same_time(hot: Sampling) -> None:
    engine = MemoryEngine(slots=2, stall_after=1)
    running = [engine.generate(Job(PROMPT, hot, seed, 5)) for seed in (1, 2)]
    for one in running:
        await anext(one)
    assert engine.free_slots() == 0
    await running[0].aclose()
    assert engine.free_slots() == 1
    await running[1].aclose()


async def test_prefixes_are_counted_for_each_client_alone(hot: Sampling) -> None:
    engine = MemoryEngine(eog=frozenset())
    first = await pieces(engine, Job(PROMPT, hot, 1, 5, client="a"))
    ids = tuple(token for piece in first for token in piece.ids)
    again = await pieces(engine, Job((*PROMPT, *ids, 9), hot, 1, 5, client="a"))
    other = await pieces(engine, Job((*PROMPT, *ids, 9), hot, 1, 5, client="b"))
    assert [piece.cached for piece in again] == [len(PROMPT) + len(ids) - 1, 0, 0, 0, 0]
    assert (first[0].cached, other[0].cached) == (0, 0)


async def test_steering_moves_the_answer_as_a_checker_moves_it(hot: Sampling) -> None:
    engine = MemoryEngine(eog=frozenset())
    steering = Steering(frequency=2_000_000, bias=((5, 4_000_000),))
    job = Job(PROMPT, hot, 7, 60, steering=steering)
    ids = await answer(engine, job)
    rows = await score(engine, PROMPT, ids)
    steered = np.stack([steer(row, steering, count(ids[:place]), None) for place, row in enumerate(rows)])
    assert not margins(steered, np.array(ids), hot, 7, len(PROMPT)).any()
    assert ids != await answer(engine, Job(PROMPT, hot, 7, 60))
    assert ids[20:] == await answer(engine, evolve(job, prompt=(*PROMPT, *ids[:20]), earlier=20, max_tokens=40))


async def test_grammars_need_words(hot: Sampling, demo: Path) -> None:
    vocab = open_vocab(demo)
    speaking = MemoryEngine(vocabulary=vocab.size, words=vocab, eog=vocab.eog)
    job = Job(PROMPT, hot, 7, 60, steering=Steering(grammar='root ::= [a-c]{10} "."'))
    text = b"".join(map(vocab.piece, await answer(speaking, job))).decode()
    vocab.close()
    assert re.fullmatch(r"[a-c]{10}\.", text)
    with pytest.raises(EngineFailed):
        await answer(MemoryEngine(), job)


async def test_logprobs_are_told_when_asked_for(hot: Sampling) -> None:
    engine = MemoryEngine()
    given = await pieces(engine, Job(PROMPT, hot, 7, 5, logprobs=2))
    row = engine.logits(PROMPT).astype(np.float64)
    expected = row - np.log(np.exp(row).sum())
    told = given[0].logprobs[0]
    assert told.token == given[0].ids[0]
    assert told.logprob == pytest.approx(expected[told.token])
    assert [value for _, value in told.top] == pytest.approx(sorted(expected)[:-3:-1])


async def test_vectors_have_length_one_and_differ_by_what_they_stand_for() -> None:
    engine = MemoryEngine()
    vectors = await engine.embed([(1, 2, 3), (1, 2, 3), (4, 5)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)
    assert (vectors[0] == vectors[1]).all()
    assert (vectors[0] != vectors[2]).any()
    with pytest.raises(BadPrompt):
        await engine.embed([()])
