"""An exported receipt: every check passes for a true one, and the right one fails for each lie."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.bundle import FORMAT, Bundle, NotABundle, check, from_json, to_json
from ledger.commitments import CHECKPOINT_TOKENS, answer_commitment
from ledger.identity import Identity
from ledger.money import cost
from ledger.records import Acknowledgement, Checkpoint, Offer, Order, Receipt, Voucher, open_record, sign

FOLDER = Path(__file__).parents[1] / "vectors"
RECORDS = json.loads((FOLDER / "records.json").read_text())
SEALING = json.loads((FOLDER / "sealing.json").read_text())
STREAM = json.loads((FOLDER / "stream.json").read_text())
SELLER, BUYER, STRANGER = (Identity(bytes.fromhex(key["seed"])) for key in RECORDS["keys"])


def first(kind: str) -> bytes:
    return bytes.fromhex(next(v["raw"] for v in RECORDS["records"] if v["kind"] == kind))


ANSWER = tuple(i for frame in STREAM["streams"][0]["frames"] for i in frame.get("ids", ()))
WHOLE = Bundle(
    offer=first("offer"),
    order=first("order"),
    receipt=first("receipt"),
    acknowledgement=first("acknowledgement"),
    salt=bytes.fromhex(SEALING["content"]["salt"]),
    prompt=tuple(SEALING["content"]["prompt"]),
    answer=ANSWER,
)
NAMES = {"signatures", "references", "arithmetic", "acknowledgement", "prompt commitment", "answer commitment"}


def outcome(bundle: Bundle) -> dict[str, bool | None]:
    return {check.name: check.passed for check in check(bundle)}


def failed(bundle: Bundle) -> set[str]:
    return {name for name, passed in outcome(bundle).items() if passed is False}


def changed(changes: dict[str, Any]) -> Bundle:
    return attrs.evolve(WHOLE, **changes)


def receipt(by: Identity = SELLER, **changes: Any) -> bytes:
    return sign(attrs.evolve(open_record(first("receipt"), Receipt).record, **changes), by).raw


def acknowledgement(by: Identity = BUYER, **changes: Any) -> bytes:
    return sign(attrs.evolve(open_record(first("acknowledgement"), Acknowledgement).record, **changes), by).raw


def voucher(by: Identity = BUYER, **changes: Any) -> bytes:
    return sign(attrs.evolve(open_record(first("voucher"), Voucher).record, **changes), by).raw


def test_a_true_receipt_passes_every_check() -> None:
    assert outcome(WHOLE) == dict.fromkeys(NAMES, True)


def test_what_the_file_does_not_show_is_neither_passed_nor_failed() -> None:
    shown = outcome(attrs.evolve(WHOLE, salt=None, prompt=None, answer=None))
    assert shown == {**dict.fromkeys(NAMES, True), "prompt commitment": None, "answer commitment": None}


def test_a_receipt_that_nobody_acknowledged_says_so() -> None:
    checks = {check.name: check for check in check(attrs.evolve(WHOLE, acknowledgement=None))}
    assert "acknowledgement" not in checks
    assert "not acknowledged" in checks["signatures"].detail


LIES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a receipt signed by a stranger": (lambda: {"receipt": receipt(STRANGER)}, "references"),
    "a receipt for another order": (lambda: {"receipt": receipt(order=bytes(32))}, "references"),
    "a receipt for another model": (lambda: {"receipt": receipt(model=bytes(32))}, "references"),
    "a receipt in another unit": (lambda: {"receipt": receipt(unit="msat")}, "references"),
    "a cost above the price": (lambda: {"receipt": receipt(cost=12)}, "arithmetic"),
    "a cost below the price": (lambda: {"receipt": receipt(cost=10)}, "arithmetic"),
    "more tokens than ordered": (lambda: {"receipt": receipt(output_tokens=71)}, "arithmetic"),
    "another prompt": (lambda: {"prompt": tuple(SEALING["content"]["prompt"][::-1])}, "prompt commitment"),
    "another answer": (lambda: {"answer": ANSWER[::-1]}, "answer commitment"),
    "a shorter answer": (lambda: {"answer": ANSWER[:-1]}, "answer commitment"),
    "another salt": (lambda: {"salt": bytes(32)}, "answer commitment"),
    "a salt of another length": (lambda: {"salt": bytes(31)}, "prompt commitment"),
    "an acknowledgement by a stranger": (lambda: {"acknowledgement": acknowledgement(STRANGER)}, "acknowledgement"),
    "one of another receipt": (lambda: {"acknowledgement": acknowledgement(of=bytes(32))}, "acknowledgement"),
    "one that accepts a part": (lambda: {"acknowledgement": acknowledgement(amount=3)}, "acknowledgement"),
    "one of more than the cost": (
        lambda: {"acknowledgement": acknowledgement(amount=99, accepted=False)},
        "acknowledgement",
    ),
    "a voucher by a stranger": (
        lambda: {"acknowledgement": acknowledgement(voucher=voucher(STRANGER))},
        "acknowledgement",
    ),
    "a voucher for a stranger": (
        lambda: {"acknowledgement": acknowledgement(voucher=voucher(payee=STRANGER.did))},
        "acknowledgement",
    ),
    "a voucher in another unit": (
        lambda: {"acknowledgement": acknowledgement(voucher=voucher(unit="msat"))},
        "acknowledgement",
    ),
    "a voucher on another rail": (
        lambda: {"acknowledgement": acknowledgement(voucher=voucher(rail="lightning"))},
        "acknowledgement",
    ),
    "a voucher that is none": (lambda: {"acknowledgement": acknowledgement(voucher=b"x")}, "signatures"),
    "an order that is none": (lambda: {"order": WHOLE.offer}, "signatures"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_fails_the_check_that_is_for_it(lie: str) -> None:
    changes, name = LIES[lie]
    assert name in failed(changed(changes()))


# An answer that was cut off.


def checkpoint(by: Identity = SELLER, **changes: Any) -> bytes:
    order, price = open_record(WHOLE.order, Order).digest, open_record(WHOLE.offer, Offer).record.price
    commitment = answer_commitment(WHOLE.salt or b"", order, ANSWER[:CHECKPOINT_TOKENS])
    said = Checkpoint(order, CHECKPOINT_TOKENS, commitment, cost(price, 0, CHECKPOINT_TOKENS))
    return sign(attrs.evolve(said, **changes), by).raw


def cut_off(raw: bytes) -> Bundle:
    """The same order, of which this is the last that its seller signed."""
    signed = open_record(raw, Checkpoint)
    ack = acknowledgement(of=signed.digest, amount=signed.record.cost)
    return changed({"receipt": None, "checkpoint": raw, "acknowledgement": ack})


def test_the_last_checkpoint_of_a_cut_answer_passes_all_checks_but_that_of_the_prompt() -> None:
    assert len(ANSWER) > CHECKPOINT_TOKENS, "more came than was signed for"
    assert outcome(cut_off(checkpoint())) == dict.fromkeys(NAMES - {"prompt commitment"}, True)
    assert from_json(json.loads(json.dumps(to_json(cut_off(checkpoint()))))) == cut_off(checkpoint())


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (checkpoint(STRANGER), "references"),
        (checkpoint(order=bytes(32)), "references"),
        (checkpoint(cost=0), "arithmetic"),
        (checkpoint(tokens=1), "arithmetic"),
        (checkpoint(tokens=10_000), "answer commitment"),
        (checkpoint(commitment=bytes(32)), "answer commitment"),
        (first("receipt"), "signatures"),
    ],
)
def test_a_checkpoint_that_lies_fails_the_check_that_is_for_it(raw: bytes, name: str) -> None:
    bundle = cut_off(raw) if name != "signatures" else changed({"receipt": None, "checkpoint": raw})
    assert name in failed(bundle)


# A part of an answer.


def part(**changes: Any) -> Bundle:
    """The receipt of an order that is a part of an answer."""
    order = sign(attrs.evolve(open_record(WHOLE.order, Order).record, **changes), BUYER)
    commitment = answer_commitment(WHOLE.salt or b"", order.digest, ANSWER)
    raw = receipt(order=order.digest, output_commitment=commitment)
    ack = acknowledgement(order=order.digest, of=open_record(raw, Receipt).digest)
    return changed({"order": order.raw, "receipt": raw, "acknowledgement": ack})


@pytest.mark.parametrize(
    ("part_of", "words"), [(bytes([7]) * 32, "of order 0707070707070707"), (None, "what the buyer computed itself")]
)
def test_the_receipt_of_a_part_passes_and_says_what_was_before(part_of: bytes | None, words: str) -> None:
    bundle = part(start=2, part_of=part_of)
    assert outcome(bundle) == dict.fromkeys(NAMES | {"earlier part"}, True)
    assert words in next(check.detail for check in check(bundle) if check.name == "earlier part")


def test_a_part_that_leaves_no_prompt_fails() -> None:
    assert failed(part(start=len(SEALING["content"]["prompt"]))) == {"earlier part"}


def test_a_disputed_part_passes_and_says_why() -> None:
    disputed = acknowledgement(accepted=False, amount=3, reason="too slow")
    found = {check.name: check for check in check(attrs.evolve(WHOLE, acknowledgement=disputed))}
    assert found["acknowledgement"].passed
    assert "disputed: too slow" in found["acknowledgement"].detail


@given(st.sampled_from(["offer", "order", "receipt", "acknowledgement"]), st.data())
def test_a_byte_flipped_in_any_record_fails(name: str, data: st.DataObject) -> None:
    raw = bytearray(getattr(WHOLE, name))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert failed(changed({name: bytes(raw)})) == {"signatures"}


@pytest.mark.parametrize("left_out", [(), ("salt", "prompt", "answer"), ("acknowledgement",)], ids=str)
def test_a_file_reads_back_as_it_was_written(left_out: tuple[str, ...]) -> None:
    bundle = changed(dict.fromkeys(left_out))
    assert from_json(json.loads(json.dumps(to_json(bundle)))) == bundle


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"format": "idlemesh-receipt-2"},
        {"format": FORMAT},
        {**to_json(WHOLE), "order": 5},
        {**to_json(WHOLE), "order": "???"},
        {**to_json(WHOLE), "order": "é"},
        {**to_json(WHOLE), "prompt": "123"},
        {**to_json(WHOLE), "prompt": [1.5]},
        {**to_json(WHOLE), "prompt": [True]},
        {**to_json(WHOLE), "answer": [-1]},
        {**to_json(WHOLE), "answer": [2**32]},
    ],
    ids=lambda body: str(body)[-30:],
)
def test_a_file_that_is_no_exported_receipt_is_refused(body: object) -> None:
    with pytest.raises(NotABundle):
        from_json(body)


def test_the_records_of_the_vectors_belong_together() -> None:
    order = open_record(WHOLE.order, Order)
    assert order.record.offer == open_record(WHOLE.offer, Offer).digest
    assert order.record.request.hex() == SEALING["digest"]
