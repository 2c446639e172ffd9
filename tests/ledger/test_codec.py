"""The codec: one form for each value, nothing but the named errors for whatever else arrives."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger import codec
from ledger.identity import Identity

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cbor.json").read_text())
ERRORS = {kind.__name__: kind for kind in (codec.Malformed, codec.TooLarge, codec.NotCanonical, codec.Forged)}
LIMIT = 65_536
SIGNER = Identity(bytes([1]) * 32)
TYPE = "application/idlemesh-test+cbor"

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | TEXT
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4), max_leaves=20)


def value_of(plain: Any) -> Any:
    """A vector's value: byte strings stand there as h'…'."""
    match plain:
        case str() if plain.startswith("h'"):
            return bytes.fromhex(plain[2:-1])
        case list():
            return [value_of(item) for item in plain]
        case dict():
            return {key: value_of(item) for key, item in plain.items()}
        case _:
            return plain


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda v: v["hex"])
def test_deterministic_cbor_reads_and_writes_as_the_vectors_say(vector: dict[str, Any]) -> None:
    raw, value = bytes.fromhex(vector["hex"]), value_of(vector["value"])
    decoded = codec.decode(raw, LIMIT)
    assert (decoded, type(decoded)) == (value, type(value))
    assert codec.encode(value) == raw


@pytest.mark.parametrize("vector", VECTORS["rejected"], ids=lambda v: v["why"])
def test_what_is_not_deterministic_cbor_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(codec.Malformed) as caught:
        codec.decode(bytes.fromhex(vector["hex"]), vector.get("limit", LIMIT), vector.get("items", codec.MAX_ITEMS))
    assert type(caught.value) is ERRORS[vector["error"]]


@given(VALUES)
def test_every_value_reads_back(value: object) -> None:
    assert codec.decode(codec.encode(value), LIMIT) == value


@given(st.binary(max_size=200))
@example(bytes.fromhex("d81c81d81d00"))  # a shared array that holds itself
@example(bytes.fromhex("d90100826461616161d81900"))  # a string said again by reference
def test_any_bytes_are_a_value_in_its_one_form_or_malformed(raw: bytes) -> None:
    try:
        value = codec.decode(raw, LIMIT)
    except codec.Malformed:
        return
    assert codec.encode(value) == raw


@given(VALUES, st.data())
def test_a_changed_byte_gives_another_value_or_malformed(value: object, data: st.DataObject) -> None:
    raw = bytearray(codec.encode(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = codec.decode(bytes(raw), LIMIT)
    except codec.Malformed:
        return
    # 1 and True are equal in Python, and different in CBOR.
    assert codec.encode(other) != codec.encode(value)


@given(st.recursive(SCALARS | st.floats(), lambda v: st.lists(v, max_size=3) | st.dictionaries(SCALARS, v, max_size=3)))
def test_another_encoder_s_cbor_is_a_value_or_malformed(value: object) -> None:
    raw = cbor2.dumps(value, value_sharing=True, string_referencing=True)
    with suppress(codec.Malformed):
        assert codec.encode(codec.decode(raw, LIMIT)) == raw


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(codec.TooLarge) as caught:
        codec.decode(b"\xff" * 11, 10)
    assert (caught.value.size, caught.value.limit) == (11, 10)


def test_a_message_of_empty_maps_alone_is_refused() -> None:
    raw = b"\x9a" + (1_000_000).to_bytes(4, "big") + b"\xa0" * 1_000_000
    with pytest.raises(codec.Malformed, match="items"):
        codec.decode(raw, len(raw))


def test_an_envelope_says_who_signed_what_as_which_type() -> None:
    envelope = codec.unwrap(codec.sign(TYPE, b"payload", SIGNER), LIMIT)
    assert envelope == codec.Envelope(SIGNER.did, TYPE, b"payload")


@given(st.data())
def test_a_flipped_byte_anywhere_in_an_envelope_is_detected(data: st.DataObject) -> None:
    raw = bytearray(codec.sign(TYPE, b"payload", SIGNER))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(codec.Malformed):
        codec.unwrap(bytes(raw), LIMIT)


def test_an_envelope_above_its_limit_is_refused_unread() -> None:
    with pytest.raises(codec.TooLarge):
        codec.unwrap(codec.sign(TYPE, bytes(100), SIGNER), 100)
