"""Tokens that change hands by a signature (EIP-3009, `transferWithAuthorization`), once at most for a nonce.

It is what x402's `exact` scheme signs. Addresses have 20 bytes, nonces 32, amounts are units of the token, times
seconds since 1970.
"""

from typing import Any, Final

from attrs import field, frozen, validators
from eth_abi.abi import encode

from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.contracts import Call
from ledger.rails.stablecoin.digests import domain, keccak
from ledger.rails.stablecoin.networks import Token, checksummed
from ledger.rails.stablecoin.vouchers import signer_of

_FIELDS: Final = "address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce"
_TYPE: Final = keccak(f"TransferWithAuthorization({_FIELDS})".encode())
_ARGUMENTS: Final = ("address", "address", "uint256", "uint256", "uint256", "bytes32", "uint8", "bytes32", "bytes32")
_SELECTOR: Final = keccak(f"transferWithAuthorization({','.join(_ARGUMENTS)})".encode())[:4]


def _of_bytes(length: int) -> list[Any]:
    return [validators.instance_of(bytes), validators.min_len(length), validators.max_len(length)]


@frozen
class Authorization:
    """A payer's word that `value` may go from it to a receiver, between two times."""

    payer: bytes = field(validator=_of_bytes(20))
    receiver: bytes = field(validator=_of_bytes(20))
    value: int = field(validator=[validators.ge(1), validators.lt(2**128)])
    valid_after: int = field(validator=[validators.ge(0), validators.lt(2**64)])
    valid_before: int = field(validator=[validators.ge(0), validators.lt(2**64)])
    nonce: bytes = field(validator=_of_bytes(32))

    def digest(self, chain_id: int, token: Token) -> bytes:
        """What the payer signs: it binds the chain and the token."""
        prefix = b"\x19\x01" + domain(token.name, token.version, chain_id, token.address)
        return keccak(prefix + keccak(_TYPE + encode(_ARGUMENTS[:6], self._values())))

    def is_signed(self, chain_id: int, token: Token, signature: bytes) -> bool:
        """Whether the payer's key has signed it; wallets that are contracts sign otherwise, and are not asked."""
        return signer_of(self.digest(chain_id, token), signature) == self.payer

    def call(self, token: Token, signature: bytes) -> Call:
        """The call that makes it happen, by anybody."""
        v, r, s = signature[64], signature[:32], signature[32:64]
        return Call(token.address, _SELECTOR + encode(_ARGUMENTS, [*self._values(), v, r, s]))

    def typed(self, chain_id: int, token: Token) -> dict[str, Any]:
        """The whole message (EIP-712), for wallets that show what they sign."""
        names = [part.split(" ") for part in _FIELDS.split(",")]
        return {
            "domain": {
                "name": token.name,
                "version": token.version,
                "chainId": chain_id,
                "verifyingContract": checksummed(token.address),
            },
            "types": {"TransferWithAuthorization": [{"name": name, "type": kind} for kind, name in names]},
            "primaryType": "TransferWithAuthorization",
            "message": {
                "from": checksummed(self.payer),
                "to": checksummed(self.receiver),
                "value": self.value,
                "validAfter": self.valid_after,
                "validBefore": self.valid_before,
                "nonce": "0x" + self.nonce.hex(),
            },
        }

    def _values(self) -> list[Any]:
        return [self.payer, self.receiver, self.value, self.valid_after, self.valid_before, self.nonce]


async def happened(chain: Chain, payer: bytes, nonce: bytes, value: int) -> bool | None:
    """Whether an authorization that is used up has moved `value` to this wallet, or was cancelled; None: not known."""
    return None
