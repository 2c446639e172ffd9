"""The records: signed as the vectors say, open to unknown fields, strict about all else."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import codec
from ledger.identity import Identity
from ledger.money import Amount
from ledger.records import (
    CLOCK_SKEW_S,
    KINDS,
    Acknowledgement,
    ChannelTerms,
    Expired,
    Grant,
    Offer,
    Order,
    Receipt,
    Record,
    Signed,
    amount_of,
    check_time,
    digest_of,
    open_record,
    sign,
    to_map,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "records.json").read_text())
SEEDS = {key["did"]: bytes.fromhex(key["seed"]) for key in VECTORS["keys"]}
ERRORS = {kind.__name__: kind for kind in (codec.Malformed, codec.TooLarge, codec.NotCanonical, codec.Forged)}
EACH = pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda v: f"{v['kind']}: {v['case']}")


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


def opened(vector: dict[str, Any]) -> Signed[Any]:
    return open_record(bytes.fromhex(vector["raw"]), KINDS[vector["kind"]])


def first(kind: str) -> bytes:
    return bytes.fromhex(next(v["raw"] for v in VECTORS["records"] if v["kind"] == kind))


def known(fields: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in attrs.fields_dict(kind)}


def test_there_is_a_vector_of_every_kind() -> None:
    assert {vector["kind"] for vector in VECTORS["records"]} == set(KINDS) == {k.kind for k in get_args(Record)}


@EACH
def test_a_record_says_what_the_vectors_say(vector: dict[str, Any]) -> None:
    signed = opened(vector)
    assert (signed.signer, signed.digest.hex(), signed.raw.hex()) == (vector["signer"], vector["digest"], vector["raw"])
    assert to_map(signed.record) == known(value_of(vector["fields"]), type(signed.record))


@EACH
def test_signing_gives_the_bytes_of_the_vectors(vector: dict[str, Any]) -> None:
    signed, fields = opened(vector), value_of(vector["fields"])
    if known(fields, type(signed.record)) == fields:
        assert sign(signed.record, Identity(SEEDS[vector["signer"]])).raw.hex() == vector["raw"]


@EACH
def test_a_record_opens_as_no_other_kind(vector: dict[str, Any]) -> None:
    for kind in set(KINDS) - {vector["kind"]}:
        with pytest.raises(codec.Malformed):
            open_record(bytes.fromhex(vector["raw"]), KINDS[kind])


@pytest.mark.parametrize("vector", VECTORS["malformed"], ids=lambda v: f"{v['kind']}: {v['why']}")
def test_what_is_no_record_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(codec.Malformed) as caught:
        opened(vector)
    assert type(caught.value) is ERRORS[vector["error"]]


def test_unknown_fields_are_passed_over_and_stay_signed() -> None:
    plain, more, *_ = (v for v in VECTORS["records"] if v["kind"] == "offer")
    assert opened(plain).record == attrs.evolve(opened(more).record, jurisdiction=None)
    assert opened(plain).digest != opened(more).digest == digest_of(bytes.fromhex(more["raw"]))


def test_an_offer_may_say_whose_law_its_answers_are_under_and_how_long_prompts_are_kept() -> None:
    plain, _, elsewhere, _ = (opened(v).record for v in VECTORS["records"] if v["kind"] == "offer")
    assert (plain.jurisdiction, plain.retention) == (None, None)
    assert (elsewhere.jurisdiction, elsewhere.retention) == ("CH", "30 days")


def test_an_offer_may_name_what_its_seller_stands_to_lose() -> None:
    plain, _, _, bonded = (opened(v).record for v in VECTORS["records"] if v["kind"] == "offer")
    assert plain.bond is None
    assert (bonded.bond.quorum, len(bonded.bond.arbiters), bonded.bond.amount) == (2, 3, 100_000_000)


@pytest.mark.parametrize(
    "change",
    [{"quorum": 1}, {"quorum": 4}, {"owner": bytes(19)}, {"arbiters": ()}, {"arbiters": (bytes(20),) * 3}],
    ids=str,
)
def test_a_bond_that_no_contract_has_cannot_be_named(change: dict[str, Any]) -> None:
    bond = next(opened(v).record for v in reversed(VECTORS["records"]) if v["kind"] == "offer").bond
    with pytest.raises(ValueError, match=next(iter(change))):
        attrs.evolve(bond, **change)


def test_a_refusal_names_the_field_and_what_it_must_be() -> None:
    receipt = attrs.asdict(opened(next(v for v in VECTORS["records"] if v["kind"] == "receipt")).record)
    with pytest.raises(ValueError, match="prompt_tokens must be a whole number from 1 to"):
        Receipt(**{**receipt, "prompt_tokens": 0})


# Fuzzing: a stranger's bytes give a record or Malformed, and nothing else.


@given(st.integers(0, len(first("receipt")) - 1), st.integers(1, 255))
def test_a_byte_flipped_anywhere_in_a_receipt_is_detected(at: int, mask: int) -> None:
    raw = bytearray(first("receipt"))
    raw[at] ^= mask
    with pytest.raises(codec.Malformed):
        open_record(bytes(raw), Receipt)


def test_every_single_bit_of_a_receipt_is_bound() -> None:
    raw = first("receipt")
    for at in range(len(raw)):
        for bit in range(8):
            with pytest.raises(codec.Malformed):
                open_record(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :], Receipt)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_mutated_bytes_are_malformed_and_raise_nothing_else(kind: str, data: st.DataObject) -> None:
    raw = bytearray(first(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    if bytes(raw) == first(kind):
        return
    with pytest.raises(codec.Malformed):
        open_record(bytes(raw), KINDS[kind])


@given(st.binary(max_size=400), st.sampled_from(sorted(KINDS)))
def test_any_bytes_are_malformed(raw: bytes, kind: str) -> None:
    with pytest.raises(codec.Malformed):
        open_record(raw, KINDS[kind])


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=70) | st.text(max_size=70),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(VECTORS["records"]), st.data())
def test_a_signed_payload_with_odd_fields_is_a_record_or_malformed(vector: dict[str, Any], data: st.DataObject) -> None:
    fields = value_of(vector["fields"])
    for name in data.draw(st.sets(st.sampled_from(sorted(fields)), min_size=1, max_size=3)):
        fields[name] = data.draw(ODD)
    content_type = f"application/idlemesh-{vector['kind']}+cbor"
    raw = codec.sign(content_type, codec.encode(fields), Identity(SEEDS[vector["signer"]]))
    try:
        signed: Signed[Any] = open_record(raw, KINDS[vector["kind"]])
    except codec.Malformed:
        return
    assert to_map(signed.record).items() <= fields.items()


@given(st.binary(max_size=300))
def test_any_payload_under_a_good_signature_is_malformed(payload: bytes) -> None:
    raw = codec.sign("application/idlemesh-cancel+cbor", payload, Identity(bytes([1]) * 32))
    with pytest.raises(codec.Malformed):
        open_record(raw, KINDS["cancel"])


# Time.


def retimed(kind: type[Any], issued: int, expires: int) -> Any:
    vector = next(v for v in VECTORS["records"] if v["kind"] == kind.kind)
    return attrs.evolve(opened(vector).record, issued=issued, expires=expires)


TIMED = pytest.mark.parametrize(
    ("make", "longest"),
    [
        (partial(retimed, Offer), 24 * 3600),
        (partial(retimed, Order), 600),
        (partial(retimed, Grant), 30 * 24 * 3600),
        (partial(retimed, ChannelTerms), 24 * 3600),
    ],
    ids=["offer", "order", "grant", "terms"],
)
Make = Callable[[int, int], Offer | Order | Grant | ChannelTerms]
NOW = 1_800_000_000


@TIMED
def test_a_record_lives_in_its_time_and_two_minutes_around_it(make: Make, longest: int) -> None:
    record = make(NOW, NOW + longest)
    for moment in (NOW - CLOCK_SKEW_S, NOW, NOW + longest, NOW + longest + CLOCK_SKEW_S):
        check_time(record, moment)


@TIMED
def test_a_record_out_of_its_time_is_expired(make: Make, longest: int) -> None:
    record = make(NOW, NOW + longest)
    with pytest.raises(Expired, match="expired 121 seconds ago"):
        check_time(record, NOW + longest + CLOCK_SKEW_S + 1)
    with pytest.raises(Expired, match="in the future"):
        check_time(record, NOW - CLOCK_SKEW_S - 1)


@TIMED
@pytest.mark.parametrize("excess", [None, 1])
def test_a_record_that_lives_too_long_or_not_at_all_is_expired(make: Make, longest: int, excess: int | None) -> None:
    lifetime = 0 if excess is None else longest + excess
    with pytest.raises(Expired, match="must live"):
        check_time(make(NOW, NOW + lifetime), NOW)


# The rest.


def test_an_absent_field_is_left_out_and_never_null() -> None:
    first_of_all, second = (v for v in VECTORS["records"] if v["kind"] == Acknowledgement.kind)
    assert opened(first_of_all).record.previous is None
    assert "previous" not in to_map(opened(first_of_all).record)
    assert opened(second).record.previous == bytes.fromhex(first_of_all["digest"])


def test_a_receipt_asks_for_an_amount_with_its_unit() -> None:
    receipt = opened(next(v for v in VECTORS["records"] if v["kind"] == "receipt")).record
    assert amount_of(receipt) == Amount(receipt.cost, receipt.unit)
