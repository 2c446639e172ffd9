"""Orders that continue an answer: what the next seller takes for an earlier part, and what it does not."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from ledger.commitments import CHECKPOINT_TOKENS, answer_commitment, prompt_commitment
from ledger.identity import Identity
from ledger.records import Cancel, Checkpoint, Order, Receipt, Signed, open_record, sign
from node.engine.port import Job
from node.exchange.continuing import ForgedPart, check_part, earlier_of
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import CheckpointFrame, ReceiptFrame
from node.wire.messages import Earlier, Request, encode_request
from tests.node.trading import (
    ALL_AUDITED,
    COLD,
    HOT,
    PROMPT,
    SEED,
    Customer,
    CutLine,
    Draft,
    Store,
    draft_order,
    engine_of,
    frames_of,
    ids_of,
    price_of,
)
from tests.node.trading import refusal_of as refused
from verify.steering import Steering

BUYER = Identity(bytes([2]) * 32)
FIRST = Identity(bytes([1]) * 32)  # the seller of the part before
STRANGER = Identity(bytes([3]) * 32)
SALT = bytes([7]) * 32
EARLIER = tuple(range(600, 670))  # what the first seller had sent, none of which ends an answer
SIGNED_FOR = CHECKPOINT_TOKENS


@frozen
class Case:
    """An order for the rest of an answer whose first part was bought."""

    before: Signed[Order]
    proof: Signed[Checkpoint] | Signed[Receipt] | None
    request: Request
    order: Signed[Order]


def order_before(clock: ManualClock, /, signer: Identity = BUYER, **changes: Any) -> Signed[Order]:
    fields: dict[str, Any] = {
        "work": "generate",
        "seller": FIRST.did,
        "offer": bytes(32),
        "nonce": bytes(16),
        "request": bytes(32),
        "sampling": HOT,
        "seed": SEED,
        "start": 0,
        "max_tokens": 100,
        "max_cost": 1_000,
        "privacy": "internal",
        "hops": 0,
        "rail": "credit",
        "trace": bytes(16),
        "issued": int(clock.now()),
        "expires": int(clock.now()) + 600,
    }
    return sign(Order(**fields | changes), signer)


def checkpoint_of(before: Signed[Order], /, signer: Identity = FIRST, **changes: Any) -> Signed[Checkpoint]:
    record = Checkpoint(
        before.digest, SIGNED_FOR, answer_commitment(SALT, before.digest, EARLIER[:SIGNED_FOR]), 2 * SIGNED_FOR
    )
    return sign(evolve(record, **changes), signer)


def receipt_of(before: Signed[Order], /, signer: Identity = FIRST, **changes: Any) -> Signed[Receipt]:
    record = Receipt(
        order=before.digest,
        model=bytes(32),
        prompt_tokens=len(PROMPT),
        output_tokens=len(EARLIER),
        prompt_commitment=prompt_commitment(SALT, PROMPT),
        output_commitment=answer_commitment(SALT, before.digest, EARLIER),
        finish="cancelled",
        cost=1,
        unit="uusd",
        started_ms=1,
        finished_ms=2,
    )
    return sign(evolve(record, **changes), signer)


async def draft(store: Store, clock: ManualClock, earlier: Earlier | None, /, **changes: Any) -> Draft:
    """The rest of the answer, ordered from this store; `stop` and `prompt` go into the sealed request."""
    prompt = changes.pop("prompt", PROMPT + EARLIER)
    request = Request(bytes(32), prompt, changes.pop("stop", ()), earlier=earlier)
    part_of = open_record(earlier.order, Order).digest if earlier is not None else None
    offer = await store.offer()
    made = {"start": len(EARLIER), "part_of": part_of} | changes
    return draft_order(BUYER, offer, clock, prompt=prompt, body=encode_request(request), **made)


@pytest.fixture
async def store(tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Store]:
    """The next seller; whatever a test does to it, it computes nothing for what is forged, and goes on serving."""
    opened = await Store.open(tokenizer, clock, seed=4)
    yield opened
    honest = draft_order(Identity(bytes([9]) * 32), await opened.offer(), clock, max_tokens=2)
    assert len(ids_of(await frames_of(opened.seller, honest))) == 2


async def is_forged(store: Store, order: Draft) -> None:
    refusal = await refused(store.seller, order)
    assert refusal.code == "forged"
    assert store.book.journal.head.sequence == 0
    assert store.owed_by(BUYER.did).owed == 0


# What is taken.


@pytest.mark.parametrize("proof", [checkpoint_of, receipt_of])
async def test_the_rest_of_an_answer_is_drawn_as_if_there_had_been_no_break(
    store: Store, clock: ManualClock, proof: Any
) -> None:
    before = order_before(clock)
    order = await draft(store, clock, Earlier(before.raw, proof(before).raw, SALT))

    frames = await frames_of(store.seller, order)

    whole = draft_order(BUYER, await store.offer(), clock, prompt=PROMPT + EARLIER, nonce=1)
    assert ids_of(frames) == ids_of(await frames_of(store.seller, whole)), "same seed, same positions"
    assert isinstance(frames[-1], ReceiptFrame)
    receipt = open_record(frames[-1].raw, Receipt).record
    assert receipt.prompt_commitment == prompt_commitment(bytes(32), PROMPT + EARLIER)
    assert receipt.cost == price_of(len(PROMPT + EARLIER), 10)


async def test_the_rest_of_what_the_buyer_computed_itself_needs_no_proof(store: Store, clock: ManualClock) -> None:
    assert len(ids_of(await frames_of(store.seller, await draft(store, clock, None)))) == 10


@pytest.mark.parametrize("tokens", [1, CHECKPOINT_TOKENS])
async def test_a_part_that_broke_before_its_first_checkpoint_has_no_proof(
    store: Store, clock: ManualClock, tokens: int
) -> None:
    before = order_before(clock)
    order = await draft(store, clock, Earlier(before.raw, b"", SALT), prompt=PROMPT + EARLIER[:tokens], start=tokens)

    assert len(ids_of(await frames_of(store.seller, order))) == 10


async def test_of_several_parts_each_shows_the_one_before_it(store: Store, clock: ManualClock) -> None:
    """What came before the part before is in its order's `start`, and was its seller's to check."""
    before = order_before(clock, start=3, part_of=bytes(32))
    signed = answer_commitment(SALT, before.digest, EARLIER[3 : 3 + SIGNED_FOR])
    proof = checkpoint_of(before, commitment=signed)
    order = await draft(store, clock, Earlier(before.raw, proof.raw, SALT))

    assert len(ids_of(await frames_of(store.seller, order))) == 10


async def test_a_stop_string_that_begins_in_the_earlier_part_ends_the_rest(
    store: Store, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    free = ids_of(await frames_of(store.seller, await draft(store, clock, None)))
    text = tokenizer.text(EARLIER + free)
    seam = len(tokenizer.text(EARLIER))
    stop = text[seam - 2 : seam + 2]
    assert len(stop) == 4
    assert stop not in tokenizer.text(EARLIER)

    frames = await frames_of(store.seller, await draft(store, clock, None, stop=(stop,), nonce=1))

    stream = tokenizer.stream((stop,))
    stream.feed(EARLIER + free)
    assert stream.stopped_at is not None
    assert ids_of(frames) == free[: stream.stopped_at - len(EARLIER)]
    assert isinstance(frames[-1], ReceiptFrame)
    assert open_record(frames[-1].raw, Receipt).record.finish == "stop"


async def test_a_part_is_signed_for_from_its_own_first_token(store: Store, clock: ManualClock) -> None:
    frames = await frames_of(store.seller, await draft(store, clock, None, max_tokens=70))

    (raw,) = [frame.raw for frame in frames if isinstance(frame, CheckpointFrame)]
    assert open_record(raw, Checkpoint).record.tokens == CHECKPOINT_TOKENS
    assert open_record(raw, Checkpoint).record.cost == 2 * CHECKPOINT_TOKENS


# What is not.


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": SEED + 1},
        {"sampling": COLD},
        {"work": "score"},
        {"max_tokens": len(EARLIER) - 1},
        {"start": len(EARLIER)},
        {"start": 3},
        {"signer": STRANGER},
        {"seller": STRANGER.did},
    ],
    ids=str,
)
async def test_an_earlier_order_that_does_not_fit_is_forged(
    store: Store, clock: ManualClock, changes: dict[str, Any]
) -> None:
    before = order_before(clock, changes.get("signer", BUYER), **{k: v for k, v in changes.items() if k != "signer"})

    await is_forged(store, await draft(store, clock, Earlier(before.raw, checkpoint_of(before).raw, SALT)))


@pytest.mark.parametrize(
    "changes",
    [
        {"order": bytes(32)},
        {"tokens": SIGNED_FOR - 1},
        {"tokens": len(EARLIER) + 1},
        {"tokens": 5, "commitment": bytes(32)},
        {"commitment": bytes(32)},
        {"signer": STRANGER},
        {"signer": BUYER},
    ],
    ids=str,
)
async def test_a_checkpoint_that_does_not_fit_is_forged(
    store: Store, clock: ManualClock, changes: dict[str, Any]
) -> None:
    before = order_before(clock)
    proof = checkpoint_of(before, changes.get("signer", FIRST), **{k: v for k, v in changes.items() if k != "signer"})

    await is_forged(store, await draft(store, clock, Earlier(before.raw, proof.raw, SALT)))


@pytest.mark.parametrize(
    "changes",
    [
        {"order": bytes(32)},
        {"output_tokens": len(EARLIER) - 1},
        {"output_commitment": bytes(32)},
        {"prompt_commitment": bytes(32)},
        {"signer": STRANGER},
    ],
    ids=str,
)
async def test_a_receipt_that_does_not_fit_is_forged(store: Store, clock: ManualClock, changes: dict[str, Any]) -> None:
    before = order_before(clock)
    proof = receipt_of(before, changes.get("signer", FIRST), **{k: v for k, v in changes.items() if k != "signer"})

    await is_forged(store, await draft(store, clock, Earlier(before.raw, proof.raw, SALT)))


async def test_a_checkpoint_long_ago_leaves_too_many_tokens_unsigned(store: Store, clock: ManualClock) -> None:
    before = order_before(clock, max_tokens=200)
    proof = checkpoint_of(before)
    long = EARLIER[:SIGNED_FOR] + EARLIER[:65]

    order = await draft(store, clock, Earlier(before.raw, proof.raw, SALT), prompt=PROMPT + long, start=len(long))

    await is_forged(store, order)


async def test_more_than_64_tokens_without_a_signature_are_forged(store: Store, clock: ManualClock) -> None:
    await is_forged(store, await draft(store, clock, Earlier(order_before(clock).raw, b"", SALT)))


@pytest.mark.parametrize("place", [0, 30, SIGNED_FOR - 1])
async def test_a_token_that_the_earlier_seller_did_not_send_is_forged(
    store: Store, clock: ManualClock, place: int
) -> None:
    before = order_before(clock)
    other = (*EARLIER[:place], 599, *EARLIER[place + 1 :])
    order = await draft(store, clock, Earlier(before.raw, checkpoint_of(before).raw, SALT), prompt=PROMPT + other)

    await is_forged(store, order)


async def test_another_prompt_than_the_earlier_receipt_speaks_of_is_forged(store: Store, clock: ManualClock) -> None:
    before = order_before(clock)
    order = await draft(
        store, clock, Earlier(before.raw, receipt_of(before).raw, SALT), prompt=(11, 12, 13, 14, 16, *EARLIER)
    )

    await is_forged(store, order)


async def test_another_salt_opens_nothing(store: Store, clock: ManualClock) -> None:
    before = order_before(clock)

    await is_forged(store, await draft(store, clock, Earlier(before.raw, checkpoint_of(before).raw, bytes(32))))


@pytest.mark.parametrize("start", [0, 69, 71, 75, 76, 2**24])
async def test_a_start_elsewhere_than_where_the_earlier_part_begins_is_forged(
    store: Store, clock: ManualClock, start: int
) -> None:
    before = order_before(clock)

    await is_forged(store, await draft(store, clock, Earlier(before.raw, checkpoint_of(before).raw, SALT), start=start))


async def test_an_order_that_leaves_no_prompt_is_forged(store: Store, clock: ManualClock) -> None:
    await is_forged(store, await draft(store, clock, None, start=len(PROMPT + EARLIER)))


@pytest.mark.parametrize("named", [None, bytes(32)])
async def test_an_order_that_names_another_part_than_it_shows_is_forged(
    store: Store, clock: ManualClock, named: bytes | None
) -> None:
    before = order_before(clock)

    await is_forged(
        store, await draft(store, clock, Earlier(before.raw, checkpoint_of(before).raw, SALT), part_of=named)
    )


async def test_an_order_that_names_a_part_and_shows_none_is_forged(store: Store, clock: ManualClock) -> None:
    await is_forged(store, await draft(store, clock, None, part_of=bytes(32)))


async def test_an_answer_that_was_over_is_not_continued(store: Store, tokenizer: Tokenizer, clock: ManualClock) -> None:
    over = (*EARLIER[:3], min(tokenizer.eog), *EARLIER[4:])

    await is_forged(store, await draft(store, clock, None, prompt=PROMPT + over))


@pytest.mark.parametrize("kind", ["checkpoint for the order", "cancel", "garbage"])
async def test_bytes_that_are_no_such_record_are_forged(store: Store, clock: ManualClock, kind: str) -> None:
    before = order_before(clock)
    checkpoint, cancel = checkpoint_of(before).raw, sign(Cancel(before.digest, 70), FIRST).raw
    shown = {
        "checkpoint for the order": (checkpoint, checkpoint),
        "cancel": (before.raw, cancel),
        "garbage": (before.raw, b"\xa0"),
    }[kind]
    order = await draft(store, clock, None, part_of=before.digest)
    request = Request(bytes(32), PROMPT + EARLIER, (), earlier=Earlier(*shown, SALT))
    changed = draft_order(
        BUYER,
        await store.offer(),
        clock,
        prompt=PROMPT + EARLIER,
        body=encode_request(request),
        start=order.order.record.start,
        part_of=before.digest,
    )

    await is_forged(store, changed)


def _case(clock: ManualClock, receipt: bool) -> Case:
    before = order_before(clock)
    proof = receipt_of(before) if receipt else checkpoint_of(before)
    request = Request(bytes(32), PROMPT + EARLIER, earlier=Earlier(before.raw, proof.raw, SALT))
    order = order_before(clock, start=len(EARLIER), part_of=before.digest)
    return Case(before, proof, request, order)


@given(
    receipt=st.booleans(),
    part=st.sampled_from(["order", "proof", "salt"]),
    place=st.floats(0, 1, exclude_max=True),
    bits=st.integers(1, 255),
)
def test_no_byte_of_an_earlier_part_can_be_changed(receipt: bool, part: str, place: float, bits: int) -> None:
    case = _case(ManualClock(1_800_014_400.0), receipt)
    assert case.request.earlier is not None
    check_part(case.order, case.request)
    raw = bytearray(getattr(case.request.earlier, part))
    raw[int(place * len(raw))] ^= bits
    earlier = evolve(case.request.earlier, **{part: bytes(raw)})

    with pytest.raises(ForgedPart):
        check_part(case.order, evolve(case.request, earlier=earlier))


@given(
    receipt=st.booleans(),
    cut=st.integers(0, len(PROMPT + EARLIER) - 1),
    more=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    start=st.integers(0, 2 * len(EARLIER)),
)
def test_no_other_ids_are_taken_for_those_that_were_signed(
    receipt: bool, cut: int, more: list[int], start: int
) -> None:
    """Only what nobody has signed for may differ: the few tokens after the last checkpoint, and its prompt."""
    case = _case(ManualClock(1_800_014_400.0), receipt)
    prompt = (*case.request.prompt[:cut], *more, *case.request.prompt[cut:])
    order = evolve(case.order, record=evolve(case.order.record, start=start))
    try:
        check_part(order, evolve(case.request, prompt=prompt))
    except ForgedPart:
        return
    assert prompt[-start:][:SIGNED_FOR] == EARLIER[:SIGNED_FOR]
    if receipt:
        assert (prompt, start) == (PROMPT + EARLIER, len(EARLIER))


# The whole trade.


@pytest.mark.parametrize("steering", [Steering(), Steering(frequency=2_000_000, presence=1_000_000)], ids=str)
async def test_a_continued_part_passes_its_audit_and_is_paid(
    tokenizer: Tokenizer, clock: ManualClock, steering: Steering
) -> None:
    customer = await Customer.open(tokenizer, clock, engines=[engine_of(tokenizer)], policy=ALL_AUDITED)
    first, second = [await Store.open(tokenizer, clock, seed=seed) for seed in (1, 4)]
    line = CutLine(first.seller, after=80)
    offers = [await customer.meet(line), await customer.meet(second.seller)]
    cut = await customer.buy(offers[0], max_tokens=200, steering=steering).outcome()
    line.mend()
    await customer.settled()
    rest = await customer.order(
        offers[1],
        prompt=PROMPT + cut.ids,
        max_tokens=200 - len(cut.ids),
        steering=steering,
        start=len(cut.ids),
        earlier=earlier_of(cut),
    )

    job = Job(PROMPT, HOT, SEED, 200, steering=steering)
    assert cut.ids + rest.ids == tuple([i async for piece in engine_of(tokenizer).generate(job) for i in piece.ids])
    assert (cut.owed, rest.owed) == (2 * CHECKPOINT_TOKENS, price_of(5 + len(cut.ids), len(rest.ids)))
    assert rest.terms.order.record.part_of == cut.terms.order.digest
    standing = customer.book.experience.standing(second.did)
    assert (standing.history.honest, standing.history.delivered, standing.history.condemned) == (1, 1, False)
    assert customer.book.experience.standing(first.did).history.failed == 1
