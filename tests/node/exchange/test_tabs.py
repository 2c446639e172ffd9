"""Tabs of strangers: admitted, charged once, whatever happens in between."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.account import AccountKey
from ledger.changes import Funded
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import MemoryJournal
from node.exchange.book import Book
from node.exchange.strangers import HeldVoucher, did_of_wallet, held
from node.exchange.tabs import PaymentUsed, TabBusy, Tabs, TabUsedUp
from node.ports import ManualClock, SeededEntropy

PAYER = did_of_wallet("eip155:31337", b"p" * 20)
CHANNEL = did_of_wallet("eip155:31337", b"p" * 20, b"c" * 32)


async def opened(journal: MemoryJournal | None = None) -> tuple[Book, Tabs]:
    identity = Identity(b"1" * 32)
    book = await Book.open(journal or MemoryJournal(identity.did), identity, ManualClock())
    return book, Tabs(book, SeededEntropy(1))


async def funded(book: Book, tabs: Tabs, payer: str = PAYER, rail: str = "prepaid", total: int = 100) -> AccountKey:
    key = tabs.key(payer, rail)
    await book.post(AccountChanged(key, Funded(total, 1)))
    return key


async def test_a_request_is_charged_what_it_cost_and_the_rest_stays() -> None:
    book, tabs = await opened()
    key = await funded(book, tabs)
    tab = await tabs.admit(key, 60)
    assert tab.account.available == 40
    await tab.charge(25)
    account = tab.account
    assert (account.owed, account.authorized, account.settled, account.unsettled) == (25, 25, 25, 0)
    assert account.available == 75


async def test_a_channels_charges_wait_to_be_claimed() -> None:
    book, tabs = await opened()
    key = await funded(book, tabs, CHANNEL, "stablecoin")
    tab = await tabs.admit(key, 60, held(CHANNEL, HeldVoucher(b"config", 60, b"signature")))
    await tab.charge(25)
    assert (tab.account.owed, tab.account.settled, tab.account.unsettled) == (25, 0, 25)
    assert book.strangers.voucher(key) == HeldVoucher(b"config", 60, b"signature")


async def test_the_first_charge_counts() -> None:
    book, tabs = await opened()
    tab = await tabs.admit(await funded(book, tabs), 60)
    await asyncio.gather(tab.charge(25), tab.charge(60))
    await tab.charge(60)
    assert tab.account.owed == 25


async def test_nothing_is_charged_above_what_was_authorized() -> None:
    book, tabs = await opened()
    tab = await tabs.admit(await funded(book, tabs), 60)
    await tab.charge(1_000)
    assert tab.account.owed == 60


async def test_a_request_that_the_balance_does_not_cover_is_refused() -> None:
    book, tabs = await opened()
    key = await funded(book, tabs)
    await tabs.admit(key, 60)
    with pytest.raises(TabUsedUp, match="may cost 60, and 40 is left"):
        await tabs.admit(key, 60)


async def test_a_payment_pays_for_one_request() -> None:
    book, tabs = await opened()
    key = await funded(book, tabs)
    tab = await tabs.admit(key, 10, order=b"o" * 32)
    for _ in range(2):
        with pytest.raises(PaymentUsed):
            await tabs.admit(key, 10, order=b"o" * 32)
        await tab.charge(10)
    assert tab.account.owed == 10


async def test_of_one_payment_presented_twice_at_once_one_is_taken() -> None:
    book, tabs = await opened()
    key = await funded(book, tabs)
    both = await asyncio.gather(*(tabs.admit(key, 10, order=b"o" * 32) for _ in range(2)), return_exceptions=True)
    assert sum(isinstance(one, PaymentUsed) for one in both) == 1


async def test_a_channel_has_one_request_at_a_time() -> None:
    book, tabs = await opened()
    key = await funded(book, tabs, CHANNEL, "stablecoin")
    tabs.take_turn(key)
    with pytest.raises(TabBusy, match="another channel"):
        tabs.take_turn(key)
    tab = await tabs.admit(key, 10)
    with pytest.raises(TabBusy):
        tabs.take_turn(key)
    await tab.charge(0)
    tabs.take_turn(key)


async def test_what_a_crash_left_open_is_closed_and_costs_nothing() -> None:
    journal = MemoryJournal(Identity(b"1" * 32).did)
    book, tabs = await opened(journal)
    key = await funded(book, tabs)
    await tabs.admit(key, 60)
    await tabs.sweep()
    assert tabs.account(key).reserved == 60, "it is still at work"
    _, again = await opened(journal)
    await again.sweep()
    assert (again.account(key).reserved, again.account(key).owed) == (0, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 50)), max_size=12))
async def test_whatever_is_charged_at_once_the_balance_is_what_is_left(requests: list[tuple[int, int]]) -> None:
    book, tabs = await opened()
    key = await funded(book, tabs)
    admitted = []
    for most, cost in requests:
        try:
            admitted.append((await tabs.admit(key, most), cost))
        except TabUsedUp:
            assert most > tabs.account(key).available
    await asyncio.gather(*(tab.charge(cost) for tab, cost in admitted))
    spent = sum(min(cost, tab.most) for tab, cost in admitted)
    account = tabs.account(key)
    assert (account.owed, account.settled, account.available, account.reserved) == (spent, spent, 100 - spent, 0)
