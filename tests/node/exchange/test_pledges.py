"""What named bonds are worth to a buyer: what the chain says, lately, by arbiters that it trusts."""

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from ledger.identity import Did
from ledger.rails.stablecoin.bond_terms import BondPlace, BondTerms, KnownBonds, Stake, named, salt_of, terms_of
from ledger.records import Bond, Offer, Signed
from node.exchange.pledges import Pledges
from node.ports import ManualClock
from tests.node.market.conftest import offer_by

PLACE = BondPlace(8453, b"\xb0" * 20)
ARBITERS = (b"\x01" * 20, b"\x02" * 20, b"\x03" * 20)
KNOWN = KnownBonds(PLACE, b"\xd0" * 20, set(ARBITERS[:2]))
DAY = 86_400


def bond_of(did: str, amount: int = 100, **changes: Any) -> Bond:
    terms = BondTerms(b"\x5e" * 20, KNOWN.token, bytes(20), DAY, DAY, 2, ARBITERS, salt_of(did, 1))
    return evolve(named(terms, PLACE, 1, amount), **changes)


class Market:
    """Offers, and a ledger of stakes in memory that can fall silent."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.offers: list[Signed[Offer]] = []
        self.stakes: dict[bytes, tuple[Stake, ...]] = {}
        self.silent = False
        self.read = 0
        self.pledges = Pledges(KNOWN, self._stakes, lambda: self.offers, self.clock)

    async def _stakes(self, bond: bytes) -> tuple[Stake, ...]:
        self.read += 1
        if self.silent:
            raise ConnectionError
        return self.stakes.get(bond, (Stake(), Stake()))

    def sell(self, number: int, bond: Callable[[Did], Bond] | None, *stakes: Stake) -> Did:
        """A seller whose offer names a bond; what is locked in it, where it stays and at the head."""
        did = offer_by(number).signer
        pledged = bond(did) if bond else None
        self.offers.append(offer_by(number, bond=pledged))
        if pledged is not None:
            self.stakes[PLACE.bond_id(terms_of(pledged, did))] = stakes
        return did


@pytest.fixture
def market() -> Market:
    return Market()


async def test_what_is_locked_and_free_counts_up_to_what_the_seller_says(market: Market) -> None:
    whole = market.sell(1, bond_of, Stake(500), Stake(500))
    half = market.sell(2, bond_of, Stake(500, reserved=250, unlocking=200), Stake(500))
    young = market.sell(3, bond_of, Stake(), Stake(500))
    going = market.sell(4, bond_of, Stake(500), Stake(500, unlocking=500))
    without = market.sell(5, None)
    await market.pledges.look()
    assert [market.pledges.worth(did) for did in (whole, half, young, going, without)] == [100, 50, 0, 0, 0]
    assert market.pledges.why(whole) == market.pledges.why(without) == ""
    assert market.pledges.why(young) == "nothing of it is locked and free"


async def test_nothing_counts_before_it_was_read_and_a_claim_alone_is_not_even_read(market: Market) -> None:
    seller = market.sell(1, bond_of, Stake(500), Stake(500))
    other = market.sell(2, lambda did: bond_of(did, arbiters=(ARBITERS[0], ARBITERS[2])), Stake(500), Stake(500))
    assert market.pledges.worth(seller) == 0
    await market.pledges.look()
    assert (market.pledges.worth(seller), market.pledges.worth(other), market.read) == (100, 0, 1)
    assert "1 are trusted here, and 2 must agree" in market.pledges.why(other)


async def test_a_bond_of_another_seller_is_not_the_namer_s(market: Market) -> None:
    owner = market.sell(1, bond_of, Stake(500), Stake(500))
    thief = market.sell(2, lambda _: bond_of(owner))
    await market.pledges.look()
    assert (market.pledges.worth(owner), market.pledges.worth(thief)) == (100, 0)


async def test_a_silent_chain_vouches_for_what_it_said_for_a_quarter_of_an_hour(market: Market) -> None:
    seller = market.sell(1, bond_of, Stake(500), Stake(500))
    await market.pledges.look()
    market.silent = True
    market.clock.advance(900)
    await market.pledges.look()
    assert market.pledges.worth(seller) == 100
    market.clock.advance(1)
    assert market.pledges.worth(seller) == 0
    assert "could not be read" in market.pledges.why(seller)


async def test_the_newest_offer_says_which_bond(market: Market) -> None:
    seller = market.sell(1, bond_of, Stake(500), Stake(500))
    await market.pledges.look()
    market.offers.append(offer_by(1, sequence=market.offers[0].record.sequence + 1))
    await market.pledges.look()
    assert market.pledges.worth(seller) == 0


async def test_of_a_crowd_of_sellers_so_many_bonds_are_read(market: Market) -> None:
    offer = market.offers
    template = offer_by(1)
    for number in range(300):
        did = Did(f"did:key:{number}")
        offer.append(Signed(evolve(template.record, bond=bond_of(did)), did, b"", number.to_bytes(32, "big")))
    await market.pledges.look()
    assert market.read == 256
