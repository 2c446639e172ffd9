"""What gas costs now, and transactions as EIP-1559 has them."""

from typing import Any, Final

import rlp
from attrs import frozen

from ledger.rails.stablecoin.contracts import Call, answered, encoded
from ledger.rails.stablecoin.digests import keccak
from ledger.rails.stablecoin.errors import Unreachable
from ledger.rails.stablecoin.networks import Network, checksummed
from ledger.rails.stablecoin.rpc import Endpoints, Said, head, hexed, octets, quantity

# Geth takes a replacement from 10% more on; rounding must not fall below.
_RISE_NUMERATOR, _RISE_DENOMINATOR = 9, 8
_L1_SAMPLE: Final = 1024  # bytes: the network's bound is for a whole transaction


@frozen
class GasPrice:
    """What gas costs now in wei: `expected` by the last block's base fee and the tip; `most` is what is offered.

    `l1_byte` is what a byte of a transaction costs besides, where the network pays another for its data (OP stack).
    """

    expected: int
    most: int
    tip: int
    l1_byte: int = 0

    def cost(self, gas: int, size: int) -> int:
        """Of a transaction of so much gas and so many bytes, in wei."""
        return gas * self.expected + size * self.l1_byte


async def gas_price(endpoints: Endpoints, network: Network) -> GasPrice:
    """Of what endpoints say, the middle, and the lower of two: the offer is raised if it does not do.

    Raises Unreachable.
    """
    heads = await endpoints.ask_all("eth_getBlockByNumber", "latest", False, parse=head)
    tips = await endpoints.ask_all("eth_maxPriorityFeePerGas", parse=quantity)
    bases = [each.base_fee for _, each in heads if not isinstance(each, Said)]
    if not bases:
        raise Unreachable("none gives the last block")
    base = middle(bases)
    tip = middle([each for _, each in tips if not isinstance(each, Said)])
    return GasPrice(base + tip, 2 * base + tip, tip, await _l1_byte(endpoints, network))


async def _l1_byte(endpoints: Endpoints, network: Network) -> int:
    if network.l1_fees is None:
        return 0
    question = {"to": hexed(network.l1_fees), "data": hexed(encoded("getL1FeeUpperBound", _L1_SAMPLE))}

    def parse(found: Any) -> int:
        return int(answered("getL1FeeUpperBound", octets(found))[0])

    said = await endpoints.ask_all("eth_call", question, "latest", parse=parse)
    found = [each for _, each in said if not isinstance(each, Said)]
    return -(-middle(found) // _L1_SAMPLE)


def middle(values: list[int]) -> int:
    """The median, the lower of two; 0 of none."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0


def raised(price: int) -> int:
    """The least that replaces a transaction that offered this."""
    return -(-price * _RISE_NUMERATOR // _RISE_DENOMINATOR) + 1


def transaction(chain_id: int, nonce: int, call: Call, gas: int, most: int, tip: int) -> tuple[list[Any], bytes]:
    """An EIP-1559 transaction's fields, and the digest that is signed."""
    fields = [chain_id, nonce, tip, most, gas, call.to, call.value, call.data, []]
    return fields, keccak(b"\x02" + rlp.encode(fields))


def signed_transaction(fields: list[Any], signature: bytes) -> tuple[bytes, bytes]:
    """With its signature (r, s, v): the bytes that are sent, and the transaction's hash."""
    r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:64]))
    raw = b"\x02" + rlp.encode([*fields, signature[64] - 27, r, s])
    return raw, keccak(raw)


def shown(fields: list[Any]) -> dict[str, Any]:
    """A transaction for an external signer, in JSON-RPC's names."""
    chain_id, nonce, tip, most, gas, to, value, data, _ = fields
    return {
        "transaction": {
            "type": "0x2",
            "chainId": hexed(chain_id),
            "nonce": hexed(nonce),
            "maxPriorityFeePerGas": hexed(tip),
            "maxFeePerGas": hexed(most),
            "gas": hexed(gas),
            "to": checksummed(to),
            "value": hexed(value),
            "data": hexed(data),
        }
    }
