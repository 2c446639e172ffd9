"""Frauds with real weights, and honest work: what the auditor makes of either, with the calibration that is shipped."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio
from attrs import evolve

from benchmarks.frauds import FRAUDS, Bench, Sold, cheaper_cache, honest, smaller_model
from benchmarks.verification import demo_tokenizer
from ledger.identity import Identity
from ledger.journal import MemoryJournal
from ledger.records import Sampling, digest_of, sign
from node.demo.calibration import lend
from node.engine.calibration import SAMPLINGS, CalibrationFiles, draw_jobs, fingerprint
from node.engine.llamacpp import LlamaEngine
from node.exchange.auditor import Audit, Auditor
from node.exchange.book import Book
from node.exchange.delivery import Terms
from node.exchange.recollection import Recollection
from node.models.llama import quantize
from node.models.manifest import manifest_of
from node.models.weights import KvType
from node.ports import ManualClock
from tests.node.trading import DEMO, ScriptedSeller, draft_order

LONGEST = 100  # tokens of an answer
CONTEXT = 2_048
PORTION = 10  # answers made before they are checked: of most frauds the first few tell
# So many answers are more than enough, and take no more than some seconds.
ANSWERS = {
    "truncated context": 40,
    "hidden system prompt": 60,
    "1 token in 50 edited": 30,
    "temperature 0.7, not 1": 90,
    "another seed": 20,
    "stopped early": 30,
    "an old answer copied": 20,
    "q4_0 cache": 40,
    "Q4_K_M": 140,
    "Q3_K_M": 90,
    "Q2_K": 30,
}


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with demo_tokenizer() as tokenizer:
        yield Bench(tokenizer, tokenizer.eog, Random(31))


class Checker:
    """A node with the promised weights; the seller says that it runs them, too."""

    def __init__(self, engine: LlamaEngine, bench: Bench, folder: Path, clock: ManualClock, cache: KvType) -> None:
        identity = Identity((2).to_bytes(32, "little"))
        seller = ScriptedSeller(bench.tokenizer, clock, lambda _: ())
        said = evolve(seller.offer.record, model=engine.manifest.digest, engine=fingerprint(cache))
        self._offer = sign(said, seller.identity)
        self._clock, self._identity = clock, identity
        book = Book(MemoryJournal(identity.did), identity, clock, Recollection(identity.did))
        calibrations = CalibrationFiles(folder)
        lend(calibrations)
        self._auditor = Auditor(book, [engine], calibrations.find, lambda _: bench.tokenizer)
        self._numbers = count()

    async def audit(self, sold: Sold) -> Audit:
        """Check one answer."""
        job, number = sold.job, next(self._numbers)
        draft = draft_order(
            self._identity,
            self._offer,
            self._clock,
            nonce=number,
            prompt=job.prompt,
            max_tokens=job.max_tokens,
            sampling=job.sampling,
            seed=job.seed,
        )
        receipt = digest_of(number.to_bytes(4, "big"))
        return await self._auditor.audit(Terms(draft.order, self._offer, draft.request), receipt, sold.answer)

    async def condemns(self, sold: Sequence[Sold]) -> bool:
        """Whether it does after one of the answers, checked in turn."""
        for one in sold:
            if (await self.audit(one)).outcome == "dishonest":
                return True
        return False

    async def condemns_one_of(self, most: int, sell: Callable[[int], Awaitable[Sequence[Sold]]]) -> bool:
        """Whether it does after one of so many answers; `sell` makes a portion of them."""
        for made in range(0, most, PORTION):
            if await self.condemns(await sell(min(PORTION, most - made))):
                return True
        return False


@pytest_asyncio.fixture(params=["f16"])
async def checker(
    request: pytest.FixtureRequest, bench: Bench, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Checker]:
    """One whose own KV cache is the parameter; the seller's is f16."""
    engine = await LlamaEngine.load(DEMO, manifest_of(DEMO), context=CONTEXT, threads=1, slots=1, kv=request.param)
    yield Checker(engine, bench, tmp_path, clock, "f16")
    await engine.close()


@pytest.mark.parametrize("fraud", FRAUDS)
async def test_a_fraud_is_condemned(fraud: str, bench: Bench, checker: Checker) -> None:
    assert await checker.condemns_one_of(ANSWERS[fraud], lambda some: FRAUDS[fraud](bench, DEMO, some, LONGEST))


@pytest.mark.parametrize(
    ("run", "checker"), [("Q4_K_M", "f16"), ("Q3_K_M", "f16"), ("Q2_K", "q8_0")], indirect=["checker"]
)
async def test_a_lower_quantization_than_offered_is_condemned(
    run: str, bench: Bench, checker: Checker, tmp_path: Path
) -> None:
    cheap = tmp_path / "cheap.gguf"
    quantize(DEMO, cheap, run, threads=1)
    assert await checker.condemns_one_of(ANSWERS[run], lambda some: honest(bench, cheap, some, LONGEST))


async def test_a_smaller_model_than_offered_is_condemned(bench: Bench, checker: Checker, tmp_path: Path) -> None:
    smaller_model(DEMO, tmp_path / "small.gguf")
    assert await checker.condemns(await honest(bench, tmp_path / "small.gguf", 4, LONGEST))


@pytest.mark.timeout(900)
async def test_a_thousand_honest_receipts_of_mixed_lengths_and_temperatures_are_acquitted(
    bench: Bench, checker: Checker
) -> None:
    jobs = []
    for length in (1, 2, 4, 8, 12, 20, 40, LONGEST):
        # A long conversation takes as long to compute for one token as for a hundred: few short answers come after one.
        after_any = 126 if length >= 40 else 21
        for number, context in ((after_any, CONTEXT), (126 - after_any, 96)):
            jobs += await draw_jobs(
                bench.tokenizer, bench.rng, number, context=context, samplings=SAMPLINGS, max_tokens=length
            )
    answers = bench.computed(DEMO, jobs)

    found = [await checker.audit(Sold(*one)) for one in zip(jobs, answers, strict=True)]

    assert len(found) > 1_000
    assert {audit.outcome for audit in found} == {"honest"}
    assert not any(audit.abstained for audit in found)


async def test_a_cache_of_8_bits_alone_is_no_reason_to_condemn_in_a_few_answers(bench: Bench, checker: Checker) -> None:
    # It computes nearly the same: whoever must know needs ten thousands of tokens (see benchmarks.verification).
    assert not await checker.condemns(await cheaper_cache("q8_0")(bench, DEMO, 12, LONGEST))


async def test_a_seller_hotter_than_what_was_calibrated_is_not_judged(bench: Bench, checker: Checker) -> None:
    hot = Sampling(1_600_000, 1_000_000, 0, 0)
    (job,) = await draw_jobs(bench.tokenizer, bench.rng, 1, samplings=(hot,), max_tokens=8)
    audit = await checker.audit(Sold(job, (1, 2, 3)))
    assert audit.abstained
    assert "temperature" in audit.reason


async def test_a_model_that_nobody_calibrated_is_not_judged_and_the_reason_says_what_to_do(
    bench: Bench, tmp_path: Path, clock: ManualClock
) -> None:
    quantize(DEMO, tmp_path / "other.gguf", "Q4_K_M", threads=1)
    other = manifest_of(tmp_path / "other.gguf")
    engine = await LlamaEngine.load(tmp_path / "other.gguf", other, context=512, threads=1, slots=1)
    try:
        (job,) = await draw_jobs(bench.tokenizer, bench.rng, 1, max_tokens=8, context=512)
        audit = await Checker(engine, bench, tmp_path, clock, "f16").audit(Sold(job, (1, 2, 3)))
    finally:
        await engine.close()
    assert audit.abstained
    assert "run `idlemesh calibrate MODEL`" in audit.reason
