"""Messages: they read back as written, and whatever else arrives is malformed and nothing worse."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import codec
from node.wire.messages import (
    MAX_PROMPT,
    MAX_REFUSAL,
    MAX_SEALED,
    RefusalCode,
    Refused,
    Request,
    decode_answered,
    decode_asked,
    decode_envelope,
    decode_handed,
    decode_nonce,
    decode_refusal,
    decode_request,
    encode_answered,
    encode_asked,
    encode_envelope,
    encode_handed,
    encode_nonce,
    encode_refusal,
    encode_request,
)

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "messages.json").read_text())
SEALING = json.loads((FOLDER / "sealing.json").read_text())
CONTENT = SEALING["content"]
REQUEST = Request(bytes.fromhex(CONTENT["salt"]), tuple(CONTENT["prompt"]), tuple(CONTENT["stop"]))


def said(refusal: Refused) -> tuple[str, str, int | None]:
    return refusal.code, refusal.message, refusal.retry_after


def test_the_vectors_have_every_code_of_a_refusal() -> None:
    assert {vector["code"] for vector in VECTORS["refusals"]} == set(get_args(RefusalCode))


def test_a_request_is_what_the_vectors_say() -> None:
    assert encode_request(REQUEST).hex() == SEALING["body"]
    assert decode_request(bytes.fromhex(SEALING["body"])) == REQUEST


@given(
    st.binary(min_size=32, max_size=32),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50),
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=256), max_size=16),
)
def test_a_request_reads_back_as_written(salt: bytes, prompt: list[int], stop: list[str]) -> None:
    request = Request(salt, tuple(prompt), tuple(stop))
    assert decode_request(encode_request(request)) == request


@pytest.mark.parametrize("vector", SEALING["malformed"], ids=lambda v: v["why"])
def test_what_is_no_request_is_malformed(vector: dict[str, str]) -> None:
    with pytest.raises(codec.Malformed):
        decode_request(bytes.fromhex(vector["body"]))


def test_a_malformed_request_is_refused_without_a_word_of_its_content() -> None:
    secret = "the cat is on the roof"
    with pytest.raises(codec.Malformed) as caught:
        decode_request(codec.encode({"salt": bytes(32), "prompt": bytes(4), "stop": [secret, ""], "note": secret}))
    assert "cat" not in str(caught.value)


def test_the_longest_prompt_fits_with_all_else_at_its_longest() -> None:
    stop = (256 * "\U0001f980",) * 16
    longest = Request(bytes(32), tuple(range(MAX_PROMPT)), stop)
    raw = encode_request(longest)
    assert decode_request(raw) == longest
    assert len(raw) + 256 <= MAX_SEALED
    with pytest.raises(codec.Malformed, match="prompt"):
        decode_request(encode_request(Request(bytes(32), tuple(range(MAX_PROMPT + 1)))))


def test_an_envelope_is_what_the_vectors_say() -> None:
    order, sealed, raw = (bytes.fromhex(VECTORS["envelope"][name]) for name in ("order", "sealed", "raw"))
    assert encode_envelope(order, sealed) == raw
    assert decode_envelope(raw) == (order, sealed)


@pytest.mark.parametrize("vector", VECTORS["malformed_envelopes"], ids=lambda v: v["why"])
def test_what_is_no_envelope_is_malformed(vector: dict[str, str]) -> None:
    with pytest.raises(codec.Malformed):
        decode_envelope(bytes.fromhex(vector["raw"]))


@pytest.mark.parametrize("vector", VECTORS["refusals"], ids=lambda v: f"{v['code']} {v['retry_after']}")
def test_a_refusal_is_what_the_vectors_say(vector: dict[str, Any]) -> None:
    refusal = Refused(vector["code"], vector["message"], vector["retry_after"])
    assert encode_refusal(refusal).hex() == vector["raw"]
    assert said(decode_refusal(bytes.fromhex(vector["raw"]))) == said(refusal)


@pytest.mark.parametrize("vector", VECTORS["odd_refusals"], ids=lambda v: v["case"])
def test_an_odd_refusal_is_still_one(vector: dict[str, Any]) -> None:
    refusal = decode_refusal(bytes.fromhex(vector["raw"]))
    assert said(refusal) == (vector["code"], vector["message"], vector["retry_after"])


@pytest.mark.parametrize("vector", VECTORS["malformed_refusals"], ids=lambda v: v["why"])
def test_what_is_no_refusal_is_malformed(vector: dict[str, str]) -> None:
    with pytest.raises(codec.Malformed):
        decode_refusal(bytes.fromhex(vector["raw"]))


@given(st.text(st.characters(codec="utf-8")))
def test_a_refusal_of_any_words_fits_its_limit(message: str) -> None:
    assert len(encode_refusal(Refused("busy", 600 * message, 2))) <= MAX_REFUSAL


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(raw: bytes) -> None:
    for decode in (decode_request, decode_envelope, decode_refusal):
        with suppress(codec.Malformed):
            decode(raw)


@given(st.integers(0, len(SEALING["body"]) // 2 - 1), st.integers(1, 255))
def test_a_changed_request_is_another_one_or_malformed(at: int, mask: int) -> None:
    raw = bytearray.fromhex(SEALING["body"])
    raw[at] ^= mask
    with suppress(codec.Malformed):
        assert decode_request(bytes(raw)) != REQUEST


EXCHANGE = {name: bytes.fromhex(raw) for name, raw in VECTORS["exchange"].items()}
READERS = {"nonce": decode_nonce, "asked": decode_asked, "answered": decode_answered, "handed": decode_handed}


def test_an_exchange_of_states_reads_back_as_the_vectors_have_it() -> None:
    assert encode_nonce(decode_nonce(EXCHANGE["nonce"])) == EXCHANGE["nonce"]
    assert encode_asked(decode_asked(EXCHANGE["asked"])) == EXCHANGE["asked"]
    assert encode_answered(decode_answered(EXCHANGE["answered"])) == EXCHANGE["answered"]
    assert encode_handed(*decode_handed(EXCHANGE["handed"])) == EXCHANGE["handed"]
    assert [kind for kind, _ in decode_answered(EXCHANGE["answered"]).records] == ["offer", "acknowledgement"]


@pytest.mark.parametrize("vector", VECTORS["malformed_exchanges"], ids=lambda v: f"{v['what']}: {v['why']}")
def test_what_is_no_exchange_of_states_is_malformed(vector: dict[str, str]) -> None:
    with pytest.raises(codec.Malformed):
        READERS[vector["what"]](bytes.fromhex(vector["raw"]))


@given(st.sampled_from(sorted(READERS)), st.binary(max_size=60))
def test_any_bytes_are_no_exchange_or_one_that_reads_back(what: str, raw: bytes) -> None:
    with suppress(codec.Malformed):
        READERS[what](raw)
