"""The chain, its events, and what every journal does, in memory or on disk."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import codec
from ledger.account import AboveCapacity, AccountError, AccountKey
from ledger.changes import Authorized, Granted, Reserved
from ledger.database import Database
from ledger.events import AccountChanged, Books, Event, InvalidEvents, Observed, RecordKept
from ledger.journal import (
    BrokenChain,
    Entry,
    Journal,
    Kept,
    Material,
    MemoryJournal,
    Nonce,
    NonceReused,
    genesis,
    link,
    replay,
    verify,
)
from ledger.payload import MAX_PAYLOAD_BYTES, decode_events, encode_events

NODE = "did:key:node"
KEY = AccountKey("did:payer", "did:payee", "credit", "uusd")
ORDER, OTHER = b"1" * 32, b"2" * 32
GRANTED = AccountChanged(KEY, Granted(100, 100, 1))


def chain_of(*payloads: bytes) -> list[Entry]:
    entries = [genesis(NODE)]
    for payload in payloads:
        entries.append(link(entries[-1], 1_000, payload))
    return entries[1:]


def check(entries: list[Entry]) -> list[Entry]:
    return list(verify(genesis(NODE), entries))


class TestChain:
    def test_a_chain_as_it_was_written_is_intact(self) -> None:
        entries = chain_of(b"a", b"", b"c")
        assert check(entries) == entries

    @given(st.integers(0, 2), st.integers(0, 10_000), st.integers(1, 255))
    def test_one_flipped_byte_anywhere_breaks_it(self, which: int, position: int, flip: int) -> None:
        entries = chain_of(b"first", b"second", b"third")
        entry = entries[which]
        columns = {
            "sequence": entry.sequence.to_bytes(8, "big"),
            "time_ms": entry.time_ms.to_bytes(8, "big"),
            "payload": entry.payload,
            "previous": entry.previous,
            "hash": entry.hash,
        }
        places = [(name, i) for name, raw in columns.items() for i in range(len(raw))]
        name, i = places[position % len(places)]
        raw = bytearray(columns[name])
        raw[i] ^= flip
        numeric = name in ("sequence", "time_ms")
        altered: Any = int.from_bytes(raw, "big") if numeric else bytes(raw)
        entries[which] = entry._replace(**{name: altered})
        with pytest.raises(BrokenChain) as broken:
            check(entries)
        assert broken.value.sequence in (which + 1, which + 2)

    def test_a_missing_entry_shows(self) -> None:
        first, _, third = chain_of(b"a", b"b", b"c")
        with pytest.raises(BrokenChain, match="entry 2"):
            check([first, third])

    def test_swapped_entries_show(self) -> None:
        first, second = chain_of(b"a", b"b")
        with pytest.raises(BrokenChain):
            check([second, first])

    def test_a_rewritten_past_does_not_fit_what_follows(self) -> None:
        _, second = chain_of(b"a", b"b")
        with pytest.raises(BrokenChain, match="hash of the entry before"):
            check([*chain_of(b"other"), second])

    def test_the_chain_of_another_node_is_not_ours(self) -> None:
        with pytest.raises(BrokenChain, match="entry 1"):
            list(verify(genesis("did:key:other"), chain_of(b"a")))

    def test_checking_goes_on_from_a_verified_entry(self) -> None:
        first, second, third = chain_of(b"a", b"b", b"c")
        assert list(verify(first, [second, third])) == [second, third]


texts, digests = st.text(max_size=20), st.binary(min_size=32, max_size=32)
facts = st.dictionaries(texts, st.one_of(st.integers(-(2**63), 2**63 - 1), texts, st.binary(max_size=9)), max_size=4)
any_event: st.SearchStrategy[Event] = st.one_of(
    st.builds(RecordKept, texts, digests, st.none() | digests),
    st.builds(Observed, texts, texts, facts),
    st.builds(
        AccountChanged,
        st.builds(AccountKey, texts, texts, texts, st.sampled_from(["msat", "uusd"])),
        st.builds(Reserved, digests, st.integers(0, 99), st.integers(0, 99)),
    ),
)


class TestEvents:
    @given(st.lists(any_event, max_size=5))
    def test_events_survive_being_stored(self, events: list[Event]) -> None:
        assert decode_events(encode_events(events)) == tuple(events)

    @given(st.binary(max_size=200))
    def test_bytes_that_are_no_events_are_refused(self, payload: bytes) -> None:
        try:
            events = decode_events(payload)
        except InvalidEvents:
            return
        assert encode_events(events) == payload

    @pytest.mark.parametrize(
        "plain",
        [
            {},
            [{}],
            [{"event": "party"}],
            [{"event": "observed", "subject": "x", "what": "y", "facts": {}, "more": 1}],
            [{"event": "observed", "subject": "x", "what": "y", "facts": {"a": [1]}}],
            [{"event": "record", "kind": "offer", "digest": b"short", "order": None}],
            [{"event": "record", "kind": "offer", "digest": ORDER, "order": "text"}],
            [{"event": "account", "key": ["a", "b", "c", "shells"], "change": {}}],
            [{"event": "account", "key": ["a", "b", "credit", "msat"], "change": {"change": "Donated"}}],
        ],
    )
    def test_what_this_version_does_not_know_is_refused(self, plain: object) -> None:
        with pytest.raises(InvalidEvents):
            decode_events(codec.encode(plain))

    @pytest.mark.parametrize("fact", [True, None, 0.5, 2**64])
    def test_a_fact_that_cannot_be_stored_cannot_be_made(self, fact: object) -> None:
        with pytest.raises(InvalidEvents):
            Observed(NODE, "delivered", {"tokens": fact})  # type: ignore[dict-item]

    def test_an_entry_has_a_largest_size(self) -> None:
        with pytest.raises(InvalidEvents, match="append in parts"):
            encode_events([Observed(NODE, "noise", {"bytes": bytes(MAX_PAYLOAD_BYTES)})])


class TestBooks:
    def test_events_take_effect_all_or_none(self) -> None:
        books = Books().apply([GRANTED])
        with pytest.raises(AccountError):
            books.apply([AccountChanged(KEY, Reserved(ORDER, 10, 9)), AccountChanged(KEY, Authorized(1))])
        assert books == Books().apply([GRANTED])

    def test_an_account_that_nothing_happened_to_is_empty(self) -> None:
        assert Books().account(KEY).capacity == 0

    def test_an_entry_that_breaks_a_guard_breaks_the_replay(self) -> None:
        entries = chain_of(encode_events([GRANTED]), encode_events([AccountChanged(KEY, Authorized(1))]))
        with pytest.raises(BrokenChain, match="entry 2"):
            replay(NODE, entries)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    opened: Journal = MemoryJournal(NODE)
    if request.param == "sqlite":
        opened = await Database.open(tmp_path / "ledger.db", NODE)
    elif request.param == "postgresql":
        opened = await Database.open(request.getfixturevalue("postgres_url"), NODE)
    yield opened
    await opened.close()


async def entries_of(journal: Journal, after: int = 0) -> list[Entry]:
    return [entry async for entry in journal.entries(after)]


class TestEveryJournal:
    async def test_it_begins_empty(self, journal: Journal) -> None:
        assert journal.head == genesis(NODE)
        assert journal.books == Books()
        assert await entries_of(journal) == []

    async def test_appending_moves_the_head_and_the_books(self, journal: Journal) -> None:
        first = await journal.append([GRANTED], time_ms=5)
        assert (first.sequence, first.time_ms, journal.head) == (1, 5, first)
        assert journal.books.account(KEY).limit == 100

    async def test_replaying_its_entries_gives_its_books(self, journal: Journal) -> None:
        await journal.append([GRANTED, Observed(NODE, "seen", {"n": 1})], time_ms=5)
        await journal.append([AccountChanged(KEY, Reserved(ORDER, 60, 9))], time_ms=4)
        assert replay(NODE, await entries_of(journal)) == journal.books

    async def test_entries_can_be_read_from_the_middle(self, journal: Journal) -> None:
        written = [await journal.append(time_ms=n) for n in range(4)]
        assert await entries_of(journal, after=2) == written[2:]

    async def test_a_broken_guard_writes_nothing(self, journal: Journal) -> None:
        await journal.append([GRANTED], time_ms=1)
        with pytest.raises(AboveCapacity):
            await journal.append(
                [AccountChanged(KEY, Reserved(ORDER, 101, 9))],
                time_ms=2,
                records=[Kept("order", b"raw", ORDER)],
                nonces=[Nonce("did:payer", b"n", ORDER, 9)],
            )
        assert journal.head.sequence == 1
        assert await journal.records_of(ORDER) == []
        assert await journal.nonce_order("did:payer", b"n") is None

    async def test_of_two_orders_that_race_for_the_last_credit_one_gets_it(self, journal: Journal) -> None:
        await journal.append([GRANTED], time_ms=1)
        outcomes = await asyncio.gather(
            *(journal.append([AccountChanged(KEY, Reserved(order, 60, 9))], time_ms=2) for order in (ORDER, OTHER)),
            return_exceptions=True,
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AboveCapacity", "Entry"]
        assert journal.books.account(KEY).reserved == 60

    async def test_a_record_is_kept_as_it_was_received(self, journal: Journal) -> None:
        entry = await journal.append(time_ms=1, records=[Kept("offer", b"raw bytes")])
        kept = Kept("offer", b"raw bytes", None, entry.sequence)
        assert await journal.record(kept.digest) == kept
        assert decode_events(entry.payload) == (RecordKept("offer", kept.digest),)

    async def test_a_record_kept_before_is_passed_over(self, journal: Journal) -> None:
        offer, order = Kept("offer", b"offer"), Kept("order", b"order", ORDER)
        await journal.append(time_ms=1, records=[offer])
        entry = await journal.append(time_ms=2, records=[offer, order, order])
        assert decode_events(entry.payload) == (RecordKept("order", order.digest, ORDER),)
        kept = await journal.record(offer.digest)
        assert kept is not None
        assert kept.sequence == 1

    async def test_an_unknown_record_is_none(self, journal: Journal) -> None:
        assert await journal.record(ORDER) is None

    async def test_the_records_of_an_order_come_oldest_first(self, journal: Journal) -> None:
        for n, kind in enumerate(("order", "receipt", "acknowledgement")):
            await journal.append(time_ms=n, records=[Kept(kind, kind.encode(), ORDER)])
        await journal.append(time_ms=9, records=[Kept("order", b"another", OTHER)])
        found = await journal.records_of(ORDER)
        assert [kept.kind for kept in found] == ["order", "receipt", "acknowledgement"]

    async def test_records_are_listed_newest_first_and_page_by_page(self, journal: Journal) -> None:
        for n in range(5):
            await journal.append(time_ms=n, records=[Kept("receipt", b"r%d" % n), Kept("order", b"o%d" % n)])
        first = await journal.list_records("receipt", 2)
        second = await journal.list_records("receipt", 2, before=first[-1].sequence)
        assert [kept.raw for kept in [*first, *second]] == [b"r4", b"r3", b"r2", b"r1"]

    async def test_a_page_does_not_tear_an_entry_apart(self, journal: Journal) -> None:
        await journal.append(time_ms=1, records=[Kept("receipt", b"old")])
        await journal.append(time_ms=2, records=[Kept("receipt", b"%d" % n) for n in range(3)])
        page = await journal.list_records("receipt", 2)
        assert {kept.raw for kept in page} == {b"0", b"1", b"2"}
        assert [kept.raw for kept in await journal.list_records("receipt", 2, page[-1].sequence)] == [b"old"]

    async def test_no_records_are_no_page(self, journal: Journal) -> None:
        assert await journal.list_records("receipt", 5) == []

    async def test_a_nonce_is_used_once_by_each_buyer(self, journal: Journal) -> None:
        await journal.append(time_ms=1, nonces=[Nonce("a", b"n", ORDER, 9)])
        await journal.append(time_ms=1, nonces=[Nonce("b", b"n", ORDER, 9)])
        with pytest.raises(NonceReused):
            await journal.append([GRANTED], time_ms=2, nonces=[Nonce("a", b"n", OTHER, 9)])
        assert journal.head.sequence == 2
        assert journal.books == Books()
        assert await journal.nonce_order("a", b"n") == ORDER

    async def test_a_nonce_is_used_once_within_an_append(self, journal: Journal) -> None:
        with pytest.raises(NonceReused):
            await journal.append(time_ms=1, nonces=[Nonce("a", b"n", ORDER, 9), Nonce("a", b"n", OTHER, 9)])
        assert await journal.nonce_order("a", b"n") is None

    async def test_nonces_and_materials_are_dropped_when_they_expire(self, journal: Journal) -> None:
        await journal.append(
            time_ms=1,
            nonces=[Nonce("a", b"n", ORDER, 9), Nonce("a", b"m", OTHER, 10)],
            materials=[Material(ORDER, b"sealed", 9), Material(OTHER, b"sealed", 10)],
        )
        await journal.expire(10)
        assert await journal.nonce_order("a", b"n") is None
        assert await journal.nonce_order("a", b"m") == OTHER
        assert await journal.material(ORDER) is None
        assert await journal.material(OTHER) == b"sealed"
        assert replay(NODE, await entries_of(journal)) == journal.books

    async def test_a_later_material_replaces_the_one_of_the_same_order(self, journal: Journal) -> None:
        for sealed in (b"request", b"request and answer"):
            await journal.append(time_ms=1, materials=[Material(ORDER, sealed, 9)])
        assert await journal.material(ORDER) == b"request and answer"
