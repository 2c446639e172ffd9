"""A seller's bonds found again from the chain alone: their terms are in the events that locked them."""

from typing import Any, Final

from attrs import frozen

from ledger.rails.stablecoin.bond_terms import BondPlace, BondTerms
from ledger.rails.stablecoin.contracts import BOND_TERMS, Malformed, decoded
from ledger.rails.stablecoin.digests import keccak
from ledger.rails.stablecoin.logs import all_together, in_spans
from ledger.rails.stablecoin.networks import Network, address
from ledger.rails.stablecoin.reading import Reading
from ledger.rails.stablecoin.rpc import Endpoint, digest, hexed, octets

_BONDED: Final = keccak(f"Bonded(bytes32,address,uint128,uint128,{BOND_TERMS})".encode())
_MAX_EVENTS: Final = 10_000


@frozen
class BondFinding:
    """Searches the events of a contract of bonds, from the last block back to the network's first."""

    _reading: Reading
    _network: Network

    async def find(self, place: BondPlace, seller: bytes) -> list[BondTerms]:
        """As every endpoint has them together: one may hide some, and none can invent any. Raises Unreachable."""
        last = (await self._reading.head()).number
        found = await all_together(
            self._reading.endpoints.usable, lambda endpoint: self._found_at(endpoint, place, seller, last)
        )
        return list(found.values())

    async def _found_at(self, endpoint: Endpoint, place: BondPlace, seller: bytes, last: int) -> dict[bytes, BondTerms]:
        topics = [hexed(_BONDED), None, hexed(seller.rjust(32, b"\0"))]

        def parse(answer: Any) -> dict[bytes, BondTerms]:
            if not isinstance(answer, list) or len(answer) > _MAX_EVENTS:
                raise Malformed("not a list of events")
            read = dict(_read(each) for each in answer)
            # What is no bond's id, or another's bond, is a lie.
            return {id_: terms for id_, terms in read.items() if place.bond_id(terms) == id_ and terms.seller == seller}

        async def part(first: int, end: int) -> dict[bytes, BondTerms]:
            asked = {"address": hexed(place.contract), "fromBlock": hexed(first), "toBlock": hexed(end)}
            return await endpoint.ask("eth_getLogs", asked | {"topics": topics}, parse=parse)

        found: dict[bytes, BondTerms] = {}
        async for each in in_spans(endpoint, self._network.since, last, self._network.logs, part):
            found |= each
        return found


def _read(event: Any) -> tuple[bytes, BondTerms]:
    topics = event.get("topics") if isinstance(event, dict) else None
    if not isinstance(topics, list) or len(topics) != 3:
        raise Malformed("not an event that was asked for")
    _, _, said = decoded(["uint128", "uint128", BOND_TERMS], octets(event.get("data")))
    seller, token, sink, notice, challenge, quorum, arbiters, salt = said
    named = tuple(map(address, arbiters))
    return digest(topics[1]), BondTerms(
        address(seller), address(token), address(sink), notice, challenge, quorum, named, salt
    )
