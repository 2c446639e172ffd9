"""Bonds and slashes found from the chain alone: terms are in the events that locked a bond, evidence in proposals."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from attrs import frozen

from ledger.rails.stablecoin.bond_terms import BondPlace, BondTerms
from ledger.rails.stablecoin.contracts import BOND_TERMS, Malformed, decoded
from ledger.rails.stablecoin.digests import keccak
from ledger.rails.stablecoin.errors import ChainError, Unreachable
from ledger.rails.stablecoin.logs import all_together, in_spans
from ledger.rails.stablecoin.networks import Network, address
from ledger.rails.stablecoin.reading import Reading
from ledger.rails.stablecoin.rpc import Endpoint, Silent, digest, hexed, octets

T = TypeVar("T")
_BONDED: Final = keccak(f"Bonded(bytes32,address,uint128,uint128,{BOND_TERMS})".encode())
_PROPOSED: Final = keccak(b"SlashProposed(bytes32,bytes32,address,uint128,uint128,uint40)")
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

    async def terms(self, place: BondPlace, bond: bytes) -> BondTerms | None:
        """The terms of one bond, by the first endpoint that has them: they prove themselves. Raises Unreachable."""
        last = (await self._reading.head()).number
        why: ChainError | None = None
        for endpoint in self._reading.endpoints.usable:
            try:
                async for each in self._terms_at(endpoint, place, [hexed(_BONDED), hexed(bond)], 0, last):
                    if bond in each:
                        return each[bond]
            except (Silent, Unreachable) as error:
                why = error
        if why is not None:
            raise Unreachable(str(why))
        return None

    async def slashes(
        self, place: BondPlace, bond: bytes, for_s: int, enough: Callable[[set[bytes]], Awaitable[bool]]
    ) -> None:
        """Tell of the evidence that was brought against a bond, from the last block back, until that is enough.

        One endpoint may hide some: then the next is asked. Raises Unreachable.
        """
        last = (await self._reading.head()).number
        first = max(self._network.since, last - math.ceil(for_s / self._network.block_s) - self._network.logs)
        topics = [hexed(_PROPOSED), hexed(bond)]
        why: ChainError | None = None
        for endpoint in self._reading.endpoints.usable:
            ask = partial(self._events, endpoint, place, topics, _evidence)
            try:
                async for found in in_spans(endpoint, first, last, self._network.logs, ask):
                    if found and await enough(found):
                        return
            except (Silent, Unreachable) as error:
                why = error
        if why is not None:
            raise Unreachable(str(why))

    def _terms_at(
        self, endpoint: Endpoint, place: BondPlace, topics: Sequence[str | None], first: int, last: int
    ) -> AsyncIterator[dict[bytes, BondTerms]]:
        def parse(answer: Any) -> dict[bytes, BondTerms]:
            read = dict(_read(each) for each in _listed(answer))
            # What is no bond's id is a lie.
            return {id_: terms for id_, terms in read.items() if place.bond_id(terms) == id_}

        ask = partial(self._events, endpoint, place, topics, parse)
        return in_spans(endpoint, max(first, self._network.since), last, self._network.logs, ask)

    async def _events(
        self,
        endpoint: Endpoint,
        place: BondPlace,
        topics: Sequence[str | None],
        parse: Callable[[Any], T],
        first: int,
        last: int,
    ) -> T:
        asked = {"address": hexed(place.contract), "fromBlock": hexed(first), "toBlock": hexed(last)}
        return await endpoint.ask("eth_getLogs", asked | {"topics": list(topics)}, parse=parse)

    async def _found_at(self, endpoint: Endpoint, place: BondPlace, seller: bytes, last: int) -> dict[bytes, BondTerms]:
        topics = [hexed(_BONDED), None, hexed(seller.rjust(32, b"\0"))]
        found: dict[bytes, BondTerms] = {}
        async for each in self._terms_at(endpoint, place, topics, 0, last):
            found |= {id_: terms for id_, terms in each.items() if terms.seller == seller}
        return found


def _listed(answer: Any) -> list[Any]:
    if not isinstance(answer, list) or len(answer) > _MAX_EVENTS:
        raise Malformed("not a list of events")
    return answer


def _evidence(answer: Any) -> set[bytes]:
    """What slashes were proposed for."""
    return {digest(_topics(each, 4)[2]) for each in _listed(answer)}


def _topics(event: Any, count: int) -> list[Any]:
    topics = event.get("topics") if isinstance(event, dict) else None
    if not isinstance(topics, list) or len(topics) != count:
        raise Malformed("not an event that was asked for")
    return topics


def _read(event: Any) -> tuple[bytes, BondTerms]:
    topics = _topics(event, 3)
    _, _, said = decoded(["uint128", "uint128", BOND_TERMS], octets(event.get("data")))
    seller, token, sink, notice, challenge, quorum, arbiters, salt = said
    named = tuple(map(address, arbiters))
    return digest(topics[1]), BondTerms(
        address(seller), address(token), address(sink), notice, challenge, quorum, named, salt
    )
