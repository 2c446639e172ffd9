"""Sealing: what the vectors say, opened by one seller under one binding, and by nobody else."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.records import Order, open_record
from node.wire.sealing import (
    CannotOpen,
    KeyPair,
    OpeningStream,
    RequestBinding,
    SealingStream,
    buyers_answer_key,
    open_request,
    seal_request,
    sellers_answer_key,
)

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "sealing.json").read_text())
RECORDS = json.loads((FOLDER / "records.json").read_text())
PREKEY = KeyPair.from_seed(bytes.fromhex(VECTORS["prekey"]["private"]))
EPHEMERAL = KeyPair.from_seed(bytes.fromhex(VECTORS["ephemeral"]["private"]))
BINDING = RequestBinding(bytes.fromhex(VECTORS["offer"]), bytes.fromhex(VECTORS["nonce"]), VECTORS["buyer"])
SEALED, BODY, ORDER = (bytes.fromhex(VECTORS[name]) for name in ("sealed", "body", "order"))


def test_public_keys_are_what_the_vectors_say() -> None:
    assert PREKEY.public.hex() == VECTORS["prekey"]["public"]
    assert EPHEMERAL.public.hex() == VECTORS["ephemeral"]["public"]


def test_a_request_sealed_elsewhere_opens() -> None:
    assert open_request(SEALED, PREKEY, BINDING) == BODY


def test_a_request_s_key_is_what_the_vectors_say() -> None:
    sealed = seal_request(BODY, PREKEY.public, EPHEMERAL, BINDING)
    assert sealed[:32] == EPHEMERAL.public
    stream = OpeningStream(bytes.fromhex(VECTORS["request_key"]), sealed[32:56])
    assert stream.pull(sealed[56:]) == (BODY, True)


def test_buyer_and_seller_derive_the_answer_s_key_of_the_vectors() -> None:
    assert buyers_answer_key(EPHEMERAL, PREKEY.public, ORDER).hex() == VECTORS["answer_key"]
    assert sellers_answer_key(SEALED, PREKEY, ORDER).hex() == VECTORS["answer_key"]


def test_each_order_has_its_own_answer_key() -> None:
    assert sellers_answer_key(SEALED, PREKEY, bytes(32)).hex() != VECTORS["answer_key"]


def test_the_binding_of_an_order_is_its_offer_nonce_and_buyer() -> None:
    raw = next(bytes.fromhex(v["raw"]) for v in RECORDS["records"] if v["kind"] == "order")
    signed = open_record(raw, Order)
    assert RequestBinding.of(signed.record, signed.signer) == BINDING


@pytest.mark.parametrize("vector", VECTORS["unopened"], ids=lambda v: v["why"])
def test_what_is_no_sealed_request_is_not_opened(vector: dict[str, str]) -> None:
    with pytest.raises(CannotOpen):
        open_request(bytes.fromhex(vector["sealed"]), PREKEY, BINDING)


@pytest.mark.parametrize("vector", VECTORS["otherwise_bound"], ids=lambda v: v["why"])
def test_a_request_opens_under_no_other_binding(vector: dict[str, str]) -> None:
    said = {**VECTORS, **vector}
    other = RequestBinding(bytes.fromhex(said["offer"]), bytes.fromhex(said["nonce"]), said["buyer"])
    with pytest.raises(CannotOpen):
        open_request(SEALED, PREKEY, other)


def test_a_request_for_somebody_else_is_not_opened() -> None:
    with pytest.raises(CannotOpen):
        open_request(SEALED, EPHEMERAL, BINDING)


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_a_flipped_byte_anywhere_in_a_sealed_request_is_detected(at: int, mask: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= mask
    with pytest.raises(CannotOpen):
        open_request(bytes(changed), PREKEY, BINDING)


@given(st.binary(max_size=300))
def test_any_bytes_cannot_be_opened_and_nothing_else_is_raised(sealed: bytes) -> None:
    with pytest.raises(CannotOpen):
        open_request(sealed, PREKEY, BINDING)


@given(st.binary(max_size=300), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_what_a_buyer_seals_the_seller_opens(body: bytes, one: bytes, other: bytes) -> None:
    ephemeral, prekey = KeyPair.from_seed(one), KeyPair.from_seed(other)
    assert open_request(seal_request(body, prekey.public, ephemeral, BINDING), prekey, BINDING) == body


@pytest.mark.parametrize(
    "prekey", [bytes(32), bytes([1]) + bytes(31), bytes(31), b""], ids=["zero", "one", "short", "none"]
)
def test_nothing_is_sealed_for_a_prekey_that_is_no_key(prekey: bytes) -> None:
    with pytest.raises(CannotOpen):
        seal_request(BODY, prekey, EPHEMERAL, BINDING)


def test_the_same_key_never_gives_the_same_stream_twice() -> None:
    assert SealingStream(bytes(32)).header != SealingStream(bytes(32)).header


def test_a_private_key_is_not_shown() -> None:
    assert VECTORS["prekey"]["private"] not in repr(PREKEY)
    assert repr(PREKEY.private) not in repr(PREKEY)
