"""Reading by a known shape and reading with care say the same of any bytes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from ledger import codec, shapes
from ledger import payload as reading
from ledger.account import AccountKey
from ledger.changes import Change, Earned, Reserved
from ledger.effects import Effect, EffectPlanned, EffectTold, Kind, News
from ledger.event_maps import encode_event
from ledger.events import AccountChanged, Event, FeePaid, InvalidEvents, Observed, PlainMove, RecordKept, account_of
from ledger.money import MAX_AMOUNT
from ledger.payload import decode_events, encode_events, read_content
from ledger.spelling import Spelled

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
# Too rare for their shapes to be learned.
any_rare_event: st.SearchStrategy[Event] = st.one_of(
    st.builds(EffectPlanned, effects, amounts),
    st.builds(EffectTold, keys, digests, st.sampled_from(get_args(News)), amounts, amounts, amounts, texts),
    st.builds(FeePaid, texts, texts, texts, amounts, digests, amounts),
)


def carefully(payload: bytes) -> tuple[Event, ...] | None:
    try:
        return reading._decode(payload)
    except InvalidEvents:
        return None


def whole(told: Sequence[Event] | None) -> list[object]:
    """All that values hold, of what types, and their hashes: those made without a second look are like any others."""
    parts = [part for event in told or () for part in (event, getattr(event, "change", None), getattr(event, "key", 0))]
    return [
        (repr(part), hash(part), getattr(part, "__dict__", None)) for part in parts if not isinstance(part, Observed)
    ]


def agreed(payload: bytes) -> tuple[Event, ...] | None:
    """What all ways say of it, the second time as well, when its shape is known."""
    expected = carefully(payload)
    for _ in range(2):
        if expected is None:
            with pytest.raises(InvalidEvents):
                decode_events(payload)
            with pytest.raises(InvalidEvents):
                read_content(payload)
        else:
            told = decode_events(payload)
            assert told == expected
            assert whole(told) == whole(expected)
            check_content(payload, expected)
    return expected


def check_content(payload: bytes, told: Sequence[Event]) -> None:
    """The same content, kind by kind."""
    content = read_content(payload)
    kept = [(event.kind, event.digest, event.order) for event in told if isinstance(event, RecordKept)]
    assert content.records == kept
    moves = [(key, move_of(plain)) for key, plain in content.moves]
    assert moves == [
        (event.key, event.change) if isinstance(event, AccountChanged) else (account_of(event), event)
        for event in told
        if isinstance(event, AccountChanged | EffectPlanned | EffectTold)
    ]
    observed = [event for event in told if isinstance(event, Observed)]
    assert list(content.observed) == [event for event in observed if bytes in map(type, event.facts.values())]


def move_of(plain: PlainMove) -> object:
    """What happens, from its plain values: they are those of a change's fields, in order."""
    return plain[0](*plain[1]) if isinstance(plain, tuple) else plain


def is_known(payload: bytes) -> bool:
    """Whether payloads of this shape were learned."""
    return reading._SHAPES.read(payload) is not None


def other_values(event: Event, data: st.DataObject) -> Event:
    """One of the same shape: other digests, and other numbers of the same width."""
    digest = data.draw(digests)
    match event:
        case RecordKept(kind, _, order):
            return RecordKept(kind, digest, None if order is None else data.draw(digests))
        case AccountChanged(key, change):
            values = {one.name: getattr(change, one.name) for one in fields(type(change))}
            other = {name: other_value(value, MAX_AMOUNT, data) for name, value in values.items()}
            return AccountChanged(key, type(change)(**other))
        case Observed(subject, what, facts):
            return Observed(subject, what, {name: other_value(fact, 2**63 - 1, data) for name, fact in facts.items()})
    return event


def other_value(value: Any, most: int, data: st.DataObject) -> Any:
    if isinstance(value, bytes):
        return data.draw(digests)
    if isinstance(value, str) or value < 0:
        return value
    edges = [0, 24, 2**8, 2**16, 2**32, most + 1]
    least, end = next((a, b) for a, b in pairwise(edges) if a <= value < b)
    return data.draw(st.integers(least, end - 1) | st.sampled_from([least, end - 1]))


@given(st.lists(any_event, max_size=30))
def test_what_is_put_together_is_spelled_as_with_care(told: list[Event]) -> None:
    assert encode_events(told) == codec.encode([encode_event(event) for event in told])


@given(st.lists(any_event, max_size=8), st.data())
def test_what_was_read_once_is_read_by_its_shape_with_other_values(written: list[Event], data: st.DataObject) -> None:
    learned = encode_events(written)
    assert agreed(learned) == tuple(written)
    has_bytes = any(isinstance(one, Observed) and bytes in map(type, one.facts.values()) for one in written)
    assert is_known(learned) == (len(learned) <= shapes.LONGEST and not has_bytes)
    other = [other_values(event, data) for event in written]
    alike = encode_events(other)
    assert is_known(alike) == is_known(learned)
    assert agreed(alike) == tuple(other)


def test_each_bit_of_a_known_shape_counts() -> None:
    key = AccountKey("did:payer", "did:payee", "credit", "uusd")
    told: list[Event] = [
        RecordKept("receipt", bytes(32), bytes(32)),
        RecordKept("offer", bytes(32)),
        AccountChanged(key, Reserved(bytes(32), 500, 2**40)),
        Observed("did:peer", "delivered", {"tokens": 64, "why": "asked", "lag": -1, "total_ms": 70_000}),
    ]
    payload = encode_events(told)
    assert agreed(payload) == tuple(told)
    assert is_known(payload)
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        agreed(bytes(flipped))


def test_shapes_are_forgotten_when_there_are_too_many() -> None:
    known = shapes.Shapes[int]()
    for n in range(shapes._LENGTHS + 1):
        known.learn([b"." * n, Spelled("B", 24, 255)], n)
    assert known.read(b"." * shapes._LENGTHS + b"\x20") == (shapes._LENGTHS, (32,))
    assert known.read(b"\x20") is None
    assert len(known._known) == 1


def test_shapes_of_one_length_are_few() -> None:
    known = shapes.Shapes[int]()
    for n in range(10, 100):
        known.learn([b"%d " % n, Spelled("B", 24, 255)], n)
    found = [n for n in range(10, 100) if known.read(b"%d \x20" % n)]
    assert found == list(range(100 - shapes._ALIKE, 100))


def test_of_a_party_with_too_long_a_name_no_shape_is_learned() -> None:
    name = "p" * (reading._MAX_WORDS_BYTES + 1)
    told: list[Event] = [
        Observed(name, "seen"),
        AccountChanged(AccountKey(name, "q", "credit", "uusd"), Earned(bytes(32), 5)),
    ]
    for event in told:
        payload = encode_events([event])
        assert agreed(payload) == (event,)
        assert not is_known(payload)


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
