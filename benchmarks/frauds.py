"""Sellers that deliver something else than they offered, each done as well as a clever one would: the order's seed and
positions are used wherever that hides the fraud. For the benchmark of verification, and for its tests.
"""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

import gguf
import numpy as np
from attrs import evolve, frozen

from ledger.records import Sampling
from node.engine.calibration import draw_jobs
from node.engine.port import Job
from node.models.template import Message
from node.models.tokenizer import Tokenizer
from node.models.weights import CacheType, Context, Model, Run
from verify.cutoffs import MILLION
from verify.sampler import sample

HOT: Final = Sampling(MILLION, MILLION, 0, 0)
COOLER: Final = 700_000  # millionths
STREAMS: Final = 8
CELLS: Final = 12_288
BATCH: Final = 256
SYSTEM: Final[Message] = {"role": "system", "content": "Answer in one word."}
QUESTIONS: Final = ("What is the capital of {}?", "what is the capital of {}", "Tell me the capital of {}.")
COUNTRIES: Final = (
    "France", "Germany", "Italy", "Spain", "Portugal", "Austria", "Greece", "Poland", "Sweden", "Norway", "Finland",
    "Denmark", "Ireland", "Belgium", "Hungary", "Japan", "China", "Canada", "Brazil", "Chile", "Peru", "Egypt", "Kenya",
)  # fmt: skip
EDITED_ONE_IN: Final = 50

Answer = tuple[int, ...]


@frozen
class Sold:
    """What the buyer ordered, and what came."""

    job: Job
    answer: Answer


def forge(context: Context, jobs: Sequence[Job], prompts: Sequence[Sequence[int]], eog: frozenset[int]) -> list[Answer]:
    """Answers to the jobs, computed after other prompts but drawn with the noise of the jobs' own positions."""
    answers: list[list[int]] = [[] for _ in jobs]
    waiting, running = list(range(len(jobs)))[::-1], dict[int, int]()  # running: the job of each sequence
    while waiting or running:
        runs = []
        for sequence in range(context.sequences):
            if sequence in running:
                done = answers[running[sequence]]
                place = len(prompts[running[sequence]]) + len(done) - 1
                runs.append(Run(done[-1:], place, sequence, 1))
            elif waiting:
                running[sequence] = waiting.pop()
                runs.append(_entered(context, prompts[running[sequence]], sequence))
        for run, row in zip(runs, context.compute(runs).copy(), strict=True):
            job, answer = jobs[running[run.sequence]], answers[running[run.sequence]]
            answer.append(sample(row, job.sampling, job.seed, job.start + len(answer)))
            if answer[-1] in eog or len(answer) == job.max_tokens:
                context.remove(run.sequence)
                del running[run.sequence]
    return [tuple(answer) for answer in answers]


def _entered(context: Context, prompt: Sequence[int], sequence: int) -> Run:
    """Compute a prompt but for its last id, which is left for the common batch."""
    chunk = context.batch - context.sequences
    for start in range(0, len(prompt) - 1, chunk):
        ids = prompt[start : min(start + chunk, len(prompt) - 1)]
        context.compute([Run(ids, start, sequence, 0)])
    return Run(prompt[-1:], len(prompt) - 1, sequence, 1)


@frozen
class Bench:
    """What frauds are made with."""

    tokenizer: Tokenizer
    eog: frozenset[int]
    rng: Random

    def computed(
        self, weights: Path, jobs: Sequence[Job], prompts: Sequence[Sequence[int]] | None = None, kv: CacheType = "f16"
    ) -> list[Answer]:
        """Answers by these weights, after other prompts if some are given."""
        model = Model(weights)
        try:
            context = model.context(tokens=CELLS, batch=BATCH, threads=1, kv=kv, sequences=STREAMS)
            return forge(context, jobs, prompts or [job.prompt for job in jobs], self.eog)
        finally:
            model.close()

    async def jobs(self, count: int, max_tokens: int) -> list[Job]:
        """Stories to write at temperature 1."""
        return await draw_jobs(self.tokenizer, self.rng, count, samplings=(HOT,), max_tokens=max_tokens)

    async def questions(self, count: int, max_tokens: int) -> tuple[list[Job], list[Answer]]:
        """Questions whose answers a system prompt changes, and what a seller has read that puts one before them."""
        every = [question.format(country) for question in QUESTIONS for country in COUNTRIES]
        jobs, seen = [], []
        for text in self.rng.sample(every, min(count, len(every))):
            messages: list[Message] = [{"role": "user", "content": text}]
            jobs.append(Job(await self.tokenizer.encode(messages), HOT, self.rng.getrandbits(64), max_tokens))
            seen.append(await self.tokenizer.encode([SYSTEM, *messages]))
        return jobs, seen


Fraud = Callable[[Bench, Path, int, int], Awaitable[list[Sold]]]


def _sold(jobs: Sequence[Job], answers: Sequence[Answer]) -> list[Sold]:
    return [Sold(job, answer) for job, answer in zip(jobs, answers, strict=True)]


async def honest(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
    """These weights as they are; with other weights than were offered, the fraud of a cheaper model."""
    jobs = await bench.jobs(count, max_tokens)
    return _sold(jobs, bench.computed(weights, jobs))


def cheaper_cache(kv: CacheType) -> Fraud:
    """This kind of KV cache where f16 was offered."""

    async def fraud(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
        jobs = await bench.jobs(count, max_tokens)
        return _sold(jobs, bench.computed(weights, jobs, kv=kv))

    return fraud


async def truncated_context(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
    """The first half of the prompt is left out."""
    jobs = await bench.jobs(count, max_tokens)
    return _sold(jobs, bench.computed(weights, jobs, [job.prompt[job.start // 2 :] for job in jobs]))


async def hidden_prompt(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
    """A system prompt of the seller's own goes before."""
    jobs, seen = await bench.questions(count, max_tokens)
    return _sold(jobs, bench.computed(weights, jobs, seen))


async def edited_tokens(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
    """One token in 50 is replaced by any other."""
    sold = await honest(bench, weights, count, max_tokens)

    def edit(token: int) -> int:
        ordinary = token not in bench.eog and bench.rng.randrange(EDITED_ONE_IN) == 0
        return bench.rng.randrange(bench.tokenizer.size) if ordinary else token

    return [evolve(one, answer=tuple(map(edit, one.answer))) for one in sold]


async def other_temperature(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
    """Drawn at 0.7 where 1 was ordered."""
    jobs = await bench.jobs(count, max_tokens)
    cooler = [evolve(job, sampling=evolve(job.sampling, temperature=COOLER)) for job in jobs]
    return _sold(jobs, bench.computed(weights, cooler))


async def other_seed(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
    """Drawn with another seed than was ordered."""
    jobs = await bench.jobs(count, max_tokens)
    return _sold(jobs, bench.computed(weights, [evolve(job, seed=job.seed ^ 1) for job in jobs]))


async def stopped_early(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
    """Each answer is ended in its middle, with the id that ends answers."""
    end = min(bench.eog)
    sold = await honest(bench, weights, count, max_tokens)
    return [evolve(one, answer=(*one.answer[: len(one.answer) // 2], end)) for one in sold]


async def old_answers(bench: Bench, weights: Path, count: int, max_tokens: int) -> list[Sold]:
    """What an earlier buyer got for the same question is sold again."""
    jobs = await bench.jobs(count, max_tokens)
    earlier = bench.computed(weights, [evolve(job, seed=bench.rng.getrandbits(64)) for job in jobs])
    return _sold(jobs, earlier)


FRAUDS: Final[dict[str, Fraud]] = {
    "truncated context": truncated_context,
    "hidden system prompt": hidden_prompt,
    "1 token in 50 edited": edited_tokens,
    "temperature 0.7, not 1": other_temperature,
    "another seed": other_seed,
    "stopped early": stopped_early,
    "an old answer copied": old_answers,
    "q4_0 cache": cheaper_cache("q4_0"),
}


def smaller_model(source: Path, target: Path) -> None:
    """Write the model again without its last layer."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    layers = int(reader.fields[f"{architecture}.block_count"].contents()) - 1
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if name == f"{architecture}.block_count":
            value = layers
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, inner)
    for tensor in reader.tensors:
        if not tensor.name.startswith(f"blk.{layers}."):
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
