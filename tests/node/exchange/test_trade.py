"""One order from offer to voucher, all of it real: what everything else deviates from."""

import pytest

from ledger import bundle
from ledger.bundle import Bundle
from ledger.commitments import CHECKPOINT_TOKENS
from ledger.journal import replay
from ledger.records import Acknowledgement, Checkpoint, Offer, Order, Receipt, Verdict, Voucher, open_record
from node.engine.llamacpp import LlamaEngine
from node.engine.port import Job
from node.exchange.bought import load_bought
from node.models.manifest import manifest_of
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import CheckpointFrame, Ids, ReceiptFrame
from tests.node.trading import (
    ALL_AUDITED,
    DEMO,
    HOT,
    PRICE,
    PROMPT,
    SEED,
    Customer,
    Line,
    Store,
    draft_order,
    engine_of,
    frames_of,
    ids_of,
    price_of,
)


async def answer_of(tokenizer: Tokenizer, tokens: int, seed: int = SEED) -> tuple[int, ...]:
    """What an honest engine answers, computed apart from any trade."""
    job = Job(PROMPT, HOT, seed, tokens)
    return tuple([i async for piece in engine_of(tokenizer).generate(job) for i in piece.ids])


async def test_what_was_bought_is_what_the_engine_would_say_here(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)

    purchase = customer.buy(offer, max_tokens=70)
    arrived = [i async for ids in purchase.tokens() for i in ids]
    delivery = await purchase.outcome()

    assert tuple(arrived) == delivery.ids == await answer_of(tokenizer, 70)
    assert delivery.objection is None
    await customer.settled()


async def test_both_books_agree_to_the_unit(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)

    for seed, tokens in ((1, 3), (2, 64), (4, 65)):
        await customer.order(offer, seed=seed, max_tokens=tokens)

    due = price_of(5, 3) + price_of(5, 64) + price_of(5, 65)
    theirs, ours = store.owed_by(customer.did), customer.owes(store.did)
    assert (ours.owed, ours.authorized, ours.reserved) == (due, due, 0)
    assert (theirs.owed, theirs.authorized, theirs.reserved) == (due, due, 0)
    assert customer.book.spent_today() == {"uusd": due}


async def test_both_signed_the_receipt_and_both_keep_it(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    delivery = await customer.order(offer, max_tokens=70)
    order = delivery.terms.order.digest

    kept = {record.kind: record.raw for record in await customer.book.journal.records_of(order)}
    at_the_seller = {record.kind: record.raw for record in await store.book.journal.records_of(order)}

    for kind in (Order.kind, Receipt.kind, Acknowledgement.kind):
        assert at_the_seller[kind] == kept[kind]
    receipt, ack = open_record(kept[Receipt.kind], Receipt), open_record(kept[Acknowledgement.kind], Acknowledgement)
    assert (receipt.signer, ack.signer) == (store.did, customer.did)
    assert (ack.record.of, ack.record.accepted, ack.record.amount) == (receipt.digest, True, price_of(5, 70))
    assert open_record(ack.record.voucher, Voucher).record.total == price_of(5, 70)
    assert (receipt.record.finish, receipt.record.prompt_tokens, receipt.record.output_tokens) == ("length", 5, 70)


async def test_the_papers_of_an_order_convince_a_stranger(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    delivery = await customer.order(await customer.meet(store.seller), max_tokens=70)
    order = delivery.terms.order.digest
    kept = {record.kind: record.raw for record in await customer.book.journal.records_of(order)}
    request = delivery.terms.request
    offer = await customer.book.journal.record(delivery.terms.offer.digest)
    assert offer is not None

    papers = Bundle(
        offer.raw,
        kept[Order.kind],
        kept[Receipt.kind],
        kept[Acknowledgement.kind],
        request.salt,
        request.prompt,
        delivery.ids,
    )

    assert [check.name for check in bundle.check(papers) if not check.passed] == []


async def test_acknowledgements_form_a_chain(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = Line(store.seller)
    offer = await customer.meet(line)

    for _ in range(3):
        await customer.order(offer, max_tokens=1)

    first, second, third = (open_record(raw, Acknowledgement) for raw in line.acknowledged)
    assert first.record.previous is None
    assert second.record.previous == first.digest
    assert third.record.previous == second.digest


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 128, 130])
async def test_a_checkpoint_comes_after_every_64th_token_and_the_receipt_at_the_end(
    tokenizer: Tokenizer, clock: ManualClock, tokens: int
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    draft = draft_order(customer.book.identity, await store.offer(), clock, max_tokens=tokens)

    frames = await frames_of(store.seller, draft)

    seen, checkpoints = 0, []
    for frame in frames:
        if isinstance(frame, Ids):
            seen += len(frame.ids)
        elif isinstance(frame, CheckpointFrame):
            checkpoints.append((seen, open_record(frame.raw, Checkpoint).record))
    assert [at for at, _ in checkpoints] == list(range(CHECKPOINT_TOKENS, tokens + 1, CHECKPOINT_TOKENS))
    assert [(c.tokens, c.cost) for _, c in checkpoints] == [(at, price_of(0, at)) for at, _ in checkpoints]
    assert isinstance(frames[-1], ReceiptFrame)
    assert len(ids_of(frames)) == tokens


async def test_an_answer_ends_with_the_end_of_generation_id_which_is_paid_for(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)

    delivery = await customer.order(await customer.meet(store.seller), seed=19, max_tokens=100)

    assert delivery.ids[-1] in tokenizer.eog
    assert len(delivery.ids) < 100
    assert delivery.receipt is not None
    assert (delivery.receipt.record.finish, delivery.owed) == ("stop", price_of(5, len(delivery.ids)))


async def test_an_answer_ends_where_a_stop_string_is_complete(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    whole = await answer_of(tokenizer, 20)
    stop = tokenizer.text(whole[9:11])
    assert stop not in tokenizer.text(whole[:10])

    delivery = await customer.order(await customer.meet(store.seller), max_tokens=100, stop=(stop,))

    assert delivery.ids == whole[:11]
    assert delivery.receipt is not None
    assert (delivery.receipt.record.finish, delivery.objection) == ("stop", None)
    assert store.owed_by(customer.did).owed == price_of(5, 11)


async def test_an_honest_seller_is_found_honest_before_it_is_paid(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    customer = await Customer.open(tokenizer, clock, engines=[engine_of(tokenizer)], policy=ALL_AUDITED)

    delivery = await customer.order(await customer.meet(store.seller), max_tokens=70)

    kinds = [r.kind for r in await customer.book.journal.records_of(delivery.terms.order.digest)]
    assert kinds.index(Verdict.kind) < kinds.index(Acknowledgement.kind)
    (verdict,) = await customer.book.journal.list_records(Verdict.kind, 9)
    said = open_record(verdict.raw, Verdict).record
    assert delivery.receipt is not None
    assert (said.outcome, said.receipt, said.seller) == ("honest", delivery.receipt.digest, store.did)
    assert (said.margins.tokens, said.margins.odd, said.margins.largest) == (70, 0, 0)
    assert store.owed_by(customer.did).authorized == price_of(5, 70)


async def test_the_demo_model_is_sold_audited_and_paid(tokenizer: Tokenizer, clock: ManualClock) -> None:
    engine = await LlamaEngine.load(DEMO, manifest_of(DEMO), context=512, threads=1)
    try:
        store = await Store.open(tokenizer, clock, engine=engine)
        customer = await Customer.open(tokenizer, clock, engines=[engine], policy=ALL_AUDITED)

        delivery = await customer.order(await customer.meet(store.seller), max_tokens=70)

        (verdict,) = await customer.book.journal.list_records(Verdict.kind, 9)
        assert open_record(verdict.raw, Verdict).record.outcome == "honest"
        assert open_record(verdict.raw, Verdict).record.margins.tokens == len(delivery.ids)
        assert customer.owes(store.did).authorized == store.owed_by(customer.did).owed == delivery.owed > 0
    finally:
        await engine.close()


async def test_what_is_known_of_a_seller_grows_with_its_deliveries(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)

    for _ in range(2):
        await customer.order(offer, max_tokens=10)

    standing = customer.book.experience.standing(store.did)
    assert (standing.history.delivered, standing.history.tokens, standing.history.honest) == (2, 20, 0)
    assert standing.speed.first_token_ms is not None


async def test_prompt_and_answer_are_kept_for_audits_but_only_sealed(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    delivery = await customer.order(await customer.meet(store.seller), max_tokens=10)
    order = delivery.terms.order.digest

    bought = await load_bought(customer.book, order)
    sealed = await customer.book.journal.material(order)

    assert bought is not None
    assert (bought.terms.request.prompt, bought.answer) == (PROMPT, delivery.ids)
    assert sealed is not None
    assert b"".join(i.to_bytes(4, "little") for i in PROMPT) not in sealed
    assert await store.book.journal.material(order) is None


async def test_both_chains_are_intact_and_rebuild_the_same_accounts(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    await customer.order(await customer.meet(store.seller), max_tokens=10)

    for book in (store.book, customer.book):
        entries = [entry async for entry in book.journal.entries()]
        assert replay(book.me, entries) == book.journal.books


async def test_an_offer_says_what_runs_here(tokenizer: Tokenizer, clock: ManualClock) -> None:
    engine = engine_of(tokenizer)
    store = await Store.open(tokenizer, clock, engine=engine)
    store.seller.url = "http://192.0.2.7:8080"

    said = (await store.offer()).record

    assert (said.model, said.tokenizer, said.context) == (engine.manifest.digest, tokenizer.digest, engine.context)
    assert (said.engine, said.price, said.endpoints) == (engine.fingerprint, PRICE, ("http://192.0.2.7:8080",))


async def test_an_offer_is_made_anew_when_the_clock_is_set_back(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    ahead = await store.offer()
    clock.advance(-24 * 3_600)

    assert (await store.offer()).record.issued == ahead.record.issued - 24 * 3_600


async def test_an_offer_is_made_anew_at_half_its_life_and_the_old_one_is_still_honoured(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    old = await customer.meet(store.seller)
    clock.advance(1_700)
    assert await store.offer() == old
    clock.advance(200)

    new = await store.offer()

    assert new.record.sequence > old.record.sequence
    assert new.record.prekey != old.record.prekey
    assert (await customer.order(old, max_tokens=3)).objection is None
    assert isinstance(new.record, Offer)
