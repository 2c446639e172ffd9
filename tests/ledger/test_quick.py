"""Reading quickly and reading with care say the same of any bytes."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from ledger import codec, events, quick
from ledger.account import AccountKey
from ledger.changes import Change, Earned
from ledger.effects import Effect, EffectPlanned, EffectTold, Kind, News
from ledger.events import AccountChanged, Event, InvalidEvents, Observed, RecordKept, decode_events, encode_events
from ledger.money import MAX_AMOUNT

EDGES = [0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, MAX_AMOUNT]
texts, digests = st.text(max_size=30), st.binary(min_size=32, max_size=32)
amounts = st.sampled_from(EDGES) | st.integers(0, MAX_AMOUNT)


def any_of(kind: type[Change]) -> st.SearchStrategy[Change]:
    of_type: dict[Any, st.SearchStrategy[Any]] = {int: amounts, bytes: digests}
    return st.builds(kind, *(of_type[attribute.type] for attribute in fields(kind)))


changes = st.one_of(*map(any_of, get_args(Change)))
keys = st.builds(AccountKey, texts, texts, texts, st.sampled_from(["msat", "uusd"]))
scalars = st.one_of(st.sampled_from(EDGES), st.integers(-(2**63), 2**63 - 1), texts, st.binary(max_size=300))
effects = st.builds(
    lambda key, account, kind, before, amount: Effect(key, account, kind, before, before + amount),
    digests,
    keys,
    st.sampled_from(get_args(Kind)),
    st.integers(0, MAX_AMOUNT // 2),
    st.integers(1, MAX_AMOUNT // 2),
)
any_event: st.SearchStrategy[Event] = st.one_of(
    st.builds(RecordKept, texts, digests, st.none() | digests),
    st.builds(Observed, texts, texts, st.dictionaries(texts, scalars, max_size=5)),
    st.builds(AccountChanged, keys, changes),
)
# Too rare to be read quickly.
any_rare_event: st.SearchStrategy[Event] = st.one_of(
    st.builds(EffectPlanned, effects, amounts),
    st.builds(EffectTold, keys, digests, st.sampled_from(get_args(News)), amounts, amounts, amounts, texts),
)


def carefully(payload: bytes) -> tuple[Event, ...] | None:
    try:
        return events._decode(payload)
    except InvalidEvents:
        return None


def whole(told: Sequence[Event] | None) -> list[object]:
    """All that values hold, of what types, and their hashes: those made without a second look are like any others."""
    parts = [part for event in told or () for part in (event, getattr(event, "change", None), getattr(event, "key", 0))]
    return [
        (repr(part), hash(part), getattr(part, "__dict__", None)) for part in parts if not isinstance(part, Observed)
    ]


def agreed(payload: bytes) -> tuple[Event, ...] | None:
    """What both ways say of it."""
    expected = carefully(payload)
    try:
        quickly = events._read_quickly(payload)
    except (ValueError, IndexError):
        quickly = None
    if quickly is not None:
        assert quickly == expected
        assert whole(quickly) == whole(expected)
    if expected is None:
        with pytest.raises(InvalidEvents):
            decode_events(payload)
    else:
        assert decode_events(payload) == expected
    return quickly


@given(st.lists(any_event, max_size=30))
def test_what_is_spelled_quickly_is_spelled_as_with_care(told: list[Event]) -> None:
    assert encode_events(told) == codec.encode([events._to_map(event) for event in told])


@given(st.lists(any_event, max_size=30))
def test_whatever_a_journal_writes_is_read_quickly(written: list[Event]) -> None:
    assert agreed(encode_events(written)) == tuple(written)


@given(st.lists(any_event | any_rare_event, min_size=1))
def test_what_is_rare_is_read_as_it_was_written(written: list[Event]) -> None:
    agreed(encode_events(written))
    assert decode_events(encode_events(written)) == tuple(written)


@given(st.lists(any_event | any_rare_event, min_size=1, max_size=3), st.data())
def test_changed_bytes_are_read_the_same_in_both_ways(written: list[Event], data: st.DataObject) -> None:
    raw = bytearray(encode_events(written))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "drop", "insert", "cut"])):
            case "flip":
                raw[at] ^= data.draw(st.integers(1, 255))
            case "drop" if len(raw) > 1:
                del raw[at]
            case "insert":
                raw.insert(at, data.draw(st.integers(0, 255)))
            case _:
                del raw[at + 1 :]
    agreed(bytes(raw))


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_read_the_same_in_both_ways(raw: bytes) -> None:
    agreed(raw)
    agreed(b"\x81" + raw)


@pytest.mark.parametrize("value", EDGES)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_number_has_one_spelling(value: int, size: int) -> None:
    if value >= 256**size:
        return
    shortest = codec.encode(value)
    longer = bytes([{1: 0x18, 2: 0x19, 4: 0x1A, 8: 0x1B}[size]]) + value.to_bytes(size, "big")
    key = AccountKey("a", "b", "credit", "msat")
    payload = encode_events([AccountChanged(key, Earned(bytes(32), value))])
    changed = payload.replace(b"etotal" + shortest, b"etotal" + longer)
    assert (agreed(changed) is None) == (shortest != longer)


@pytest.mark.parametrize("value", [MAX_AMOUNT, MAX_AMOUNT + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("kind", get_args(Change))
def test_no_amount_is_above_the_most(kind: type[Change], value: int) -> None:
    for told in [attribute.name for attribute in fields(kind) if attribute.type is int]:
        values = {one.name: 0 if one.type is int else bytes(32) for one in fields(kind)}
        plain = codec.encode({"change": kind.__name__} | values | {told: value})
        spelled = codec.encode(["a", "b", "credit", "msat"])
        payload = b"\x81\xa3ckey" + spelled + b"eeventgaccountfchange" + plain
        assert (agreed(payload) is not None) == (value <= MAX_AMOUNT)


@given(st.builds(RecordKept, texts, digests, st.none() | digests))
def test_a_record_that_is_cut_off_is_none(record: RecordKept) -> None:
    payload = encode_events([record])
    assert all(agreed(payload[:size]) is None for size in range(len(payload)))


def test_every_kind_of_change_is_read_quickly() -> None:
    assert {kind for shape in quick._SHAPES.values() for kind in shape.kinds.values()} == set(get_args(Change))
