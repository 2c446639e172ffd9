"""What is called and read is what the contracts have."""

import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from x402.mechanisms.evm.batch_settlement import constants
from x402.mechanisms.evm.default_assets import DEFAULT_ASSETS

from ledger.rails.stablecoin import reverts
from ledger.rails.stablecoin.contracts import FUNCTIONS, Malformed, decoded
from ledger.rails.stablecoin.digests import keccak
from ledger.rails.stablecoin.logs import _KINDS
from ledger.rails.stablecoin.networks import (
    Deployment,
    UnknownDeployment,
    UnknownNetwork,
    checksummed,
    network,
    networks,
    typed_address,
)

ABI = Path(__file__).parents[4] / "contracts" / "abi"
OF_OTHERS = {
    "approve",
    "allowance",
    "balanceOf",
    "decimals",
    "authorizationState",
    "getL1FeeUpperBound",
    "tryAggregate",
}
EIP3009 = {"eip155:8453", "eip155:84532", "eip155:42161", "eip155:137"}


def entries(kind: str) -> list[dict[str, Any]]:
    files = sorted(ABI.glob("*.json"))
    return [each for file in files for each in json.loads(file.read_text())["abi"] if each["type"] == kind]


def written(parameter: dict[str, Any]) -> str:
    kind = str(parameter["type"])
    if kind.startswith("tuple"):
        return f"({','.join(map(written, parameter['components']))}){kind.removeprefix('tuple')}"
    return kind


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - OF_OTHERS))
def test_functions_are_the_contracts(name: str) -> None:
    found = [
        (list(map(written, each["inputs"])), list(map(written, each["outputs"])))
        for each in entries("function")
        if each["name"] == name
    ]
    assert FUNCTIONS[name] in found


def test_events_are_the_contracts() -> None:
    found = {
        keccak(f"{each['name']}({','.join(map(written, each['inputs']))})".encode()): [
            written(one) for one in each["inputs"] if not one["indexed"]
        ]
        for each in entries("event")
    }
    for topic, (_, types) in _KINDS.items():
        assert found[topic] == types


def test_every_refusal_of_the_contracts_has_a_name() -> None:
    not_ours = {"AddressEmptyCode", "FailedCall", "InvalidShortString", "StringTooLong"}
    for each in entries("error"):
        if each["name"] in not_ours or "SafeCast" in each["name"]:
            continue
        selector = keccak(f"{each['name']}({','.join(map(written, each['inputs']))})".encode())[:4]
        assert reverts.reason(selector) == each["name"]
    text = bytes.fromhex("08c379a0") + encode(["string"], ["no\nmore"])
    assert reverts.reason(text) == "no more"
    assert reverts.reason(text[:30]) == reverts.reason(b"") == ""


def test_networks_have_the_token_and_the_contracts_that_x402_has() -> None:
    known = {each.caip2: each for each in networks()}
    assert set(known) >= EIP3009
    for name in EIP3009:
        theirs = DEFAULT_ASSETS[name][0]
        token = known[name].token
        assert (checksummed(token.address), token.name, token.version) == (
            theirs["asset"],
            theirs["name"],
            theirs["version"],
        )
        deployment = known[name].deployment()
        assert checksummed(deployment.contract) == constants.BATCH_SETTLEMENT_ADDRESS
        assert deployment.erc3009_collector is not None
        assert checksummed(deployment.erc3009_collector) == constants.ERC3009_DEPOSIT_COLLECTOR_ADDRESS
    assert network("base") is network("eip155:8453")


def test_addresses_are_written_as_wallets_write_them() -> None:
    for number in range(300):
        raw = keccak(bytes(f"{number}", "ascii"))[:20]
        assert checksummed(raw) == to_checksum_address(raw)


def test_unknown_names_and_contracts_are_told() -> None:
    with pytest.raises(UnknownNetwork, match="base"):
        network("nowhere")
    with pytest.raises(UnknownDeployment, match="collector"):
        network("base").deployment(bytes(20))


def test_a_contract_of_ones_own_has_the_collectors_that_are_named() -> None:
    own, first, second = b"1" * 20, b"2" * 20, b"3" * 20
    more = network("base").deployed(own, first, None)
    assert more.deployment(own) == Deployment(own, first, None)
    assert more.deployment() == network("base").deployment()
    known = network("anvil").deployments[1]
    assert network("anvil").deployed(known.contract, None, second).deployment(known.contract) == Deployment(
        known.contract, known.erc3009_collector, second
    )


def test_bytes_that_are_no_answer_are_refused() -> None:
    for raw in (b"", b"\xff" * 31, b"\xff" * 32):
        with pytest.raises(Malformed):
            decoded(["uint128"], raw)


# The examples of EIP-55.
@pytest.mark.parametrize(
    "text",
    [
        "0x52908400098527886E0F7030069857D2E4169EE7",
        "0xde709f2102306220921060314715629080e2fb77",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ],
)
def test_an_address_that_was_mistyped_shows_by_its_checksum(text: str) -> None:
    assert typed_address(text) == typed_address(text.lower()) == bytes.fromhex(text[2:])
    if text[2:] not in (text[2:].upper(), text[2:].lower()):
        with pytest.raises(ValueError, match="a digit was mistyped"):
            typed_address(text[:-1] + text[-1].swapcase() if text[-1].isalpha() else text.swapcase())
