"""Audits: who is found out, who is not, and what becomes of the money."""

import asyncio
from collections.abc import AsyncGenerator, Iterator

from attrs import evolve

from ledger.records import Acknowledgement, Fingerprint, Verdict, open_record
from node.engine.memory import FINGERPRINT, MemoryEngine
from node.engine.port import Engine, Job, Piece
from node.exchange.auditor import Audit
from node.exchange.delivery import Delivery
from node.exchange.settler import AuditPolicy
from node.market.candidates import Candidate, Limits, Wish, rule_out
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import Frame, Ids
from tests.node.trading import (
    ALL_AUDITED,
    COLD,
    NO_AUDITS,
    Customer,
    Line,
    ScriptedSeller,
    Store,
    Told,
    engine_of,
    model,
    price_of,
)

FIRST_TWO = AuditPolicy(rate=0.0, first=2)


async def cheating(tokenizer: Tokenizer, clock: ManualClock) -> Store:
    """A seller that offers the model of weights 0 and runs that of weights 1."""
    return await Store.open(tokenizer, clock, engine=engine_of(tokenizer, 1, manifest=model(tokenizer, 0)))


async def auditing(
    tokenizer: Tokenizer, clock: ManualClock, policy: AuditPolicy = ALL_AUDITED, engine: Engine | None = None
) -> Customer:
    """A buyer with the weights that are promised."""
    return await Customer.open(tokenizer, clock, engines=[engine or engine_of(tokenizer)], policy=policy)


async def verdicts(customer: Customer) -> list[Verdict]:
    """All verdicts, oldest first."""
    kept = await customer.book.journal.list_records(Verdict.kind, 100)
    return [open_record(record.raw, Verdict).record for record in reversed(kept)]


async def audit_of(customer: Customer, delivery: Delivery) -> Audit:
    assert delivery.receipt is not None
    return await customer.auditor.audit(delivery.terms, delivery.receipt.digest, delivery.ids)


async def test_a_cheat_is_condemned_and_what_the_audit_disputes_stays_unpaid(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await cheating(tokenizer, clock), await auditing(tokenizer, clock)
    line = Line(store.seller)

    delivery = await customer.order(await customer.meet(line), max_tokens=40)

    (verdict,) = await verdicts(customer)
    assert verdict.outcome == "dishonest"
    assert (verdict.margins.tokens, verdict.seller) == (40, store.did)
    assert verdict.margins.odd > 20
    ack = open_record(line.acknowledged[0], Acknowledgement).record
    assert (ack.accepted, ack.amount, ack.reason) == (False, 0, verdict.reason)
    assert (customer.owes(store.did).owed, customer.owes(store.did).authorized) == (0, 0)
    assert customer.owes(store.did).reserved == 0
    assert store.owed_by(customer.did).unpaid == price_of(5, 40), "the seller may go on to think that it is owed"
    assert delivery.objection is None, "nothing but the replay shows it"


async def test_no_further_order_goes_to_a_condemned_seller(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await cheating(tokenizer, clock), await auditing(tokenizer, clock)
    offer = await customer.meet(store.seller)
    await customer.order(offer, max_tokens=40)

    history = customer.book.experience.standing(store.did).history
    candidate = Candidate(
        offer.record.model, "memory", 1.0, "named", offer.record.context, offer, condemned=history.condemned
    )

    assert history.condemned
    assert rule_out(candidate, Wish(None, 5, 10, "public"), Limits()) == "was found cheating"


async def test_a_verdict_stands_whatever_the_seller_does_later(tokenizer: Tokenizer, clock: ManualClock) -> None:
    cheat, customer = await cheating(tokenizer, clock), await auditing(tokenizer, clock)
    await customer.order(await customer.meet(cheat.seller), max_tokens=40)
    reformed = await Store.open(tokenizer, clock, journal=cheat.book.journal)

    await customer.order(await customer.meet(reformed.seller), max_tokens=40, seed=2)

    assert [v.outcome for v in await verdicts(customer)] == ["dishonest", "dishonest"]
    assert customer.owes(cheat.did).authorized == 0


async def test_an_honest_seller_is_never_suspected_however_often_it_is_audited(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await auditing(tokenizer, clock)
    offer = await customer.meet(store.seller)

    for seed in range(20, 26):
        await customer.order(offer, max_tokens=30, seed=seed)
    await customer.order(offer, max_tokens=30, sampling=COLD)

    found = await verdicts(customer)
    assert {(v.outcome, v.margins.odd, v.margins.largest) for v in found} == {("honest", 0, 0)}
    assert customer.owes(store.did).unpaid == 0


async def test_another_seed_than_ordered_is_found_out(tokenizer: Tokenizer, clock: ManualClock) -> None:
    class OtherSeed(MemoryEngine):
        """Draws with a seed of its own."""

        def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
            return super().generate(evolve(job, seed=job.seed + 1))

    engine = OtherSeed(model(tokenizer), vocabulary=tokenizer.size, eog=tokenizer.eog)
    store, customer = await Store.open(tokenizer, clock, engine=engine), await auditing(tokenizer, clock)

    await customer.order(await customer.meet(store.seller), max_tokens=60)

    assert (await verdicts(customer))[0].outcome == "dishonest"


async def test_the_first_receipts_are_audited_before_they_are_paid_and_later_ones_by_the_rate(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await auditing(tokenizer, clock, FIRST_TWO)
    offer = await customer.meet(store.seller)

    for seed in (1, 2, 4, 5):
        await customer.order(offer, max_tokens=5, seed=seed)

    assert len(await verdicts(customer)) == 2
    assert customer.owes(store.did).authorized == 4 * price_of(5, 5)


async def test_first_receipts_that_arrive_together_are_audited_all_the_same(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store = await Store.open(tokenizer, clock, engine=engine_of(tokenizer, slots=4))
    customer = await auditing(tokenizer, clock, FIRST_TWO)
    offer = await customer.meet(store.seller)

    purchases = [customer.buy(offer, max_tokens=20, seed=seed) for seed in (1, 2, 4)]
    await asyncio.gather(*(purchase.outcome() for purchase in purchases))
    await customer.settled(3)

    assert len(await verdicts(customer)) == 2


async def test_a_later_audit_does_not_hold_the_payment_back(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await cheating(tokenizer, clock)
    customer = await auditing(tokenizer, clock, AuditPolicy(rate=1.0, first=0))

    await customer.order(await customer.meet(store.seller), max_tokens=40)

    assert [v.outcome for v in await verdicts(customer)] == ["dishonest"]
    assert customer.owes(store.did).authorized == price_of(5, 40)
    assert customer.book.experience.standing(store.did).history.condemned


async def test_a_rate_of_nothing_audits_nothing(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await cheating(tokenizer, clock), await auditing(tokenizer, clock, NO_AUDITS)

    await customer.order(await customer.meet(store.seller), max_tokens=40)

    assert await verdicts(customer) == []


async def test_a_seller_with_a_stake_is_audited_less_and_its_first_receipts_all_the_same(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    audited = []
    for stake in (0, 10**12):
        store = await Store.open(tokenizer, clock)
        customer = await Customer.open(
            tokenizer,
            clock,
            engines=[engine_of(tokenizer)],
            policy=AuditPolicy(rate=1.0, first=1),
            bonded={store.did: stake}.__getitem__,
        )
        offer = await customer.meet(store.seller)
        for seed in range(6):
            await customer.order(offer, max_tokens=20, seed=seed)
        audited.append(len(await verdicts(customer)))

    assert audited[0] == 6
    assert 1 <= audited[1] < 4, "one in ten is what stays at least, drawn from a fixed entropy"


async def test_the_same_answer_is_evidence_once(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await auditing(tokenizer, clock, NO_AUDITS)
    delivery = await customer.order(await customer.meet(store.seller), max_tokens=40)
    model_digest = delivery.terms.offer.record.model

    first = await audit_of(customer, delivery)
    counted = customer.book.experience.evidence(store.did, model_digest).tokens
    again = await audit_of(customer, delivery)

    assert (first.outcome, again.outcome) == ("honest", "honest")
    assert again.verdict.record.margins.tokens == 40
    assert customer.book.experience.evidence(store.did, model_digest).tokens == counted == 40
    assert customer.book.experience.standing(store.did).history.honest == 1


async def test_the_same_prefix_in_two_answers_is_evidence_once(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await auditing(tokenizer, clock)
    offer = await customer.meet(store.seller)

    await customer.order(offer, max_tokens=20)
    await customer.order(offer, max_tokens=30)

    assert customer.book.experience.evidence(store.did, offer.record.model).tokens == 30


async def test_without_the_weights_the_audit_abstains_and_says_so(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await cheating(tokenizer, clock)
    customer = await auditing(tokenizer, clock, engine=engine_of(tokenizer, 5))

    await customer.order(await customer.meet(store.seller), max_tokens=40)

    (verdict,) = await verdicts(customer)
    assert (verdict.outcome, verdict.margins.tokens) == ("undecided", 0)
    assert "weights of this model are not here" in verdict.reason
    assert customer.owes(store.did).authorized == price_of(5, 40)
    assert customer.book.experience.standing(store.did).history.honest == 0


async def test_a_seller_whom_no_audit_can_judge_stays_new(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock)
    customer = await auditing(tokenizer, clock, FIRST_TWO, engine=engine_of(tokenizer, 5))
    offer = await customer.meet(store.seller)

    for seed in (1, 2, 4, 5):
        await customer.order(offer, max_tokens=5, seed=seed)

    assert [verdict.margins.tokens for verdict in await verdicts(customer)] == [0] * 4


async def test_a_seller_is_no_less_new_for_answers_that_were_checked_before(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await auditing(tokenizer, clock, FIRST_TWO)
    offer = await customer.meet(store.seller)

    for _ in range(4):
        await customer.order(offer, max_tokens=5)

    assert len(await verdicts(customer)) == 4


async def test_for_another_fingerprint_the_audit_abstains_and_says_which(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    other = evolve(FINGERPRINT, backend="a" * 64)
    engine = engine_of(tokenizer, 1, manifest=model(tokenizer, 0), fingerprint=other)
    store, customer = await Store.open(tokenizer, clock, engine=engine), await auditing(tokenizer, clock)

    await customer.order(await customer.meet(store.seller), max_tokens=40)

    (verdict,) = await verdicts(customer)
    assert verdict.outcome == "undecided"
    assert "backend" in verdict.reason
    assert not customer.book.experience.standing(store.did).history.condemned


async def test_for_another_sampler_the_audit_abstains(tokenizer: Tokenizer, clock: ManualClock) -> None:
    engine = engine_of(tokenizer, fingerprint=Fingerprint("memory-1", "none", "none", "own-dice"))
    store, customer = await Store.open(tokenizer, clock, engine=engine), await auditing(tokenizer, clock)

    await customer.order(await customer.meet(store.seller), max_tokens=40)

    (verdict,) = await verdicts(customer)
    assert verdict.outcome == "undecided"
    assert "own-dice" in verdict.reason


async def test_a_checker_that_is_busy_abstains_and_condemns_nobody(tokenizer: Tokenizer, clock: ManualClock) -> None:
    busy = engine_of(tokenizer, slots=0, waiting=0)
    store, customer = await cheating(tokenizer, clock), await auditing(tokenizer, clock, engine=busy)

    await customer.order(await customer.meet(store.seller), max_tokens=40)

    (verdict,) = await verdicts(customer)
    assert verdict.outcome == "undecided"
    assert "replay failed" in verdict.reason


async def test_a_cut_answer_is_audited_before_its_checkpoint_is_paid(tokenizer: Tokenizer, clock: ManualClock) -> None:
    engine = engine_of(tokenizer, 1, manifest=model(tokenizer, 0), fail_after=70)
    store, customer = await Store.open(tokenizer, clock, engine=engine), await auditing(tokenizer, clock)

    await customer.order(await customer.meet(store.seller), max_tokens=100)

    (verdict,) = await verdicts(customer)
    assert (verdict.outcome, verdict.margins.tokens) == ("dishonest", 70)
    assert customer.owes(store.did).authorized == 0


async def test_an_answer_that_is_cut_before_its_first_checkpoint_is_evidence_too(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    def poisoned(_: Told) -> Iterator[Frame]:
        yield Ids(tuple(range(700, 740)))

    seller, customer = ScriptedSeller(tokenizer, clock, poisoned), await auditing(tokenizer, clock)

    delivery = await customer.order(await customer.meet(seller))

    (verdict,) = await verdicts(customer)
    assert (verdict.outcome, verdict.receipt) == ("dishonest", delivery.terms.order.digest)
    assert customer.book.experience.standing(seller.did).history.condemned
    assert (customer.owes(seller.did).owed, customer.owes(seller.did).reserved) == (0, 0)


async def test_a_receipt_that_does_not_fit_is_audited_for_what_arrived(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    def script(told: Told) -> Iterator[Frame]:
        ids = tuple(range(600, 640))
        yield Ids(ids)
        yield told.receipt(ids, cost=999)

    seller = ScriptedSeller(tokenizer, clock, script)
    customer = await auditing(tokenizer, clock)

    await customer.order(await customer.meet(seller), max_tokens=40)

    (verdict,) = await verdicts(customer)
    assert (verdict.outcome, verdict.margins.tokens) == ("dishonest", 40)
    assert customer.owes(seller.did).authorized == 0


async def test_a_good_reputation_is_earned_by_audits(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await auditing(tokenizer, clock)
    offer = await customer.meet(store.seller)

    for seed in (1, 2):
        await customer.order(offer, max_tokens=20, seed=seed)

    history = customer.book.experience.standing(store.did).history
    assert (history.delivered, history.honest, history.condemned) == (2, 2, False)
