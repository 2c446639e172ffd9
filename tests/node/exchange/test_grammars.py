"""Orders with a grammar: what a seller refuses, who pays where one cannot be followed, what a buyer does not take."""

from collections.abc import Iterator

import pytest
from attrs import evolve

from ledger.commitments import SALT_BYTES
from ledger.identity import Identity
from node.engine.memory import MemoryEngine
from node.exchange.purchase import NotPlaced
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import Frame, Ids, ReceiptFrame
from node.wire.messages import Request, encode_request
from tests.node.trading import (
    PROMPT,
    Customer,
    Draft,
    ScriptedSeller,
    Store,
    Told,
    ask,
    draft_order,
    engine_of,
    frames_of,
    ids_of,
    price_of,
    refusal_of,
)
from verify.steering import Steering

BUYER = Identity(bytes([2]) * 32)
# After some 30 tokens, where the second `e` may be, there are too many ways to read the text.
EXPLODING = 'root ::= ([a-z ]{1,10} [a-z. ]{1,50} "e"){1,50}'


@pytest.fixture
def engine(tokenizer: Tokenizer) -> MemoryEngine:
    return engine_of(tokenizer, words=tokenizer.words)


@pytest.fixture
async def store(tokenizer: Tokenizer, clock: ManualClock, engine: MemoryEngine) -> Store:
    return await Store.open(tokenizer, clock, engine=engine)


async def draft(
    store: Store, clock: ManualClock, grammar: str, prompt: tuple[int, ...] = PROMPT, start: int = 0
) -> Draft:
    request = Request(bytes(SALT_BYTES), prompt, steering=Steering(grammar=grammar))
    return draft_order(
        BUYER,
        await store.offer(),
        clock,
        prompt=prompt,
        max_tokens=300,
        body=encode_request(request),
        start=start,
    )


def text(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    return b"".join(map(tokenizer.words.piece, ids)).decode()


def token(tokenizer: Tokenizer, piece: bytes) -> int:
    return next(i for i in range(tokenizer.size) if tokenizer.words.piece(i) == piece)


@pytest.mark.parametrize("grammar", ["root ::= [", 'root ::= root "a"', "root ::= other"])
async def test_a_grammar_that_cannot_be_followed_is_refused_and_nothing_reserved(
    store: Store, clock: ManualClock, grammar: str
) -> None:
    refusal = await refusal_of(store.seller, await draft(store, clock, grammar))

    assert refusal.code == "malformed"
    assert "root" not in refusal.message.replace("rule root", "")
    assert not store.owed_by(BUYER.did).orders


async def test_an_earlier_part_that_the_grammar_forbids_is_refused(
    store: Store, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    earlier = token(tokenizer, b"b")
    continued = await draft(store, clock, 'root ::= "a"+', (*PROMPT, earlier), start=1)

    refusal = await refusal_of(store.seller, continued)

    assert refusal.code == "malformed"
    assert "earlier part" in refusal.message


async def test_what_was_sent_before_a_grammar_became_too_complex_is_owed(store: Store, clock: ManualClock) -> None:
    frames = await frames_of(store.seller, await draft(store, clock, EXPLODING))

    sent = len(ids_of(frames))
    assert 0 < sent < 64, "no checkpoint covers it"
    assert isinstance(frames[-1], ReceiptFrame)
    assert store.owed_by(BUYER.did).owed == price_of(len(PROMPT), sent)


async def test_an_answer_by_its_grammar_is_taken(store: Store, tokenizer: Tokenizer, clock: ManualClock) -> None:
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)

    delivery = await customer.order(offer, steering=Steering(grammar="root ::= [ab]{9}"))

    assert delivery.objection is None
    assert set(text(tokenizer, delivery.ids)) <= {"a", "b"}


async def test_the_rest_of_an_answer_follows_its_grammar_from_where_it_stands(
    store: Store, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    a = token(tokenizer, b"a")

    delivery = await customer.order(
        offer, prompt=(*PROMPT, a), start=1, steering=Steering(grammar='root ::= "a" "b"{3}')
    )

    assert (text(tokenizer, delivery.ids), delivery.objection) == ("bbb", None)


async def test_ids_that_the_grammar_forbids_reach_nobody_and_are_not_paid(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    a, b = token(tokenizer, b"a"), token(tokenizer, b"b")

    def lie(told: Told) -> Iterator[Frame]:
        yield Ids((a, a))
        yield Ids((a, b))
        yield told.receipt((a, a, a, b))

    customer = await Customer.open(tokenizer, clock)
    liar = ScriptedSeller(tokenizer, clock, lie)
    offer = await customer.meet(liar)
    purchase = customer.buy(offer, max_tokens=4, steering=Steering(grammar='root ::= "a"+'))

    arrived = [i async for ids in purchase.tokens() for i in ids]
    delivery = await purchase.outcome()

    assert arrived == [a, a] == list(delivery.ids)
    assert delivery.objection is not None
    assert "grammar" in delivery.objection
    assert delivery.owed == 0


async def test_a_grammar_that_the_buyer_cannot_follow_itself_is_not_ordered(
    store: Store, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    order = evolve(ask(), steering=Steering(grammar="root ::= ["))

    with pytest.raises(NotPlaced, match="grammar"):
        await customer.buyer.buy(store.seller, offer, order, tokenizer).outcome()

    assert not customer.owes(store.did).orders
