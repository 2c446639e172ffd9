"""Answers that break off and go on elsewhere: what the client reads, who is asked, and what each is paid."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ledger.commitments import CHECKPOINT_TOKENS
from ledger.money import Amount, Price
from ledger.records import Checkpoint, Order, Receipt, open_record
from node.api.answers import facts
from node.engine.llamacpp import LlamaEngine
from node.engine.memory import MemoryEngine
from node.engine.port import EngineClosed, EngineFailed, Job, Piece
from node.exchange.purchase import NotPlaced
from node.gateway.attempt import in_order
from node.gateway.continued import MAX_ATTEMPTS, MAX_PARTS, ContinuedSource, SoFar
from node.gateway.question import Policy, Unservable
from node.gateway.sources import AnswerCut, Paper
from node.market.candidates import Candidate, Limits
from node.models.manifest import manifest_of
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import CheckpointFrame, Frame, Ids
from node.wire.messages import Earlier, Refused, Unreachable
from tests.node.gateway.conftest import Move
from tests.node.gateway.household import ASKED, LARGE, SMALL
from tests.node.trading import (
    DEMO,
    HOT,
    PRICE,
    SEED,
    CutLine,
    Line,
    ScriptedSeller,
    Store,
    Told,
    engine_of,
    price_of,
    until,
    uusd,
)
from verify.steering import Steering

CHEAP = Price(1_000_000, 1_000_000, "uusd")  # asked before PRICE
LONG = 200


async def prompt_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    return await tokenizer.encode([{"role": "user", "content": ASKED}])


async def ids_alone(tokenizer: Tokenizer, tokens: int = LONG, seed: int = SEED) -> tuple[int, ...]:
    """The answer as one engine gives it that nothing interrupts."""
    job = Job(await prompt_of(tokenizer), HOT, seed, tokens)
    return tuple([i async for piece in engine_of(tokenizer).generate(job) for i in piece.ids])


async def text_alone(tokenizer: Tokenizer, tokens: int = LONG) -> str:
    return tokenizer.text(await ids_alone(tokenizer, tokens))


def orders_over(line: Line) -> list[Order]:
    return [open_record(raw, Order).record for raw, _ in line.ordered]


class Busy(Line):
    """Refuses every order."""

    def before_order(self) -> None:
        raise Refused("busy", "not now")


class Hiccup(CutLine):
    """Breaks once, and is there again at once."""

    def _check(self) -> None:
        if self.down:
            self.mend()
            raise Unreachable("the line was down")


def cut_after(tokens: int) -> int:
    """How many chunks go over a line with so many tokens: one each, and one for a checkpoint."""
    return tokens + tokens // CHECKPOINT_TOKENS


# The seam.


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 150, 199])
async def test_the_client_reads_the_answer_as_if_nothing_had_broken(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, tokens: int, streaming: bool
) -> None:
    first, second = await Store.open(speaking, clock, price=CHEAP), await Store.open(speaking, clock, seed=3)
    broken, whole = CutLine(first.seller, cut_after(tokens)), Line(second.seller)
    household = await move_in({}, broken, whole)

    answer, text = await household.told(max_tokens=LONG, streaming=streaming)

    assert text == await text_alone(speaking)
    assert answer.route == f"{first.did}, {second.did}"
    assert answer.ending is not None
    assert (answer.ending.finish, answer.ending.tokens) == ("length", LONG)
    (before,), (after,) = orders_over(broken), orders_over(whole)
    assert (before.start, before.part_of, before.max_tokens) == (0, None, LONG)
    assert (after.start, after.max_tokens) == (tokens, LONG - tokens)
    assert after.part_of == open_record(broken.ordered[0][0], Order).digest
    assert (after.seed, after.sampling, after.privacy) == (before.seed, before.sampling, before.privacy)


async def test_each_part_is_paid_by_its_own_order_and_its_last_record_is_told(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    first, second = await Store.open(speaking, clock, price=CHEAP), await Store.open(speaking, clock, seed=3)
    broken = CutLine(first.seller, cut_after(150))
    household = await move_in({}, broken, second.seller)

    answer, _ = await household.told(max_tokens=LONG)
    broken.mend()
    await until(lambda: household.settler.idle and not household.book.spent_today()["uusd"] - household.owed())

    prompt = len(await prompt_of(speaking))
    costs = [128, price_of(prompt + 150, 50)]
    assert [household.book.debt_to(did, "uusd").owed for did in (first.did, second.did)] == costs
    assert [store.owed_by(household.book.me).authorized for store in (first, second)] == costs
    assert answer.ending is not None
    assert answer.ending.costs == (uusd(sum(costs)),)
    records = [await household.book.journal.record(digest) for digest in answer.ending.records]
    assert [record.kind for record in records if record] == [Checkpoint.kind, Receipt.kind]
    told = facts([answer])
    assert told["route"] == f"{first.did}, {second.did}"
    assert told["receipt"] == ", ".join(digest.hex() for digest in answer.ending.records)
    assert told["cost"] == str(uusd(sum(costs)))
    standing = household.book.experience.standing
    assert (standing(first.did).history.failed, standing(first.did).history.delivered) == (1, 0)
    assert (standing(second.did).history.failed, standing(second.did).history.delivered) == (0, 1)


async def test_an_answer_may_break_again_and_again(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    stores = [
        await Store.open(speaking, clock, seed=10 + k, price=Price(1_000_000, 1_000_000 + 100_000 * k, "uusd"))
        for k in range(4)
    ]
    lines: list[Line] = [
        CutLine(store.seller, cut_after(tokens)) for store, tokens in zip(stores, (3, 70, 1), strict=False)
    ]
    lines.append(Line(stores[3].seller))
    household = await move_in({}, *lines)

    answer, text = await household.told(max_tokens=LONG)

    assert text == await text_alone(speaking)
    assert answer.route.split(", ") == [store.did for store in stores]
    assert [orders_over(line)[0].start for line in lines] == [0, 3, 73, 74]
    digests = [open_record(line.ordered[0][0], Order).digest for line in lines]
    assert [orders_over(line)[0].part_of for line in lines] == [None, *digests[:3]]


def _cancelling(tokenizer: Tokenizer) -> MemoryEngine:
    return engine_of(tokenizer, fail_after=70)


def _stalling(tokenizer: Tokenizer) -> MemoryEngine:
    return engine_of(tokenizer, stall_after=70)


@pytest.mark.parametrize("engine", [_cancelling, _stalling], ids=["it says that it stops", "nothing more comes"])
async def test_a_seller_that_stops_or_stalls_is_one_that_broke_off(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, engine: Callable[[Tokenizer], MemoryEngine]
) -> None:
    first = await Store.open(speaking, clock, price=CHEAP, engine=engine(speaking))
    second = await Store.open(speaking, clock, seed=3)
    household = await move_in({}, first.seller, second.seller, patience_s=0.5)

    answer, text = await household.told(max_tokens=LONG)

    assert text == await text_alone(speaking)
    assert answer.route == f"{first.did}, {second.did}"


@pytest.mark.parametrize("wrong", ["checkpoint", "no checkpoint", "unknown id", "garbage"])
async def test_a_seller_that_breaks_the_protocol_is_one_that_broke_off(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, wrong: str
) -> None:
    honest = await ids_alone(speaking)

    def script(told: Told) -> Iterator[Frame]:
        yield Ids(honest[:64])
        match wrong:
            case "checkpoint":
                yield told.checkpoint(honest[:64], cost=10**6)
            case "no checkpoint":
                yield Ids(honest[64:66])
            case "unknown id":
                yield told.checkpoint(honest[:64])
                yield Ids((2**31,))
            case "garbage":
                yield CheckpointFrame(b"garbage")

    bad = ScriptedSeller(speaking, clock, script)
    good = await Store.open(speaking, clock, seed=3, price=evolve(PRICE, output=2_100_000))
    household = await move_in({}, bad, good.seller)

    answer, text = await household.told(max_tokens=LONG)

    assert text == await text_alone(speaking)
    assert answer.route == f"{bad.did}, {good.did}"


async def test_all_tokens_without_a_receipt_are_a_whole_answer(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    first, second = await Store.open(speaking, clock, price=CHEAP), await Store.open(speaking, clock, seed=3)
    other = Line(second.seller)
    household = await move_in({}, CutLine(first.seller, cut_after(LONG)), other)

    answer, text = await household.told(max_tokens=LONG)

    assert text == await text_alone(speaking)
    assert (answer.route, other.ordered) == (first.did, [])
    assert answer.ending is not None
    assert answer.ending.costs == (uusd(192),)


@pytest.mark.parametrize("broken_at", range(26, 32))
async def test_a_stop_string_across_the_seam_ends_the_answer_and_is_not_shown(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, broken_at: int
) -> None:
    ids = await ids_alone(speaking)
    whole = speaking.text(ids)
    start = len(speaking.text(ids[:27])) + 1
    stop = whole[start : len(speaking.text(ids[:30])) - 1]
    assert whole.index(stop) == start
    first, second = await Store.open(speaking, clock, price=CHEAP), await Store.open(speaking, clock, seed=3)
    household = await move_in({}, CutLine(first.seller, cut_after(broken_at)), second.seller)

    answer, text = await household.told(max_tokens=LONG, stop=(stop,))

    assert text == whole[:start]
    assert answer.ending is not None
    assert (answer.ending.finish, answer.ending.tokens) == ("stop", 30)


# This machine as a part.


async def test_what_fails_here_goes_on_at_a_peer(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    line = Line((await Store.open(speaking, clock)).seller)
    household = await move_in({LARGE: engine_of(speaking, fail_after=20)}, line)

    answer, text = await household.told(max_tokens=LONG)

    assert text == await text_alone(speaking)
    (order,) = orders_over(line)
    assert (order.start, order.part_of) == (20, None)
    assert answer.route == f"local, {order_seller(line)}"
    assert answer.ending is not None
    assert [paper.record is None for paper in answer.ending.papers] == [True, False]


def order_seller(line: Line) -> str:
    return orders_over(line)[-1].seller


async def test_what_fails_here_before_its_first_token_is_a_peers_from_the_start(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    line = Line((await Store.open(speaking, clock)).seller)
    household = await move_in({LARGE: engine_of(speaking, fail_after=0)}, line)

    answer, text = await household.told(max_tokens=LONG)

    assert text == await text_alone(speaking)
    assert (answer.route, orders_over(line)[0].start) == (order_seller(line), 0)


async def test_what_breaks_at_a_peer_goes_on_here(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    engine = engine_of(speaking)
    seller = await Store.open(speaking, clock)
    household = await move_in({LARGE: engine}, CutLine(seller.seller, cut_after(90)))
    running = engine.generate(Job((5,), HOT, 4, 2_000))
    await anext(running)

    answer = await household.ask(max_tokens=LONG)
    await running.aclose()
    text = await answer.collect()

    assert text == await text_alone(speaking)
    assert answer.route == f"{seller.did}, local"


@pytest.mark.parametrize("wish", [{"privacy": "confidential"}, {"privacy": "restricted"}, {"route": "local"}])
async def test_a_prompt_that_must_stay_here_stays_here_when_this_machine_fails(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, wish: dict[str, Any]
) -> None:
    line = Line((await Store.open(speaking, clock)).seller)
    household = await move_in({LARGE: engine_of(speaking, fail_after=20)}, line)
    answer = await household.ask(max_tokens=LONG, **wish)

    with pytest.raises(EngineFailed):
        await answer.collect()

    assert line.ordered == []


async def test_a_node_that_is_being_stopped_hands_nothing_on(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    line = Line((await Store.open(speaking, clock)).seller)
    engine = engine_of(speaking, stall_after=20)
    household = await move_in({LARGE: engine}, line)
    answer = await household.ask(max_tokens=LONG)

    reading = asyncio.create_task(answer.collect())
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(EngineClosed):
        await reading

    assert line.ordered == []


# Who goes on, and who does not.


async def test_one_that_runs_another_model_does_not_go_on(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    first = await Store.open(speaking, clock)
    other = Line((await Store.open(speaking, clock, seed=3, engine=engine_of(speaking, 9))).seller)
    household = await move_in({SMALL: engine_of(speaking, 7)}, CutLine(first.seller, 5), other)
    answer = await household.ask(model=LARGE, max_tokens=LONG)

    with pytest.raises(AnswerCut):
        await answer.collect()

    assert other.ordered == []
    assert answer.ending is None


async def test_nobody_is_asked_twice_within_an_answer(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    lines = [Hiccup((await Store.open(speaking, clock, seed=seed)).seller, 5) for seed in (3, 4)]
    household = await move_in({}, *lines)
    answer = await household.ask(max_tokens=LONG)

    with pytest.raises(AnswerCut):
        await answer.collect()

    assert [len(line.ordered) for line in lines] == [1, 1]


async def test_after_a_few_refusals_nobody_more_is_asked_to_go_on(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    first = await Store.open(speaking, clock, price=CHEAP)
    lines = [Busy((await Store.open(speaking, clock, seed=seed)).seller) for seed in range(10, 17)]
    household = await move_in({}, CutLine(first.seller, 5), *lines)
    answer = await household.ask(max_tokens=LONG)

    with pytest.raises(AnswerCut):
        await answer.collect()

    assert sum(len(line.ordered) for line in lines) == MAX_ATTEMPTS


async def test_one_that_refuses_is_passed_over_and_is_no_part(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    first = await Store.open(speaking, clock, price=CHEAP)
    busy = Busy((await Store.open(speaking, clock, seed=3, price=evolve(CHEAP, output=1_500_000))).seller)
    last = await Store.open(speaking, clock, seed=4)
    household = await move_in({}, CutLine(first.seller, 5), busy, last.seller)

    answer, text = await household.told(max_tokens=LONG)

    assert text == await text_alone(speaking)
    assert len(busy.ordered) == 1
    assert answer.route == f"{first.did}, {last.did}"


async def test_an_offer_renewed_meanwhile_is_used_to_go_on(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    first, second = await Store.open(speaking, clock, price=CHEAP), await Store.open(speaking, clock, seed=3)
    line = Line(second.seller)
    household = await move_in({}, CutLine(first.seller, 5), line)
    line.peer = (await Store.open(speaking, clock, seed=3, journal=second.book.journal)).seller
    clock.advance(1)

    answer, text = await household.told(max_tokens=LONG)

    assert text == await text_alone(speaking)
    assert (answer.route, len(line.ordered)) == (f"{first.did}, {second.did}", 2)


def test_this_machine_goes_on_at_once_or_after_the_peers() -> None:
    here, there = Candidate(b"", "here", 1.0, "self", 100), Candidate(b"", "there", 1.0, "named", 100, offer=object())  # type: ignore[arg-type]

    assert in_order([there, here], free=True) == [here, there]
    assert in_order([there, here], free=False) == [there, here]


# The owner's limits.


@pytest.mark.parametrize("bears", [True, False])
async def test_the_limit_of_an_order_is_for_all_parts_together(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, bears: bool
) -> None:
    first, second = await Store.open(speaking, clock, price=CHEAP), await Store.open(speaking, clock, seed=3)
    prompt = len(await prompt_of(speaking))
    both = 128 + price_of(prompt + 150, 50)
    limits = Limits(max_order_cost=uusd(both if bears else both - 1))
    line = Line(second.seller)
    household = await move_in({}, CutLine(first.seller, cut_after(150)), line, policy=Policy(limits=limits))
    answer = await household.ask(max_tokens=LONG)

    if bears:
        assert await answer.collect() == await text_alone(speaking)
        return
    with pytest.raises(AnswerCut):
        await answer.collect()
    assert line.ordered == []


@pytest.mark.parametrize("day", [True, False])
@pytest.mark.parametrize("bears", [True, False])
async def test_an_answer_that_was_lost_counts_in_the_limits_of_the_next_one(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, bears: bool, day: bool
) -> None:
    first = await Store.open(speaking, clock, price=CHEAP)
    other = await Store.open(speaking, clock, seed=3, engine=engine_of(speaking, 9))
    both = 128 + price_of(len(await prompt_of(speaking)), LONG)
    most = uusd(both if bears else both - 1)
    limits = Limits(max_per_day=most) if day else Limits(max_order_cost=most)
    line = Line(other.seller)
    household = await move_in({}, CutLine(first.seller, cut_after(150)), line, policy=Policy(limits=limits))

    if bears:
        answer = await household.ask(model="auto", max_tokens=LONG, streaming=False)
        assert answer.route == other.did
        return
    with pytest.raises(Unservable, match="over the most"):
        await household.ask(model="auto", max_tokens=LONG, streaming=False)
    assert line.ordered == []


@pytest.mark.parametrize("bears", [True, False])
async def test_the_limit_of_a_day_counts_what_the_parts_before_are_owed(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, bears: bool
) -> None:
    first, second = await Store.open(speaking, clock, price=CHEAP), await Store.open(speaking, clock, seed=3)
    both = 128 + price_of(len(await prompt_of(speaking)) + 150, 50)
    limits = Limits(max_per_day=uusd(both if bears else both - 1))
    line = Line(second.seller)
    household = await move_in({}, CutLine(first.seller, cut_after(150)), line, policy=Policy(limits=limits))
    answer = await household.ask(max_tokens=LONG)

    if bears:
        assert await answer.collect() == await text_alone(speaking)
        return
    with pytest.raises(AnswerCut):
        await answer.collect()
    assert line.ordered == []


async def test_what_runs_here_does_not_sum_up_the_days_spending(
    speaking: Tokenizer, move_in: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    household = await move_in({LARGE: engine_of(speaking)})
    monkeypatch.delattr(type(household.book), "spent_today")

    assert (await household.told())[0].route == "local"


# Whoever stops reading stops the work.


async def test_a_client_that_leaves_after_the_seam_stops_the_second_seller(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    engine = engine_of(speaking)
    first, second = (
        await Store.open(speaking, clock, price=CHEAP),
        await Store.open(speaking, clock, seed=3, engine=engine),
    )
    line = Line(second.seller)
    broken = CutLine(first.seller, cut_after(70))
    household = await move_in({}, broken, line)
    answer = await household.ask(max_tokens=1_000)
    read = 0
    async for _ in answer.text():
        read += 1
        if line.ordered and read > 80:
            break
    await answer.close()
    broken.mend()

    await until(lambda: engine.free_slots() == 1 and household.settler.idle)

    assert len(line.cancelled) == 1


# The real model.


# Tokens that come faster than they are read share a chunk, so these are few.
@pytest.mark.parametrize("broken_at", [1, 3, 6])
async def test_on_the_demo_model_the_text_is_that_of_an_uninterrupted_run(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, demo: LlamaEngine, broken_at: int
) -> None:
    first = await Store.open(speaking, clock, engine=demo, price=CHEAP)
    second = await Store.open(speaking, clock, seed=3, engine=demo)
    wishes: dict[str, Any] = {"model": "sha256:" + demo.manifest.digest.hex(), "seed": 10, "max_tokens": 120}
    sound = await move_in({}, second.seller)
    broken = await move_in({}, CutLine(first.seller, cut_after(broken_at)), second.seller)

    _, whole = await sound.told(**wishes)
    answer, text = await broken.told(**wishes)

    assert text == whole
    assert answer.route == f"{first.did}, {second.did}"


GRAMMAR = 'root ::= "{\\"words\\": [" word (", " word)* "]}"\nword ::= "\\"" [a-z]+ "\\""'


@pytest.mark.parametrize(
    "steering",
    [Steering(frequency=1_500_000, presence=500_000), Steering(grammar=GRAMMAR)],
    ids=["penalties", "grammar"],
)
async def test_on_the_demo_model_penalties_and_grammar_go_on_over_the_seam(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, demo: LlamaEngine, steering: Steering
) -> None:
    first = await Store.open(speaking, clock, engine=demo, price=CHEAP)
    second = await Store.open(speaking, clock, seed=3, engine=demo)
    wishes: dict[str, Any] = {
        "model": "sha256:" + demo.manifest.digest.hex(),
        "seed": 10,
        "max_tokens": 50,
        "steering": steering,
    }
    sound = await move_in({}, second.seller)
    broken = await move_in({}, CutLine(first.seller, cut_after(5)), second.seller)

    _, whole = await sound.told(**wishes)
    answer, text = await broken.told(**wishes)

    assert text == whole
    assert text.startswith('{"words": ["') or not steering.grammar
    assert answer.route == f"{first.did}, {second.did}"


@pytest.fixture
async def demo() -> AsyncGenerator[LlamaEngine, None]:
    engine = await LlamaEngine.load(DEMO, manifest_of(DEMO), threads=1, waiting=2)
    yield engine
    await engine.close()


# Any breaks at all.


class Scripted:
    """A part that gives some of the counted numbers, and then fails or not."""

    stops_itself = True

    def __init__(self, start: int, count: int, trouble: Exception | None, name: str) -> None:
        self.route, self.closed = name, False
        self._numbers, self._trouble = range(start, start + count), trouble

    async def ids(self) -> AsyncGenerator[Piece, None]:
        try:
            for number in self._numbers:
                yield Piece((number,))
            if self._trouble is not None:
                raise self._trouble
        finally:
            self.closed = True

    async def papers(self) -> tuple[Paper, ...]:
        return (Paper(self.route, cost=Amount(len(self._numbers), "uusd")),)

    async def earlier(self) -> Earlier | None:
        return Earlier(self.route.encode(), b"", b"")


TROUBLES = st.sampled_from([AnswerCut("cut"), NotPlaced("no"), EngineFailed("broke")])


@given(
    first=st.integers(1, 5),
    parts=st.lists(st.tuples(st.integers(0, 4), TROUBLES), max_size=12),
    ends=st.booleans(),
)
async def test_whatever_breaks_the_numbers_go_on_and_only_those_who_counted_are_named(
    first: int, parts: list[tuple[int, Exception]], ends: bool
) -> None:
    plan = [(first, AnswerCut("cut")), *parts]
    made: list[Scripted] = []
    seen: list[SoFar] = []

    def part(start: int) -> Scripted | None:
        index = len(made)
        if index < len(plan):
            count, trouble = plan[index]
            # What gives ids and is NotPlaced has no paper, and cannot be.
            trouble = AnswerCut("cut") if count and isinstance(trouble, NotPlaced) else trouble
            made.append(Scripted(start, count, trouble, f"p{index}"))
        elif index == len(plan) and ends:
            made.append(Scripted(start, 3, None, f"p{index}"))
        else:
            return None
        return made[-1]

    async def following(so_far: SoFar, _trouble: Exception) -> Scripted | None:
        seen.append(so_far)
        return part(len(so_far.ids))

    begun = part(0)
    assert begun is not None
    source = ContinuedSource(begun, following)
    got: list[int] = []
    whole = True
    try:
        async for piece in source.ids():
            got += piece.ids
    except (AnswerCut, EngineFailed):
        whole = False

    assert got == list(range(len(got)))
    assert all(one.closed for one in made)
    counted = [f"p{i}" for i, one in enumerate(made) if len(one._numbers)]
    assert source.route.split(", ") == counted
    assert [paper.route for paper in await source.papers()] == counted
    assert sum(paper.cost.value for paper in await source.papers() if paper.cost) == len(got)
    assert len(counted) <= MAX_PARTS
    assert all(len(one.ids) <= len(other.ids) for one, other in pairwise(seen))
    for so_far in seen:
        assert so_far.earlier is not None
        assert so_far.earlier.order.decode() == so_far.papers[-1].route
        assert so_far.cost("uusd") == len(so_far.ids)
        assert so_far.cost("msat") == 0
    if whole:
        assert ends
