"""The engine on real weights: what it generates it confirms, and no job harms another."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from ledger.records import Sampling
from node.engine.batch import Cells
from node.engine.llamacpp import LlamaEngine
from node.engine.port import BadPrompt, Engine, EngineBusy, EngineClosed, EngineFailed, Job, Piece, PromptTooLong, Rows
from node.models.gguf import NotGguf
from node.models.llama import build, quantize
from node.models.manifest import Manifest
from node.models.vocab import open_vocab
from node.models.weights import Run, State
from verify.replay import margins
from verify.sampler import SAMPLER
from verify.steering import Steering, count, steer


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


async def pieces(engine: Engine, job: Job) -> list[Piece]:
    return [piece async for piece in engine.generate(job)]


async def answer(engine: Engine, job: Job) -> list[int]:
    return await answer_of(engine.generate(job))


async def score(engine: Engine, prompt: Sequence[int], claimed: Sequence[int]) -> np.ndarray:
    return np.concatenate([rows async for rows in engine.score(prompt, claimed)])


async def test_it_says_what_it_is(engine: LlamaEngine, manifest: Manifest) -> None:
    port: Engine = engine
    assert port.manifest == manifest
    assert (port.fingerprint.build, port.fingerprint.kv) == (build(), "f16")
    assert port.fingerprint.sampler == SAMPLER
    assert (port.context, port.slots, port.free_slots()) == (2_048, 4, 4)


async def test_a_story_ends_with_its_end(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling, demo: Path
) -> None:
    ids = await answer(engine, Job(story, hot, 1, 200))
    assert ids[-1] in engine.eog
    assert not engine.eog & set(ids[:-1])
    vocab = open_vocab(demo)
    assert "fox" in b"".join(map(vocab.piece, ids)).decode()
    vocab.close()


async def test_weights_in_memory_outlive_a_file_that_is_cut_short(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling, demo: Path, manifest: Manifest, tmp_path: Path
) -> None:
    path = Path(shutil.copy(demo, tmp_path))
    loaded = await LlamaEngine.load(path, manifest, threads=1)
    os.truncate(path, 4_096)
    job = Job(story, hot, 1, 50)
    assert await answer(loaded, job) == await answer(engine, job)
    await loaded.close()


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
        assert engine.free_slots() == 3
    assert engine.free_slots() == 4
    assert await answer(engine, Job(story, endless, 1, 5))
    assert engine.free_slots() == 4


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
    assert engine.free_slots() == 4


async def test_a_full_line_is_refused_and_served_when_it_moves(
    story: tuple[int, ...], endless: Sampling, demo: Path, manifest: Manifest
) -> None:
    engine = await LlamaEngine.load(demo, manifest, threads=1, slots=1, waiting=2)
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
    await engine.close()


@pytest.mark.parametrize("temperature", [0, 1_000_000])
async def test_answers_computed_in_one_batch_are_those_computed_alone(
    engine: LlamaEngine, story: tuple[int, ...], temperature: int
) -> None:
    sampling = Sampling(temperature, top_p=950_000, min_p=0, top_k=40)
    # Each its own client: a prefix that is there already is another way to the same answer, for other tests.
    jobs = [Job((*story[:-1], 5 + seed, *story[-1:]), sampling, seed, 40, client=str(seed)) for seed in range(6)]
    together = await asyncio.gather(*(answer(engine, job) for job in jobs))
    for job, ids in zip(jobs, together, strict=True):
        one = await answer(engine, evolve(job, client=f"{job.client} alone"))
        if ids != one:  # another order of summation moved a logit: then by hardly anything
            rows = await score(engine, job.prompt, ids)
            assert margins(rows, np.array(ids), sampling, job.seed, job.start).max() < 0.3


async def test_a_prompt_known_from_before_is_not_computed_again_and_said_so(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling
) -> None:
    first = await pieces(engine, Job(story, hot, 1, 20, client="a"))
    ids = tuple(token for piece in first for token in piece.ids)
    on = Job((*story, *ids, *story), hot, 2, 20, client="a")
    second = await pieces(engine, on)
    assert (first[0].cached, second[0].cached) == (0, len(story) + len(ids) - 1)
    assert not any(piece.cached for piece in second[1:])
    fresh = await pieces(engine, evolve(on, client="b"))
    assert fresh[0].cached == 0
    claimed = [token for piece in second for token in piece.ids]
    rows = await score(engine, on.prompt, claimed)
    assert margins(rows, np.array(claimed), hot, 2, on.start).max() < 0.3


async def test_the_news_that_somebody_asked_the_same_reaches_nobody_else(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling
) -> None:
    for client in ("a", "b", ""):
        assert (await pieces(engine, Job(story, hot, 1, 5, client=client)))[0].cached == 0
        assert (await pieces(engine, Job(story, hot, 1, 5, client=client)))[0].cached == len(story) - 1


async def test_penalties_and_bias_move_the_answer_as_a_checker_moves_it(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling
) -> None:
    steering = Steering(frequency=2_000_000, presence=-300_000, bias=((5, 3_000_000), (261, -100_000_000)))
    job = Job(story, hot, 3, 60, steering=steering)
    ids = await answer(engine, job)
    rows = await score(engine, story, ids)
    steered = np.stack([steer(row, steering, count(ids[:place]), None) for place, row in enumerate(rows)])
    assert margins(steered, np.array(ids), hot, 3, len(story)).max() < 0.3
    assert ids != await answer(engine, Job(story, hot, 3, 60))
    rest = await answer(engine, evolve(job, prompt=(*story, *ids[:20]), earlier=20, max_tokens=40))
    assert [*ids[:20], *rest] == ids


async def test_a_grammar_holds_from_the_first_token_to_the_end_and_across_a_cut(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling, demo: Path
) -> None:
    steering = Steering(grammar='root ::= "yes, " [a-c]{20} "."')
    job = Job(story, hot, 1, 60, steering=steering)
    ids = await answer(engine, job)
    vocab = open_vocab(demo)
    text = b"".join(map(vocab.piece, ids)).decode()
    vocab.close()
    assert re.fullmatch(r"yes, [a-c]{20}\.", text)
    assert ids[-1] in engine.eog
    rest = await answer(engine, evolve(job, prompt=(*story, *ids[:4]), earlier=4))
    assert [*ids[:4], *rest] == ids


@pytest.mark.parametrize(
    ("grammar", "earlier", "reason"),
    [("root ::= other", (), "BadGrammar"), ('root ::= "a"', (0,), "ForbiddenToken")],
)
async def test_a_grammar_that_cannot_be_followed_fails_its_job_alone(
    engine: LlamaEngine, story: tuple[int, ...], hot: Sampling, grammar: str, earlier: tuple[int, ...], reason: str
) -> None:
    job = Job((*story, *earlier), hot, 1, 5, steering=Steering(grammar=grammar), earlier=len(earlier))
    with pytest.raises(EngineFailed, match=reason):
        await answer(engine, job)
    assert await answer(engine, Job(story, hot, 1, 5))


async def test_an_earlier_part_longer_than_the_prompt_is_refused(engine: LlamaEngine, hot: Sampling) -> None:
    with pytest.raises(BadPrompt):
        engine.generate(Job((5,), hot, 1, 1, earlier=2))


async def test_logprobs_are_those_of_the_logits(engine: LlamaEngine, story: tuple[int, ...], hot: Sampling) -> None:
    given = await pieces(engine, Job(story, hot, 1, 10, logprobs=3))
    ids = [token for piece in given for token in piece.ids]
    told = [one for piece in given for one in piece.logprobs]
    rows = (await score(engine, story, ids)).astype(np.float64)
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    assert [one.token for one in told] == ids
    for one, row in zip(told, expected, strict=True):
        assert one.logprob == pytest.approx(row[one.token], abs=0.1)
        assert [value for _, value in one.top] == pytest.approx(sorted(row)[:-4:-1], abs=0.1)
    assert not any(piece.logprobs for piece in await pieces(engine, Job(story, hot, 1, 10)))


class _Poisoned:
    """A KV cache whose logits for prompts that begin with `marked` are not numbers."""

    def __init__(self, cells: Cells, marked: int) -> None:
        self._cells, self._marked, self._sequences = cells, marked, set[int]()
        self.tokens, self.batch, self.sequences, self.rows = cells.tokens, cells.batch, cells.sequences, cells.rows
        self.shared, self.save, self.remove = cells.shared, cells.save, cells.remove
        self.extent, self.clear = cells.extent, cells.clear

    def restore(self, sequence: int, state: State) -> bool:
        self._sequences.discard(sequence)
        return self._cells.restore(sequence, state)

    def compute(self, runs: Sequence[Run]) -> Rows:
        logits, row = self._cells.compute(runs), 0
        for run in runs:
            if run.position == 0:
                self._sequences.discard(run.sequence)
                if run.ids[0] == self._marked:
                    self._sequences.add(run.sequence)
            if run.sequence in self._sequences:
                logits[row : row + run.wanted, 3] = np.nan
            row += run.wanted
        return logits


async def test_logits_that_are_no_numbers_fail_their_request_alone(
    story: tuple[int, ...], hot: Sampling, demo: Path, manifest: Manifest
) -> None:
    engine = await LlamaEngine.load(demo, manifest, threads=1, through=lambda cells: _Poisoned(cells, 77))
    jobs = [Job((first, *story), hot, 1, 30) for first in (5, 77, 6)]
    found = await asyncio.gather(*(answer(engine, job) for job in jobs), return_exceptions=True)
    assert isinstance(found[1], EngineFailed)
    assert [len(ids) for ids in (found[0], found[2]) if isinstance(ids, list)] == [30, 30]
    assert engine.free_slots() == 4
    await engine.close()


async def test_scores_come_beside_streams(engine: LlamaEngine, story: tuple[int, ...], hot: Sampling) -> None:
    claimed = await answer(engine, Job(story, hot, 3, 60))
    quiet = await score(engine, story, claimed)
    streams = asyncio.gather(*(answer(engine, Job(story, hot, seed, 100)) for seed in range(4)))
    busy = await score(engine, story, claimed)
    assert np.abs(quiet - busy).mean() < 0.02
    assert all(await streams)


async def test_vectors_of_inputs_have_length_one_and_lie_as_their_meanings_do(
    engine: LlamaEngine, demo: Path, hot: Sampling, story: tuple[int, ...]
) -> None:
    vocab = open_vocab(demo)
    texts = ("Tell me a story about a fox.", "Tell me a story about a small fox.", "What is idlemesh?")
    inputs = [vocab.tokenize(text, parse_special=False) for text in texts]
    vocab.close()
    alone = await engine.embed(inputs)
    assert alone.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, rtol=1e-5)
    assert alone[0] @ alone[1] > alone[0] @ alone[2]
    beside, ids, again = await asyncio.gather(
        engine.embed(inputs), answer(engine, Job(story, hot, 1, 40)), engine.embed(inputs[::-1])
    )
    assert ids
    np.testing.assert_allclose(beside, alone, atol=0.02)
    np.testing.assert_allclose(again[::-1], alone, atol=0.02)
    assert (await engine.embed([])).shape == (0, alone.shape[1])
    with pytest.raises(BadPrompt):
        await engine.embed([[1], []])
    with pytest.raises(PromptTooLong):
        await engine.embed([[1] * 2_049])


async def test_jobs_that_outgrow_the_cache_together_all_end(
    story: tuple[int, ...], endless: Sampling, demo: Path, manifest: Manifest
) -> None:
    engine = await LlamaEngine.load(demo, manifest, threads=1, context=512, cells=512)
    jobs = [Job(story, endless, seed, 400, client=str(seed)) for seed in range(3)]
    found = await asyncio.gather(*(answer(engine, job) for job in jobs))
    assert all(len(ids) == 400 or ids[-1] in engine.eog for ids in found)
    await engine.close()


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
