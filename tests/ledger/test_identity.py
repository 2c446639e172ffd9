"""Identities: a key's one name, signatures that fit it, and names that are none."""

import copy
import json
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.identity import BadSignature, Did, Identity, NotADid, did_of, parse_did, verify_signature

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "did_key.json").read_text())
MESSAGE = b"idlemesh"
ALICE, BOB = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: v["did"][-8:])
def test_a_key_has_the_name_and_signature_of_the_vectors(vector: dict[str, str]) -> None:
    identity = Identity(bytes.fromhex(vector["seed"]))
    assert identity.did == did_of(bytes.fromhex(vector["public"])) == vector["did"]
    assert identity.sign(MESSAGE) == bytes.fromhex(vector["signature"])
    verify_signature(parse_did(vector["did"]), MESSAGE, bytes.fromhex(vector["signature"]))


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda v: v["why"])
def test_what_names_no_key_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(NotADid):
        parse_did(vector["text"])


@given(st.binary(min_size=32, max_size=32))
def test_every_public_key_has_one_name_that_reads_back(public: bytes) -> None:
    assert parse_did(did_of(public)) == did_of(public)


@given(st.text(st.sampled_from(BASE58) | st.characters(codec="utf-8"), min_size=47, max_size=47))
def test_any_text_is_a_name_or_none_and_nothing_else_is_raised(text: str) -> None:
    with suppress(NotADid):
        assert parse_did("did:key:z" + text) == "did:key:z" + text


@given(st.integers(0, 63), st.integers(1, 255))
def test_a_signature_with_a_flipped_byte_is_bad(at: int, mask: int) -> None:
    signature = bytearray(ALICE.sign(MESSAGE))
    signature[at] ^= mask
    with pytest.raises(BadSignature, match=ALICE.did):
        verify_signature(ALICE.did, MESSAGE, bytes(signature))


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)], ids=len)
def test_bytes_that_are_no_signature_are_bad(signature: bytes) -> None:
    with pytest.raises(BadSignature):
        verify_signature(ALICE.did, MESSAGE, signature)


def test_a_signature_fits_one_signer_and_one_message() -> None:
    signature = ALICE.sign(MESSAGE)
    with pytest.raises(BadSignature):
        verify_signature(BOB.did, MESSAGE, signature)
    with pytest.raises(BadSignature):
        verify_signature(ALICE.did, b"something else", signature)


def test_a_key_of_low_order_signs_nothing() -> None:
    # With the neutral point as key, R = neutral and S = 0 fit every message in verifiers that do not look.
    neutral = bytes([1]) + bytes(31)
    with pytest.raises(BadSignature):
        verify_signature(did_of(neutral), MESSAGE, neutral + bytes(32))


def test_a_name_that_is_none_verifies_nothing() -> None:
    with pytest.raises(NotADid):
        verify_signature(Did("did:key:z6Mk"), MESSAGE, ALICE.sign(MESSAGE))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_an_identity_is_made_from_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Identity(bytes(length))


def test_a_private_key_is_neither_shown_nor_copied() -> None:
    assert repr(ALICE) == f"Identity({ALICE.did})"
    with pytest.raises(TypeError, match="copied"):
        pickle.dumps(ALICE)
    with pytest.raises(TypeError, match="copied"):
        copy.deepcopy(ALICE)


def test_each_purpose_at_home_has_its_own_secret() -> None:
    secrets = {identity.secret(purpose) for identity in (ALICE, BOB) for purpose in (b"", b"a", b"b")}
    assert len(secrets) == 6
    assert ALICE.secret(b"a") == Identity(bytes([1]) * 32).secret(b"a")
