"""Payments as strangers present them: read, or refused by a part's name."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.paid.presented import MAX_HEADER, BadPayment, RefundAsked, SignedTransfer, Voucher, read_payment

ADDRESS, WORD, SIGNATURE = "0x" + "a1" * 20, "0x" + "b2" * 32, "0x" + "c3" * 65
CONFIG = {
    "payer": ADDRESS,
    "payerAuthorizer": ADDRESS,
    "receiver": ADDRESS,
    "receiverAuthorizer": ADDRESS,
    "token": ADDRESS,
    "withdrawDelay": 3_600,
    "salt": WORD,
}
VOUCHER = {"channelId": WORD, "maxClaimableAmount": "12", "signature": SIGNATURE}
AUTHORIZED = {"validAfter": "0", "validBefore": "99", "salt": WORD, "signature": SIGNATURE}
DEPOSIT = {"amount": "34", "authorization": {"erc3009Authorization": AUTHORIZED}}
TRANSFER = {"from": ADDRESS, "to": ADDRESS, "value": "5", "validAfter": "0", "validBefore": "99", "nonce": WORD}

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def header(payload: Any, scheme: str = "batch-settlement", version: int = 2) -> str:
    accepted = {
        "scheme": scheme,
        "network": "eip155:8453",
        "asset": ADDRESS,
        "amount": "1",
        "payTo": ADDRESS,
        "maxTimeoutSeconds": 60,
    }
    whole = {"x402Version": version, "payload": payload, "accepted": accepted}
    return base64.b64encode(json.dumps(whole).encode()).decode()


def voucher(**more: Any) -> dict[str, Any]:
    return {"type": "voucher", "channelConfig": CONFIG, "voucher": VOUCHER} | more


def test_what_clients_sign_is_read() -> None:
    plain = read_payment(header(voucher())).signed
    assert isinstance(plain, Voucher)
    assert (plain.total, plain.deposit) == (12, None)
    funded = read_payment(header(voucher(type="deposit", deposit=DEPOSIT))).signed
    assert isinstance(funded, Voucher)
    assert funded.deposit is not None
    assert funded.deposit.amount == 34
    back = read_payment(header(voucher(type="refund", amount="7"))).signed
    assert isinstance(back, RefundAsked)
    assert back.amount == 7
    transfer = read_payment(header({"authorization": TRANSFER, "signature": SIGNATURE}, "exact")).signed
    assert isinstance(transfer, SignedTransfer)
    assert transfer.authorization.value == 5


@pytest.mark.parametrize(
    "payload",
    [
        voucher(type="claim"),
        voucher(type="deposit"),
        voucher(type="deposit", deposit=DEPOSIT | {"amount": "0"}),
        voucher(type="deposit", deposit=DEPOSIT | {"authorization": {"permit2Authorization": {}}}),
        voucher(channelConfig=CONFIG | {"withdrawDelay": 1}),
        voucher(channelConfig=CONFIG | {"payer": "0x12"}),
        voucher(channelConfig=[]),
        voucher(voucher=VOUCHER | {"maxClaimableAmount": "-1"}),
        voucher(voucher=VOUCHER | {"maxClaimableAmount": "9" * 20}),
        voucher(voucher=VOUCHER | {"maxClaimableAmount": True}),
        voucher(voucher=VOUCHER | {"signature": SIGNATURE + "00"}),
        {},
    ],
)
def test_what_is_no_payment_is_refused(payload: Any) -> None:
    with pytest.raises(BadPayment):
        read_payment(header(payload))


def test_other_schemes_versions_and_sizes_are_refused() -> None:
    for bad in (header(voucher(), "upto"), header(voucher(), version=1), "A" * (MAX_HEADER + 1), "é", "W10="):
        with pytest.raises(BadPayment):
            read_payment(bad)


@given(_json, st.sampled_from(["exact", "batch-settlement"]))
def test_whatever_a_payload_holds_it_is_read_or_refused(payload: Any, scheme: str) -> None:
    for whole in (
        payload,
        voucher(voucher=payload),
        voucher(type="deposit", deposit=payload),
        {"authorization": payload},
    ):
        with pytest.raises(BadPayment):
            read_payment(header(whole, scheme))


@given(st.text() | st.binary().map(lambda raw: base64.b64encode(raw).decode()))
def test_whatever_a_header_holds_it_is_read_or_refused(text: str) -> None:
    with pytest.raises(BadPayment):
        read_payment(text)
