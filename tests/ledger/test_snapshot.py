"""Snapshots: the same books in the same bytes, and nothing else is taken for them."""

import hashlib
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import codec, snapshot
from ledger.account import AccountError, AccountKey
from ledger.changes import (
    Acknowledged,
    Admitted,
    Authorized,
    Change,
    Disputed,
    Drawn,
    Earned,
    Funded,
    Granted,
    Released,
    Reserved,
    Resolved,
    Settled,
)
from ledger.effects import Effect, EffectPlanned, Kind
from ledger.events import AccountChanged, Books, Event
from ledger.journal import Entry, Replay, genesis, link, replay
from ledger.payload import encode_events
from ledger.snapshot import BadSnapshot, check, decode, encode, take

NODE = "did:key:node"
ORDERS = [bytes([n]) * 32 for n in range(3)]
keys = st.builds(
    AccountKey, st.sampled_from("ab"), st.just(NODE), st.sampled_from(["credit", "lightning"]), st.just("msat")
)
amounts, orders = st.integers(0, 60), st.sampled_from(ORDERS)
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(Granted, st.just(500), st.just(500), st.integers(1, 3)),
    st.builds(Funded, amounts, st.integers(1, 3)),
    st.builds(Reserved, orders, amounts, st.just(9)),
    st.builds(Admitted, orders, amounts, amounts, st.just(9)),
    st.builds(Drawn, orders, amounts),
    st.builds(Earned, orders, amounts),
    st.builds(Released, orders),
    st.builds(Acknowledged, orders, amounts),
    st.builds(Disputed, orders, amounts, amounts),
    st.builds(Resolved, orders, amounts),
    st.builds(Authorized, amounts),
    st.builds(Settled, amounts),
)
planned: st.SearchStrategy[EffectPlanned] = st.builds(
    lambda key, kind, before, amount: EffectPlanned(Effect(bytes(32), key, kind, before, before + amount), 9),
    keys,
    st.sampled_from(get_args(Kind)),
    amounts,
    st.integers(1, 60),
)
tried: st.SearchStrategy[list[Event]] = st.lists(st.builds(AccountChanged, keys, changes) | planned, max_size=30)


def key_of(event: Event) -> AccountKey:
    assert isinstance(event, AccountChanged | EffectPlanned)
    return event.effect.account if isinstance(event, EffectPlanned) else event.key


def chain(events: Sequence[Event]) -> list[Entry]:
    """A chain of those events that the guards admit, after a grant for each account."""
    books, entries = Books(), [genesis(NODE)]
    for event in [*(AccountChanged(key_of(event), Granted(500, 500, 1)) for event in events), *events]:
        try:
            books = books.apply([event])
        except AccountError:
            continue
        entries.append(link(entries[-1], 0, encode_events([event])))
    return entries


def after(entries: Sequence[Entry]) -> snapshot.Snapshot:
    return take(NODE, entries[-1], replay(NODE, entries[1:]))


SALE = chain(
    [
        AccountChanged(AccountKey("a", NODE, "credit", "msat"), change)
        for change in (Reserved(ORDERS[0], 50, 9), Earned(ORDERS[0], 40), Reserved(ORDERS[1], 5, 9))
    ]
)
GOOD = encode(after(SALE))


@given(tried)
def test_books_come_back_as_they_were(events: list[Event]) -> None:
    taken = after(chain(events))
    found = decode(encode(taken), NODE)
    assert found == taken
    assert [account.reserved for account in found.books.accounts.values()] == [
        taken.books.account(key).reserved for key in found.books.accounts
    ]


@given(tried, st.randoms(use_true_random=False))
def test_equal_books_have_equal_bytes_whatever_their_order(events: list[Event], random: Any) -> None:
    taken = after(chain(events))
    accounts = list(taken.books.accounts.items())
    random.shuffle(accounts)
    books = Books(dict(accounts), dict(reversed(list(taken.books.effects.items()))))
    assert encode(snapshot.Snapshot(NODE, taken.sequence, taken.hash, books)) == encode(taken)


@given(tried, st.integers(0, 30))
def test_a_replay_goes_on_from_a_snapshot_as_from_the_beginning(events: list[Event], cut: int) -> None:
    entries = chain(events)
    cut = min(cut, len(entries) - 1)
    found = decode(encode(after(entries[: cut + 1])), NODE)
    assert found.follows(entries[cut])
    resumed = Replay.after(entries[cut], found.books)
    for entry in entries[cut + 1 :]:
        resumed.add(entry)
    check(take(NODE, resumed.head, resumed.books), entries[-1], replay(NODE, entries[1:]))


class TestWhatIsRefused:
    @given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
    def test_one_changed_byte_anywhere(self, at: int, flip: int) -> None:
        raw = bytearray(GOOD)
        raw[at] ^= flip
        with pytest.raises(BadSnapshot, match="Delete it"):
            decode(bytes(raw), NODE)

    @given(st.integers(0, len(GOOD) - 1))
    def test_a_torn_one(self, length: int) -> None:
        with pytest.raises(BadSnapshot, match="torn"):
            decode(GOOD[:length], NODE)

    def test_that_of_another_node(self) -> None:
        with pytest.raises(BadSnapshot, match="of the chain of"):
            decode(GOOD, "did:key:other")

    @given(st.binary(max_size=60))
    def test_other_bytes_under_a_right_digest(self, body: bytes) -> None:
        with pytest.raises(BadSnapshot):
            decode(body + hashlib.sha256(body).digest(), NODE)

    @pytest.mark.parametrize(
        "changed",
        [
            {"format": 1},
            {"effects": [1]},
            {"effects": [{"kind": "claim"}]},
            {"sequence": -1},
            {"hash": b"short"},
            {"more": 1},
            {"accounts": [1]},
            {"accounts": [{"key": ["a", "b", "credit", "shells"], "counters": {}, "orders": []}]},
            {"accounts": [{"key": ["a", "b", "credit", "msat"], "counters": {"earned": -1}, "orders": []}]},
            {"accounts": [{"key": ["a", "b", "credit", "msat"], "counters": {"earned": True}, "orders": []}]},
            {"accounts": [{"key": ["a", "b", "credit", "msat"], "counters": {"earned": 0}, "orders": []}]},
            {"accounts": [{"key": ["a", "b", "credit", "msat"], "counters": {"orders": 1}, "orders": []}]},
            {"accounts": [{"key": ["a", "b", "credit", "msat"], "counters": {}, "orders": [{"order": b"1"}]}]},
            {"accounts": [{"key": ["a", "b", "credit", "msat"], "counters": {}, "orders": []}] * 2},
        ],
        ids=lambda changed: str(changed)[:60],
    )
    def test_what_is_not_as_it_would_be_written(self, changed: dict[str, Any]) -> None:
        body = {"format": 2, "chain": NODE, "sequence": 1, "hash": bytes(32), "accounts": [], "effects": []}
        right = codec.encode(body)
        assert decode(right + hashlib.sha256(right).digest(), NODE).books == Books()
        raw = codec.encode(body | changed)
        with pytest.raises(BadSnapshot):
            decode(raw + hashlib.sha256(raw).digest(), NODE)

    def test_one_that_does_not_fit_the_journal(self) -> None:
        taken, books = decode(GOOD, NODE), replay(NODE, SALE[1:])
        check(taken, SALE[-1], books)
        with pytest.raises(BadSnapshot, match="another entry"):
            check(taken, SALE[-2], books)
        with pytest.raises(BadSnapshot, match="its accounts"):
            check(taken, SALE[-1], Books())
