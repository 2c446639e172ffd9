"""What two nodes know of each other, compared; and what follows from records that come back."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ledger.account import Account, AccountKey, apply
from ledger.changes import (
    Acknowledged,
    Change,
    Disputed,
    Earned,
    Granted,
    Netted,
    Recovered,
    Released,
    Reserved,
    Settled,
    VoucherReceived,
)
from ledger.identity import Identity
from ledger.money import MAX_AMOUNT, Price
from ledger.reconcile import (
    Difference,
    NotOurs,
    Proof,
    accounts_between,
    by_key,
    differences,
    recovered_by_payee,
    recovered_by_payer,
    totals_of,
)
from ledger.records import (
    AccountState,
    Acknowledgement,
    Fingerprint,
    Offer,
    Order,
    Receipt,
    Sampling,
    Signed,
    Totals,
    Voucher,
    sign,
)

PAYER, PAYEE, STRANGER = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
KEY = AccountKey(PAYER.did, PAYEE.did, "credit", "uusd")
BACK = AccountKey(PAYEE.did, PAYER.did, "credit", "uusd")
DIGEST, NONCE = bytes(32), bytes(16)
COST, MOST = 30, 50


def account(*changes: Change, key: AccountKey = KEY) -> Account:
    made = Account(key)
    for change in changes:
        made = apply(made, change)
    return made


def state(by: Identity, to: Identity, *totals: Totals) -> Signed[AccountState]:
    return sign(AccountState(to.did, NONCE, 1, DIGEST, totals, 1), by)


def said(*changes: Change) -> Totals:
    return totals_of(account(*changes), b"")


def compared(payers: Totals, payees: Totals) -> list[tuple[str, int, int]]:
    """What the payer finds."""
    found = differences(state(PAYER, PAYEE, payers), state(PAYEE, PAYER, payees))
    back = differences(state(PAYEE, PAYER, payees), state(PAYER, PAYEE, payers))
    assert [(d.key, d.what, d.theirs, d.ours) for d in found] == [(d.key, d.what, d.ours, d.theirs) for d in back]
    return [(difference.what, difference.ours, difference.theirs) for difference in found]


GRANTED = Granted(1000, 1000, 1)
DONE = (GRANTED, Reserved(DIGEST, MOST, 9), Earned(DIGEST, COST), Released(DIGEST), VoucherReceived(COST))


def test_equal_accounts_do_not_differ() -> None:
    assert compared(said(*DONE, Settled(5), Netted(6)), said(*DONE, Settled(5), Netted(6))) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [(Settled(7), "settled"), (Netted(7), "netted"), (VoucherReceived(COST + 7), "authorized")],
    ids=["settled", "netted", "authorized"],
)
def test_what_one_side_alone_counts_is_a_difference(change: Change, what: str) -> None:
    now = COST + 7 if what == "authorized" else 7
    before = COST if what == "authorized" else 0
    assert compared(said(*DONE, change), said(*DONE)) == [(what, now, before)]


def test_what_is_in_dispute_is_no_difference_and_what_is_owed_otherwise_is() -> None:
    in_dispute = Disputed(DIGEST, COST, 20)
    payees = said(GRANTED, Reserved(DIGEST, MOST, 9), Earned(DIGEST, COST), Released(DIGEST), in_dispute)
    payers = said(GRANTED, Reserved(DIGEST, MOST, 9), Released(DIGEST), in_dispute)
    assert compared(payers, payees) == []
    assert compared(said(), payees) == [("owed", 0, 20)]


def test_while_an_order_is_open_anywhere_only_agreements_are_compared() -> None:
    under_way = said(GRANTED, Reserved(DIGEST, MOST, 9), Earned(DIGEST, COST))
    assert compared(said(GRANTED), under_way) == compared(under_way, said(GRANTED)) == []
    assert compared(said(Settled(1)), under_way) == [("settled", 1, 0)]


def test_an_account_that_one_side_does_not_name_is_empty_there() -> None:
    found = differences(state(PAYER, PAYEE, said(Settled(3))), state(PAYEE, PAYER))
    assert found == [Difference(KEY, "settled", 3, 0)]


def test_what_a_state_says_of_accounts_between_others_counts_for_nothing() -> None:
    foreign = evolve(said(Settled(3)), payer=STRANGER.did)
    assert by_key(state(PAYEE, PAYER, foreign)) == {}
    assert differences(state(PAYER, PAYEE), state(PAYEE, PAYER, foreign)) == []


def test_an_account_counts_as_it_is_named_first() -> None:
    first, second = said(Settled(3)), said(Settled(4))
    assert by_key(state(PAYEE, PAYER, first, second)) == {KEY: first}


def test_a_pair_has_both_directions_and_nobody_elses() -> None:
    keys = [KEY, BACK, AccountKey(PAYER.did, STRANGER.did, "credit", "uusd")]
    for one, other in ((PAYER, PAYEE), (PAYEE, PAYER)):
        found = accounts_between(map(Account, keys), one.did, other.did)
        assert {one.key for one in found} == {KEY, BACK}


def test_a_counter_beyond_what_a_record_holds_is_said_as_the_most_it_holds() -> None:
    beyond = evolve(Account(KEY), earned=MAX_AMOUNT + 1)
    assert totals_of(beyond, b"").earned == MAX_AMOUNT


# What comes back


def offer(by: Identity = PAYEE) -> Signed[Offer]:
    engine = Fingerprint("b", "cpu", "f16", "gumbel-2")
    return sign(
        Offer(
            endpoints=(),
            model=DIGEST,
            tokenizer=DIGEST,
            name="m",
            architecture="llama",
            parameters=1,
            quantization="Q8_0",
            context=99,
            engine=engine,
            price=Price(1, 1, "uusd"),
            rails=("credit",),
            slots=1,
            speed=0,
            first_token_ms=0,
            prekey=DIGEST,
            sequence=1,
            issued=1,
            expires=2,
        ),
        by,
    )


def proof(number: int = 0, amount: int = COST, total: int = COST, **changes: Any) -> Proof:
    """An order that cost COST, acknowledged with a voucher for `total`."""
    offered = offer()
    order = sign(
        Order(
            work="generate",
            seller=PAYEE.did,
            offer=offered.digest,
            nonce=number.to_bytes(16, "big"),
            request=DIGEST,
            sampling=Sampling(0, 1_000_000, 0, 0),
            seed=1,
            start=0,
            max_tokens=9,
            max_cost=MOST,
            privacy="internal",
            hops=0,
            rail="credit",
            trace=bytes(16),
            issued=1,
            expires=9,
        ),
        PAYER,
    )
    receipt = sign(Receipt(order.digest, DIGEST, 1, 1, DIGEST, DIGEST, "stop", COST, "uusd", 1, 2), PAYEE)
    voucher = sign(Voucher(PAYER.did, PAYEE.did, "credit", "", "", "uusd", total), PAYER)
    accepted = amount == COST
    ack = sign(Acknowledgement(order.digest, receipt.digest, accepted, "", amount, None, voucher.raw), PAYER)
    return evolve(Proof(ack, order, offered, receipt), **changes)


def test_the_payer_s_own_acknowledgement_brings_back_order_and_promise() -> None:
    one = proof()
    assert one.order is not None
    changes = recovered_by_payer(one, Account(KEY))
    order = one.order.digest
    assert changes == [Recovered(order, MOST, 9, COST), Acknowledged(order, COST), VoucherReceived(COST)]
    restored = account(*changes)
    assert (restored.owed, restored.authorized, restored.reserved) == (COST, COST, 0)


def test_the_payer_s_dispute_comes_back_with_what_the_payee_asks() -> None:
    restored = account(*recovered_by_payer(proof(amount=20, total=20), Account(KEY)))
    assert (restored.owed, restored.authorized, restored.disputed) == (20, 20, 10)


def test_an_order_that_was_open_in_the_older_copy_is_closed_and_counts_once() -> None:
    one = proof()
    assert one.order is not None
    older = account(GRANTED, Reserved(one.order.digest, MOST, 9))
    for _ in range(2):
        for change in recovered_by_payer(one, older):
            older = apply(older, change)
    assert (older.owed, older.authorized, older.reserved) == (COST, COST, 0)


def test_without_the_order_the_promise_stands_alone() -> None:
    for missing in (proof(order=None), evolve(proof(), order=proof(1).order)):
        assert recovered_by_payer(missing, Account(KEY)) == [VoucherReceived(COST)]


@given(st.permutations(range(4)), st.integers(1, 4))
def test_in_whatever_order_and_number_they_come_a_payer_owes_no_more_than_it_promised(
    numbers: list[int], count: int
) -> None:
    restored, highest = Account(KEY), 0
    for number in numbers[:count]:
        total = COST * (number + 1)
        highest = max(highest, total)
        for change in recovered_by_payer(proof(number, total=total), restored):
            restored = apply(restored, change)
        assert restored.owed <= restored.authorized == highest
    if count == len(numbers):
        assert restored.owed == highest or numbers != sorted(numbers)


def test_what_was_forgiven_meanwhile_is_not_owed_again() -> None:
    """The last voucher says what was owed in all, with what the payee had let go."""
    restored = Account(KEY)
    for number, total in ((0, COST), (1, COST + 10)):  # 20 were forgiven in between
        for change in recovered_by_payer(proof(number, total=total), restored):
            restored = apply(restored, change)
    assert restored.owed == restored.authorized == COST + 10


@pytest.mark.parametrize("by", [PAYEE, STRANGER], ids=["the payee", "a stranger"])
def test_an_acknowledgement_that_is_not_the_payers_brings_nothing_back(by: Identity) -> None:
    said = proof().acknowledgement.record
    voucher = sign(Voucher(by.did, PAYEE.did, "credit", "", "", "uusd", COST), by)
    for raw in (said.voucher, voucher.raw):
        with pytest.raises(NotOurs):
            recovered_by_payer(evolve(proof(), acknowledgement=sign(evolve(said, voucher=raw), by)), Account(KEY))


def test_the_payee_s_own_receipt_brings_back_what_it_earned_and_no_promise() -> None:
    one = proof()
    assert one.order is not None
    changes = recovered_by_payee(one, Account(KEY), COST)
    assert changes == [Recovered(one.order.digest, MOST, 9, COST)]
    assert (account(*changes).owed, account(*changes).authorized) == (COST, 0)


def test_where_it_may_have_forgotten_the_payee_gets_back_no_more_than_the_payer_says_it_has_earned() -> None:
    known = account(*DONE)
    for at_most, counted in ((COST, 0), (COST + 10, 10), (10**6, COST), (None, COST)):
        (change,) = recovered_by_payee(proof(), known, at_most)
        assert apply(known, change).earned == COST + counted


@pytest.mark.parametrize(
    "changes",
    [
        {"order": None},
        {"order": proof(1).order},
        {"offer": None},
        {"offer": offer(STRANGER)},
        {"claim": None},
        {"claim": proof(1).claim},
    ],
    ids=["no order", "another order", "no offer", "another's offer", "no receipt", "another receipt"],
)
def test_the_payee_gets_nothing_back_by_records_that_do_not_belong_together(changes: dict[str, Any]) -> None:
    with pytest.raises(NotOurs):
        recovered_by_payee(proof(**changes), Account(KEY), 10**6)


def test_a_receipt_that_somebody_else_signed_or_that_asks_too_much_brings_nothing_back() -> None:
    claim = proof().claim
    assert claim is not None
    assert isinstance(claim.record, Receipt)
    for forged in (sign(claim.record, PAYER), sign(evolve(claim.record, cost=MOST + 1), PAYEE)):
        with pytest.raises(NotOurs):
            recovered_by_payee(proof(claim=forged), Account(KEY), 10**6)
