"""Sold work and the owner's own use of the machine: what begins, what goes on, what is handed back."""

import asyncio
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from ledger.commitments import CHECKPOINT_TOKENS, SALT_BYTES
from ledger.identity import Identity
from node.engine.load import Sensors
from node.engine.memory import MemoryEngine
from node.engine.port import Rows
from node.exchange.idling import IdleWatch, Reading, reader, selling_now
from node.market.idle import IdleRule, Load
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import CancelFrame, CheckpointFrame, Frame, ReceiptFrame
from node.wire.messages import Refused, Request, encode_request
from tests.node.trading import (
    PROMPT,
    Draft,
    Store,
    draft_order,
    engine_of,
    frames_of,
    ids_of,
    model,
    price_of,
    refusal_of,
    until,
)

BUYER = Identity(bytes([2]) * 32)
RULE = IdleRule(calm_s=60, grace_s=30)


class Machine:
    """The owner's machine, as a test says."""

    def __init__(self) -> None:
        self.now, self.cpu = 0.0, 0.1
        self.broken = False

    async def read(self) -> Reading:
        if self.broken:
            raise OSError("the sensor is gone")
        return Reading(Load(self.now, 0, self.cpu), ("GPU", "battery"))


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
async def watch(machine: Machine) -> IdleWatch:
    watching = IdleWatch(RULE, machine.read)
    await watching.look()
    return watching


@pytest.fixture
async def store(tokenizer: Tokenizer, clock: ManualClock, watch: IdleWatch) -> Store:
    engine = engine_of(tokenizer, slots=4)
    return await Store.open(tokenizer, clock, engine=engine, may_sell=watch.may_sell)


async def the_owner_is_back(machine: Machine, watch: IdleWatch) -> None:
    machine.cpu = 0.83
    await watch.look()


async def test_an_idle_machine_sells(store: Store, clock: ManualClock) -> None:
    assert len(ids_of(await frames_of(store.seller, draft_order(BUYER, await store.offer(), clock, max_tokens=2)))) == 2


async def test_a_machine_in_use_takes_no_order_and_says_when_to_come_again(
    store: Store, clock: ManualClock, machine: Machine, watch: IdleWatch
) -> None:
    offer = await store.offer()
    await the_owner_is_back(machine, watch)

    refusal = await refusal_of(store.seller, draft_order(BUYER, offer, clock))

    assert (refusal.code, refusal.retry_after) == ("not_selling", 60)
    assert "83" not in refusal.message, "what the owner does is not the buyer's business"
    assert store.book.journal.head.sequence == 0


async def test_a_machine_in_use_offers_nothing(store: Store, machine: Machine, watch: IdleWatch) -> None:
    await the_owner_is_back(machine, watch)

    with pytest.raises(Refused, match="the owner of this machine needs it now"):
        await store.seller.offers()


async def test_selling_resumes_by_itself_with_the_same_offer(
    store: Store, clock: ManualClock, machine: Machine, watch: IdleWatch
) -> None:
    offer = await store.offer()
    await the_owner_is_back(machine, watch)
    for machine.now in (10, 70):
        machine.cpu = 0.1
        await watch.look()

    assert len(ids_of(await frames_of(store.seller, draft_order(BUYER, offer, clock, max_tokens=2)))) == 2


async def delivering(store: Store, draft: Draft, tokens: int, then: asyncio.Event) -> list[Frame]:
    """Read an answer; at so many tokens `then` is set."""
    reading, frames = draft.reader(), list[Frame]()
    async for chunk in store.seller.order(draft.raw, draft.sealed):
        frames += reading.feed(chunk)
        if len(ids_of(frames)) >= tokens:
            then.set()
            await asyncio.sleep(0)
    return frames


async def test_an_order_that_runs_when_the_owner_comes_back_is_cut_at_a_checkpoint_and_that_far_paid(
    store: Store, clock: ManualClock
) -> None:
    draft, begun = draft_order(BUYER, await store.offer(), clock, max_tokens=300), asyncio.Event()
    answer = asyncio.create_task(delivering(store, draft, 70, begun))
    await begun.wait()

    store.seller.hand_back()

    frames = await answer
    assert isinstance(frames[-1], CancelFrame)
    assert isinstance(frames[-2], CheckpointFrame)
    assert len(ids_of(frames)) == 2 * CHECKPOINT_TOKENS
    account = store.owed_by(BUYER.did)
    assert (account.owed, account.reserved) == (price_of(0, 2 * CHECKPOINT_TOKENS), 0)


async def test_an_order_that_has_not_begun_to_answer_is_handed_back_without_a_bill(
    tokenizer: Tokenizer, clock: ManualClock, watch: IdleWatch
) -> None:
    engine = engine_of(tokenizer, stall_after=0)
    store = await Store.open(tokenizer, clock, engine=engine, may_sell=watch.may_sell)
    draft = draft_order(BUYER, await store.offer(), clock)
    answer = asyncio.create_task(frames_of(store.seller, draft))
    await until(lambda: engine.free_slots() == 0)

    store.seller.hand_back()

    assert [type(frame) for frame in await answer if not isinstance(frame, CheckpointFrame)][-1] is CancelFrame
    assert (store.owed_by(BUYER.did).owed, store.owed_by(BUYER.did).reserved) == (0, 0)


class Endless(MemoryEngine):
    """Never comes to the end of a score."""

    async def _score(self, ids: list[int], first: int) -> AsyncGenerator[Rows, None]:
        await asyncio.Event().wait()
        yield np.zeros((len(ids) - first, 1), np.float32)


async def test_a_score_that_runs_is_handed_back_without_a_bill(
    tokenizer: Tokenizer, clock: ManualClock, watch: IdleWatch
) -> None:
    engine = Endless(model(tokenizer), vocabulary=tokenizer.size, eog=tokenizer.eog)
    store = await Store.open(tokenizer, clock, engine=engine, may_sell=watch.may_sell)
    body = encode_request(Request(bytes(SALT_BYTES), PROMPT, claimed=(700,)))
    draft = draft_order(BUYER, await store.offer(), clock, work="score", body=body)
    answer = asyncio.create_task(frames_of(store.seller, draft))
    await until(lambda: engine.free_slots() == 0)

    store.seller.hand_back()

    async with asyncio.timeout(5):
        assert isinstance((await answer)[-1], CancelFrame)
    assert (store.owed_by(BUYER.did).owed, store.owed_by(BUYER.did).reserved) == (0, 0)


async def test_an_answer_that_is_complete_at_the_checkpoint_has_its_receipt(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=CHECKPOINT_TOKENS)
    begun = asyncio.Event()
    answer = asyncio.create_task(delivering(store, draft, 10, begun))
    await begun.wait()

    store.seller.hand_back()

    assert isinstance((await answer)[-1], ReceiptFrame)


async def test_orders_have_to_be_handed_back_only_after_the_grace_period(machine: Machine, watch: IdleWatch) -> None:
    await the_owner_is_back(machine, watch)
    assert not watch.must_hand_back
    machine.now = 30
    await watch.look()
    assert watch.must_hand_back


async def test_the_owner_is_told_why_and_what_is_not_measured(machine: Machine, watch: IdleWatch) -> None:
    assert watch.status()["words"] == "selling"
    await the_owner_is_back(machine, watch)

    told = watch.status()

    assert told["state"] == "paused"
    assert told["words"] == "paused: the machine is in use (CPU 83% by others), resumes by itself"
    assert told["not_measured"] == ["GPU", "battery"]


async def test_the_owner_is_told_when_it_resumes(machine: Machine, watch: IdleWatch) -> None:
    await the_owner_is_back(machine, watch)
    machine.now, machine.cpu = 10, 0.1
    await watch.look()

    assert watch.words() == "paused: the machine is calm again, resumes in 60 s"


async def test_a_sensor_that_fails_stops_the_selling_until_it_works_again(machine: Machine, watch: IdleWatch) -> None:
    machine.broken = True
    await watch.look()
    assert isinstance(watch.may_sell(), Refused)
    machine.broken = False
    await watch.look()
    assert watch.may_sell() is None


async def test_this_machine_can_be_watched() -> None:
    sensors = Sensors()
    watching = IdleWatch(IdleRule(max_cpu=1.0, max_gpu=1.0, on_battery=True), reader(sensors))
    await watching.look()
    sensors.close()

    assert watching.may_sell() is None
    assert watching.status()["state"] == "selling"


def test_a_node_without_a_price_says_that_it_sells_nothing() -> None:
    assert selling_now(False, None)["state"] == "off"
    assert selling_now(True, None)["state"] == "selling"


def test_a_node_whose_ledger_is_in_trouble_says_that_it_sells_nothing_and_why() -> None:
    paused = selling_now(True, None, "the disk is full")
    assert (paused["state"], paused["words"]) == ("paused", "paused: the disk is full; resumes by itself")
