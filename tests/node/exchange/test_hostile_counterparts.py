"""Peers that compare accounts in order to harm: what they hand back, show or ask for costs them, and nobody else."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from attrs import evolve

from ledger.account import Account, AccountKey
from ledger.changes import VoucherReceived
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import Kept, MemoryJournal
from ledger.reconcile import totals_of
from ledger.records import AccountState, Acknowledgement, Settlement, Signed, Totals, Voucher, sign
from node.exchange import heads, pairs
from node.exchange.book import kept
from node.exchange.reconciling import MAX_ROUNDS, Reconciler
from node.exchange.settling import Settling
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.messages import Asked, Handed, Refused, decode_nonce, encode_asked, encode_handed
from tests.node.exchange.test_reconciling import BUYER, ONE, SELLER, STRANGER, Deaf, Pair, digests, settle
from tests.node.trading import Store


@pytest.fixture
async def pair(tmp_path: Path, tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        pair = await Pair(tmp_path, tokenizer, clock).open()

        async def stop() -> None:
            await pair.stop(2)
            await pair.stop(1)

        stack.push_async_callback(stop)
        yield pair


async def ask(victim: Reconciler, to: str, by: Identity, *accounts: Totals) -> bytes:
    """Ask a node for its state; the nonce under which records may be handed back."""
    nonce = decode_nonce(await victim.challenge())
    state = sign(AccountState(to, nonce, 0, bytes(32), accounts, 1), by)
    await victim.state(encode_asked(Asked(state.raw, bytes(16), b"")))
    return nonce


async def hand_back(victim: Reconciler, to: str, by: Identity, records: Handed) -> None:
    """All that it takes to hand records to a node."""
    nonce = await ask(victim, to, by)
    await victim.hand_back(encode_handed(nonce, records))


def promises(by: Identity, totals: Sequence[int], order: bytes = bytes(32)) -> list[Signed[Acknowledgement]]:
    """Acknowledgements of an order, each with a voucher for more."""
    vouchers = [sign(Voucher(by.did, SELLER.did, "credit", "", "", "uusd", total), by) for total in totals]
    return [sign(Acknowledgement(order, order, True, "", 0, None, voucher.raw), by) for voucher in vouchers]


def handed(signed: Sequence[Signed[Acknowledgement]]) -> Handed:
    return tuple((one.record.kind, one.raw) for one in signed)


async def test_promises_of_strangers_for_nothing_are_not_kept(pair: Pair) -> None:
    entries = pair.journals[1].head.sequence

    await hand_back(pair.sellers, SELLER.did, STRANGER, handed(promises(STRANGER, range(1, 50))))

    assert pair.journals[1].head.sequence == entries
    assert await digests(pair.store.book, Acknowledgement.kind) == set()
    assert pair.store.owed_by(STRANGER.did).key not in pair.store.book.journal.books.accounts


async def test_a_buyer_cannot_fill_the_disk_with_promises_of_what_it_does_not_owe(pair: Pair) -> None:
    await pair.buy()
    entries = pair.journals[1].head.sequence

    await hand_back(pair.sellers, SELLER.did, BUYER, handed(promises(BUYER, range(ONE + 1, ONE + 50))))

    # The state that was compared is kept.
    assert pair.journals[1].head.sequence <= entries + 1
    pair.agree_on(1)


async def test_of_promises_whose_order_is_gone_the_highest_counts_as_it_covers_a_debt(pair: Pair) -> None:
    offer = await pair.customer.meet(pair.line)
    pair.customer.lines[SELLER.did] = Deaf(pair.store.seller)
    await pair.customer.order(offer, max_tokens=10)
    before = await digests(pair.store.book, Acknowledgement.kind)
    said = promises(BUYER, range(1, ONE + 1))

    await hand_back(pair.sellers, SELLER.did, BUYER, handed(said))

    assert pair.theirs.authorized == ONE
    assert await digests(pair.store.book, Acknowledgement.kind) == {*before, said[-1].digest}


class Counting(MemoryJournal):
    """Counts how many records it was asked to list."""

    listed = 0

    async def list_records(self, kind: str, limit: int, before: int | None = None) -> Sequence[Kept]:
        found = await super().list_records(kind, limit, before)
        self.listed += len(found)
        return found


async def test_a_buyer_of_long_ago_cannot_have_the_journal_searched_at_each_question(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    journal, entropy = Counting(SELLER.did), SeededEntropy(3)
    store = await Store.open(tokenizer, clock, seed=1, journal=journal, entropy=entropy)
    victim = Reconciler(store.book, entropy, lambda _: None, lambda _key, _digest: None)
    others = 1_000
    for by, totals in ((BUYER, [1]), (STRANGER, range(1, others))):
        key = AccountKey(by.did, SELLER.did, "credit", "uusd")
        for said in promises(by, totals):
            await store.book.post(AccountChanged(key, VoucherReceived(totals[-1])), records=[kept(said)])

    truth = totals_of(store.owed_by(BUYER.did), promises(BUYER, [1])[0].digest)
    for _ in range(MAX_ROUNDS):
        await ask(victim, SELLER.did, BUYER, truth)

    assert others < journal.listed < 3 * others


async def test_a_search_for_what_a_peer_says_it_lacks_counts_against_its_rate(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    journal, entropy = Counting(SELLER.did), SeededEntropy(3)
    store = await Store.open(tokenizer, clock, seed=1, journal=journal, entropy=entropy)
    victim = Reconciler(store.book, entropy, lambda _: None, lambda _key, _digest: None)
    others = 1_000
    for by, totals in ((BUYER, [1, 2]), (STRANGER, range(1, others))):
        key = AccountKey(by.did, SELLER.did, "credit", "uusd")
        for said in promises(by, totals):
            await store.book.post(AccountChanged(key, VoucherReceived(totals[-1])), records=[kept(said)])
    claims = totals_of(Account(AccountKey(BUYER.did, SELLER.did, "credit", "uusd"), authorized=1), bytes([7]) * 32)

    async def go_on() -> None:
        for _ in range(MAX_ROUNDS + 8):
            await ask(victim, SELLER.did, BUYER, claims)

    with pytest.raises(Refused) as refusal:
        await go_on()

    assert refusal.value.code == "too_many_requests"


async def test_worthless_records_do_not_fill_the_log(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    forged = tuple((Acknowledgement.kind, bytes([number])) for number in range(99))

    await hand_back(pair.sellers, SELLER.did, STRANGER, forged)

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "99 records" in caplog.text


async def test_a_clock_that_was_set_back_does_not_let_one_state_stop_all_trade_again_and_again(pair: Pair) -> None:
    await pair.buy()
    old = await pair.copy(1)
    await pair.restart(1)
    await pair.buy()
    await pair.meet()
    shown = pair.buyers.heads.last(SELLER.did)
    await pair.roll_back(1, old)
    pair.clock.advance(-86_400)
    await pair.meet()
    entries = pair.journals[1].head.sequence
    assert pair.sellers.heads.cut is not None
    assert await pair.sellers.heads.shown(STRANGER.did, b"")

    assert not await pair.sellers.heads.shown(BUYER.did, shown)

    assert pair.journals[1].head.sequence == entries
    assert pair.sellers.heads.may_work_with(STRANGER.did) is None, "it was met since the cut"


async def test_states_that_change_without_any_trade_are_kept_by_the_hour(pair: Pair) -> None:
    await pair.buy()
    entries = pair.journals[1].head.sequence
    for number in range(24):
        pair.clock.advance(300)
        said = totals_of(evolve(pair.ours, earned=number), b"")
        await ask(pair.sellers, SELLER.did, BUYER, said)
    assert pair.journals[1].head.sequence - entries <= 2


async def test_the_signatures_of_a_pair_are_checked_once_however_often_it_is_asked_for(pair: Pair) -> None:
    await pair.buy()
    await settle(pair, 3)
    payee = Settling(pair.store.book, lambda _: None)
    late = sign(Settlement(BUYER.did, SELLER.did, "uusd", 0, 9, 1), BUYER).raw
    await payee.settlement(late)
    checked = pairs.opened.cache_info().misses

    for _ in range(9):
        assert await payee.settlement(late)

    assert pairs.opened.cache_info().misses == checked


async def test_strangers_cannot_keep_those_away_that_give_a_lost_ledger_back(pair: Pair) -> None:
    await pair.buy(2)
    await pair.meet()
    await pair.roll_back(1, b"")

    async def crowd() -> None:
        for number in range(4 * MAX_ROUNDS):
            await ask(pair.sellers, SELLER.did, Identity(bytes([100]) * 31 + bytes([number])))

    with pytest.raises(Refused):
        await crowd()
    await pair.meet()

    pair.agree_on(2)


async def test_nothing_is_remembered_of_any_number_of_strangers(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_PEERS", 4)
    await pair.buy()
    old = await pair.copy(1)
    await pair.restart(1)
    await pair.buy()
    await pair.meet()
    await pair.roll_back(1, old)
    await pair.meet()
    for number in range(MAX_ROUNDS):
        await ask(pair.sellers, SELLER.did, Identity(bytes([100]) * 31 + bytes([number])))

    kept = pair.sellers.heads
    assert (len(kept._given), len(kept._compared)) == (4, 4)
    assert kept.may_work_with(BUYER.did) is not None
    await pair.meet()
    assert kept.may_work_with(BUYER.did) is None
