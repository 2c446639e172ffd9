"""Models are loaded when used and dropped by last use, never while a job runs, and never beyond the memory allowed."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ledger.records import Sampling
from node.engine.memory import FINGERPRINT, MemoryEngine, memory_manifest
from node.engine.pool import Pool, PooledEngine
from node.engine.port import BadPrompt, Engine, EngineBusy, EngineClosed, Job, PromptTooLong
from node.engine.stock import DoesNotFit, LoadFailed, ModelChanged, NoRoom, Stock
from node.engine.turns import Pace
from node.models.gguf import BadModelFile
from node.models.known import FileIdentity

T = TypeVar("T")
# Nobody makes room, and nothing stays longer than it is used.
STILL = Pace(after=1e9, residence=0)
# Room is made at once; a model stays until who waited for it has begun, and longer than a test takes a step.
BRISK = Pace(after=0, residence=0.3, pause=0)
HOT = Sampling(temperature=1_000_000, top_p=1_000_000, min_p=0, top_k=0)


@define(eq=False)
class Shelf:
    """Models in a folder, each a file of its own, and what was loaded of them."""

    folder: Path
    pool: Pool
    engines: dict[int, PooledEngine] = field(factory=dict)
    loaded: dict[int, list[MemoryEngine]] = field(factory=dict)
    failures: dict[int, Exception] = field(factory=dict)
    gate: asyncio.Event = field(factory=asyncio.Event)
    at_gate: asyncio.Event = field(factory=asyncio.Event)

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.gguf"

    def add(self, number: int, size: int, **settings: Any) -> PooledEngine:
        """One more model that takes `size` bytes; its weights are `number`."""
        self.path(number).write_bytes(bytes([number]))
        manifest = evolve(memory_manifest(number), tokenizer=sha256(bytes([number])).digest())

        async def load() -> Engine:
            self.at_gate.set()
            await self.gate.wait()
            if number in self.failures:
                raise self.failures[number]
            engine = MemoryEngine(manifest, weights=number, **settings)
            self.loaded.setdefault(number, []).append(engine)
            return engine

        self.engines[number] = self.pool.add(
            Stock(
                name=f"model {number}",
                path=self.path(number),
                identity=FileIdentity.of(self.path(number)),
                manifest=manifest,
                fingerprint=FINGERPRINT,
                context=2_048,
                slots=settings.get("slots", 1),
                bytes=size,
                load=load,
            )
        )
        return self.engines[number]

    def loads(self, number: int) -> int:
        return len(self.loaded.get(number, []))


@pytest.fixture
async def shelf(tmp_path: Path) -> Any:
    made = Shelf(tmp_path, Pool(100, patience_s=0.05, pace=STILL))
    made.gate.set()
    yield made
    await made.pool.close()


def job(tokens: int = 5, sold: bool = False) -> Job:
    return Job((1, 2, 3), HOT, 1, tokens, sold=sold)


async def answer(engine: Engine, tokens: int = 5, sold: bool = False) -> list[int]:
    async with contextlib.aclosing(engine.generate(job(tokens, sold))) as pieces:
        return [token async for piece in pieces for token in piece.ids]


@contextlib.asynccontextmanager
async def at_work(engine: Engine) -> Any:
    """A job that has begun and does not end by itself."""
    async with contextlib.aclosing(engine.generate(job(1_000))) as pieces:
        await anext(pieces)
        yield pieces


async def test_a_model_is_loaded_at_its_first_use_and_answers_as_its_engine(shelf: Shelf) -> None:
    engine = shelf.add(1, 40)
    assert (engine.state, engine.free_slots(), shelf.pool.taken) == ("on disk", 1, 0)
    assert await answer(engine) == await answer(MemoryEngine(engine.manifest, weights=1))
    assert (engine.state, shelf.pool.taken, shelf.loads(1)) == ("loaded", 40, 1)
    await answer(engine)
    assert shelf.loads(1) == 1


async def test_an_answer_is_scored_by_the_model_that_gave_it(shelf: Shelf) -> None:
    engine = shelf.add(1, 40)
    rows = [block async for block in engine.score((1, 2), (3, 4))]
    assert sum(len(block) for block in rows) == 2


async def test_the_idle_model_that_was_used_longest_ago_is_dropped(shelf: Shelf) -> None:
    first, second, third = (shelf.add(number, 50) for number in (1, 2, 3))
    await answer(first)
    await answer(second)
    await answer(first)
    await answer(third)
    assert [engine.state for engine in (first, second, third)] == ["loaded", "on disk", "loaded"]
    with pytest.raises(EngineClosed):
        await answer(shelf.loaded[2][0])
    await answer(second)
    assert [engine.state for engine in (first, second, third)] == ["on disk", "loaded", "loaded"]


async def test_as_many_are_dropped_as_need_be(shelf: Shelf) -> None:
    first, second, large = shelf.add(1, 30), shelf.add(2, 30), shelf.add(3, 100)
    await answer(first)
    await answer(second)
    await answer(large)
    assert [engine.state for engine in (first, second, large)] == ["on disk", "on disk", "loaded"]
    assert shelf.pool.taken == 100


async def test_a_model_at_work_is_not_dropped_and_who_needs_its_room_hears_when_to_come_again(shelf: Shelf) -> None:
    first, second = shelf.add(1, 60), shelf.add(2, 60)
    async with at_work(first) as pieces:
        assert second.free_slots() == 0
        with pytest.raises(NoRoom, match="memory") as error:
            await answer(second)
        assert error.value.retry_after > 0
        assert await anext(pieces)
    assert second.free_slots() == 1
    assert await answer(second)


async def test_who_waits_for_room_is_served_when_there_is_some(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, Pool(100, patience_s=30, pace=STILL))
    shelf.gate.set()
    first, second = shelf.add(1, 60), shelf.add(2, 60)
    async with at_work(first):
        waiting = asyncio.create_task(answer(second))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting
    await shelf.pool.close()


async def test_all_who_ask_at_the_same_time_for_models_that_do_not_fit_together_are_served(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, Pool(100, patience_s=30, pace=STILL))
    shelf.gate.set()
    engines = [shelf.add(number, 60, slots=9) for number in (1, 2, 3)]
    answers = await asyncio.gather(*(answer(engine) for engine in engines * 3))
    assert answers[:3] == answers[3:6] == answers[6:]
    assert all(shelf.loads(number) == 1 for number in (1, 2, 3))
    await shelf.pool.close()


async def test_a_job_that_was_never_begun_keeps_nothing_in_memory(shelf: Shelf) -> None:
    first, second = shelf.add(1, 60), shelf.add(2, 60)
    await answer(first)
    first.generate(job())
    assert await answer(second)


async def test_all_who_come_while_it_is_loaded_share_the_loading(shelf: Shelf) -> None:
    shelf.gate.clear()
    engine = shelf.add(1, 40, slots=3)
    asking = [asyncio.create_task(answer(engine)) for _ in range(3)]
    await shelf.at_gate.wait()
    assert (engine.state, engine.free_slots()) == ("loading", 0)
    shelf.gate.set()
    answers = await asyncio.gather(*asking)
    assert answers[0] == answers[1] == answers[2]
    assert shelf.loads(1) == 1


async def test_who_goes_away_while_it_is_loaded_takes_it_from_nobody(shelf: Shelf) -> None:
    shelf.gate.clear()
    engine = shelf.add(1, 40)
    leaving, staying = (asyncio.create_task(answer(engine)) for _ in range(2))
    await shelf.at_gate.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    shelf.gate.set()
    assert await staying
    assert shelf.loads(1) == 1


async def test_models_are_loaded_one_at_a_time(shelf: Shelf) -> None:
    shelf.gate.clear()
    first, second = shelf.add(1, 40), shelf.add(2, 40)
    asking = [asyncio.create_task(answer(engine)) for engine in (first, second)]
    await shelf.at_gate.wait()
    assert sorted(engine.state for engine in (first, second)) == ["loading", "on disk"]
    shelf.gate.set()
    with contextlib.suppress(NoRoom):
        await asyncio.gather(*asking)


async def test_a_failed_loading_fails_who_waited_for_it_and_is_tried_again(shelf: Shelf) -> None:
    engine, other = shelf.add(1, 40), shelf.add(2, 40)
    shelf.failures[1] = BadModelFile("1.gguf", "it is broken", "Download it again.")
    for _ in range(2):
        with pytest.raises(LoadFailed, match="Download it again") as error:
            await answer(engine)
        assert isinstance(error.value.__cause__, BadModelFile)
    assert await answer(other)
    del shelf.failures[1]
    assert await answer(engine)


async def test_no_more_wait_than_may(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, Pool(100, max_waiting=2))
    engine = shelf.add(1, 40, slots=3)
    asking = [asyncio.create_task(answer(engine)) for _ in range(2)]
    await shelf.at_gate.wait()
    with pytest.raises(EngineBusy):
        await answer(engine)
    shelf.gate.set()
    await asyncio.gather(*asking)
    await shelf.pool.close()


def test_a_model_that_never_fits_is_refused_with_advice(tmp_path: Path) -> None:
    async def add() -> None:
        shelf = Shelf(tmp_path, Pool(100 * 2**20))
        with pytest.raises(DoesNotFit, match=r"needs about 101 MiB .* 100 MiB: allow more with \[node\] memory"):
            shelf.add(1, 101 * 2**20)

    asyncio.run(add())


async def test_a_model_counts_with_what_its_loading_was_measured_to_take(tmp_path: Path) -> None:
    used = 0

    def now() -> int:
        return used

    shelf = Shelf(tmp_path, Pool(100, used=now, pace=STILL))
    engine, other = shelf.add(1, 40), shelf.add(2, 40)
    asking = asyncio.create_task(answer(engine))
    await shelf.at_gate.wait()
    used = 70
    shelf.gate.set()
    await asking
    assert shelf.pool.taken == 70
    await answer(other)
    assert (engine.state, shelf.pool.taken) == ("on disk", 40)
    await shelf.pool.close()


@pytest.mark.parametrize(
    ("prompt", "error"), [((), BadPrompt), ((1,) * 2_048, PromptTooLong)], ids=["empty", "too long"]
)
async def test_what_cannot_be_answered_loads_nothing(shelf: Shelf, prompt: tuple[int, ...], error: type) -> None:
    engine = shelf.add(1, 40)
    with pytest.raises(error):
        engine.generate(evolve(job(), prompt=prompt))
    with pytest.raises(error):
        engine.score(prompt, (1,))
    assert engine.state == "on disk"


async def test_a_closed_pool_ends_all_jobs_and_takes_no_more(shelf: Shelf) -> None:
    engine = shelf.add(1, 40)
    async with at_work(engine) as pieces:
        await engine.close()
        with pytest.raises(EngineClosed):
            await anext(pieces)
    with pytest.raises(EngineClosed):
        await answer(engine)
    assert (engine.free_slots(), shelf.pool.taken) == (0, 0)


async def test_closing_while_a_model_is_loaded_frees_it(shelf: Shelf) -> None:
    shelf.gate.clear()
    engine = shelf.add(1, 40)
    asking = asyncio.create_task(answer(engine))
    await shelf.at_gate.wait()
    closing = asyncio.create_task(shelf.pool.close())
    await asyncio.sleep(0)
    shelf.gate.set()
    await closing
    with pytest.raises(EngineClosed):
        await asking
    with pytest.raises(EngineClosed):
        await answer(shelf.loaded[1][0])


# Turns, where models do not fit side by side


@contextlib.asynccontextmanager
async def brisk(folder: Path, pace: Pace = BRISK) -> Any:
    shelf = Shelf(folder, Pool(100, patience_s=30, pace=pace))
    shelf.gate.set()
    yield shelf
    await shelf.pool.close()


@contextlib.asynccontextmanager
async def in_constant_use(engine: Engine, sold: bool = False) -> Any:
    """Answers that overlap, so that the engine is never idle, while the context lasts; how many there were."""
    answered: list[int] = []

    async def client() -> None:
        while True:
            await answer(engine, sold=sold)
            answered.append(1)

    clients = [asyncio.create_task(client()) for _ in range(3)]
    while len(answered) < 6:  # noqa: ASYNC110
        await asyncio.sleep(0)
    yield answered
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


async def goes_on(answered: list[int]) -> None:
    before = len(answered)
    while len(answered) < before + 6:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_a_model_in_constant_use_makes_room_for_one_that_waits_and_gets_its_turn_again(tmp_path: Path) -> None:
    async with brisk(tmp_path) as shelf:
        busy, other = shelf.add(1, 60, slots=3), shelf.add(2, 60)
        async with in_constant_use(busy) as answered:
            for _ in range(2):
                assert await answer(other)
                await goes_on(answered)
        assert shelf.loads(2) == 2


async def test_of_two_models_in_constant_use_both_answer_again_and_again(tmp_path: Path) -> None:
    async with brisk(tmp_path) as shelf:
        first, second = shelf.add(1, 60, slots=3), shelf.add(2, 60, slots=3)
        async with in_constant_use(first) as ones, in_constant_use(second) as others:
            for _ in range(2):
                await goes_on(ones)
                await goes_on(others)


async def test_what_a_model_has_at_hand_is_finished_before_it_makes_room(tmp_path: Path) -> None:
    async with brisk(tmp_path, Pace(after=0, residence=0.05, pause=0)) as shelf:
        busy, other = shelf.add(1, 60, slots=2, eog=frozenset()), shelf.add(2, 60)
        async with at_work(busy) as pieces:
            waiting = asyncio.create_task(answer(other))
            while busy.free_slots():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            late = asyncio.create_task(answer(busy))
            for _ in range(20):
                assert await anext(pieces)
            assert not waiting.done()
            assert not late.done()
        assert await waiting
        assert await late == await answer(MemoryEngine(busy.manifest, weights=1, eog=frozenset()))


async def test_who_was_told_to_come_again_finds_its_turn_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, Pool(100, patience_s=0.02, pace=Pace(after=0.03, residence=0.05, pause=0, comeback=60)))
    shelf.gate.set()
    busy, other = shelf.add(1, 60, slots=3, eog=frozenset()), shelf.add(2, 60)
    pieces = busy.generate(job(1_000))
    await anext(pieces)
    with pytest.raises(NoRoom):
        await answer(other)
    while busy.free_slots():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    with pytest.raises(NoRoom):
        await answer(busy)
    await pieces.aclose()
    assert await answer(other)
    await shelf.pool.close()


async def test_sold_work_does_not_keep_the_owner_out_of_a_model(tmp_path: Path) -> None:
    async with brisk(tmp_path) as shelf:
        owners, sold = shelf.add(1, 60, slots=3), shelf.add(2, 60)
        async with in_constant_use(owners) as answered:
            waiting = asyncio.create_task(answer(sold, sold=True))
            await goes_on(answered)
            assert (await answer(owners), waiting.done(), shelf.loads(2)) == (await answer(owners), False, 0)
        assert await waiting


async def test_the_owner_gets_the_room_of_sold_work_however_short_that_was_there(tmp_path: Path) -> None:
    async with brisk(tmp_path, Pace(after=0, residence=1e9, pause=0)) as shelf:
        sold, owners = shelf.add(1, 60, slots=3), shelf.add(2, 60)
        async with in_constant_use(sold, sold=True):
            assert await answer(owners)


async def test_sold_work_that_waits_leaves_the_owner_a_place_in_line(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, Pool(100, max_waiting=1))
    engine = shelf.add(1, 40, slots=3)
    asking = [asyncio.create_task(answer(engine, sold=True))]
    await shelf.at_gate.wait()
    with pytest.raises(EngineBusy):
        await answer(engine, sold=True)
    asking.append(asyncio.create_task(answer(engine)))
    await asyncio.sleep(0)
    with pytest.raises(EngineBusy):
        await answer(engine)
    shelf.gate.set()
    assert all(await asyncio.gather(*asking))
    await shelf.pool.close()


# Files that change under a loaded model


def written_to(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(b"another model")
    other.replace(path)


def deleted(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [written_to, touched, replaced, deleted])
async def test_a_model_whose_file_changed_is_not_sold_and_not_loaded_again(
    shelf: Shelf, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    engine = shelf.add(1, 40)
    assert engine.is_unchanged()
    change(shelf.path(1))
    assert not engine.is_unchanged()
    with pytest.raises(ModelChanged, match="start the node again"):
        await answer(engine)
    assert (engine.state, engine.free_slots()) == ("changed", 0)
    shelf.pool.sweep()
    assert len(caplog.records) == 1


async def test_a_file_that_is_put_back_does_not_bring_the_model_back(shelf: Shelf) -> None:
    engine = shelf.add(1, 40)
    aside = shelf.path(1).rename(shelf.folder / "aside")
    assert not engine.is_unchanged()
    aside.rename(shelf.path(1))
    assert not engine.is_unchanged()


@pytest.mark.parametrize("change", [written_to, replaced, deleted])
async def test_what_is_in_memory_of_a_file_that_is_gone_still_serves_its_owner(
    shelf: Shelf, change: Callable[[Path], None]
) -> None:
    engine, other = shelf.add(1, 60), shelf.add(2, 60)
    before = await answer(engine)
    change(shelf.path(1))
    assert not engine.is_unchanged()
    assert await answer(engine) == before
    await answer(other)
    with pytest.raises(ModelChanged):
        await answer(engine)


async def test_a_file_that_changes_while_it_is_loaded_is_not_used(shelf: Shelf) -> None:
    shelf.gate.clear()
    engine = shelf.add(1, 60)
    asking = asyncio.create_task(answer(engine))
    await shelf.at_gate.wait()
    written_to(shelf.path(1))
    shelf.gate.set()
    with pytest.raises(ModelChanged):
        await asking
    assert shelf.pool.taken == 0


class UsersAndMemory(RuleBasedStateMachine):
    """Jobs come and go over four models that do not fit side by side."""

    SIZES = (30, 40, 60, 100)

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = contextlib.ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.shelf = self.run(self._shelf(folder))
        self.running: list[tuple[int, Any, Any]] = []
        self.used_at: dict[int, int] = {}
        self.tick = 0

    async def _shelf(self, folder: Path) -> Shelf:
        shelf = Shelf(folder, Pool(100, patience_s=0.0, pace=STILL))
        shelf.gate.set()
        for number, size in enumerate(self.SIZES):
            shelf.add(number, size, slots=4, eog=frozenset())
        return shelf

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def loaded(self) -> set[int]:
        return {number for number, engine in self.shelf.engines.items() if engine.state == "loaded"}

    def at_work(self) -> set[int]:
        return {number for number, _, _ in self.running}

    def _expected_dropped(self, number: int) -> set[int]:
        """The idle ones, least recently used first, until there is room."""
        kept = self.loaded() - {number}
        dropped: set[int] = set()
        for old in sorted(kept - self.at_work(), key=lambda one: self.used_at[one]):
            if sum(self.SIZES[one] for one in kept - dropped) + self.SIZES[number] <= 100:
                break
            dropped.add(old)
        return dropped

    @precondition(lambda self: len(self.running) < 6)
    @rule(number=st.integers(0, 3))
    def begin(self, number: int) -> None:
        before, was_loaded = self.loaded(), number in self.loaded()
        busy = sum(self.SIZES[one] for one in self.at_work() - {number})
        can = was_loaded or busy + self.SIZES[number] <= 100
        dropped = set() if was_loaded else self._expected_dropped(number)
        free = self.shelf.engines[number].free_slots()
        assert was_loaded or bool(free) == can

        async def first() -> Any:
            pieces = self.shelf.engines[number].generate(job(1_000))
            return pieces, await anext(pieces)

        if was_loaded and not free:
            return
        if not can:
            with pytest.raises(NoRoom):
                self.run(first())
            assert self.loaded() == before
            return
        pieces, piece = self.run(first())
        self.running.append((number, pieces, piece))
        assert self.loaded() == (before | {number}) - dropped

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number, pieces, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.run(pieces.aclose())
        self.tick += 1
        self.used_at[number] = self.tick

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        _, pieces, _ = self.running[data.draw(st.integers(0, len(self.running) - 1))]
        assert self.run(anext(pieces)).ids

    @invariant()
    def memory_is_kept(self) -> None:
        assert self.shelf.pool.taken == sum(self.SIZES[number] for number in self.loaded()) <= 100

    @invariant()
    def who_works_is_loaded(self) -> None:
        assert self.at_work() <= self.loaded()
        for seen, number in zip(self.shelf.pool.seen(), self.shelf.engines, strict=True):
            assert seen.users == sum(1 for one, _, _ in self.running if one == number)

    def teardown(self) -> None:
        for _, pieces, _ in self.running:
            self.run(pieces.aclose())
        self.run(self.shelf.pool.close())
        assert self.shelf.pool.taken == 0
        self.runner.close()
        self.stack.close()


TestUsersAndMemory = UsersAndMemory.TestCase
TestUsersAndMemory.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
