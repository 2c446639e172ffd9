"""Whatever is computed together: each answer is what it would be alone, and everyone gets on."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger.records import Sampling
from node.engine.batch import Batcher
from node.engine.outlet import Outlet
from node.engine.port import EngineFailed, Job, Piece, Rows
from node.engine.tasks import Replay, Stream, Work
from node.models.weights import DecodeFailed, Run
from tests.node.engine.hashed_cells import VOCABULARY, HashedCells, answer_alone, logits_of

HOT = Sampling(temperature=1_000_000, top_p=1_000_000, min_p=0, top_k=0)
EOG = frozenset({0})
SLOTS = 4


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def nothing() -> None:
    return None


class Kitchen:
    """A batcher, and what its jobs have given so far."""

    def __init__(self, cells: HashedCells, loop: asyncio.AbstractEventLoop, eog: frozenset[int] = EOG) -> None:
        self.cells, self.loop, self.eog = cells, loop, eog
        self.batcher = Batcher(cells, eog, kept=200, clock=self.time)
        self.now = 0.0
        self.line: list[Work] = []

    def time(self) -> float:
        """A step takes as long as it has rows."""
        self.now += sum(len(run.ids) for run in self.cells.batches[-1]) if self.cells.batches else 1
        return self.now

    def order(self, prompt: tuple[int, ...], *, room: int = 10_000, context: int = 64, **more: object) -> Stream:
        job = Job(prompt, HOT, **{"seed": 7, "max_tokens": 8, **more})  # type: ignore[arg-type]
        stream = Stream(job, Outlet(room, nothing, self.loop), context)
        self.line.append(stream)
        return stream

    def step(self) -> None:
        running = [isinstance(task, Stream) for task in self.batcher.tasks]
        for work in list(self.line):
            free = sum(running) < SLOTS if isinstance(work, Stream) else all(running)
            if free and self.batcher.fits(work):
                self.line.remove(work)
                self.batcher.begin(work)
                running.append(isinstance(work, Stream))
        self.line[:0] = self.batcher.step()
        self.batcher.announce()
        self.batcher.settle()

    def finish(self, most: int = 2_000) -> None:
        while self.line or self.batcher.tasks:
            self.step()
            most -= 1
            assert most > 0, "nobody gets on any more"


def given(stream: Stream) -> list[Piece]:
    pieces = stream.outlet.drain()
    if stream.outlet.failure is not None:
        raise stream.outlet.failure
    return pieces


def ids_of(stream: Stream) -> list[int]:
    return [token for piece in given(stream) for token in piece.ids]


def alone(stream: Stream, context: int = 64, eog: frozenset[int] = EOG) -> list[int]:
    job = stream.job
    return answer_alone(job.prompt, job.sampling, job.seed, min(job.max_tokens, context - job.start), eog)


def kitchen_of(
    loop: asyncio.AbstractEventLoop, *, tokens: int = 256, eog: frozenset[int] = EOG, shared: bool = True
) -> Kitchen:
    return Kitchen(HashedCells(tokens, batch=16, sequences=SLOTS + 1, rows=6, shared=shared), loop, eog)


def test_answers_computed_together_are_those_computed_alone(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop)
    streams = [kitchen.order((1 + number, 2, 3) * (1 + number), seed=number) for number in range(9)]
    kitchen.finish()
    assert [ids_of(stream) for stream in streams] == [alone(stream) for stream in streams]


class Breaking(HashedCells):
    """Fails as it is told, batch by batch."""

    failures: list[Exception | None]

    def compute(self, runs: Sequence[Run]) -> Rows:
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        return super().compute(runs)


def test_a_task_that_gave_way_in_a_step_that_failed_is_told_so(loop: asyncio.AbstractEventLoop) -> None:
    cells = Breaking(256, batch=16, sequences=SLOTS + 1, rows=6, shared=False)
    cells.failures = []
    kitchen = Kitchen(cells, loop)
    running = [kitchen.order((1 + number,), max_tokens=40, seed=number) for number in range(2)]
    kitchen.step()
    kitchen.step()
    late = kitchen.order((5, 6, 7), seed=9)
    cells.failures = [DecodeFailed(1), MemoryError("no more")]

    with pytest.raises(MemoryError):
        kitchen.step()
    kitchen.batcher.fail_all(EngineFailed("no more"))
    kitchen.batcher.announce()

    for stream in (*running, late):
        with pytest.raises(EngineFailed):
            given(stream)


def test_running_streams_get_a_token_in_every_step_while_a_long_prompt_arrives(
    loop: asyncio.AbstractEventLoop,
) -> None:
    kitchen = Kitchen(HashedCells(2_000, batch=256, sequences=8, rows=8), loop, frozenset())
    streams = [kitchen.order((1 + number,), max_tokens=1_000, context=2_000) for number in range(3)]
    for _ in range(10):
        kitchen.step()
    alone_takes = len(kitchen.cells.batches[-1][0].ids) * 3
    late = kitchen.order((5,) * 1_000, max_tokens=1, context=2_000)
    before = len(streams[0].ids)
    steps = 0
    while not late.ended:
        kitchen.step()
        steps += 1
        assert [len(stream.ids) for stream in streams] == [before + steps] * 3
        assert sum(len(run.ids) for run in kitchen.cells.batches[-1]) < 3 * max(alone_takes, 4)
    assert steps < 1_000


def test_prompts_take_turns(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = Kitchen(HashedCells(2_000, batch=16, sequences=8, rows=8), loop)
    long = kitchen.order((5,) * 500, max_tokens=1, context=2_000)
    kitchen.step()
    short = kitchen.order((6,) * 40, max_tokens=1, context=2_000)
    kitchen.finish()
    order = [run.sequence for batch in kitchen.cells.batches for run in batch]
    assert ids_of(short) == alone(short, 2_000)
    assert ids_of(long) == alone(long, 2_000)
    first_of_short = next(place for place, sequence in enumerate(order) if sequence != order[0])
    assert first_of_short <= 2
    assert len(set(order[first_of_short : first_of_short + 4])) == 2


def test_a_conversation_that_goes_on_is_not_computed_again(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop, eog=frozenset())
    first = kitchen.order((1, 2, 3, 4), client="a")
    kitchen.finish()
    answer = ids_of(first)
    second = kitchen.order((1, 2, 3, 4, *answer, 5), client="a")
    kitchen.finish()
    pieces = given(second)
    # The last token of an answer is never computed: nothing followed it.
    assert [piece.cached for piece in pieces] == [len(first.ids) - 1] + [0] * 7
    assert [i for piece in pieces for i in piece.ids] == alone(second, eog=frozenset())


def test_nobody_gets_anothers_prefix(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop)
    kitchen.order((1, 2, 3, 4), client="a")
    kitchen.finish()
    others = [kitchen.order((1, 2, 3, 4, 5), client=client) for client in ("b", "")]
    kitchen.finish()
    assert [given(other)[0].cached for other in others] == [0, 0]


def test_the_same_prompt_again_computes_its_last_token(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop)
    kitchen.order((1, 2, 3, 4), client="a")
    kitchen.finish()
    again = kitchen.order((1, 2, 3, 4), client="a", seed=9)
    kitchen.finish()
    pieces = given(again)
    assert pieces[0].cached == 3
    assert [i for piece in pieces for i in piece.ids] == alone(again)


def test_a_running_streams_prompt_is_shared_with_its_client(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop, eog=frozenset())
    kitchen.order((1, 2, 3, 4), client="a")
    for _ in range(3):
        kitchen.step()
    beside = kitchen.order((1, 2, 3, 9), client="a", seed=8)
    kitchen.finish()
    pieces = given(beside)
    assert pieces[0].cached == 3
    assert [i for piece in pieces for i in piece.ids] == alone(beside, eog=frozenset())


def test_a_state_that_cannot_be_cut_is_taken_whole_or_not_at_all(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = Kitchen(HashedCells(256, batch=16, sequences=9, rows=6, cuttable=False), loop, frozenset())
    first = kitchen.order((1, 2, 3, 4), client="a")
    kitchen.finish()
    whole = tuple(first.ids)
    branch, on = kitchen.order((1, 2, 9), client="a"), kitchen.order((*whole, 5), client="a")
    kitchen.finish()
    assert [given(branch)[0].cached, given(on)[0].cached] == [0, len(whole) - 1]


def test_a_cancelled_stream_is_gone_with_the_next_step(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop, eog=frozenset())
    stream = kitchen.order((1, 2, 3), max_tokens=50)
    kitchen.step()
    stream.outlet.cancel()
    before = len(kitchen.cells.batches)
    kitchen.step()
    assert len(kitchen.batcher.tasks) == 0
    assert len(kitchen.cells.batches) == before


def test_who_does_not_take_is_not_computed_for_and_harms_nobody(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop, eog=frozenset())
    slow = kitchen.order((1, 2), max_tokens=40, room=5)
    quick = kitchen.order((3, 4), max_tokens=40)
    for _ in range(60):
        kitchen.step()
    assert len(slow.outlet.drain()) == 5
    assert ids_of(quick) == alone(quick, eog=frozenset())
    kitchen.step()
    assert len(slow.outlet.drain()) == 1


def test_logits_that_are_no_numbers_fail_their_stream_alone(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop)
    streams = [kitchen.order((1 + number, 2, 3), client="a") for number in range(3)]
    kitchen.step()
    assert streams[1].sequence is not None
    kitchen.cells.poisoned.add(streams[1].sequence)
    kitchen.finish()
    with pytest.raises(EngineFailed, match="logits"):
        ids_of(streams[1])
    kitchen.cells.poisoned.clear()
    for stream in (streams[0], streams[2]):
        assert ids_of(stream) == alone(stream)
    again = kitchen.order((2, 2, 3, 4), client="a")
    kitchen.finish()
    assert given(again)[0].cached == 0  # nothing of what went wrong is used again


def test_a_task_that_cannot_be_computed_fails_alone(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop)
    streams = [kitchen.order((1 + number, 2, 3)) for number in range(3)]
    kitchen.step()
    assert streams[1].sequence is not None
    kitchen.cells.failing[streams[1].sequence] = -3
    kitchen.finish()
    with pytest.raises(EngineFailed, match="-3"):
        ids_of(streams[1])
    for stream in (streams[0], streams[2]):
        assert ids_of(stream) == alone(stream)


def test_when_cells_run_out_the_youngest_begin_again_and_all_end(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop, tokens=100, eog=frozenset())
    streams = [kitchen.order((1 + number, 2), max_tokens=60, client=str(number)) for number in range(4)]
    kitchen.finish()
    assert [ids_of(stream) for stream in streams] == [alone(stream, eog=frozenset()) for stream in streams]


def test_the_owners_stream_stays_when_cells_run_out(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = Kitchen(HashedCells(140, batch=16, sequences=9, rows=6), loop, frozenset())
    sold = kitchen.order((1, 2), max_tokens=100, context=140, sold=True, client="a")
    kitchen.step()
    own = kitchen.order((3, 4), max_tokens=100, context=140)
    kitchen.step()
    assert len(kitchen.batcher.tasks) == 2
    while len(kitchen.batcher.tasks) == 2:
        kitchen.step()
    assert list(kitchen.batcher.tasks) == [own]
    kitchen.finish()
    assert ids_of(sold) == alone(sold, 140, frozenset())


def test_streams_stand_side_by_side_when_one_between_them_ends(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop, eog=frozenset(), shared=False)
    streams = [kitchen.order((1 + number, 2), max_tokens=40) for number in range(4)]
    kitchen.step()
    assert [stream.sequence for stream in streams] == [0, 1, 2, 3]
    for stream in streams[:2]:
        stream.outlet.cancel()
    for _ in range(3):
        kitchen.step()
    assert sorted(task.sequence or 0 for task in kitchen.batcher.tasks) == [0, 1]
    kitchen.finish()
    assert [ids_of(stream) for stream in streams[2:]] == [alone(stream, eog=frozenset()) for stream in streams[2:]]


def test_replays_give_all_rows_in_order_beside_streams(loop: asyncio.AbstractEventLoop) -> None:
    kitchen = kitchen_of(loop, eog=frozenset())
    stream = kitchen.order((1, 2, 3), max_tokens=40)
    ids = [1 + number % (VOCABULARY - 1) for number in range(60)]
    replay = Replay(ids, 20, Outlet(1_000, nothing, loop))
    kitchen.line.append(replay)
    kitchen.finish()
    rows = [row for block in replay.outlet.drain() for row in block]
    assert len(rows) == 40
    for place, row in enumerate(rows):
        assert (row == logits_of(ids[: 21 + place])).all()
    assert ids_of(stream) == alone(stream, eog=frozenset())


class AnyOrder(RuleBasedStateMachine):
    """Jobs of three clients come, go and starve in any order, in a cache that is too small."""

    @initialize(cuttable=st.booleans(), shared=st.booleans())
    def open(self, cuttable: bool, shared: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.cells = HashedCells(96, batch=12, sequences=SLOTS + 1, rows=5, cuttable=cuttable, shared=shared)
        self.kitchen = Kitchen(self.cells, self.loop)
        self.streams: list[tuple[Stream, list[Piece]]] = []
        self.replays: list[Replay] = []
        self.said: dict[str, list[list[int]]] = {}  # all that a client's jobs had computed or asked for

    @precondition(lambda self: len(self.kitchen.line) < 6)
    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=40),
        client=st.sampled_from("abc"),
        sold=st.booleans(),
        seed=st.integers(0, 3),
        most=st.integers(0, 40),
        room=st.sampled_from([1, 3, 100]),
    )
    def ask(self, prompt: list[int], client: str, sold: bool, seed: int, most: int, room: int) -> None:
        stream = self.kitchen.order(
            tuple(prompt), client=client, sold=sold, seed=seed, max_tokens=most, room=room, context=60
        )
        self.streams.append((stream, []))

    @precondition(lambda self: len(self.kitchen.line) < 6)
    @rule(ids=st.lists(st.integers(1, 2), min_size=1, max_size=50), first=st.integers(0, 49))
    def replay(self, ids: list[int], first: int) -> None:
        task = Replay(ids, min(first, len(ids) - 1), Outlet(2, nothing, self.loop))
        self.replays.append(task)
        self.kitchen.line.append(task)

    @rule(steps=st.integers(1, 10))
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.kitchen.step()

    @rule()
    def take(self) -> None:
        for stream, pieces in self.streams:
            pieces.extend(stream.outlet.drain())
        for task in self.replays:
            task.outlet.drain()

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        stream, _ = self.streams[which % len(self.streams)]
        stream.outlet.cancel()
        if stream in self.kitchen.line:
            self.kitchen.line.remove(stream)

    @invariant()
    def sequences_are_all_accounted_for(self) -> None:
        if not hasattr(self, "kitchen"):
            return
        batcher = self.kitchen.batcher
        for task in batcher.tasks:
            assert task.sequence is not None
            assert self.cells.ids(task.sequence) == task.ids[: task.computed]
        assert set(self.cells.held) == {task.sequence for task in batcher.tasks if task.computed}
        assert batcher.prefixes.tokens <= 200

    @invariant()
    def answers_are_those_computed_alone(self) -> None:
        for stream, pieces in getattr(self, "streams", []):
            ids = [token for piece in pieces for token in piece.ids]
            assert ids == alone(stream, 60)[: len(ids)]
            assert stream.outlet.failure is None

    @invariant()
    def what_was_not_computed_was_the_clients_own(self) -> None:
        for place, (stream, _) in enumerate(getattr(self, "streams", [])):
            if stream.cached:
                begin = stream.ids[: stream.cached]
                own = [other.ids for other, _ in self.streams[:place] + self.streams[place + 1 :]]
                clients = [other.client for other, _ in self.streams[:place] + self.streams[place + 1 :]]
                assert any(
                    ids[: stream.cached] == begin and client == stream.client
                    for ids, client in zip(own, clients, strict=True)
                )

    def teardown(self) -> None:
        if not hasattr(self, "kitchen"):
            return
        for _ in range(3_000):
            if not (self.kitchen.line or self.kitchen.batcher.tasks):
                break
            self.kitchen.step()
            self.take()
        self.take()
        self.answers_are_those_computed_alone()
        for stream, pieces in self.streams:
            if not stream.outlet.cancelled:
                assert [token for piece in pieces for token in piece.ids] == alone(stream, 60)
        self.loop.close()


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
