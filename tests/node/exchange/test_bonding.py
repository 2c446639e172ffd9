"""The bonds that a node has locked: found again, told apart, and named in offers; on a real chain."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.identity import Identity
from ledger.journal import MemoryJournal
from ledger.rails.stablecoin.bond_terms import BondRefused, terms_of
from ledger.rails.stablecoin.bonds import Bonds
from ledger.rails.stablecoin.chain import Chain, Outcome
from ledger.rails.stablecoin.networks import address, network
from node.exchange.bonding import Conditions, OwnBonds
from node.exchange.book import Book
from node.ports import ManualClock
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.channels import key

DAY = 86_400
DOLLAR = 10**6
ARBITERS = tuple(bytes([number]) * 20 for number in (1, 2, 3))
TERMS = Conditions(ARBITERS, 2, DAY, DAY)
ME = Identity(bytes(31) + b"\7")


class Owner:
    """A node with 500 dollars in its wallet; it knows the same journal again after a restart."""

    def __init__(self, chain: Anvil, view: Chain) -> None:
        self.chain, self.view = chain, view
        self.journal = MemoryJournal(ME.did)
        self.bonds = Bonds(view, address(chain.deployed.bonds))

    async def open(self, chosen: bytes | None = None) -> OwnBonds:
        book = await Book.open(self.journal, ME, ManualClock())
        return await OwnBonds.open(book, self.bonds, self.view.address, address(self.chain.deployed.dollar), chosen)

    async def mined(self, transaction: bytes) -> Outcome:
        self.chain.mine()
        return await self.view.outcome(transaction)

    async def lock(self, own: OwnBonds, total: int, terms: Conditions = TERMS) -> bytes:
        bond, _ = await own.lock_new(terms, total * DOLLAR, self.mined)
        self.chain.mine(3)
        return bond.id


@pytest.fixture
async def owner(chain: Anvil, tmp_path: Path) -> AsyncIterator[Owner]:
    wallet = key(chain, dollars=500 * DOLLAR)
    where = network("anvil")
    view = await Chain.open(where, (chain.url,), tmp_path, wallet, contract=address(chain.deployed.channels))
    yield Owner(chain, view)
    await view.close()


async def test_bonds_are_found_again_in_the_journal(owner: Owner) -> None:
    own = await owner.open()
    first = await owner.lock(own, 100)
    other = await owner.lock(own, 50, Conditions(ARBITERS, 3, DAY, 2 * DAY))
    assert [bond.serial for bond in own.all] == [1, 2]
    assert await owner.lock(own, 120, Conditions((*ARBITERS[::-1], ARBITERS[0]), 2, DAY, DAY)) == first

    again = await owner.open()
    assert again.all == own.all
    assert again.find(f"0x{other.hex()[:8]}").id == other
    assert [(await again.stake(bond)).locked for bond in again.all] == [120 * DOLLAR, 50 * DOLLAR]
    with pytest.raises(BondRefused, match="2 bonds of this node's begin with 0x"):
        again.find("")


async def test_bonds_are_found_again_on_the_chain_when_the_journal_is_lost(owner: Owner) -> None:
    own = await owner.open()
    await owner.lock(own, 100)
    await owner.lock(own, 50, Conditions(ARBITERS, 3, DAY, DAY, sink=b"\x51" * 20))
    await owner.lock(own, 120)
    before, owner.journal = own.all, MemoryJournal(ME.did)
    again = await owner.open()
    assert again.all == []
    assert sorted(await again.recover(60) or [], key=lambda bond: bond.serial) == before
    assert await again.recover(60) == []
    assert (await owner.open()).all == before


def pledged(own: OwnBonds) -> tuple[int, int] | None:
    """Serial number and dollars of the bond that offers name."""
    return None if own.pledged is None else (own.pledged.serial, own.pledged.amount // DOLLAR)


async def test_offers_name_the_largest_bond_or_the_chosen_one_with_what_is_free_of_it(owner: Owner) -> None:
    own = await owner.open()
    large = await owner.lock(own, 100)
    await owner.lock(own, 50, Conditions(ARBITERS, 3, DAY, DAY))
    assert pledged(own) is None, "nothing is named before it was seen"
    await own.look()
    assert pledged(own) == (1, 100)
    assert own.pledged is not None
    assert owner.bonds.place.bond_id(terms_of(own.pledged, ME.did)) == large
    await own.ask_back(own.find(large.hex()), 60 * DOLLAR)
    owner.chain.mine(3)
    await own.look()
    assert pledged(own) == (2, 50)

    chosen, unknown = await owner.open(chosen=large), await owner.open(chosen=bytes(32))
    await chosen.look()
    await unknown.look()
    assert (pledged(chosen), pledged(unknown)) == ((1, 40), None)
    with owner.chain.down():
        await chosen.look()
    assert pledged(chosen) == (1, 40), "what was seen before stands: buyers look for themselves"


async def test_terms_that_the_contract_would_refuse_are_kept_nowhere(owner: Owner) -> None:
    own = await owner.open()
    with pytest.raises(BondRefused, match="more than half"):
        await owner.lock(own, 100, Conditions(ARBITERS, 1, DAY, DAY))
    assert own.all == (await owner.open()).all == []
    with pytest.raises(BondRefused, match="locked no bond yet"):
        own.find("")
