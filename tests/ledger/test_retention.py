"""What was dropped is accounted for; what is gone otherwise is damage; and what is needed stays."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from ledger.account import AccountKey
from ledger.chainfile import ChainReader, records_told, write_end, write_entry, write_start
from ledger.changes import Granted, Reserved, VoucherReceived
from ledger.database import Database, LedgerCorrupt, Place
from ledger.database.opening import enter, verify
from ledger.database.places import lanes_to
from ledger.database.retention import drop_records
from ledger.events import AccountChanged, Books, Observed, RecordKept
from ledger.identity import Identity
from ledger.journal import BrokenChain, Journal, Kept, MemoryJournal
from ledger.payload import decode_events
from ledger.records import Acknowledgement, Voucher, sign
from ledger.retention import Gap, Gaps, Sieve, digests_dropped, dropped

PAYER, PAYEE = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
ME = PAYEE.did
KEY = AccountKey(PAYER.did, PAYEE.did, "credit", "uusd")
ORDER, OTHER = bytes([7]) * 32, bytes([8]) * 32
FIRST, SECOND = Kept("receipt", b"one", ORDER), Kept("receipt", b"two", OTHER)


def acknowledgement(total: int, order: bytes = ORDER) -> Kept:
    voucher = sign(Voucher(PAYER.did, PAYEE.did, "credit", "", "", "uusd", total), PAYER)
    said = sign(Acknowledgement(order, OTHER, True, "", 1, None, voucher.raw), PAYER)
    return Kept("acknowledgement", said.raw, order)


BOOKS = Books().apply(
    [
        AccountChanged(KEY, Granted(99, 99, 1)),
        AccountChanged(KEY, Reserved(OTHER, 9, 9)),
        AccountChanged(KEY, VoucherReceived(5)),
    ]
)


@pytest.mark.parametrize(
    ("kept", "goes"),
    [
        (FIRST, True),
        (SECOND, False),
        (Kept("receipt", b"of no order"), False),
        (acknowledgement(4), True),
        (acknowledgement(5), False),
        (Kept("acknowledgement", b"nonsense", ORDER), False),
        (Kept("offer", b"of nothing"), True),
        *(
            (Kept(kind, b"a balance", ORDER), False)
            for kind in ("settlement", "netting", "forgiveness", "grant", "news")
        ),
    ],
)
def test_records_of_forgotten_orders_go_and_those_that_prove_a_balance_stay(kept: Kept, goes: bool) -> None:
    assert Sieve(BOOKS, {OTHER}, set()).may_go(kept) == goes


def test_an_offer_goes_after_its_orders() -> None:
    offer = Kept("offer", b"offer")
    assert not Sieve(BOOKS, {OTHER}, {offer.digest}).may_go(offer)


def test_no_acknowledgement_goes_from_between_others() -> None:
    sieve = Sieve(BOOKS, {OTHER}, set())
    first, of_a_dispute, last = acknowledgement(1), acknowledgement(2, OTHER), acknowledgement(3)
    assert [sieve.may_go(kept) for kept in (first, of_a_dispute, last)] == [True, False, False]


def test_an_entry_names_what_is_dropped() -> None:
    named = dropped(ME, [FIRST.digest, SECOND.digest])
    assert list(digests_dropped([named, RecordKept("offer", ORDER)])) == [FIRST.digest, SECOND.digest]
    assert list(digests_dropped([Observed(ME, "dropped", {"digests": "text"}), Observed(ME, "dropped")])) == []


def test_a_gap_stays_until_an_entry_accounts_for_it() -> None:
    gaps = Gaps()
    gaps.take([dropped(ME, [FIRST.digest])])  # before it was missed
    gaps.miss(3, FIRST.digest)
    gaps.take([dropped(ME, [SECOND.digest])])
    assert [gaps.first] == [Gap(3, FIRST.digest)]
    gaps.take([dropped(ME, [FIRST.digest])])
    assert (gaps.first, gaps.dropped) == (None, 1)


async def file_of(journal: Journal) -> bytes:
    parts = [write_start(ME)]
    async for entry in journal.entries():
        records: list[Kept | RecordKept] = []
        for told in records_told(decode_events(entry.payload)):
            kept = await journal.record(told.digest)
            records.append(kept if kept and kept.sequence == entry.sequence else told)
        parts.append(write_entry(entry, records))
    return b"".join((*parts, write_end(journal.head)))


def read(raw: bytes) -> ChainReader:
    reader = ChainReader(ME)
    for _ in reader.feed(raw):
        pass
    reader.finish()
    return reader


async def test_a_file_without_what_was_dropped_is_whole_and_says_how_much() -> None:
    journal = MemoryJournal(ME)
    await journal.append(time_ms=1, records=(FIRST, SECOND))
    await journal.append([dropped(ME, [FIRST.digest])], time_ms=2)
    assert read(await file_of(journal)).dropped == 0  # told, and not done yet
    await journal.drop_records([FIRST.digest])
    assert read(await file_of(journal)).dropped == 1


async def test_a_file_without_what_was_not_dropped_is_broken() -> None:
    journal = MemoryJournal(ME)
    await journal.append(time_ms=1, records=(FIRST, SECOND))
    await journal.append([dropped(ME, [FIRST.digest])], time_ms=2)
    await journal.drop_records([FIRST.digest, SECOND.digest])
    with pytest.raises(BrokenChain, match=r"broken at entry 1: record .* is gone"):
        read(await file_of(journal))


async def test_a_record_that_came_back_after_it_was_dropped_is_kept_again() -> None:
    journal = MemoryJournal(ME)
    await journal.append(time_ms=1, records=(FIRST,))
    await journal.append([dropped(ME, [FIRST.digest])], time_ms=2)
    await journal.drop_records([FIRST.digest])
    await journal.append(time_ms=3, records=(FIRST,))
    assert read(await file_of(journal)).dropped == 1
    await journal.drop_records([FIRST.digest])
    with pytest.raises(BrokenChain, match=r"broken at entry 3"):
        read(await file_of(journal))


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for a ledger."""
    return tmp_path / "ledger.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


async def verified(place: Place, drop: Sequence[bytes] = ()) -> None:
    """Read the whole chain with its records, once these were dropped."""
    writer, reader = await lanes_to(place, ME)
    try:
        chain = await writer.run(lambda connection: enter(connection, ME))
        await writer.run(lambda connection: drop_records(connection, chain, drop))
        await reader.run(lambda connection: verify(connection, ME, chain))
    finally:
        await reader.close()
        await writer.close()


async def test_a_ledger_whose_records_were_dropped_is_whole(place: Place) -> None:
    async with await Database.open(place, ME) as database:
        await database.append(time_ms=1, records=(FIRST, SECOND))
        await database.append([dropped(ME, [FIRST.digest])], time_ms=2)
        await database.drop_records([FIRST.digest])
        assert await database.record(FIRST.digest) is None
        assert await database.record(SECOND.digest) is not None
    await verified(place)
    async with await Database.open(place, ME) as database:
        await database.append(time_ms=3, records=(FIRST,))
        assert await database.record(FIRST.digest) is not None
    await verified(place)


async def test_a_ledger_that_lacks_what_was_not_dropped_is_damaged(place: Place) -> None:
    async with await Database.open(place, ME) as database:
        await database.append(time_ms=1, records=(FIRST, SECOND))
        await database.append([dropped(ME, [FIRST.digest])], time_ms=2)
    await verified(place, [FIRST.digest])
    with pytest.raises(LedgerCorrupt, match=r"at entry 1: record .* is gone"):
        await verified(place, [SECOND.digest])


async def test_old_records_are_listed_by_entry_and_page(place: Place) -> None:
    kept = [Kept("receipt", bytes([n]), ORDER) for n in range(5)]
    async with await Database.open(place, ME) as database:
        memory = MemoryJournal(ME)
        for journal in (database, memory):
            await journal.append(time_ms=10, records=kept[:3])
            await journal.append(time_ms=20, records=kept[3:4])
            await journal.append(time_ms=30, records=[kept[4], Kept("grant", b"grant")])
            listed: list[Kept] = []
            after = 0, b""
            while page := await journal.records_before(30, ("receipt", "offer"), after, 2):
                listed += page
                after = page[-1].sequence, page[-1].digest
            assert [one.sequence for one in listed] == [1, 1, 1, 2]
            assert {one.raw for one in listed} == {bytes([n]) for n in range(4)}
