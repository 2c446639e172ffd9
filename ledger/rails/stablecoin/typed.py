"""What is signed with the wallet, as EIP-712 messages: for external signers, which show it or have rules."""

from typing import Any, Final

from ledger.rails.stablecoin.networks import Network, checksummed

_RECEIVE: Final = {
    "from": "address",
    "to": "address",
    "value": "uint256",
    "validAfter": "uint256",
    "validBefore": "uint256",
    "nonce": "bytes32",
}


def receive_typed(network: Network, payer: bytes, to: bytes, amount: int, before: int, nonce: bytes) -> dict[str, Any]:
    """The authorization of a deposit (EIP-3009), valid at once and until `before`."""
    values = (checksummed(payer), checksummed(to), amount, 0, before, f"0x{nonce.hex()}")
    return {
        "domain": {
            "name": network.token.name,
            "version": network.token.version,
            "chainId": network.chain_id,
            "verifyingContract": checksummed(network.token.address),
        },
        "types": {"ReceiveWithAuthorization": [{"name": name, "type": kind} for name, kind in _RECEIVE.items()]},
        "primaryType": "ReceiveWithAuthorization",
        "message": dict(zip(_RECEIVE, values, strict=True)),
    }
