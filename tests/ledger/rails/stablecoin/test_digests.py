"""What is signed for channels is what the x402 package computes, byte for byte."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from eth_account.messages import encode_typed_data
from x402.mechanisms.evm.batch_settlement.constants import (
    BATCH_SETTLEMENT_ADDRESS,
    RECEIVE_AUTHORIZATION_TYPES,
    VOUCHER_TYPES,
)
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig as Theirs
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id, get_batch_settlement_eip712_domain

from ledger.rails.stablecoin.digests import (
    MAX_UINT128,
    ChannelConfig,
    Place,
    authorization,
    deposit_nonce,
    domain,
    keccak,
)
from ledger.rails.stablecoin.vouchers import address_of, signed, signer_of

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "channels.json").read_text())
CASES = pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: f"chain {c['chain_id']}, {len(c['channels'])}")
X402 = bytes.fromhex(BATCH_SETTLEMENT_ADDRESS[2:])
RANDOM = random.Random(6)


def raw(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def config(row: dict[str, Any]) -> ChannelConfig:
    addresses = ("payer", "payerAuthorizer", "receiver", "receiverAuthorizer", "token")
    payer, by, receiver, for_, token = (raw(row[name]) for name in addresses)
    return ChannelConfig(payer, by, receiver, for_, token, row["withdrawDelay"], raw(row["salt"]))


def digest_of_typed_data(said: Any) -> bytes:
    return keccak(b"\x19" + said.version + said.header + said.body)


def some_channel() -> ChannelConfig:
    payer, by, receiver, for_, token = (RANDOM.randbytes(20) for _ in range(5))
    return ChannelConfig(payer, by, receiver, for_, token, RANDOM.randint(900, 2_592_000), RANDOM.randbytes(32))


@CASES
def test_ids_vouchers_and_deposits_are_as_the_vectors_have_them(case: dict[str, Any]) -> None:
    place = Place(case["chain_id"], raw(VECTORS["contract"]))
    for row in case["channels"]:
        channel = place.channel_id(config(row))
        voucher = place.voucher(channel, int(row["maxClaimableAmount"]))
        assert (channel, voucher) == (raw(row["channelId"]), raw(row["voucherDigest"]))
        assert signer_of(voucher, raw(row["voucherSignature"])) == raw(case["voucher_signer"])
        assert deposit_nonce(channel, raw(row["depositSalt"])) == raw(row["depositNonce"])


@CASES
def test_claims_and_refunds_are_as_the_vectors_have_them(case: dict[str, Any]) -> None:
    place, rows, refund = Place(case["chain_id"], raw(VECTORS["contract"])), case["channels"], case["refund"]
    claims = place.claims([(raw(r["channelId"]), int(r["maxClaimableAmount"]), int(r["totalClaimed"])) for r in rows])
    given = place.refund(raw(rows[0]["channelId"]), int(refund["nonce"]), int(refund["amount"]))
    assert (claims, given) == (raw(case["claimBatchDigest"]), raw(refund["digest"]))
    authorizer = raw(case["receiver_authorizer"])
    assert signer_of(claims, raw(case["claimBatchSignature"])) == authorizer
    assert signer_of(given, raw(refund["signature"])) == authorizer


def test_thousands_of_random_vouchers_have_the_digests_that_x402_signs() -> None:
    for chain_id in (8453, 84532, 42161, 137, 2**63):
        place, domain_data = Place(chain_id, X402), get_batch_settlement_eip712_domain(chain_id)
        for _ in range(500):
            channel, total = RANDOM.randbytes(32), RANDOM.randint(0, MAX_UINT128) >> RANDOM.randint(0, 128)
            message = {"channelId": channel, "maxClaimableAmount": total}
            said = encode_typed_data(domain_data, VOUCHER_TYPES, message)
            assert place.voucher(channel, total) == digest_of_typed_data(said)


def test_random_channels_have_the_ids_that_x402_gives_them() -> None:
    place = Place(8453, X402)
    for _ in range(100):
        ours = some_channel()
        addresses = (ours.payer, ours.payer_authorizer, ours.receiver, ours.receiver_authorizer, ours.token)
        payer, by, receiver, for_, token = (f"0x{each.hex()}" for each in addresses)
        theirs = Theirs(payer, by, receiver, for_, token, ours.withdraw_delay, f"0x{ours.salt.hex()}")
        assert compute_channel_id(theirs, "eip155:8453") == f"0x{place.channel_id(ours).hex()}"


def test_a_deposit_is_authorized_as_x402_s_clients_do() -> None:
    payer, collector, token, nonce = (RANDOM.randbytes(length) for length in (20, 20, 20, 32))
    said = encode_typed_data(
        {"name": "USD Coin", "version": "2", "chainId": 8453, "verifyingContract": f"0x{token.hex()}"},
        RECEIVE_AUTHORIZATION_TYPES,
        {
            "from": f"0x{payer.hex()}",
            "to": f"0x{collector.hex()}",
            "value": 7,
            "validAfter": 0,
            "validBefore": 99,
            "nonce": nonce,
        },
    )
    found = authorization(domain("USD Coin", "2", 8453, token), payer, collector, 7, 0, 99, nonce)
    assert found == digest_of_typed_data(said)


def test_a_channel_s_owner_is_bound_to_its_chain_contract_and_did() -> None:
    types = {"ChannelOwner": [{"name": "did", "type": "string"}, {"name": "channelId", "type": "bytes32"}]}
    channel, did = RANDOM.randbytes(32), "did:key:z6Mko9hTggMwjSTEaJaPUfE6tqcy2xvU6BnNq3e3o8qVBiyH"
    at = {"name": "idlemesh", "version": "1", "chainId": 8453, "verifyingContract": BATCH_SETTLEMENT_ADDRESS}
    said = encode_typed_data(at, types, {"did": did, "channelId": channel})
    assert Place(8453, X402).owner(did, channel) == digest_of_typed_data(said)
    others = (Place(84532, X402).owner(did, channel), Place(8453, X402[::-1]).owner(did, channel))
    assert len({Place(8453, X402).owner(did, channel), *others}) == 3


def test_a_signature_that_the_contracts_would_not_take_has_no_signer() -> None:
    key, digest = PrivateKey(b"\1" * 32), RANDOM.randbytes(32)
    good = signed(key, digest)
    assert signer_of(digest, good) == address_of(key.public_key)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    upper = (order - int.from_bytes(good[32:64], "big")).to_bytes(32, "big")
    mirrored = good[:32] + upper + bytes([27 + 28 - good[64]])
    for bad in (
        mirrored,
        good[:64],
        good[:64] + bytes([good[64] - 27]),
        good + b"\0",
        bytes(65),
        b"\xff" * 64 + b"\x1b",
    ):
        assert signer_of(digest, bad) is None


def test_a_config_is_read_from_its_words() -> None:
    channel = some_channel()
    assert ChannelConfig.of_words(channel.words()) == channel
    with pytest.raises(ValueError, match="7"):
        ChannelConfig.of_words(channel.words()[:-32])
