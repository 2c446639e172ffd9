"""Calibrations: made on real weights, counted, kept on disk, and found again."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from random import Random

import numpy as np
import pytest
import pytest_asyncio
from attrs import evolve

from ledger.records import Sampling
from node.demo.calibration import lend
from node.engine.calibration import (
    KV_TYPES,
    SAMPLINGS,
    SHIPPED,
    CalibrationFiles,
    Calibrator,
    Replayed,
    Table,
    TooSmall,
    Unlike,
    answers,
    draw_jobs,
    fingerprint,
    replay,
)
from node.engine.memory import MemoryEngine
from node.engine.port import Job
from node.models.manifest import manifest_of
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from tests.node.trading import DEMO
from verify.calibration import LONG, STRATA, BadCalibration, Calibration, Stratum, decode

MODEL = bytes(range(32))
F16, Q8 = map(fingerprint, KV_TYPES)
AVX2 = evolve(F16, backend="cpu-avx2")
PLAIN = Sampling(1_000_000, 1_000_000, 0, 0)


@pytest_asyncio.fixture
async def tokenizer(tmp_path: Path) -> AsyncIterator[Tokenizer]:
    renderer = TemplateRenderer()
    tokenizers = Tokenizers(tmp_path / "tokenizers", renderer)
    yield tokenizers.open_own(tokenizers.add_own(DEMO))
    await tokenizers.close()
    await renderer.close()


def counted(tokens: int) -> Calibration:
    return Calibration(F16, Q8, MODEL, {STRATA[0]: (tokens, *(0,) * 9)})


async def test_a_round_replays_honest_answers_by_both_kinds_of_cache(tokenizer: Tokenizer) -> None:
    calibrator = Calibrator(DEMO, manifest_of(DEMO), tokenizer, threads=1)
    rounds = calibrator.rounds(seed=5, size=4)

    found = await anext(rounds)
    await rounds.aclose()

    assert [(one.seller, one.checker) for one in found] == [(F16, F16)] * 4 + [(F16, Q8)] * 4
    assert [one.job for one in found[:4]] == [one.job for one in found[4:]]
    assert max(one.margins.max() for one in found) < 0.5
    assert np.mean(np.concatenate([one.margins for one in found]) > 0) < 0.05


async def test_a_server_of_another_model_is_not_calibrated(tokenizer: Tokenizer) -> None:
    other = MemoryEngine(vocabulary=tokenizer.size, eog=tokenizer.eog)
    calibrator = Calibrator(DEMO, manifest_of(DEMO), tokenizer, threads=1, remote=other)
    async with aclosing(calibrator.rounds(1, size=2)) as rounds:
        with pytest.raises(Unlike, match="another model answers"):
            await anext(rounds)


async def test_jobs_are_of_all_strata_and_fit_the_context(tokenizer: Tokenizer) -> None:
    jobs = await draw_jobs(tokenizer, Random(1), 9 * len(SAMPLINGS))
    assert {(job.sampling, job.start >= LONG) for job in jobs} == {(s, long) for s in SAMPLINGS for long in (0, 1)}
    small = await draw_jobs(tokenizer, Random(1), 3 * len(SAMPLINGS), context=256, max_tokens=100)
    assert max(job.start + job.max_tokens for job in small) <= 256


async def test_a_context_without_room_for_a_conversation_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TooSmall, match="128 tokens"):
        await draw_jobs(tokenizer, Random(1), 1, context=128)


async def test_a_replay_by_the_same_engine_has_no_margins_and_one_by_other_weights_has() -> None:
    engine, other = MemoryEngine(slots=3), MemoryEngine(weights=1)
    jobs = [Job((1, 2, 3), PLAIN, seed, 20) for seed in range(5)]
    made = await answers(engine, jobs)
    assert [(await replay(engine, *one)).any() for one in zip(jobs, made, strict=True)] == [False] * 5
    assert [(await replay(other, *one)).any() for one in zip(jobs, made, strict=True)] == [True] * 5


def test_tokens_are_counted_by_their_pair_and_by_what_stands_before_them() -> None:
    table = Table(MODEL)
    table.add(Replayed(F16, Q8, Job((0,) * (LONG - 2), PLAIN, 0, 4), np.array([0.0, 0.05, 0.0, 0.3])))
    table.add(Replayed(Q8, F16, Job((0,), PLAIN, 0, 1), np.zeros(1)))
    first, second = table.calibrations
    assert (first.seller, first.checker, first.model) == (F16, Q8, MODEL)
    short, long = (Stratum.of(PLAIN, long) for long in (False, True))
    assert first.counts == {short: (1, 0, 0, 1, *(0,) * 6), long: (1, 0, 0, 0, 0, 1, *(0,) * 4)}
    assert (second.seller, second.tokens, table.tokens({(F16, Q8), (Q8, F16)})) == (Q8, 1, 5)


def test_what_was_counted_before_is_counted_on() -> None:
    table = Table(MODEL, [counted(7), evolve(counted(9), seller=evolve(F16, build="another"))])
    table.add(Replayed(F16, Q8, Job((0,), evolve(PLAIN, temperature=0), 0, 1), np.zeros(1)))
    assert table.tokens({(F16, F16), (F16, Q8)}) == 8, "another machine's are kept, and are no progress here"
    assert len(table.calibrations) == 2


def test_files_are_found_by_model_and_pair_and_read_again_when_they_change(tmp_path: Path) -> None:
    files = CalibrationFiles(tmp_path / "new")
    assert files.find(MODEL, F16, Q8) is None
    files.save(MODEL, [counted(7)])
    assert files.find(MODEL, F16, Q8) == counted(7)
    assert files.find(MODEL, Q8, F16) is None
    assert files.find(bytes(32), F16, Q8) is None
    CalibrationFiles(tmp_path / "new").save(MODEL, [counted(8)])
    assert files.find(MODEL, F16, Q8) == counted(8)
    assert files.own(MODEL) == (counted(8),)


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    files = CalibrationFiles(tmp_path)
    files.save(MODEL, [counted(7)]).write_text("{")
    with pytest.raises(BadCalibration, match="delete the file"):
        files.find(MODEL, F16, Q8)


def test_a_calibration_of_the_demo_model_for_this_build_is_shipped(tmp_path: Path) -> None:
    model = manifest_of(DEMO).digest
    pairs = decode(SHIPPED.read_bytes())
    assert {one.model for one in pairs} == {model}
    files = CalibrationFiles(tmp_path)
    for seller in (AVX2, evolve(AVX2, kv="q8_0")):
        for checker in (AVX2, evolve(AVX2, kv="q8_0")):
            found = files.find(model, seller, checker)
            assert found is not None
            assert found.covers(Sampling(1_500_000, 1_000_000, 0, 0))
            # One step down shows about 400 in 100,000 over 0.4: it must weigh much more than honest work may show.
            assert found.bounds(PLAIN)[6] < 0.002


@pytest.mark.parametrize("other", ["cpu", "cpu-avx512", "cpu-neon", "cuda"])
def test_what_is_shipped_tells_of_no_other_instructions(other: str, tmp_path: Path) -> None:
    model, files = manifest_of(DEMO).digest, CalibrationFiles(tmp_path)
    for pair in ((evolve(AVX2, backend=other), AVX2), (AVX2, evolve(AVX2, backend=other))):
        assert files.find(model, *pair) is None


def test_on_another_cpu_what_is_shipped_is_lent_to_nodes_that_trade_with_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.demo.calibration.backend", lambda gpu_layers: "cpu-neon")
    model, files, neon = manifest_of(DEMO).digest, CalibrationFiles(tmp_path), evolve(AVX2, backend="cpu-neon")
    lend(files)
    lent, shipped = files.find(model, neon, neon), files.find(model, AVX2, AVX2)
    assert lent is not None
    assert shipped is not None
    assert lent.counts == shipped.counts
