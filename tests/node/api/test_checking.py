"""A running node's journal is checked against its books without reading years of it, and damage shows."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ledger.account import AccountKey
from ledger.changes import Earned, Granted, Released, Reserved
from ledger.database import Database
from ledger.events import AccountChanged, Event
from ledger.journal import Journal, MemoryJournal
from node.api.checking import Checked, check_books
from node.api.owner import account_rows

NODE = "did:key:node"
KEY = AccountKey("did:payer", NODE, "credit", "uusd")


def trade(n: int) -> list[Event]:
    order = n.to_bytes(32, "big")
    return [AccountChanged(KEY, change) for change in (Reserved(order, 10, n), Earned(order, 7), Released(order))]


async def fill(journal: Journal, trades: range) -> None:
    if journal.head.sequence == 0:
        await journal.append([AccountChanged(KEY, Granted(10**6, 10**6, 1))], time_ms=0)
    await asyncio.gather(*(journal.append(trade(n), time_ms=n) for n in trades))


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Database]:
    """A journal of sixteen entries, whose snapshot follows the eleventh."""
    async with await Database.open(tmp_path / "ledger.db", NODE) as database:
        await fill(database, range(1, 11))
    async with await Database.open(tmp_path / "ledger.db", NODE) as database:
        await fill(database, range(11, 16))
        yield database


def alter(folder: Path, statement: str) -> None:
    """Run a statement past the program."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(folder / "ledger.db")), poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert connection.execute(sa.text(statement)).rowcount > 0


async def test_what_followed_the_snapshot_is_read_again(journal: Database) -> None:
    assert await check_books(journal, NODE) == Checked(since=11, last=16, balanced=True)


async def test_without_a_snapshot_everything_is_read() -> None:
    journal = MemoryJournal(NODE)
    await fill(journal, range(1, 300))
    assert await check_books(journal, NODE) == Checked(since=0, last=300, balanced=True)


async def test_an_empty_journal_is_whole() -> None:
    assert await check_books(MemoryJournal(NODE), NODE) == Checked(since=0, last=0, balanced=True)


async def test_a_damaged_snapshot_is_passed_over(journal: Database, tmp_path: Path) -> None:
    alter(tmp_path, "UPDATE snapshots SET books = substr(books, 2)")
    assert await check_books(journal, NODE) == Checked(since=0, last=16, balanced=True)


@pytest.mark.parametrize("sequence", [11, 12, 16])
async def test_a_changed_entry_shows(journal: Database, tmp_path: Path, sequence: int) -> None:
    alter(tmp_path, f"UPDATE journal SET payload = previous WHERE sequence = {sequence}")
    found = await check_books(journal, NODE)
    assert found.why is not None
    assert f"entry {sequence}" in found.why
    assert not found.balanced


async def test_a_missing_end_shows_and_the_books_are_told_all_the_same(journal: Database, tmp_path: Path) -> None:
    alter(tmp_path, "DELETE FROM journal WHERE sequence > 14")
    rows = await account_rows(journal, NODE)
    assert (rows["chain"], rows["balanced"], rows["entries"]) == ("broken", False, 16)
    assert "entry 15: it is gone" in rows["why"]
    assert [row["earned"] for row in rows["accounts"]] == ["0.000105usd"]


async def test_books_that_do_not_follow_from_the_journal_show() -> None:
    journal, other = MemoryJournal(NODE), MemoryJournal(NODE)
    await fill(journal, range(1, 3))
    await fill(other, range(1, 4))
    journal.books = other.books
    assert await check_books(journal, NODE) == Checked(since=0, last=3, balanced=False)


async def test_others_have_their_turn_and_may_write_meanwhile() -> None:
    journal = MemoryJournal(NODE)
    await fill(journal, range(1, 1_000))
    checking = asyncio.create_task(check_books(journal, NODE))
    turns = 0
    while not checking.done():
        turns += 1
        if turns <= 5:
            await journal.append(trade(2_000 + turns), time_ms=0)
        await asyncio.sleep(0)
    assert turns >= 10
    # What was written by the time it began: chain and books are those of one entry.
    assert await checking == Checked(since=0, last=1_001, balanced=True)
