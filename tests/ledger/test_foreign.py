"""Other people's libraries read our vectors: the CDDL by pycddl, COSE signatures by pycose, CBOR by cbor2 alone."""

import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import pytest
from pycddl import Schema, ValidationError
from pycose.keys.curves import Ed25519
from pycose.keys.okp import OKPKey
from pycose.messages.sign1message import Sign1Message

from ledger.records import KINDS as KINDS_HERE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "vectors"
CDDL = (ROOT / "docs" / "records.cddl").read_text()
RECORDS, SEALING, STREAM, MESSAGES, MANIFEST = (
    json.loads((FOLDER / f"{name}.json").read_text())
    for name in ("records", "sealing", "stream", "messages", "manifest")
)
KINDS = sorted({vector["kind"] for vector in RECORDS["records"]})
EACH = pytest.mark.parametrize("vector", RECORDS["records"], ids=lambda v: f"{v['kind']}: {v['case']}")


@cache
def schema(rule: str) -> Schema:
    """The schema of one rule: a CDDL text stands for its first one."""
    return Schema(f"start = {rule}\n{CDDL}")


def parts(raw: str) -> tuple[bytes, bytes, bytes]:
    """Protected header, payload and signature of a COSE_Sign1 object."""
    protected, _, payload, signature = cbor2.loads(bytes.fromhex(raw)).value
    return protected, payload, signature


@EACH
def test_a_record_fits_the_cddl(vector: dict[str, Any]) -> None:
    protected, payload, _ = parts(vector["raw"])
    schema("signed-record").validate_cbor(bytes.fromhex(vector["raw"]))
    schema("protected-header").validate_cbor(protected)
    schema(vector["kind"]).validate_cbor(payload)


@EACH
def test_a_record_s_signature_is_good_to_pycose(vector: dict[str, Any]) -> None:
    # Without the tag, whose value cbor2 6 gives as a tuple: `Sign1Message.decode` of pycose 1.1 wants a list.
    message = Sign1Message.from_cose_obj(cbor2.loads(bytes.fromhex(vector["raw"])[1:]), False)
    message.key = OKPKey(crv=Ed25519, x=public_key(vector["signer"]))
    assert message.verify_signature()
    _, payload, _ = parts(vector["raw"])
    message.payload = payload[:-1] + bytes([payload[-1] ^ 1])
    assert not message.verify_signature()


def public_key(did: str) -> bytes:
    """The Ed25519 key in a did:key, by the letter of its specification: base58 of 0xed01 and the key."""
    number = 0
    for digit in did.removeprefix("did:key:z"):
        number = number * 58 + "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz".index(digit)
    prefixed = number.to_bytes(34, "big")
    assert prefixed[:2] == b"\xed\x01"
    return prefixed[2:]


# What CDDL cannot say, or does not: its comments do.
BEYOND_CDDL = {
    "a null field",
    "a name of 129 characters",
    "a reason of 257 characters",
    "a prompt of 5 bytes",
    "a stop string of 257 characters",
    "a channel to oneself",
}
# What pycddl 0.6 passes over: `.size` on a value of another type, and an unknown key of a map in an array.
BEYOND_PYCDDL = {
    "a digest as text",
    "a number in a list of text",
    "an engine with a number",
    "a stop string of bytes",
    "an unknown field of a file",
}


def unseen(why: str) -> bool:
    return why in BEYOND_CDDL or why in BEYOND_PYCDDL


@pytest.mark.parametrize(
    "vector",
    [vector for vector in RECORDS["malformed"] if vector["layer"] == "field" and not unseen(vector["why"])],
    ids=lambda v: f"{v['kind']}: {v['why']}",
)
def test_a_field_that_is_refused_does_not_fit_the_cddl(vector: dict[str, Any]) -> None:
    _, payload, _ = parts(vector["raw"])
    with pytest.raises(ValidationError):
        schema(vector["kind"]).validate_cbor(payload)


def test_the_cddl_names_every_kind_and_its_content_type() -> None:
    assert re.findall(r'"application/idlemesh-([\w-]+)\+cbor"', CDDL) == list(dict.fromkeys(order_of_kinds()))
    for kind in KINDS:
        schema(kind)


def test_the_cddl_gives_every_kind_s_limit_of_bytes() -> None:
    limits = re.findall(r'"application/idlemesh-([\w-]+)\+cbor" +; .*?([\d,]+)', CDDL)
    assert {kind: int(limit.replace(",", "")) for kind, limit in limits} == {k: KINDS_HERE[k].limit for k in KINDS}


def order_of_kinds() -> list[str]:
    return [rule for rule in re.findall(r"^([a-z-]+) = \{", CDDL, re.MULTILINE) if rule in KINDS]


def test_requests_and_envelopes_fit_the_cddl() -> None:
    schema("request").validate_cbor(bytes.fromhex(SEALING["body"]))
    schema("order-envelope").validate_cbor(bytes.fromhex(MESSAGES["envelope"]["raw"]))
    offers = [bytes.fromhex(vector["raw"]) for vector in RECORDS["records"] if vector["kind"] == "offer"]
    schema("offers").validate_cbor(cbor2.dumps(offers))


@pytest.mark.parametrize(
    ("what", "rule"), [("asked", "state-asked"), ("answered", "state-answered"), ("handed", "handed-back")]
)
def test_exchanges_of_states_fit_the_cddl(what: str, rule: str) -> None:
    schema(rule).validate_cbor(bytes.fromhex(MESSAGES["exchange"][what]))


@pytest.mark.parametrize("vector", [v for v in SEALING["malformed"] if not unseen(v["why"])], ids=lambda v: v["why"])
def test_content_that_is_refused_does_not_fit_the_cddl(vector: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        schema("request").validate_cbor(bytes.fromhex(vector["body"]))


@pytest.mark.parametrize("vector", MESSAGES["refusals"], ids=lambda v: v["code"])
def test_refusals_fit_the_cddl(vector: dict[str, Any]) -> None:
    schema("refusal").validate_cbor(bytes.fromhex(vector["raw"]))
    schema("refusal-code").validate_cbor(cbor2.dumps(vector["code"]))


@pytest.mark.parametrize("vector", STREAM["streams"], ids=lambda v: v["case"])
def test_the_items_of_a_stream_fit_the_cddl(vector: dict[str, Any]) -> None:
    first, *rest = items(bytes.fromhex(vector["bytes"]))
    schema("stream-header").validate_cbor(cbor2.dumps(first))
    assert len(rest) == len(vector["frames"])
    for item in rest:
        schema("stream-item").validate_cbor(cbor2.dumps(item))


def test_a_frame_is_of_one_of_four_kinds() -> None:
    for kind in range(4):
        schema("frame").validate_cbor(cbor2.dumps([kind, b""]))
    with pytest.raises(ValidationError):
        schema("frame").validate_cbor(cbor2.dumps([4, b""]))


def items(sequence: bytes) -> list[bytes]:
    """The items of a CBOR sequence."""
    stream, found = io.BytesIO(sequence), []
    while stream.tell() < len(sequence):
        found.append(cbor2.load(stream))
    return found


@pytest.mark.parametrize("vector", MANIFEST["manifests"], ids=lambda v: v["digest"][:8])
def test_manifests_fit_the_cddl(vector: dict[str, Any]) -> None:
    schema("manifest").validate_cbor(bytes.fromhex(vector["raw"]))


@pytest.mark.parametrize("vector", [v for v in MANIFEST["malformed"] if not unseen(v["why"])], ids=lambda v: v["why"])
def test_what_is_no_manifest_does_not_fit_the_cddl(vector: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        schema("manifest").validate_cbor(bytes.fromhex(vector["raw"]))
