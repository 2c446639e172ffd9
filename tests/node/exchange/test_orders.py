"""What a seller refuses, with which reason, and that it serves the next buyer as if nothing had happened."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from attrs import evolve

from ledger import codec
from ledger.commitments import SALT_BYTES
from ledger.identity import Identity
from ledger.journal import Entry, MemoryJournal
from ledger.records import CLOCK_SKEW_S, Order, Receipt, open_record, sign
from node.engine.memory import MemoryEngine
from node.engine.pool import Pool
from node.engine.port import Job
from node.engine.turns import Pace
from node.exchange.stands import OFFER_LIFETIME_S
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import ReceiptFrame
from node.wire.messages import MAX_SEALED, RefusalCode, Refused
from node.wire.sealing import KeyPair
from tests.node.trading import (
    CREDIT,
    HOT,
    Draft,
    Store,
    draft_order,
    engine_of,
    frames_of,
    ids_of,
    pooled,
    price_of,
    uusd,
)
from tests.node.trading import refusal_of as refused

BUYER = Identity(bytes([2]) * 32)
STRANGER = Identity(bytes([3]) * 32)


@pytest.fixture
async def store(tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Store]:
    """A seller that, whatever a test does to it, must still serve an honest buyer after."""
    opened = await Store.open(tokenizer, clock)
    yield opened
    honest = draft_order(Identity(bytes([9]) * 32), await opened.offer(), clock, max_tokens=2)
    assert len(ids_of(await frames_of(opened.seller, honest))) == 2


def sent_as(raw: bytes, draft: Draft) -> Draft:
    """The draft with other bytes for its order."""
    return evolve(draft, order=evolve(draft.order, raw=raw))


async def entries(store: Store) -> int:
    return store.book.journal.head.sequence


async def test_a_forged_order(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)
    forged = draft.raw[:-1] + bytes([draft.raw[-1] ^ 1])

    assert (await refused(store.seller, sent_as(forged, draft))).code == "forged"
    assert await entries(store) == 0


async def test_an_order_changed_after_it_was_signed(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)
    at = draft.raw.index(b"internal")

    refusal = await refused(store.seller, sent_as(draft.raw[:at] + b"INTERNAL" + draft.raw[at + 8 :], draft))

    assert refusal.code == "forged"


async def test_an_order_signed_in_anothers_name(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)
    named = draft.raw.replace(BUYER.did.encode(), STRANGER.did.encode())

    assert (await refused(store.seller, sent_as(named, draft))).code == "forged"


@pytest.mark.parametrize(
    ("issued", "expires"),
    [(-900, -CLOCK_SKEW_S - 1), (CLOCK_SKEW_S + 1, 400), (0, 601), (0, 0)],
    ids=["expired", "from the future", "lives too long", "lives no time at all"],
)
async def test_an_order_out_of_its_time(store: Store, clock: ManualClock, issued: int, expires: int) -> None:
    now = int(clock.now())
    draft = draft_order(BUYER, await store.offer(), clock, issued=now + issued, expires=now + expires)

    assert (await refused(store.seller, draft)).code == "expired"
    assert await entries(store) == 0


async def test_an_order_of_a_clock_two_minutes_behind_is_taken(store: Store, clock: ManualClock) -> None:
    now = int(clock.now())
    draft = draft_order(BUYER, await store.offer(), clock, issued=now - 700, expires=now - CLOCK_SKEW_S)

    assert len(ids_of(await frames_of(store.seller, draft))) == 10


async def test_an_oversized_order(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)

    assert (await refused(store.seller, sent_as(draft.raw + bytes(Order.limit), draft))).code == "malformed"


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"\xa0", bytes(100), b"[" * 100])
async def test_bytes_that_are_no_record(store: Store, clock: ManualClock, garbage: bytes) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)

    assert (await refused(store.seller, sent_as(garbage, draft))).code == "malformed"


async def test_an_order_that_is_not_in_canonical_form(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)
    payload = codec.unwrap(draft.raw, Order.limit).payload
    backwards = cbor2.dumps(dict(reversed(cbor2.loads(payload).items())))
    signed_so = codec.sign("application/idlemesh-order+cbor", backwards, BUYER)

    refusal = await refused(store.seller, sent_as(signed_so, draft))

    assert refusal.code == "malformed"
    assert "deterministic" in refusal.message


async def test_another_record_in_the_place_of_an_order(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)
    offer = await store.offer()

    assert (await refused(store.seller, sent_as(offer.raw, draft))).code == "malformed"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"seller": STRANGER.did}, "wrong_seller"),
        ({"offer": bytes(32)}, "unknown_offer"),
        ({"request": bytes(32)}, "malformed"),
        ({"rail": "lightning"}, "rail"),
        ({"hops": 1}, "hops"),
        ({"privacy": "restricted"}, "privacy"),
        ({"max_cost": price_of(5, 10) - 1}, "max_cost"),
    ],
)
async def test_an_order_for_what_this_seller_does_not_do(
    store: Store, clock: ManualClock, changes: dict[str, Any], code: RefusalCode
) -> None:
    refusal = await refused(store.seller, draft_order(BUYER, await store.offer(), clock, **changes))

    assert refusal.code == code
    assert await entries(store) == 0


async def test_an_order_for_an_offer_that_has_expired(store: Store, clock: ManualClock) -> None:
    offer = await store.offer()
    clock.advance(OFFER_LIFETIME_S + CLOCK_SKEW_S + 1)

    assert (await refused(store.seller, draft_order(BUYER, offer, clock))).code == "unknown_offer"


async def test_an_order_above_capacity(store: Store, clock: ManualClock) -> None:
    offer = await store.offer()

    assert (await refused(store.seller, draft_order(BUYER, offer, clock, max_tokens=2_044))).code == "too_long"
    assert (await refused(store.seller, draft_order(BUYER, offer, clock, prompt=(5,) * 2_039))).code == "too_long"


async def test_an_order_above_its_credit(tokenizer: Tokenizer, clock: ManualClock) -> None:
    terms = evolve(CREDIT, limit=uusd(price_of(5, 10)))
    store = await Store.open(tokenizer, clock, credit={"uusd": terms})
    offer = await store.offer()

    assert (await refused(store.seller, draft_order(BUYER, offer, clock, max_tokens=11))).code == "credit"
    assert len(ids_of(await frames_of(store.seller, draft_order(BUYER, offer, clock, nonce=1)))) == 10


async def test_an_order_above_its_window(tokenizer: Tokenizer, clock: ManualClock) -> None:
    terms = evolve(CREDIT, window=uusd(price_of(5, 10)))
    store = await Store.open(tokenizer, clock, credit={"uusd": terms})
    offer = await store.offer()

    assert (await refused(store.seller, draft_order(BUYER, offer, clock, max_tokens=11))).code == "window"
    assert len(ids_of(await frames_of(store.seller, draft_order(BUYER, offer, clock, nonce=1)))) == 10


async def test_an_order_in_a_unit_without_credit(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock, credit={})

    assert (await refused(store.seller, draft_order(BUYER, await store.offer(), clock))).code == "credit"


async def test_an_order_while_every_slot_is_taken(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock, engine=engine_of(tokenizer, stall_after=1))
    offer = await store.offer()
    first = store.seller.order(*_sent(draft_order(BUYER, offer, clock)))
    await anext(first)

    refusal = await refused(store.seller, draft_order(STRANGER, offer, clock, nonce=1))

    assert refusal.code == "busy"
    assert refusal.retry_after is not None
    await first.aclose()


@pytest.mark.parametrize("named", [True, False], ids=["named", "unknown"])
async def test_an_order_that_finds_no_room_for_its_model_gets_it_the_next_turn(
    tokenizer: Tokenizer, clock: ManualClock, tmp_path: Path, named: bool
) -> None:
    """Only for a buyer that is known: anybody may order."""
    pool = Pool(100, pace=Pace(after=0, residence=0.05, pause=0, comeback=600))
    busy = pooled(pool, tmp_path, "busy", lambda: MemoryEngine(eog=frozenset()))
    engine = pooled(pool, tmp_path, "sold", lambda: engine_of(tokenizer))
    buyer = BUYER.did if named else STRANGER.did
    store = await Store.open(tokenizer, clock, engine=engine, named=[buyer], miss=engine.miss)
    running = busy.generate(Job((1, 2), HOT, 1, 9, sold=True))
    await anext(running)

    refusal = await refused(store.seller, draft_order(BUYER, await store.offer(), clock))
    following = asyncio.create_task(anext(busy.generate(Job((1, 2), HOT, 1, 9, sold=True))))
    await asyncio.sleep(0)
    await running.aclose()

    assert refusal.code == "busy"
    if named:
        draft = draft_order(BUYER, await store.offer(), clock, nonce=1, max_tokens=2)
        assert len(ids_of(await frames_of(store.seller, draft))) == 2
    assert (await following).ids
    await pool.close()


async def test_a_nonce_that_was_used_for_another_order(store: Store, clock: ManualClock) -> None:
    offer = await store.offer()
    await frames_of(store.seller, draft_order(BUYER, offer, clock, nonce=7))

    again = draft_order(BUYER, offer, clock, nonce=7, max_tokens=9)

    assert (await refused(store.seller, again)).code == "replayed"
    assert store.owed_by(BUYER.did).owed == price_of(5, 10)


async def test_nonces_are_each_buyers_own(store: Store, clock: ManualClock) -> None:
    offer = await store.offer()

    for buyer in (BUYER, STRANGER):
        assert len(ids_of(await frames_of(store.seller, draft_order(buyer, offer, clock, nonce=7)))) == 10


async def test_the_same_order_again_returns_only_its_outcome_and_costs_nothing_more(
    store: Store, clock: ManualClock
) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)
    first = await frames_of(store.seller, draft)
    before = await entries(store)

    again = await frames_of(store.seller, draft)

    assert again == first[-1:]
    assert isinstance(again[0], ReceiptFrame)
    assert store.owed_by(BUYER.did).owed == price_of(5, 10)
    assert await entries(store) == before


async def test_the_same_order_while_it_is_being_answered(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=100)
    first = store.seller.order(*_sent(draft))
    await anext(first)

    assert (await refused(store.seller, draft)).code == "running"
    await first.aclose()


async def test_of_two_that_send_the_same_order_at_once_one_is_answered(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)

    outcomes = await asyncio.gather(
        frames_of(store.seller, draft), frames_of(store.seller, draft), return_exceptions=True
    )

    assert [o.code for o in outcomes if isinstance(o, Refused)] == ["running"]
    assert store.owed_by(BUYER.did).owed == price_of(5, 10)


async def test_of_two_that_wait_for_a_slot_with_the_same_order_one_is_answered(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    engine = engine_of(tokenizer, slots=2)
    store = await Store.open(tokenizer, clock, engine=engine)
    draft = draft_order(BUYER, await store.offer(), clock, max_tokens=100)
    others = [engine.generate(Job((5,), HOT, 4, 2_000)) for _ in range(2)]
    for other in others:
        await anext(other)

    waiting = [asyncio.create_task(frames_of(store.seller, draft)) for _ in range(2)]
    await asyncio.sleep(0)
    for other in others:
        await other.aclose()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert [o.code for o in outcomes if isinstance(o, Refused)] == ["running"]
    assert store.owed_by(BUYER.did).owed == price_of(5, 100)


async def test_a_sealed_body_for_somebody_else(store: Store, clock: ManualClock) -> None:
    other = KeyPair.from_seed(bytes([5]) * 32)
    draft = draft_order(BUYER, await store.offer(), clock, prekey=other.public)

    assert (await refused(store.seller, draft)).code == "cannot_open"
    assert await entries(store) == 0


async def test_a_sealed_request_re_signed_by_a_stranger(store: Store, clock: ManualClock) -> None:
    stolen = draft_order(BUYER, await store.offer(), clock)
    resigned = sent_as(sign(stolen.order.record, STRANGER).raw, stolen)

    assert (await refused(store.seller, resigned)).code == "cannot_open"
    assert store.owed_by(STRANGER.did).reserved == 0


async def test_a_sealed_request_under_another_nonce(store: Store, clock: ManualClock) -> None:
    offer = await store.offer()
    stolen = draft_order(BUYER, offer, clock)

    assert (await refused(store.seller, draft_order(BUYER, offer, clock, nonce=8, sealed=stolen.sealed))).code == (
        "cannot_open"
    )


async def test_a_flipped_bit_in_the_sealed_request(store: Store, clock: ManualClock) -> None:
    offer = await store.offer()
    sealed = bytearray(draft_order(BUYER, offer, clock).sealed)
    sealed[-1] ^= 1

    assert (await refused(store.seller, draft_order(BUYER, offer, clock, sealed=bytes(sealed)))).code == "cannot_open"


@pytest.mark.parametrize("size", [0, 1, 31, 32, 60])
async def test_a_sealed_request_that_is_too_short(store: Store, clock: ManualClock, size: int) -> None:
    draft = draft_order(BUYER, await store.offer(), clock, sealed=bytes(size) or b"\x00")

    assert (await refused(store.seller, draft)).code == "cannot_open"


async def test_an_oversized_sealed_request(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock, sealed=bytes(MAX_SEALED + 1))

    assert (await refused(store.seller, draft)).code == "malformed"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        codec.encode({}),
        codec.encode({"salt": b"short", "prompt": bytes(4), "stop": []}),
        codec.encode({"salt": bytes(SALT_BYTES), "prompt": b"", "stop": []}),
        codec.encode({"salt": bytes(SALT_BYTES), "prompt": bytes(5), "stop": []}),
        codec.encode({"salt": bytes(SALT_BYTES), "prompt": bytes(4), "stop": ["x"] * 17}),
        codec.encode({"salt": bytes(SALT_BYTES), "prompt": bytes(4), "stop": ["x" * 257]}),
        codec.encode({"salt": bytes(SALT_BYTES), "prompt": bytes(4), "stop": [""]}),
        codec.encode({"salt": bytes(SALT_BYTES), "prompt": b"\xff" * 4, "stop": []}),
    ],
)
async def test_a_sealed_request_with_content_that_cannot_be(store: Store, clock: ManualClock, body: bytes) -> None:
    refusal = await refused(store.seller, draft_order(BUYER, await store.offer(), clock, body=body))

    assert refusal.code == "malformed"
    assert await entries(store) == 0


async def test_what_is_refused_reserves_nothing_and_runs_nothing(store: Store, clock: ManualClock) -> None:
    offer = await store.offer()
    wrong: list[dict[str, Any]] = [{"max_tokens": 2_044}, {"rail": "cash"}, {"max_cost": 0}]
    for nonce, changes in enumerate(wrong):
        await refused(store.seller, draft_order(BUYER, offer, clock, nonce=nonce, **changes))

    account = store.owed_by(BUYER.did)
    assert (account.owed, account.reserved, dict(account.orders)) == (0, 0, {})


async def test_a_receipt_can_be_fetched_again_by_the_orders_digest(store: Store, clock: ManualClock) -> None:
    draft = draft_order(BUYER, await store.offer(), clock)
    frames = await frames_of(store.seller, draft)

    raw = await store.seller.receipt(draft.order.digest)

    assert isinstance(frames[-1], ReceiptFrame)
    assert raw == frames[-1].raw
    assert open_record(frames[-1].raw, Receipt).record.order == draft.order.digest
    assert await store.seller.receipt(bytes(32)) is None


class SlowToTell(MemoryJournal):
    """Has written a receipt, and lets whoever waits for that wait."""

    def __init__(self, chain_id: str) -> None:
        super().__init__(chain_id)
        self.written, self.may_tell = asyncio.Event(), asyncio.Event()

    async def append(self, *events: Any, **rest: Any) -> Entry:
        entry = await super().append(*events, **rest)
        if any(record.kind == Receipt.kind for record in rest["records"]):
            self.written.set()
            await self.may_tell.wait()
        return entry


async def test_a_buyer_that_hangs_up_while_its_receipt_is_written_gets_one_receipt(
    tokenizer: Tokenizer, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    journal = SlowToTell(Identity((1).to_bytes(32, "little")).did)
    store = await Store.open(tokenizer, clock, journal=journal)
    draft = draft_order(BUYER, await store.offer(), clock)
    answered = asyncio.create_task(frames_of(store.seller, draft))
    await journal.written.wait()

    answered.cancel()
    await asyncio.sleep(0.01)
    journal.may_tell.set()
    with pytest.raises(asyncio.CancelledError):
        await answered

    assert (store.owed_by(BUYER.did).owed, store.owed_by(BUYER.did).reserved) == (price_of(5, 10), 0)
    kinds = [record.kind for record in await journal.records_of(draft.order.digest)]
    assert kinds.count(Receipt.kind) == 1
    assert caplog.records == []


@pytest.mark.parametrize(("buyer", "unit", "code"), [("me", "uusd", "malformed"), (BUYER.did, "eur", "credit")])
async def test_credit_is_told_to_those_who_can_have_it(store: Store, buyer: str, unit: str, code: str) -> None:
    with pytest.raises(Refused) as refusal:
        await store.seller.grant(buyer, unit)

    assert refusal.value.code == code


async def test_only_the_tokenizers_of_models_for_sale_are_given(store: Store, tokenizer: Tokenizer) -> None:
    assert await store.seller.tokenizer(tokenizer.digest) == tokenizer.digest
    with pytest.raises(Refused):
        await store.seller.tokenizer(bytes(32))


def _sent(draft: Draft) -> tuple[bytes, bytes]:
    return draft.raw, draft.sealed
