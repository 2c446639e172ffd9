"""Stretches of a chain, checked apart and taken in order, show the same damage as one look at all of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.account import AccountKey
from ledger.changes import Earned, Granted, Released, Reserved
from ledger.effects import Effect, EffectPlanned, EffectTold
from ledger.events import AccountChanged, Books, Event
from ledger.journal import BrokenChain, Kept, Replay, draft, genesis
from ledger.retention import Gaps, dropped
from ledger.stretch import check_stretch

NODE = "did:key:node"
KEYS = [AccountKey(f"did:payer {n}", "did:payee", "credit", "msat") for n in range(2)]
TOP_UP = Effect(bytes(32), AccountKey("did:payer", "did:payee", "stablecoin", "uusd"), "top_up", 0, 50)
Row = tuple[Any, ...]


def order(n: int) -> bytes:
    return bytes([n]) * 32


def signed(n: int) -> Kept:
    return Kept("receipt", b"receipt %d" % n, order(n) if n % 3 else None)


def appends() -> list[tuple[list[Event], list[Kept]]]:
    made: list[tuple[list[Event], list[Kept]]] = [([AccountChanged(key, Granted(99, 99, 1)) for key in KEYS], [])]
    for n in range(8):
        key = KEYS[n % 2]
        made.append(([AccountChanged(key, Reserved(order(n), 5, n))], [signed(n), signed(n + 50)]))
        made.append(([AccountChanged(key, Earned(order(n), 3)), AccountChanged(key, Released(order(n)))], []))
    made.append(([EffectPlanned(TOP_UP, 1)], []))
    made.append(([EffectTold(TOP_UP.account, TOP_UP.key, "failed", 2)], []))
    made.append(([dropped(NODE, [signed(2).digest])], []))
    return made


def chain() -> tuple[list[Row], list[Row], Books]:
    """The rows of entries and records, and the books after them; one record was dropped."""
    head, books = genesis(NODE), Books()
    entries: list[Row] = []
    records: list[Row] = []
    for events, kept in appends():
        head, books = draft(head, books, events, kept, len(entries))
        entries.append((head.sequence, head.time_ms, head.payload, head.previous, head.hash))
        records += [(one.digest, one.kind, one.order, head.sequence, one.raw) for one in kept]
    return entries, [row for row in records if row[0] != signed(2).digest], books


ENTRIES, RECORDS, BOOKS = chain()


def read(entries: list[Row], records: list[Row], cuts: list[int]) -> tuple[Books, int, bool]:
    """The books, how many records are stored, and whether any is missing."""
    replayed, gaps, told = Replay(NODE), Gaps(), 0
    for first, last in zip([0, *cuts], [*cuts, len(entries)], strict=True):
        if first == last:
            continue
        some = [row for row in records if first < row[3] <= last]
        stretch = check_stretch(first, entries[first:last], some)
        replayed.pass_over(stretch.previous, stretch.head, stretch.moves)
        gaps.account_for(stretch.dropped)
        for digest, sequence in stretch.missing.items():
            gaps.miss(sequence, digest)
        told += stretch.records
    return replayed.books, told, gaps.first is not None


cuts = st.lists(st.integers(0, len(ENTRIES)), max_size=4).map(sorted)


@given(cuts)
def test_a_whole_chain_gives_the_same_books_wherever_it_is_cut(cuts: list[int]) -> None:
    assert read(ENTRIES, RECORDS, cuts) == (BOOKS, len(RECORDS), False)


def damaged(value: object, at: int) -> object:
    if isinstance(value, int):
        return value ^ 1 << at % 62
    if isinstance(value, str):
        return value + "x"
    if value is None:
        return order(77)
    assert isinstance(value, bytes)
    return value[: at % len(value)] + bytes([value[at % len(value)] ^ 1 << at % 8]) + value[at % len(value) + 1 :]


@given(st.integers(0, len(ENTRIES) - 1), st.integers(0, 4), st.integers(0, 4_000), cuts)
def test_a_changed_value_of_an_entry_is_found_wherever_it_is_cut(
    row: int, column: int, at: int, cuts: list[int]
) -> None:
    entries = list(ENTRIES)
    entries[row] = (*entries[row][:column], damaged(entries[row][column], at), *entries[row][column + 1 :])
    with pytest.raises(BrokenChain):
        read(entries, RECORDS, cuts)


@given(st.integers(0, len(RECORDS) - 1), st.sampled_from([0, 1, 2, 4]), st.integers(0, 4_000), cuts)
def test_a_changed_value_of_a_record_is_found_wherever_it_is_cut(
    row: int, column: int, at: int, cuts: list[int]
) -> None:
    records = list(RECORDS)
    records[row] = (*records[row][:column], damaged(records[row][column], at), *records[row][column + 1 :])
    with pytest.raises(BrokenChain):
        read(ENTRIES, records, cuts)


@given(st.integers(0, len(RECORDS) - 1), st.integers(1, len(ENTRIES)), cuts)
def test_a_record_that_is_gone_or_under_another_entry_is_found_wherever_it_is_cut(
    row: int, sequence: int, cuts: list[int]
) -> None:
    gone = RECORDS[:row] + RECORDS[row + 1 :]
    assert read(ENTRIES, gone, cuts) == (BOOKS, len(RECORDS) - 1, True)
    if sequence != RECORDS[row][3]:
        moved = (*RECORDS[row][:3], sequence, RECORDS[row][4])
        with pytest.raises(BrokenChain):
            read(ENTRIES, [*gone, moved], cuts)


@given(st.integers(0, len(ENTRIES) - 2), cuts)
def test_an_entry_that_is_gone_is_found_wherever_it_is_cut(row: int, cuts: list[int]) -> None:
    entries = ENTRIES[:row] + ENTRIES[row + 1 :]
    with pytest.raises(BrokenChain):
        read(entries, RECORDS, [cut for cut in cuts if cut <= len(entries)])


@pytest.mark.parametrize("value", ["text", 1.5, None, True])
@pytest.mark.parametrize("column", range(5))
def test_a_value_of_another_type_is_found(column: int, value: object) -> None:
    entry = (*ENTRIES[3][:column], value, *ENTRIES[3][column + 1 :])
    with pytest.raises(BrokenChain):
        check_stretch(3, [entry], [])
    if (column, value) not in ((1, "text"), (2, None)):
        record = (*RECORDS[0][:column], value, *RECORDS[0][column + 1 :])
        with pytest.raises(BrokenChain):
            check_stretch(1, ENTRIES[1:2], [record])


def test_moves_that_break_a_guard_are_found() -> None:
    head, books = draft(genesis(NODE), Books(), [AccountChanged(KEYS[0], Granted(99, 99, 1))], [], 0)
    replayed = Replay(NODE)
    with pytest.raises(BrokenChain, match="no reservation"):
        replayed.pass_over(head.previous, head, {KEYS[0]: [(Earned, (order(1), 1))]})
    assert replayed.head == genesis(NODE)
    assert books.account(KEYS[0]).limit == 99


def test_another_chain_does_not_follow() -> None:
    stretch = check_stretch(0, ENTRIES[:2], RECORDS[:2])
    with pytest.raises(BrokenChain):
        Replay("did:key:other").pass_over(stretch.previous, stretch.head, stretch.moves)
