"""Buyers that send many things at once: bounds hold for what is on its way to the disk, too."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import evolve

from ledger.database import Database
from ledger.identity import Identity
from ledger.records import Acknowledgement, Signed, Voucher, digest_of, sign
from node.exchange.seller import MAX_ACKNOWLEDGEMENTS
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import ReceiptFrame
from node.wire.messages import Refused
from tests.node.trading import CREDIT, Draft, Store, draft_order, engine_of, frames_of, price_of, uusd

SELLER, BUYER = (Identity(seed.to_bytes(32, "little")) for seed in (1, 2))
ONE = price_of(5, 10)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "seller.db", SELLER.did) as journal:
        yield journal


async def test_fresh_identities_that_order_at_once_win_no_more_than_the_exposure(
    tokenizer: Tokenizer, clock: ManualClock, journal: Database
) -> None:
    terms = evolve(CREDIT, window=uusd(100), exposure=uusd(2 * ONE))
    engine = engine_of(tokenizer, slots=8)
    store = await Store.open(tokenizer, clock, engine=engine, journal=journal, credit={"uusd": terms})
    offer = await store.offer()
    fresh = [Identity((1_000 + number).to_bytes(32, "big")) for number in range(8)]

    outcomes = await asyncio.gather(
        *(frames_of(store.seller, draft_order(one, offer, clock)) for one in fresh), return_exceptions=True
    )

    refused = [outcome.code for outcome in outcomes if isinstance(outcome, Refused)]
    assert refused == ["exposure"] * 6
    assert sum(account.owed for account in store.book.journal.books.accounts.values()) == 2 * ONE


def acknowledged(draft: Draft, receipt: bytes, total: int) -> Signed[Acknowledgement]:
    """One of many that a buyer can sign for one receipt."""
    voucher = sign(Voucher(BUYER.did, SELLER.did, "credit", "", "", "uusd", total), BUYER)
    return sign(Acknowledgement(draft.order.digest, receipt, True, "", ONE, None, voucher.raw), BUYER)


async def test_acknowledgements_that_come_at_once_are_bounded_like_those_that_come_in_turn(
    tokenizer: Tokenizer, clock: ManualClock, journal: Database
) -> None:
    store = await Store.open(tokenizer, clock, journal=journal)
    draft = draft_order(BUYER, await store.offer(), clock)
    last = (await frames_of(store.seller, draft))[-1]
    assert isinstance(last, ReceiptFrame)
    many = [acknowledged(draft, digest_of(last.raw), total).raw for total in range(ONE, ONE + 100)]
    again = many[:1] * 100
    before = journal.head.sequence

    await asyncio.gather(*map(store.seller.acknowledge, many + again), return_exceptions=True)

    assert len(await journal.list_records(Acknowledgement.kind, 999)) <= MAX_ACKNOWLEDGEMENTS
    assert journal.head.sequence - before <= MAX_ACKNOWLEDGEMENTS
