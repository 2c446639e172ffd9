"""Selling what another server computes: said in the offer, counted by the model's own tokenizer, never scored."""

from collections.abc import AsyncIterator

import pytest

from ledger.commitments import SALT_BYTES
from ledger.identity import Identity
from ledger.records import Privacy, Receipt, open_record
from node.engine.remote import RemoteEngine
from node.exchange.sale import Elsewhere
from node.models.spelling import Spelling
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import CancelFrame, ReceiptFrame
from node.wire.messages import Request, encode_request
from tests.node.remotes import Server, client_of, event, says, sends, serving
from tests.node.trading import (
    ALL_AUDITED,
    COLD,
    PROMPT,
    Customer,
    Store,
    draft_order,
    engine_of,
    frames_of,
    ids_of,
    model,
    price_of,
    refusal_of,
)
from verify.steering import Steering

BUYER = Identity(bytes([2]) * 32)
CLOUD = Elsewhere("public", "CH", "30 days")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(says(["A", " receipt", " is", " signed."])) as listening:
        yield listening


@pytest.fixture
async def store(server: Server, tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Store]:
    async with client_of(server) as client:
        engine = RemoteEngine(client, Spelling(tokenizer.words), model(tokenizer), context=512, slots=2)
        yield await Store.open(tokenizer, clock, engine=engine, elsewhere=CLOUD)


async def test_the_offer_says_whose_sampler_it_is_and_what_law_the_prompts_are_under(store: Store) -> None:
    offer = (await store.offer()).record

    assert (offer.engine.backend, offer.engine.sampler) == ("remote", "own")
    assert (offer.jurisdiction, offer.retention) == ("CH", "30 days")


async def test_an_offer_of_this_machine_says_neither(tokenizer: Tokenizer, clock: ManualClock) -> None:
    offer = (await (await Store.open(tokenizer, clock)).offer()).record

    assert (offer.jurisdiction, offer.retention) == (None, None)


async def test_an_order_is_delivered_and_counted_by_the_model_s_tokenizer(
    store: Store, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    draft = draft_order(BUYER, await store.offer(), clock, privacy="public", sampling=COLD)

    frames = await frames_of(store.seller, draft)

    ids = ids_of(frames)
    assert tokenizer.text(ids) == "A receipt is signed."
    assert isinstance(frames[-1], ReceiptFrame)
    receipt = open_record(frames[-1].raw, Receipt).record
    assert (receipt.finish, receipt.output_tokens) == ("stop", len(ids))
    assert receipt.cost == price_of(receipt.prompt_tokens, len(ids))


@pytest.mark.parametrize("level", ["internal", "confidential"])
async def test_no_prompt_goes_further_than_the_owner_allows_that_server(
    store: Store, server: Server, clock: ManualClock, level: Privacy
) -> None:
    refusal = await refusal_of(store.seller, draft_order(BUYER, await store.offer(), clock, privacy=level))

    assert refusal.code == "privacy"
    assert not server.asked
    assert store.book.journal.head.sequence == 0


async def test_what_the_server_cannot_do_is_refused_before_it_costs_anything(
    store: Store, server: Server, clock: ManualClock
) -> None:
    body = encode_request(Request(bytes(SALT_BYTES), PROMPT, steering=Steering(grammar='root ::= "a"')))
    draft = draft_order(BUYER, await store.offer(), clock, privacy="public", body=body)

    assert (await refusal_of(store.seller, draft)).code == "not_selling"
    assert not server.asked


async def test_a_server_that_breaks_off_is_a_cut_and_nobody_pays_for_the_prompt(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    async with serving(sends(event("A"), event(" receipt"))) as broken, client_of(broken) as client:
        engine = RemoteEngine(client, Spelling(tokenizer.words), model(tokenizer), context=512, slots=2)
        store = await Store.open(tokenizer, clock, engine=engine, elsewhere=CLOUD)
        draft = draft_order(BUYER, await store.offer(), clock, privacy="public")

        frames = await frames_of(store.seller, draft)

    assert isinstance(frames[-1], CancelFrame)
    account = store.owed_by(BUYER.did)
    assert (account.owed, account.reserved) == (0, 0)


async def test_a_server_that_is_said_and_calibrated_is_condemned_for_greedy_answers_of_other_weights(
    server: Server, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    customer = await Customer.open(tokenizer, clock, engines=[engine_of(tokenizer)], policy=ALL_AUDITED)
    async with client_of(server) as client:
        engine = RemoteEngine(
            client, Spelling(tokenizer.words), model(tokenizer), context=512, slots=2, server="llama-server b9960"
        )
        store = await Store.open(tokenizer, clock, engine=engine, elsewhere=CLOUD)
        try:
            offer = await customer.meet(store.seller)
            standing = customer.book.experience.standing(store.did)
            for number in range(20):
                await customer.order(offer, prompt=(11, 12, 13 + number), sampling=COLD, privacy="public")
                standing = customer.book.experience.standing(store.did)
                if standing.history.condemned:
                    break
        finally:
            await customer.close()

    assert standing.history.condemned


async def test_no_audit_finds_a_fault_in_a_sampler_that_no_seed_tells(
    store: Store, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    customer = await Customer.open(tokenizer, clock, engines=[engine_of(tokenizer)], policy=ALL_AUDITED)
    try:
        offer = await customer.meet(store.seller)
        await customer.order(offer, privacy="public")
        standing = customer.book.experience.standing(store.did)
    finally:
        await customer.close()

    assert not standing.history.condemned
    assert standing.history.delivered == 1
