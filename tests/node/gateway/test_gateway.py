"""Where questions go: this machine, the best neighbour, the next one, a lesser model, or nowhere, and always said."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from ledger.money import Amount, Price
from ledger.records import PRIVACY_LEVELS, Order, Privacy, open_record
from node.engine.memory import MemoryEngine
from node.engine.port import EngineBusy, Job, Piece
from node.exchange import experience
from node.gateway.answer import Answer
from node.gateway.question import BadBias, ContextExceeded, Policy, UnknownModel, Unservable
from node.gateway.sources import AnswerCut
from node.market.candidates import Limits, Weights
from node.mesh import static
from node.models.manifest import tokenizer_file
from node.models.template import NotShown
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from node.ports import ManualClock
from node.wire.frames import Frame, Ids
from node.wire.messages import RefusalCode, Refused, Unreachable
from tests.node.gateway.conftest import Move
from tests.node.gateway.household import ASKED, LARGE, SMALL, question
from tests.node.trading import (
    CREDIT,
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
    model,
    until,
    uusd,
)
from verify.steering import Steering


def small(tokenizer: Tokenizer, **settings: Any) -> MemoryEngine:
    """The model that runs here."""
    return engine_of(tokenizer, 7, manifest=model(tokenizer, 7, quantization="Q4_K_M"), **settings)


async def store(tokenizer: Tokenizer, clock: ManualClock, seed: int = 1, **settings: Any) -> Store:
    """A neighbour that sells the large model."""
    return await Store.open(tokenizer, clock, seed=seed, **settings)


async def text_of(engine: MemoryEngine, tokenizer: Tokenizer, tokens: int = 12, seed: int = SEED) -> str:
    """What an engine answers to the question, computed apart."""
    prompt = await tokenizer.encode([{"role": "user", "content": ASKED}])
    ids = [i async for piece in engine.generate(Job(prompt, HOT, seed, tokens)) for i in piece.ids]
    return tokenizer.text(ids)


async def occupied(engine: MemoryEngine) -> AsyncGenerator[Piece, None]:
    """A job that holds a slot of the engine until it is closed."""
    running = engine.generate(Job((5,), HOT, 4, 2_000))
    await anext(running)
    return running


async def show(answer: Answer, shown: list[str]) -> None:
    """Put what a client would see into a list, up to an error."""
    async for part in answer.text():
        shown.append(part)  # noqa: PERF401 - an error keeps what came before it


class Refusing(Line):
    """Refuses every order."""

    def __init__(self, peer: Store, code: RefusalCode = "busy") -> None:
        super().__init__(peer.seller)
        self._code = code

    def before_order(self) -> None:
        raise Refused(self._code, "not now")


class Silent(Line):
    """Is never reached for orders."""

    def before_order(self) -> None:
        raise Unreachable("it does not answer")


class OtherTokenizer(Line):
    """Sells a model with a tokenizer of its own, and remembers whether that was asked for."""

    def __init__(self, peer: Store, arrives: bool = True) -> None:
        super().__init__(peer.seller)
        self.asked: list[bytes] = []
        self._arrives = arrives

    async def tokenizer(self, digest: bytes) -> bytes:
        self.asked.append(digest)
        if not self._arrives:
            await asyncio.Event().wait()
        return await super().tokenizer(digest)

    @classmethod
    async def move_in(cls, tokenizer: Tokenizer, clock: ManualClock, arrives: bool) -> "OtherTokenizer":
        """Its chat template takes no conversation."""
        raw = tokenizer_file(DEMO).replace(b"{% for m in messages %}", b"{% for m in nothin.g %}")
        other = evolve(model(tokenizer, 5), tokenizer=sha256(raw).digest())
        engine = engine_of(tokenizer, 5, manifest=other)
        return cls(await store(tokenizer, clock, 5, engine=engine, tokenizer_file=lambda _: raw), arrives)


# Local first.


async def test_what_runs_here_is_answered_here(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    line = Line((await store(speaking, clock)).seller)
    engine = small(speaking)
    household = await move_in({SMALL: engine}, line)

    answer, text = await household.told(model=SMALL)

    assert (answer.route, answer.model, answer.degraded) == ("local", SMALL, None)
    assert text == await text_of(engine, speaking)
    assert answer.ending is not None
    assert (answer.ending.tokens, answer.ending.records, answer.ending.costs) == (12, (), ())
    assert line.ordered == []


async def test_any_model_will_do_for_auto_and_this_machine_comes_first(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    line = Line((await store(speaking, clock)).seller)
    household = await move_in({SMALL: small(speaking)}, line)

    answer, _ = await household.told(model="auto")

    assert (answer.route, answer.degraded) == ("local", None)
    assert line.ordered == []


async def test_while_this_machine_is_free_no_neighbour_is_asked_for_its_tokenizer(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    other = await OtherTokenizer.move_in(speaking, clock, arrives=True)
    household = await move_in({SMALL: small(speaking)}, other)

    answer, _ = await household.told(model="auto")

    assert (answer.route, other.asked) == ("local", [])


@pytest.mark.parametrize("arrives", [True, False], ids=["its template fails", "its tokenizer never arrives"])
async def test_a_neighbour_whose_prompt_cannot_be_made_stops_nobody_else(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    if not arrives:
        monkeypatch.setattr(static, "_FETCH_S", 0.05)
    engine = small(speaking)
    other, good = await OtherTokenizer.move_in(speaking, clock, arrives), await store(speaking, clock)
    with_another = await move_in({SMALL: engine}, other, good.seller)
    alone = await move_in({SMALL: engine}, other)
    running = await occupied(engine)

    answer, _ = await with_another.told(model="auto")
    queueing = asyncio.create_task(alone.told(model="auto"))
    await until(lambda: engine.free_slots() == 0 and len(other.asked) > 0)
    await running.aclose()

    assert answer.route == good.did
    assert (await queueing)[0].route == "local"
    assert other.ordered == []


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def toolless(tokenizers: Tokenizers, tmp_path: Path) -> Tokenizer:
    """The demo model's tokenizer with a chat template that shows no tools."""
    raw = tokenizer_file(DEMO).replace(b"{% if system or tools %}", b"{% if system or thing %}")
    path = tmp_path / "toolless.gguf"
    path.write_bytes(raw.replace(b"{% if tools %}", b"{% if thing %}"))
    return tokenizers.open_own(tokenizers.add_own(path))


async def test_a_model_here_that_shows_no_tools_leaves_them_to_one_that_does(
    speaking: Tokenizer, toolless: Tokenizer, move_in: Move
) -> None:
    household = await move_in({SMALL: small(toolless), LARGE: engine_of(speaking)})
    without = f"sha256:{small(toolless).manifest.digest.hex()}"

    by_any, _ = await household.told(model="auto", tools=[TOOL])
    instead, _ = await household.told(model=without, tools=[TOOL])

    assert (by_any.model, by_any.degraded) == (LARGE, None)
    assert instead.model == LARGE
    assert instead.degraded is not None
    assert f"this machine ({SMALL}): its chat template fails" in instead.degraded
    with pytest.raises(NotShown):
        await household.ask(model=without, tools=[TOOL], may_degrade=False)


@pytest.mark.parametrize("wanted", ["auto", "nobody-has-this"])
async def test_where_no_model_here_shows_tools_that_is_said(toolless: Tokenizer, move_in: Move, wanted: str) -> None:
    household = await move_in({SMALL: small(toolless)})

    with pytest.raises(NotShown):
        await household.ask(model=wanted, tools=[TOOL])


async def test_a_bias_for_an_id_that_the_model_does_not_have_is_refused(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({SMALL: small(speaking)})

    for model_name in ("auto", SMALL):
        with pytest.raises(BadBias, match=f"token id {speaking.size} is outside"):
            await household.ask(model=model_name, steering=Steering(bias=((speaking.size, 1_000_000),)))


async def test_token_ids_are_not_answered_by_a_model_of_another_vocabulary(
    speaking: Tokenizer, toolless: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock)
    alike = await move_in({SMALL: small(speaking)}, Refusing(seller))
    other = await move_in({SMALL: small(toolless)}, Refusing(seller))

    assert (await alike.told(prompt=(5, 6, 7)))[0].model == SMALL
    with pytest.raises(Unservable, match="refused the order"):
        await other.ask(prompt=(5, 6, 7))


async def test_a_model_that_is_not_here_is_bought(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    seller = await store(speaking, clock)
    household = await move_in({SMALL: small(speaking)}, seller.seller)

    answer, text = await household.told()

    assert (answer.route, answer.model, answer.degraded) == (seller.did, LARGE, None)
    assert text == await text_of(engine_of(speaking), speaking)
    prompt = await speaking.encode([{"role": "user", "content": ASKED}])
    assert answer.prompt_tokens == len(prompt)
    assert answer.ending is not None
    assert (answer.ending.finish, answer.ending.tokens) == ("length", 12)
    assert answer.ending.costs == (uusd(len(prompt) + 24),)
    (receipt,) = answer.ending.records
    assert (await household.book.journal.record(receipt)) is not None


async def test_a_busy_machine_waits_and_then_asks_its_neighbours(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    engine, seller = engine_of(speaking), await store(speaking, clock)
    household = await move_in({LARGE: engine}, seller.seller)
    running = await occupied(engine)

    answer, _ = await household.told()
    await running.aclose()

    assert (answer.route, answer.degraded) == (seller.did, None)


async def test_a_machine_that_comes_free_within_the_wait_answers_itself(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    engine, line = engine_of(speaking), Line((await store(speaking, clock)).seller)
    household = await move_in({LARGE: engine}, line, policy=Policy(busy_wait_s=30.0))
    running = await occupied(engine)

    asking = asyncio.create_task(household.told())
    await asyncio.sleep(0.05)
    await running.aclose()
    answer, _ = await asking

    assert answer.route == "local"
    assert line.ordered == []


async def test_a_busy_machine_without_neighbours_queues(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    engine = engine_of(speaking)
    household = await move_in({LARGE: engine})
    running = await occupied(engine)

    asking = asyncio.create_task(household.told())
    await asyncio.sleep(0.05)
    assert not asking.done()
    await running.aclose()

    assert (await asking)[0].route == "local"


async def test_a_busy_machine_whose_neighbours_all_fail_queues_too(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    engine, line = engine_of(speaking), Refusing(await store(speaking, clock))
    household = await move_in({LARGE: engine}, line)
    running = await occupied(engine)

    asking = asyncio.create_task(household.told())
    await until(lambda: bool(line.ordered))
    await running.aclose()
    answer, _ = await asking

    assert (answer.route, answer.degraded) == ("local", None)


async def test_a_full_queue_is_said(speaking: Tokenizer, move_in: Move) -> None:
    engine = engine_of(speaking, waiting=0)
    household = await move_in({LARGE: engine})
    running = await occupied(engine)

    with pytest.raises(EngineBusy):
        await household.ask()
    await running.aclose()


# The route that was asked for.


async def test_the_route_peers_leaves_this_machine_out(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    seller = await store(speaking, clock)
    household = await move_in({LARGE: engine_of(speaking)}, seller.seller)

    answer, _ = await household.told(route="peers")

    assert answer.route == seller.did


async def test_the_route_peers_says_when_there_are_none(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({LARGE: engine_of(speaking)})

    answer, _ = await household.told(route="peers")

    assert answer.degraded is not None
    assert "no peers are named: idlemesh up --peer" in answer.degraded


async def test_the_route_local_leaves_the_neighbours_out(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    line = Line((await store(speaking, clock)).seller)
    household = await move_in({SMALL: small(speaking)}, line)

    answer, _ = await household.told(route="local")

    assert (answer.route, answer.model) == ("local", SMALL)
    assert answer.degraded is not None
    assert "the route is local" in answer.degraded
    assert line.ordered == []


# The next one.


@pytest.mark.parametrize("bad", [Refusing, lambda peer: Silent(peer.seller), lambda peer: CutLine(peer.seller, 0)])
async def test_when_the_best_neighbour_fails_before_the_first_token_the_next_one_answers(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, bad: Any
) -> None:
    cheap = await store(speaking, clock, seed=1, price=Price(1, 1, "uusd"))
    dear = await store(speaking, clock, seed=3)
    broken = bad(cheap)
    household = await move_in({}, broken, dear.seller)

    answer, text = await household.told()

    assert len(broken.ordered) >= 1
    assert (answer.route, answer.degraded) == (dear.did, None)
    assert text == await text_of(engine_of(speaking), speaking)


@pytest.mark.parametrize("tokens", [1, 5, 11])
async def test_a_client_that_takes_no_stream_never_sees_that_a_seller_failed_midway(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, tokens: int
) -> None:
    cheap = await store(speaking, clock, seed=1, price=Price(1, 1, "uusd"))
    dear = await store(speaking, clock, seed=3)
    household = await move_in({}, CutLine(cheap.seller, after=tokens), dear.seller)

    answer, text = await household.told(streaming=False)

    assert answer.route == f"{cheap.did}, {dear.did}"
    assert text == await text_of(engine_of(speaking), speaking)


async def test_a_stream_that_breaks_off_says_so_and_keeps_what_was_shown(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock)
    household = await move_in({}, CutLine(seller.seller, after=6))
    answer = await household.ask()

    shown: list[str] = []
    with pytest.raises(AnswerCut):
        await show(answer, shown)

    whole = await text_of(engine_of(speaking), speaking)
    assert "".join(shown)
    assert whole.startswith("".join(shown).rstrip("\ufffd"))
    assert answer.ending is None
    (lost,) = answer.lost  # what came before the cut: its order is known, and what it costs
    assert (lost.route, lost.order is not None, lost.cost) == (seller.did, True, uusd(0))


async def test_whoever_is_told_that_nobody_can_answer_learns_what_a_lost_answer_was(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock)
    household = await move_in({}, CutLine(seller.seller, after=6))
    with pytest.raises(Unservable) as caught:
        await household.told(streaming=False)
    assert [(lost.route, lost.order is not None) for lost in caught.value.lost] == [(seller.did, True)]


async def test_a_cut_answer_with_a_receipt_is_not_passed_off_as_whole(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    class Forgetful(CutLine):
        """Is cut, but gives the receipt for what the seller thinks was a buyer that hung up."""

        async def receipt(self, order: bytes) -> bytes | None:
            self.mend()
            return await super().receipt(order)

    household = await move_in({}, Forgetful((await store(speaking, clock)).seller, after=6))
    answer = await household.ask()

    with pytest.raises(AnswerCut):
        await answer.collect()


async def test_a_whole_answer_with_a_wrong_bill_is_shown_and_its_true_cost_said(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    def script(told: Told) -> Iterator[Frame]:
        ids = tuple(range(600, 612))
        yield Ids(ids)
        yield told.receipt(ids, cost=10**9)

    household = await move_in({}, ScriptedSeller(speaking, clock, script))

    answer, text = await household.told()

    assert text == speaking.text(range(600, 612))
    assert answer.ending is not None
    assert answer.ending.costs == (uusd(answer.prompt_tokens + 24),)


async def test_after_a_few_failures_no_more_are_tried(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    lines = [Refusing(await store(speaking, clock, seed=seed)) for seed in range(10, 17)]
    household = await move_in({}, *lines)

    with pytest.raises(Unservable):
        await household.ask()

    assert sum(len(line.ordered) for line in lines) == 4


async def test_an_offer_renewed_meanwhile_is_used(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    first = await store(speaking, clock)
    line = Line(first.seller)
    household = await move_in({}, line)
    line.peer = (await store(speaking, clock, journal=first.book.journal)).seller  # its prekeys are gone
    clock.advance(1)

    answer, _ = await household.told()

    assert answer.route == first.did
    assert len(line.ordered) == 2


# The best neighbour.


async def test_of_two_neighbours_the_cheaper_is_asked(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    cheap = await store(speaking, clock, seed=1, price=Price(1_000, 1_000, "uusd"))
    dear = await store(speaking, clock, seed=3)
    household = await move_in({}, dear.seller, cheap.seller)

    assert (await household.told())[0].route == cheap.did


async def test_a_neighbour_that_let_us_down_comes_after_one_that_did_not(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    flaky = await store(speaking, clock, seed=1, price=Price(900_000, 1_900_000, "uusd"))
    sound = await store(speaking, clock, seed=3)
    household = await move_in({}, Silent(flaky.seller), sound.seller)

    routes = [(await household.told(seed=seed))[0].route for seed in (1, 2)]

    assert routes == [sound.did, sound.did]
    line = household.neighbours[flaky.did]
    assert isinstance(line, Silent)
    assert len(line.ordered) == 1, "tried once, and remembered"


@pytest.mark.parametrize(
    ("weights", "favourite"),
    [(Weights(cost=10.0, reputation=0.0), "cheap"), (Weights(cost=0.0, reputation=10.0), "proven")],
)
async def test_the_owners_weights_decide(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, weights: Weights, favourite: str
) -> None:
    cheap = await store(speaking, clock, seed=1, price=Price(1_000, 1_000, "uusd"))
    proven = await store(speaking, clock, seed=3)
    household = await move_in({}, cheap.seller, proven.seller, policy=Policy(weights=weights))
    await household.book.post(experience.delivered(proven.did, 100, 10, 1_000))

    assert (await household.told())[0].route == {"cheap": cheap.did, "proven": proven.did}[favourite]


async def test_a_stake_that_counts_here_decides_between_equals(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    one, other = [await store(speaking, clock, seed=seed) for seed in (1, 3)]
    for bonded in (one, other):
        stakes = {bonded.did: 100_000_000}
        household = await move_in({}, one.seller, other.seller, bonded=lambda did, at=stakes: at.get(did, 0))
        assert (await household.told())[0].route == bonded.did


# Degraded, and saying so.


async def test_a_model_that_nobody_has_is_replaced_by_the_best_here_and_the_answer_says_so(
    speaking: Tokenizer, move_in: Move
) -> None:
    household = await move_in({SMALL: small(speaking)})

    answer, text = await household.told(model="nobody-has-this")

    assert (answer.route, answer.model) == ("local", SMALL)
    assert answer.degraded is not None
    assert answer.degraded.startswith(f"{SMALL} answers here instead")
    assert text == await text_of(small(speaking), speaking)


async def test_a_model_whose_sellers_all_fail_is_replaced_and_the_answer_says_why(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock)
    household = await move_in({SMALL: small(speaking)}, Refusing(seller))

    answer, _ = await household.told()

    assert (answer.route, answer.model) == ("local", SMALL)
    assert answer.degraded is not None
    assert f"{seller.did} ({LARGE}): refused the order: not now" in answer.degraded


async def test_who_forbids_a_lesser_model_hears_that_nobody_has_it(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({SMALL: small(speaking)})

    for name in ("nobody-has-this", "village:Q9", "sha256:" + "0" * 64):
        with pytest.raises(UnknownModel):
            await household.ask(model=name, may_degrade=False)


async def test_who_forbids_a_lesser_model_hears_why_each_candidate_was_ruled_out(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock)
    household = await move_in({SMALL: small(speaking)}, Refusing(seller))

    with pytest.raises(Unservable) as error:
        await household.ask(may_degrade=False)

    assert error.value.reasons == (
        f"this machine ({SMALL}): runs another model",
        f"{seller.did} ({LARGE}): refused the order: not now",
    )


async def test_a_model_of_the_catalogue_that_is_out_of_reach_now_is_unservable_and_not_unknown(
    speaking: Tokenizer, move_in: Move
) -> None:
    household = await move_in({SMALL: small(speaking)})

    with pytest.raises(Unservable):
        await household.ask(model="far-away", may_degrade=False)


async def test_with_nothing_here_and_nobody_there_the_question_is_unservable(move_in: Move) -> None:
    household = await move_in({})

    with pytest.raises(Unservable, match="nobody can answer"):
        await household.ask(model="auto")


@pytest.mark.parametrize(
    ("wish", "served"),
    [("city:Q5", True), ("city:Q8_0", True), ("city:F16", False), ("village:Q5", False), ("village:Q4", False)],
)
async def test_a_family_and_tier_is_met_by_that_tier_or_better(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, wish: str, served: bool
) -> None:
    seller = await store(speaking, clock)
    household = await move_in({}, seller.seller)

    if served:
        assert (await household.told(model=wish))[0].model == LARGE
    else:
        with pytest.raises((Unservable, UnknownModel)):
            await household.ask(model=wish, may_degrade=False)


async def test_a_model_without_a_name_here_goes_by_its_digest_whatever_its_seller_says(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    stranger = engine_of(speaking, 9)
    seller = await store(speaking, clock, engine=stranger)
    household = await move_in({}, seller.seller)
    name = "sha256:" + stranger.manifest.digest.hex()

    assert household.gateway.models() == [(name, seller.did)]
    assert (await household.told(model=name))[0].model == name
    with pytest.raises(UnknownModel):
        await household.ask(model="memory", may_degrade=False)


async def test_what_can_be_asked_for_is_listed_with_who_has_it(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock)
    household = await move_in({SMALL: small(speaking)}, seller.seller)

    assert household.gateway.models() == [(SMALL, "local"), (LARGE, seller.did)]


# Privacy.


@pytest.mark.parametrize("privacy", PRIVACY_LEVELS)
@pytest.mark.parametrize("route", ["auto", "peers"])
async def test_a_prompt_goes_to_named_peers_up_to_internal_and_never_above(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, privacy: Privacy, route: str
) -> None:
    line = Line((await store(speaking, clock)).seller)
    household = await move_in({}, line)

    if privacy in ("public", "internal"):
        answer, _ = await household.told(privacy=privacy, route=route)
        assert answer.route != "local"
        assert [open_record(order, Order).record.privacy for order, _ in line.ordered] == [privacy]
        return
    with pytest.raises(Unservable, match=f"a {privacy} prompt must not leave this machine"):
        await household.ask(privacy=privacy, route=route)
    assert line.ordered == []


@pytest.mark.parametrize("privacy", ["confidential", "restricted"])
@pytest.mark.parametrize("trouble", ["busy", "another model", "unknown model", "too long"])
async def test_no_trouble_here_sends_a_private_prompt_out(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, privacy: Privacy, trouble: str
) -> None:
    """Busy, degraded, unknown, too long: neither failover nor fallback goes past the level."""
    line = Line((await store(speaking, clock)).seller)
    engine = engine_of(speaking) if trouble == "busy" else small(speaking)
    household = await move_in({LARGE if trouble == "busy" else SMALL: engine}, line)
    running = await occupied(engine) if trouble == "busy" else None
    special: dict[str, dict[str, Any]] = {"unknown model": {"model": "what"}, "too long": {"max_tokens": 5_000}}
    wishes = special.get(trouble, {})

    asking = asyncio.create_task(household.told(privacy=privacy, **wishes))
    await asyncio.sleep(0.1)
    if running is not None:
        await running.aclose()
    if trouble == "too long":
        with pytest.raises((ContextExceeded, Unservable)):
            await asking
    else:
        assert (await asking)[0].route == "local"

    assert line.ordered == []


# The owner's limits.


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_input_price=uusd(PRICE.input - 1)), "for a million prompt tokens"),
        (Limits(max_output_price=uusd(PRICE.output - 1)), "for a million output tokens"),
        (Limits(max_order_cost=uusd(24)), "for this order, over the most of"),
        (Limits(max_order_cost=Amount(10**9, "msat")), "for this order, over the most of"),
        (Limits(max_per_day=uusd(24)), "would bring today's spending"),
        (Limits(min_reputation=0.34), "has a reputation of 0.33"),
        (Limits(allowed=frozenset()), "not among the allowed peers"),
    ],
)
async def test_no_order_breaks_the_owners_limits(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, limits: Limits, reason: str
) -> None:
    line = Line((await store(speaking, clock)).seller)
    household = await move_in({}, line, policy=Policy(limits=limits))

    with pytest.raises(Unservable, match=reason):
        await household.ask()

    assert line.ordered == []


async def test_the_days_limit_counts_what_was_spent_and_starts_anew_at_midnight(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock)
    prompt = len(await speaking.encode([{"role": "user", "content": ASKED}]))
    most = 2 * (prompt + 24) + 1
    household = await move_in({}, seller.seller, policy=Policy(limits=Limits(max_per_day=uusd(most))))
    for seed in (1, 2):
        await household.told(seed=seed)

    with pytest.raises(Unservable, match="today's spending"):
        await household.ask()
    clock.advance(12 * 3_600 + 60)
    await household.meet()

    assert (await household.told())[0].route == seller.did


async def test_the_days_limit_counts_orders_under_way(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    seller = await store(speaking, clock, engine=engine_of(speaking, slots=2, stall_after=2))
    prompt = len(await speaking.encode([{"role": "user", "content": ASKED}]))
    household = await move_in({}, seller.seller, policy=Policy(limits=Limits(max_per_day=uusd(prompt + 24))))
    first = await household.ask()

    with pytest.raises(Unservable, match="today's spending"):
        await household.ask(seed=2)
    await first.close()


async def test_the_days_limit_holds_for_requests_at_one_time(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock, engine=engine_of(speaking, slots=8))
    prompt = len(await speaking.encode([{"role": "user", "content": ASKED}]))
    household = await move_in({}, seller.seller, policy=Policy(limits=Limits(max_per_day=uusd(2 * (prompt + 24)))))

    answers = await asyncio.gather(*(household.told(seed=seed) for seed in range(6)), return_exceptions=True)

    refused = [str(one) for one in answers if isinstance(one, Unservable)]
    assert len(refused) == 4
    assert all("today's spending" in one for one in refused)
    assert household.owed() == 2 * (prompt + 24)


async def test_an_order_above_what_the_account_bears_is_not_even_tried(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    line = Line((await store(speaking, clock, credit={"uusd": evolve(CREDIT, window=uusd(20))})).seller)
    household = await move_in({}, line)

    with pytest.raises(Unservable, match="its window bears"):
        await household.ask()

    assert line.ordered == []


async def test_allowed_peers_are_asked(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    allowed, other = (
        await store(speaking, clock, seed=1),
        await store(speaking, clock, seed=3, price=Price(1, 1, "uusd")),
    )
    household = await move_in(
        {}, allowed.seller, other.seller, policy=Policy(limits=Limits(allowed=frozenset({allowed.did})))
    )

    assert (await household.told())[0].route == allowed.did


# What was asked, and how.


async def test_the_same_seed_gives_the_same_answer_here_and_there(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    seller = await store(speaking, clock)
    household = await move_in({LARGE: engine_of(speaking)}, seller.seller)

    here = [(await household.told(seed=5, route="local"))[1] for _ in range(2)]
    there = [(await household.told(seed=5, route="peers"))[1] for _ in range(2)]
    other = (await household.told(seed=6))[1]

    assert len({*here, *there}) == 1
    assert other != here[0]


async def test_without_a_seed_one_is_drawn(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({LARGE: engine_of(speaking)})

    texts = {(await household.told(seed=None))[1] for _ in range(3)}

    assert len(texts) == 3


@pytest.mark.parametrize("route", ["local", "peers"])
async def test_a_stop_string_ends_the_answer_and_is_not_shown(
    speaking: Tokenizer, clock: ManualClock, move_in: Move, route: str
) -> None:
    seller = await store(speaking, clock)
    engine = engine_of(speaking)
    household = await move_in({LARGE: engine}, seller.seller)
    whole = await text_of(engine, speaking, tokens=40)
    stop = whole[20:22]

    answer, text = await household.told(route=route, stop=(stop,), max_tokens=40)

    assert text == whole[: whole.index(stop)]
    assert answer.ending is not None
    assert answer.ending.finish == "stop"
    assert answer.ending.tokens < 40
    assert engine.free_slots() == 1


async def test_without_a_wish_the_answer_is_as_long_as_the_owner_says_or_the_context_allows(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    tight = engine_of(speaking, 7, manifest=model(speaking, 7, context=40))
    household = await move_in({LARGE: engine_of(speaking), SMALL: tight}, policy=Policy(max_tokens=30))

    usual, _ = await household.told(max_tokens=None)
    cramped, _ = await household.told(max_tokens=None, model="sha256:" + tight.manifest.digest.hex())

    assert usual.ending is not None
    assert usual.ending.tokens == 30
    assert cramped.ending is not None
    assert cramped.ending.tokens == 40 - cramped.prompt_tokens < 30


async def test_a_question_too_long_for_this_machine_goes_to_a_neighbour_where_it_fits(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    tight = engine_of(speaking, 7, manifest=model(speaking, 7, context=24))
    seller = await store(speaking, clock)
    household = await move_in({SMALL: tight}, seller.seller)

    answer, _ = await household.told(model="auto", max_tokens=100)

    assert answer.route == seller.did


async def test_a_question_too_long_for_everybody_says_how_long_it_is(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({LARGE: engine_of(speaking)})

    with pytest.raises(ContextExceeded) as error:
        await household.ask(max_tokens=2_048)

    prompt = await speaking.encode([{"role": "user", "content": ASKED}])
    assert (error.value.needed, error.value.context) == (2_048 + len(prompt), 2_048)


# Whoever stops reading stops the work.


async def test_closing_an_answer_frees_the_engine_here(speaking: Tokenizer, move_in: Move) -> None:
    engine = engine_of(speaking)
    household = await move_in({LARGE: engine})
    answer = await household.ask(max_tokens=1_000)

    await answer.close()

    assert engine.free_slots() == 1


async def test_closing_an_answer_cancels_the_order_there_and_pays_for_what_came(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    engine = engine_of(speaking)
    seller = await store(speaking, clock, engine=engine)
    line = Line(seller.seller)
    household = await move_in({}, line)
    answer = await household.ask(max_tokens=1_000)

    await answer.close()
    await until(lambda: engine.free_slots() == 1 and household.owed() > 0 and household.settler.idle)

    assert len(line.cancelled) == 1
    assert household.owed() == seller.owed_by(household.book.me).owed < answer.prompt_tokens + 2 * 100


async def test_a_client_that_gives_up_while_waiting_for_the_first_token_stops_the_work(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    engine = engine_of(speaking, stall_after=0)
    line = Line((await store(speaking, clock, engine=engine)).seller)
    household = await move_in({}, line)
    asking = asyncio.create_task(household.ask())
    await until(lambda: engine.free_slots() == 0)

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: engine.free_slots() == 1)

    assert len(line.cancelled) == 1


def test_a_question_does_not_show_its_prompt_where_it_is_printed() -> None:
    assert "river" not in repr(question())
