"""Score orders: what a seller says of a claimed answer, what it costs, and what a buyer does not take."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from ledger.records import Acknowledgement, Score, Signed, open_record, sign
from node.engine.memory import FINGERPRINT
from node.exchange.delivery import Delivery
from node.exchange.purchase import NotPlaced
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import Frame, Ids, ScoreFrame
from node.wire.messages import Refused, Request, decode_request, encode_request
from tests.node.trading import (
    ALL_AUDITED,
    HOT,
    PROMPT,
    SEED,
    Customer,
    CutLine,
    Script,
    ScriptedSeller,
    Store,
    Told,
    ask,
    draft_order,
    engine_of,
    price_of,
)
from verify.scores import opinion_of, pack, unpack
from verify.steering import Steering

CLAIMED = tuple(range(600, 640))


async def score(customer: Customer, offer: Signed[Any], **changes: Any) -> Delivery:
    """Have an answer scored, and wait until it is settled."""
    order = ask(max_tokens=1, **{"claimed": CLAIMED, **changes})
    delivery = await customer.buyer.buy(customer.lines[offer.signer], offer, order, customer.tokenizer).outcome()
    await customer.settled()
    return delivery


def packed(tokenizer: Tokenizer, claimed: tuple[int, ...] = CLAIMED, weights: int = 0) -> tuple[bytes, bytes, bytes]:
    """What an honest Score holds."""
    engine, ids = engine_of(tokenizer, weights), (*PROMPT, *claimed)
    rows = np.stack([engine.logits(ids[:place]) for place in range(len(PROMPT), len(ids))])
    return pack(opinion_of(rows, np.array(claimed), HOT, SEED, len(PROMPT)))


def frames_of(told: Told, tokenizer: Tokenizer, **changes: Any) -> list[Frame]:
    """An honest seller's frames, but for changes to the Score."""
    best, values, margins = packed(tokenizer, told.request.claimed)
    said = Score(
        order=told.order.digest,
        model=told.offer.record.model,
        engine=told.offer.record.engine,
        tokens=len(told.request.claimed),
        best=best,
        values=values,
        margins=margins,
    )
    return [ScoreFrame(sign(evolve(said, **changes), told.identity).raw), told.scored()]


async def answered(tokenizer: Tokenizer, clock: ManualClock, script: Script) -> tuple[Customer, ScriptedSeller]:
    seller = ScriptedSeller(tokenizer, clock, script)
    return await Customer.open(tokenizer, clock), seller


async def test_a_seller_says_what_its_weights_think_and_is_paid_the_input_price(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)

    delivery = await score(customer, await customer.meet(store.seller))

    assert delivery.score is not None
    said = delivery.score.record
    assert (said.best, said.values, said.margins) == packed(tokenizer)
    assert (delivery.objection, delivery.owed) == (None, price_of(len(PROMPT) + len(CLAIMED), 0))
    assert store.owed_by(customer.did).authorized == delivery.owed
    assert customer.owes(store.did).unpaid == customer.owes(store.did).reserved == 0


async def test_the_receipt_counts_prompt_and_claimed_ids_as_input(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)

    receipt = (await score(customer, await customer.meet(store.seller))).receipt

    assert receipt is not None
    said = receipt.record
    assert (said.prompt_tokens, said.output_tokens, said.finish) == (len(PROMPT) + len(CLAIMED), 0, "stop")


async def test_an_answer_of_the_same_weights_has_no_margins(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    answer = (await customer.order(offer, max_tokens=70)).ids

    delivery = await score(customer, offer, claimed=answer)

    assert delivery.score is not None
    opinion = unpack(delivery.score.record, answer)
    assert opinion.best.tolist() == list(answer)
    assert not opinion.margins.any()


async def test_penalties_bias_and_grammar_hold_for_scores_too(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)

    favoured = await score(customer, offer, steering=Steering(bias=((700, 100_000_000),)))
    penalised = await score(
        customer, offer, claimed=(700, 700), steering=Steering(presence=2_000_000, bias=((700, 100_000_000),))
    )
    spelled = await score(customer, offer, steering=Steering(grammar='root ::= "a"+'))

    assert favoured.score is not None
    assert penalised.score is not None
    assert spelled.score is not None
    assert set(unpack(favoured.score.record, CLAIMED).best.tolist()) == {700}
    plain = [engine_of(tokenizer).logits((*PROMPT, *(700,) * n))[700] for n in range(2)]
    assert unpack(penalised.score.record, (700, 700)).values == pytest.approx([plain[0] + 100, plain[1] + 98], abs=1e-4)
    best = unpack(spelled.score.record, CLAIMED).best.tolist()
    assert {tokenizer.text([i]).strip("a") for i in best} == {""}


async def test_a_score_is_kept_and_the_same_order_again_brings_it_again(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    draft = draft_order(
        customer.book.identity,
        offer,
        clock,
        work="score",
        max_tokens=1,
        body=encode_request(Request(bytes(32), PROMPT, claimed=CLAIMED)),
        max_cost=price_of(len(PROMPT) + len(CLAIMED), 0),
    )

    frames = []
    for _ in range(2):
        reader = draft.reader()
        chunks = [chunk async for chunk in store.seller.order(draft.raw, draft.sealed)]
        frames.append([frame for chunk in chunks for frame in reader.feed(chunk)])

    assert frames[0] == frames[1]
    assert isinstance(frames[0][0], ScoreFrame)
    assert store.owed_by(customer.did).earned == price_of(len(PROMPT) + len(CLAIMED), 0)


@pytest.mark.parametrize(
    ("work", "claimed", "why"),
    [("score", (), "claims token ids"), ("generate", CLAIMED, "no other order does"), ("score", (10**6,), "token ids")],
)
async def test_a_seller_refuses_orders_that_do_not_say_what_they_want(
    tokenizer: Tokenizer, clock: ManualClock, work: str, claimed: tuple[int, ...], why: str
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    body = encode_request(Request(bytes(32), PROMPT, claimed=claimed))
    draft = draft_order(customer.book.identity, offer, clock, work=work, body=body, max_cost=1_000)

    with pytest.raises(Refused, match=why):
        async for _ in store.seller.order(draft.raw, draft.sealed):
            pass


async def test_a_seller_refuses_what_does_not_fit_its_context_or_the_highest_cost(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    long = draft_order(
        customer.book.identity,
        offer,
        clock,
        work="score",
        body=encode_request(Request(bytes(32), PROMPT, claimed=(7,) * 2_044)),
        max_cost=10_000,
    )
    cheap = draft_order(
        customer.book.identity,
        offer,
        clock,
        nonce=1,
        work="score",
        body=encode_request(Request(bytes(32), PROMPT, claimed=CLAIMED)),
        max_cost=price_of(len(PROMPT) + len(CLAIMED), 0) - 1,
    )
    for draft, code in ((long, "too_long"), (cheap, "max_cost")):
        with pytest.raises(Refused) as refusal:
            async for _ in store.seller.order(draft.raw, draft.sealed):
                pass
        assert refusal.value.code == code


async def test_a_seller_whose_sampler_is_another_one_s_scores_nothing(tokenizer: Tokenizer, clock: ManualClock) -> None:
    foreign = engine_of(tokenizer, fingerprint=evolve(FINGERPRINT, sampler="its own"))
    store, customer = await Store.open(tokenizer, clock, engine=foreign), await Customer.open(tokenizer, clock)

    with pytest.raises(NotPlaced, match="another one's own"):
        await score(customer, await customer.meet(store.seller))


def two_scores(told: Told, tokenizer: Tokenizer) -> list[Frame]:
    one, receipt = frames_of(told, tokenizer)
    return [one, one, receipt]


def an_answer(told: Told, _: Tokenizer) -> list[Frame]:
    return [Ids((5,)), told.receipt((5,))]


def too_dear(told: Told, tokenizer: Tokenizer) -> list[Frame]:
    return [frames_of(told, tokenizer)[0], told.scored(cost=99)]


BAD = {
    "two scores": two_scores,
    "an answer": an_answer,
    "a receipt alone": lambda told, tokenizer: frames_of(told, tokenizer)[1:],
    "another order's": lambda told, tokenizer: frames_of(told, tokenizer, order=bytes(32)),
    "another model's": lambda told, tokenizer: frames_of(told, tokenizer, model=bytes(32)),
    "zero margins of tokens that are not the best": lambda told, tokenizer: frames_of(
        told, tokenizer, margins=bytes(4 * len(CLAIMED))
    ),
    "other tokens": lambda told, tokenizer: frames_of(
        told, tokenizer, tokens=1, best=bytes(4), values=bytes(4), margins=bytes(4)
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_what_is_no_score_of_the_order_is_disputed_and_not_paid(
    tokenizer: Tokenizer, clock: ManualClock, bad: Any
) -> None:
    customer, seller = await answered(tokenizer, clock, lambda told: bad(told, tokenizer))
    offer = await customer.meet(seller)

    try:
        delivery = await score(customer, offer)
    except NotPlaced:
        pass  # nothing came that could be settled
    else:
        assert delivery.score is None
        assert delivery.objection is not None

    assert customer.owes(seller.did).authorized == customer.owes(seller.did).reserved == 0
    assert customer.book.experience.standing(seller.did).history.failed == 1
    assert not any(open_record(raw, Acknowledgement).record.accepted for raw in seller.acknowledged)


async def test_a_score_with_a_receipt_that_asks_too_much_is_paid_as_ordered(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    customer, seller = await answered(tokenizer, clock, lambda told: too_dear(told, tokenizer))

    delivery = await score(customer, await customer.meet(seller))

    assert delivery.objection is not None
    assert customer.owes(seller.did).authorized == price_of(len(PROMPT) + len(CLAIMED), 0)


async def test_an_answer_with_a_score_in_it_breaks_the_protocol(tokenizer: Tokenizer, clock: ManualClock) -> None:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids((5,))
        yield ScoreFrame(b"")

    customer, seller = await answered(tokenizer, clock, script)

    delivery = await customer.order(await customer.meet(seller), max_tokens=5)

    assert delivery.objection is not None


async def test_a_score_whose_line_breaks_is_not_paid(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    customer.lines[store.did] = line = CutLine(store.seller, after=0)

    with pytest.raises(NotPlaced):
        await score(customer, offer)
    line.mend()

    assert customer.owes(store.did).reserved == customer.owes(store.did).authorized == 0


async def test_score_orders_are_never_audited(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    customer = await Customer.open(tokenizer, clock, engines=[engine_of(tokenizer)], policy=ALL_AUDITED)

    delivery = await score(customer, await customer.meet(store.seller))

    kinds = [record.kind for record in await customer.book.journal.records_of(delivery.terms.order.digest)]
    assert sorted(kinds) == ["acknowledgement", "order", "receipt", "score"]


async def test_what_was_scored_survives_a_restart_in_the_order_s_material(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    delivery = await score(customer, await customer.meet(store.seller))

    material = await customer.book.material(delivery.terms.order.digest)

    assert material is not None
    assert material[0].claimed == CLAIMED
    assert decode_request(encode_request(material[0])) == delivery.terms.request
