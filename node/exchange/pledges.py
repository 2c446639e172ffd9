"""What the stakes are worth that sellers name in their offers: read on the chain, again and again, before they count.

Theory of operation. Offers only claim. What can count by its terms (the contract and token known here, a quorum of
arbiters that the owner trusts) is read every two minutes where it stays and at the head, and the less of the two
counts. What could not be read for a quarter of an hour counts for nothing: a chain that is silent vouches for nobody.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from attrs import evolve, frozen

from ledger.identity import Did
from ledger.rails.stablecoin.bond_terms import BondRefused, KnownBonds, Stake
from ledger.records import Bond, Offer, Signed
from node.ports import Clock

_LOOK_S: Final = 120.0
_ROUND_S: Final = 2.0
_FRESH_S: Final = 900.0
# Anyone may name a bond: so many sellers' are read in a round, so many at a time, none for longer than this.
_MOST: Final = 256
_AT_ONCE: Final = 4
_READ_S: Final = 30.0

_log = logging.getLogger(__name__)


@frozen
class Pledge:
    """One seller's bond as it was seen: what of it counts (uusd), or why nothing does."""

    bond: Bond
    counted: int = 0
    why: str = ""
    seen: float = 0.0  # seconds since 1970, as is `tried`
    tried: float = 0.0


class Pledges:
    """The bonds of the sellers in reach; `run` it in the background, or `look` once."""

    def __init__(
        self,
        known: KnownBonds,
        read: Callable[[bytes], Awaitable[Iterable[Stake]]],
        offers: Callable[[], Iterable[Signed[Offer]]],
        clock: Clock,
    ) -> None:
        """`read` gives a bond's money by its id, each as of another moment; it may raise anything."""
        self._known = known
        self._read = read
        self._offers = offers
        self._clock = clock
        self._pledges: dict[Did, Pledge] = {}

    def worth(self, seller: Did) -> int:
        """What of a seller's bond counts now, in uusd."""
        pledge = self._pledges.get(seller)
        if pledge is None or not 0 <= self._clock.now() - pledge.seen <= _FRESH_S:
            return 0
        return pledge.counted

    def why(self, seller: Did) -> str:
        """Why the bond that a seller names does not count, in words for the owner; empty if it does, or names none."""
        pledge = self._pledges.get(seller)
        if pledge is None or self.worth(seller):
            return ""
        return pledge.why or "it could not be read on the chain for a while"

    async def run(self) -> None:
        """Look every now and then, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - whatever it was, the next look may succeed
                _log.exception("bonds could not be looked at; it is tried again")
            await asyncio.sleep(_ROUND_S)

    async def look(self) -> None:
        """Read the bonds that the open offers name, as far as that is due."""
        named = self._named()
        self._pledges = {did: pledge for did, pledge in self._pledges.items() if named.get(did) == pledge.bond}
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(did: Did, bond: Bond) -> None:
            async with slots:
                await self._look_at(did, bond)

        await asyncio.gather(*(one(did, bond) for did, bond in named.items() if self._is_due(did)))

    def _is_due(self, did: Did) -> bool:
        pledge = self._pledges.get(did)
        return pledge is None or not 0 <= self._clock.now() - pledge.tried < _LOOK_S

    def _named(self) -> dict[Did, Bond]:
        """By seller, what its newest offer names."""
        newest: dict[Did, Offer] = {}
        for offer in self._offers():
            standing = newest.get(offer.signer)
            if standing is None or standing.sequence < offer.record.sequence:
                newest[offer.signer] = offer.record
        found = ((did, offer.bond) for did, offer in newest.items() if offer.bond is not None)
        return dict(list(found)[:_MOST])

    async def _look_at(self, did: Did, bond: Bond) -> None:
        now = self._clock.now()
        before = self._pledges.get(did) or Pledge(bond)
        try:
            terms = self._known.check(bond, did)
        except BondRefused as error:
            self._pledges[did] = Pledge(bond, 0, str(error), now, now)
            return
        try:
            async with asyncio.timeout(_READ_S):
                stakes = list(await self._read(self._known.place.bond_id(terms)))
        except Exception as error:  # noqa: BLE001 - an endpoint may fail in any way; what was seen before ages
            _log.info("the bond of %s could not be read: %s", did, type(error).__name__)
            self._pledges[did] = evolve(before, tried=now)
            return
        counted = self._known.counted(bond, stakes) if stakes else 0
        self._pledges[did] = Pledge(bond, counted, "" if counted else "nothing of it is locked and free", now, now)
