"""The engine on real weights: what it generates it confirms, and no job harms another."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from ledger.records import Sampling
from node.engine.llamacpp import LlamaEngine
from node.engine.port import BadPrompt, Engine, EngineBusy, EngineClosed, EngineFailed, Job, Piece, PromptTooLong
from node.models.gguf import NotGguf
from node.models.llama import build, quantize
from node.models.manifest import Manifest
from node.models.vocab import open_vocab
from verify.replay import margins
from verify.sampler import SAMPLER


@pytest.fixture(scope="session")
def story(demo: Path) -> tuple[int, ...]:
    vocab = open_vocab(demo)
    ids = vocab.tokenize("<|user|>Tell me a story about a fox.<|assistant|>", parse_special=True)
    vocab.close()
    return tuple(ids)


@pytest.fixture
def endless() -> Sampling:
    """So hot that a story hardly ever ends: its job is still running when the test looks."""
    return Sampling(temperature=10_000_000, top_p=1_000_000, min_p=0, top_k=0)


async def answer_of(running: AsyncGenerator[Piece, None]) -> list[int]:
    return [token async for piece in running for token in piece.ids]


async def answer(engine: Engine, job: Job) -> list[int]:
    return await answer_of(engine.generate(job))


async def score(engine: Engine, prompt: Sequence[int], claimed: Sequence[int]) -> np.ndarray:
    return np.concatenate([rows async for rows in engine.score(prompt, claimed)])


async def test_it_says_what_it_is(engine: LlamaEngine, manifest: Manifest) -> None:
    port: Engine = engine
    assert port.manifest == manifest
    assert (port.fingerprint.build, port.fingerprint.kv) == (build(), "f16")
    assert port.fingerprint.sampler == SAMPLER
    assert (port.context, port.slots, port.free_slots()) == (2_048, 1, 1)


async def test_a_story_ends_with_its_end(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling, demo: Path
) -> None:
    ids = await answer(engine, Job(story, hot, 1, 200))
    assert ids[-1] in engine.eog
    assert not engine.eog & set(ids[:-1])
    vocab = open_vocab(demo)
    assert "fox" in b"".join(map(vocab.piece, ids)).decode()
    vocab.close()


async def test_seeds_decide_the_answer(engine: LlamaEngine, story: tuple[int, ...], hot: Sampling) -> None:
    first, again, other = [await answer(engine, Job(story, hot, seed, 200)) for seed in (1, 1, 2)]
    assert first == again
    assert first != other


async def test_what_was_generated_replays_with_hardly_a_margin_and_what_a_cheat_ran_does_not(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling, demo: Path, manifest: Manifest, tmp_path: Path
) -> None:
    worse = tmp_path / "q2.gguf"
    quantize(demo, worse, "Q2_K", threads=1)
    cheat = await LlamaEngine.load(worse, manifest, threads=1)
    over: dict[str, float] = {}
    for name, seller in (("honest", engine), ("cheat", cheat)):
        measured = []
        for seed in range(20):
            claimed = await answer(seller, Job(story, hot, seed, 200))
            logits = await score(engine, story, claimed)
            assert logits.shape == (len(claimed), 1_024)
            assert logits.dtype == np.float32
            measured.append(margins(logits, np.array(claimed), hot, seed, len(story)))
        over[name] = float((np.concatenate(measured) > 0.1).mean())
    await cheat.close()
    assert over["honest"] < 0.005
    assert over["cheat"] > 0.02


async def test_scores_do_not_depend_on_how_the_work_is_cut(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling, demo: Path, manifest: Manifest
) -> None:
    claimed = await answer(engine, Job(story, hot, 3, 60))
    small = await LlamaEngine.load(demo, manifest, threads=1, batch=7)
    whole, pieces = await score(engine, story, claimed), await score(small, story, claimed)
    await small.close()
    assert whole.shape == pieces.shape
    assert np.abs(whole - pieces).mean() < 0.02


async def test_a_continued_answer_goes_on_as_if_never_interrupted(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling
) -> None:
    whole = await answer(engine, Job(story, hot, 5, 200))
    rest = await answer(engine, Job((*story, *whole[:10]), hot, 5, 200))
    assert whole[:10] + rest == whole


async def test_closing_a_generator_frees_the_engine(
    engine: LlamaEngine, story: tuple[int, ...], endless: Sampling
) -> None:
    async with aclosing(engine.generate(Job(story, endless, 1, 2_000))) as running:
        await anext(running)
        assert engine.free_slots() == 0
    assert await answer(engine, Job(story, endless, 1, 5))
    assert engine.free_slots() == 1


async def test_cancelling_who_waits_for_an_answer_frees_the_engine(
    engine: LlamaEngine, story: tuple[int, ...], endless: Sampling
) -> None:
    async with aclosing(engine.generate(Job(story, endless, 1, 2_000))) as running:
        await anext(running)
        waiting = asyncio.create_task(answer(engine, Job(story, endless, 1, 2_000)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
    assert await answer(engine, Job(story, endless, 1, 1))
    assert engine.free_slots() == 1


async def test_a_full_line_is_refused_and_served_when_it_moves(
    engine: LlamaEngine, story: tuple[int, ...], endless: Sampling
) -> None:
    async with aclosing(engine.generate(Job(story * 100, endless, 1, 2_000))) as running:
        first = asyncio.ensure_future(anext(running))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(answer(engine, Job(story, endless, seed, 5))) for seed in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy) as caught:
            engine.generate(Job(story, endless, 1, 5))
        assert caught.value.retry_after >= 1
        await first
    assert all(await asyncio.gather(*waiting))


async def test_jobs_asked_for_at_once_do_not_mix(engine: LlamaEngine, story: tuple[int, ...], hot: Sampling) -> None:
    alone = [await answer(engine, Job(story, hot, seed, 30)) for seed in range(3)]
    together = await asyncio.gather(*(answer(engine, Job(story, hot, seed, 30)) for seed in range(3)))
    assert together == alone


async def test_answers_end_where_the_context_ends(
    story: tuple[int, ...], hot: Sampling, demo: Path, manifest: Manifest
) -> None:
    engine = await LlamaEngine.load(demo, manifest, threads=1, context=len(story) + 4)
    assert len(await answer(engine, Job(story, hot, 1, 200))) == 4
    with pytest.raises(PromptTooLong):
        engine.generate(Job((*story, 5, 5, 5, 5), hot, 1, 1))
    with pytest.raises(PromptTooLong):
        engine.score(story, (5,) * 5)
    assert (await score(engine, story, (5,) * 4)).shape == (4, 1_024)
    await engine.close()


async def test_prompts_it_cannot_take_are_refused_at_once(engine: LlamaEngine, hot: Sampling) -> None:
    for prompt in ((), (1_024,), (5, -1)):
        with pytest.raises(BadPrompt):
            engine.generate(Job(prompt, hot, 1, 1))
    with pytest.raises(BadPrompt):
        engine.score((5,), (1_024,))


async def test_a_job_that_fails_fails_alone(engine: LlamaEngine, story: tuple[int, ...], hot: Sampling) -> None:
    no_seed = 2**64
    with pytest.raises(EngineFailed, match="NotUnsigned64"):
        await answer(engine, Job(story, hot, no_seed, 5))
    assert await answer(engine, Job(story, hot, 1, 5))


async def test_nothing_claimed_is_nothing_to_score(engine: LlamaEngine) -> None:
    assert [rows async for rows in engine.score((5,), ())] == []


async def test_a_closed_engine_ends_its_jobs_and_takes_no_more(
    story: tuple[int, ...], endless: Sampling, demo: Path, manifest: Manifest
) -> None:
    engine = await LlamaEngine.load(demo, manifest, threads=1)
    running = engine.generate(Job(story, endless, 1, 2_000))
    await anext(running)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineClosed):
        await answer_of(running)
    with pytest.raises(EngineClosed):
        engine.generate(Job(story, endless, 1, 5))
    assert engine.free_slots() == 0


async def test_a_file_that_is_no_model_is_refused_before_anything_starts(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "garbage.gguf"
    path.write_bytes(bytes(1_000))
    with pytest.raises(NotGguf):
        await LlamaEngine.load(path, manifest)
