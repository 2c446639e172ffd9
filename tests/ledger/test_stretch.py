"""Parts of a chain, verified apart, show the same damage as one look at all of it."""

from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ledger import snapshot
from ledger.account import AccountKey
from ledger.changes import Earned, Granted, Released, Reserved
from ledger.effects import Effect, EffectPlanned, EffectTold
from ledger.events import AccountChanged, Books, Event
from ledger.journal import BrokenChain, Kept, Replay, draft, genesis
from ledger.retention import dropped
from ledger.snapshot import BadSnapshot
from ledger.stretch import Passage, check_stretch, join

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


def chain() -> tuple[list[Row], list[Row], list[bytes]]:
    """The rows of entries and records, and a snapshot before each entry and at the end; one record was dropped."""
    head, books = genesis(NODE), Books()
    entries: list[Row] = []
    records: list[Row] = []
    snapshots = []
    for events, kept in appends():
        snapshots.append(snapshot.encode(snapshot.take(NODE, head, books)))
        head, books = draft(head, books, events, kept, len(entries))
        entries.append((head.sequence, head.time_ms, head.payload, head.previous, head.hash))
        records += [(one.digest, one.kind, one.order, head.sequence, one.raw) for one in kept]
    snapshots.append(snapshot.encode(snapshot.take(NODE, head, books)))
    return entries, [row for row in records if row[0] != signed(2).digest], snapshots


ENTRIES, RECORDS, SNAPSHOTS = chain()


def read(entries: list[Row], records: list[Row], cuts: list[int], every: int = 3) -> tuple[bool, int, int, bool]:
    """Whether each part ends with what is written there, how many records are stored, how many were dropped, and
    whether any is missing.

    A part is read in stretches of `every` entries.
    """
    found, agreed, part = [], True, Passage.begin(NODE)
    for first, last in pairwise([0, *cuts, len(entries)]):
        follows = first % 2 and part.replayed.head.sequence == first
        part = part.next() if follows else Passage.begin(NODE, SNAPSHOTS[first] if first else None)
        for after in range(first, last, every):
            until = min(after + every, last)
            part.take(entries[after:until], [row for row in records if after < row[3] <= until])
        agreed = agreed and part.ends_with(SNAPSHOTS[last])
        found.append(part.found)
    told, gaps = join(found)
    return agreed, told, gaps.dropped, gaps.first is not None


cuts = st.lists(st.integers(0, len(ENTRIES)), max_size=4).map(sorted)


@given(cuts, st.integers(1, 5))
def test_a_whole_chain_is_whole_wherever_it_is_cut(cuts: list[int], every: int) -> None:
    assert read(ENTRIES, RECORDS, cuts, every) == (True, len(RECORDS), 1, False)


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
    assert read(ENTRIES, gone, cuts) == (True, len(RECORDS) - 1, 1, True)
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


@given(st.integers(1, len(ENTRIES) - 1), st.integers(0, len(ENTRIES)))
def test_books_of_another_entry_are_not_what_a_part_ends_with_and_nothing_follows_them(at: int, other: int) -> None:
    part = Passage.begin(NODE)
    part.take(ENTRIES[:at], [row for row in RECORDS if row[3] <= at])
    taken = snapshot.decode(SNAPSHOTS[at], NODE)
    wrong = snapshot.encode(evolve(taken, books=snapshot.decode(SNAPSHOTS[other], NODE).books))
    assert part.ends_with(SNAPSHOTS[other]) == (at == other)
    assert part.ends_with(wrong) == (wrong == SNAPSHOTS[at])
    if at != other:
        with pytest.raises(BrokenChain):
            Passage.begin(NODE, SNAPSHOTS[other]).take(ENTRIES[at:], [row for row in RECORDS if row[3] > at])


@pytest.mark.parametrize("raw", [b"", SNAPSHOTS[3][:-1], SNAPSHOTS[3][1:], bytes(300)])
def test_what_is_no_snapshot_begins_nothing(raw: bytes) -> None:
    with pytest.raises(BadSnapshot):
        Passage.begin(NODE, raw)
    with pytest.raises(BadSnapshot):
        Passage.begin("did:key:other", SNAPSHOTS[3])
