"""EIP-712 messages as JSON has them: for external signers, which show them or have rules."""

from collections.abc import Mapping
from typing import Any

from ledger.rails.stablecoin.digests import keccak
from ledger.rails.stablecoin.networks import Token, checksummed


def domain_of(name: str, version: str, chain_id: int, contract: bytes) -> dict[str, Any]:
    """The domain of a contract on a chain."""
    return {"name": name, "version": version, "chainId": chain_id, "verifyingContract": checksummed(contract)}


def domain_of_token(token: Token, chain_id: int) -> dict[str, Any]:
    """The domain of a token."""
    return domain_of(token.name, token.version, chain_id, token.address)


def message(domain: Mapping[str, Any], type_: str, *values: Any) -> dict[str, Any]:
    """A message of a type, like `Refund(bytes32 channelId,uint256 nonce,uint128 amount)`."""
    kind, _, rest = type_.removesuffix(")").partition("(")
    fields = [tuple(part.split(" ")) for part in rest.split(",")]
    return {
        "domain": dict(domain),
        "types": {kind: [{"name": name, "type": of} for of, name in fields]},
        "primaryType": kind,
        "message": {name: _plain(of, value) for (of, name), value in zip(fields, values, strict=True)},
    }


def digest_of(typed: Mapping[str, Any]) -> bytes:
    """What is signed of a message, whoever made it."""
    # It takes a second to import, which only those wait for who sign.
    from eth_account.messages import encode_typed_data

    said = encode_typed_data(full_message=dict(typed))
    return keccak(b"\x19" + said.version + said.header + said.body)


def _plain(of: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    return checksummed(value) if of == "address" else f"0x{value.hex()}"
