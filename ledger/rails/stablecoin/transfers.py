"""Tokens that change hands by a signature (EIP-3009, `transferWithAuthorization`), once at most for a nonce.

It is what x402's `exact` scheme signs. Addresses have 20 bytes, nonces 32, amounts are units of the token, times
seconds since 1970.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any, Final

from attrs import field, frozen, validators

from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.contracts import CODEC, Call, Malformed
from ledger.rails.stablecoin.digests import TRANSFER, domain, keccak
from ledger.rails.stablecoin.errors import Unreachable
from ledger.rails.stablecoin.networks import Token
from ledger.rails.stablecoin.rpc import Endpoint, digest, hexed, octets, quantity
from ledger.rails.stablecoin.typed import domain_of_token, message
from ledger.rails.stablecoin.vouchers import signer_of

_TYPE: Final = keccak(TRANSFER.encode())
_ARGUMENTS: Final = ("address", "address", "uint256", "uint256", "uint256", "bytes32", "uint8", "bytes32", "bytes32")
_USED: Final = keccak(b"AuthorizationUsed(address,bytes32)")
_MOVED: Final = keccak(b"Transfer(address,address,uint256)")
_MAX_EVENTS: Final = 1_000
MOST_NONCES: Final = 200  # of one question: endpoints bound its length
_MOST_SPANS: Final = 64
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
        return keccak(prefix + keccak(_TYPE + CODEC.encode(_ARGUMENTS[:6], self._values())))

    def is_signed(self, chain_id: int, token: Token, signature: bytes) -> bool:
        """Whether the payer's key has signed it; wallets that are contracts sign otherwise, and are not asked."""
        return signer_of(self.digest(chain_id, token), signature) == self.payer

    def call(self, token: Token, signature: bytes) -> Call:
        """The call that makes it happen, by anybody."""
        v, r, s = signature[64], signature[:32], signature[32:64]
        return Call(token.address, _SELECTOR + CODEC.encode(_ARGUMENTS, [*self._values(), v, r, s]))

    def typed(self, chain_id: int, token: Token) -> dict[str, Any]:
        """The whole message (EIP-712), for wallets that show what they sign."""
        return message(domain_of_token(token, chain_id), TRANSFER, *self._values())

    def _values(self) -> list[Any]:
        return [self.payer, self.receiver, self.value, self.valid_after, self.valid_before, self.nonce]


async def happened(chain: Chain, authorization: tuple[bytes, bytes], value: int, since: int) -> bool | None:
    """Whether an authorization (payer, nonce) that is used up has moved `value` to this wallet, by whose transaction
    ever; else it was cancelled. `since`: seconds since 1970, before which it cannot have been used.

    None: the endpoints do not agree, or it lies too far back. Raises Unreachable.
    """
    payer, nonce = authorization
    blocks = await _since(chain, since)
    if blocks is None:
        return None
    said = await chain.endpoints.each(lambda endpoint: _moved(endpoint, chain, payer, nonce, value, blocks))
    words = {word for _, word in said if isinstance(word, bool)}
    return words.pop() if len(words) == 1 else None


async def used_among(
    chain: Chain, authorizations: Collection[tuple[bytes, bytes]], since: int
) -> set[tuple[bytes, bytes]] | None:
    """Those of authorizations (payer, nonce; at most MOST_NONCES) that were used up since then, by any endpoint's word.

    None: that lies too far back. Raises Unreachable.
    """
    blocks = await _since(chain, since)
    if blocks is None:
        return None
    said = await chain.endpoints.each(lambda endpoint: _used(endpoint, chain, authorizations, blocks))
    found = [word for _, word in said if isinstance(word, set)]
    if not found:
        raise Unreachable("none tells the token's events")
    return set().union(*found) & set(authorizations)


async def _since(chain: Chain, since: int) -> range | None:
    """The blocks since then (seconds since 1970), and some before; None: too many. Raises Unreachable."""
    number, now = await chain.block()
    span = math.ceil(max(now - since, 0) / chain.network.block_s) + chain.network.logs
    return None if span > _MOST_SPANS * chain.network.logs else range(max(number - span, 0), number + 1)


def _questions(chain: Chain, blocks: range, topics: list[Any]) -> Iterator[dict[str, Any]]:
    """What is asked for the token's events in these blocks."""
    step = chain.network.logs
    for first in blocks[::step]:
        last = min(first + step - 1, blocks[-1])
        token = hexed(chain.network.token.address)
        yield {"address": token, "fromBlock": hexed(first), "toBlock": hexed(last), "topics": topics}


async def _used(
    endpoint: Endpoint, chain: Chain, authorizations: Collection[tuple[bytes, bytes]], blocks: range
) -> set[tuple[bytes, bytes]]:
    """What one endpoint says. Raises Silent, Said."""
    payers = sorted({hexed(payer.rjust(32, b"\0")) for payer, _ in authorizations})
    nonces = sorted({hexed(nonce) for _, nonce in authorizations})
    found: set[tuple[bytes, bytes]] = set()
    for question in _questions(chain, blocks, [hexed(_USED), payers, nonces]):
        found |= await endpoint.ask("eth_getLogs", question, parse=_users)
    return found


async def _moved(endpoint: Endpoint, chain: Chain, payer: bytes, nonce: bytes, value: int, blocks: range) -> bool:
    """What one endpoint says. Raises Silent, Said."""
    token = hexed(chain.network.token.address)
    for used in _questions(chain, blocks, [hexed(_USED), hexed(payer.rjust(32, b"\0")), hexed(nonce)]):
        for block, place in await endpoint.ask("eth_getLogs", used, parse=_places):
            sides = [hexed(side.rjust(32, b"\0")) for side in (payer, chain.address)]
            moved = {"address": token, "blockHash": hexed(block), "topics": [hexed(_MOVED), *sides]}
            found = await endpoint.ask("eth_getLogs", moved, parse=_amounts)
            # One transaction may use up many nonces and move money once: only what the token tells right after a nonce
            # was used is that nonce's.
            if found.get(place + 1) == value:
                return True
    return False


def _events(found: object) -> list[dict[str, Any]]:
    if not isinstance(found, list) or len(found) > _MAX_EVENTS or not all(isinstance(each, dict) for each in found):
        raise Malformed("not a list of events")
    return found


def _users(found: object) -> set[tuple[bytes, bytes]]:
    """The payers and nonces of events that say that one was used."""
    users = set()
    for each in _events(found):
        topics = each.get("topics")
        if not isinstance(topics, list) or len(topics) != 3:
            raise Malformed("not the events that were asked for")
        users.add((digest(topics[1])[12:], digest(topics[2])))
    return users


def _places(found: object) -> list[tuple[bytes, int]]:
    """The blocks of events, and their places in them."""
    return [(digest(each.get("blockHash")), quantity(each.get("logIndex"))) for each in _events(found)]


def _amounts(found: object) -> dict[int, int]:
    """By their places in a block, what events say that has moved."""
    return {quantity(each.get("logIndex")): int.from_bytes(octets(each.get("data")), "big") for each in _events(found)}
