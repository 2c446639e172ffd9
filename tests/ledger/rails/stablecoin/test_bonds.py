"""A seller's acts on the contract of bonds, on a real chain."""

import asyncio
import hashlib
from collections.abc import Awaitable

import pytest
from attrs import astuple, evolve

from ledger.identity import Identity
from ledger.rails.stablecoin.bond_terms import BondRefused, BondTerms, Stake, salt_of
from ledger.rails.stablecoin.bonds import Bonds, Done, TooEarly
from ledger.rails.stablecoin.chain import Chain, Outcome
from ledger.rails.stablecoin.digests import domain, keccak
from ledger.rails.stablecoin.keys import Key
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.channels import key, raw
from tests.ledger.rails.stablecoin.conftest import Opens

DAY = 86_400
DOLLAR = 10**6
SELLER = Identity(bytes(32)).did
_TERMS = "(address,address,address,uint40,uint40,uint8,address[],bytes32)"
PROPOSE = f"proposeSlash({_TERMS},(bytes32,address,uint128,uint128,uint40),(uint8,bytes)[])"


class Seller:
    """A wallet with 200 dollars, its terms, and three arbiters."""

    def __init__(self, chain: Anvil, view: Chain, wallet: Key, arbiters: list[Key]) -> None:
        self.chain, self.view, self.wallet = chain, view, wallet
        self.bonds = bonds = Bonds(view, raw(chain.deployed.bonds))
        self.arbiters = sorted(arbiters, key=lambda one: one.address)
        named = tuple(one.address for one in self.arbiters)
        dollar = raw(chain.deployed.dollar)
        self.terms = BondTerms(wallet.address, dollar, bytes(20), DAY, 2 * DAY, 2, named, salt_of(SELLER, 1))
        self.id = bonds.place.bond_id(self.terms)

    @staticmethod
    async def open(chain: Anvil, opens: Opens) -> "Seller":
        wallet = key(chain, dollars=200 * DOLLAR)
        return Seller(chain, await opens(wallet), wallet, [key(chain, ether=0) for _ in range(3)])

    async def wait(self, transaction: bytes) -> Outcome:
        self.chain.mine()
        return await self.view.outcome(transaction)

    async def does(self, act: Awaitable[Done]) -> Done:
        """An act, once it stays."""
        done = await act
        self.chain.mine(3)
        return done

    async def lock(self, total: int) -> str:
        return (await self.does(self.bonds.lock(self.terms, total, self.wait))).outcome.state

    def propose_slash(self, amount: int) -> None:
        """By two of the arbiters, for a buyer's damage of as much."""
        evidence, deadline = hashlib.sha256(b"a dishonest receipt").digest(), self.chain.time + DAY
        buyer = key(self.chain, ether=0).address
        said = [evidence, buyer.rjust(32, b"\0"), *(n.to_bytes(32, "big") for n in (amount, amount, deadline))]
        slash = keccak(
            b"Slash(bytes32 bondId,bytes32 evidence,address buyer,uint128 damage,uint128 amount,uint40 deadline)"
        )
        separator = domain("idlemesh Bonds", "1", self.bonds.place.chain_id, self.bonds.place.contract)
        digest = keccak(b"\x19\x01" + separator + keccak(b"".join([slash, self.id, *said])))
        signed = [(place, arbiter.signature(digest)) for place, arbiter in enumerate(self.arbiters[:2])]
        terms = astuple(self.terms, recurse=False)
        judgement = (evidence, buyer, amount, amount, deadline)
        self.chain.send(self.chain.deployed.bonds, PROPOSE, terms, judgement, signed)


@pytest.fixture
async def seller(chain: Anvil, opens: Opens) -> Seller:
    return await Seller.open(chain, opens)


async def test_a_stake_is_locked_raised_asked_back_and_taken(chain: Anvil, seller: Seller) -> None:
    bonds, terms = seller.bonds, seller.terms
    said = astuple(terms, recurse=False)
    assert chain.call(chain.deployed.bonds, f"getBondId({_TERMS})", said, returns="bytes32") == seller.id
    await seller.lock(100 * DOLLAR)
    assert await seller.lock(100 * DOLLAR) == "settled"
    await seller.lock(150 * DOLLAR)
    assert await bonds.stake(seller.id) == Stake(150 * DOLLAR)
    assert {stake.free for stake in await bonds.seen(seller.id)} == {150 * DOLLAR}

    await seller.does(bonds.ask_back(terms, 50 * DOLLAR))
    with pytest.raises(BondRefused, match="asked back already"):
        await bonds.ask_back(terms, 50 * DOLLAR)
    assert (await bonds.stake(seller.id)).free == 100 * DOLLAR
    await seller.does(bonds.keep(terms))
    assert (await bonds.stake(seller.id)).free == 150 * DOLLAR
    await seller.does(bonds.ask_back(terms, 150 * DOLLAR))
    with pytest.raises(TooEarly) as early:
        await bonds.take(terms)
    chain.pass_time(early.value.at - chain.time)
    await seller.does(bonds.take(terms))
    assert await bonds.stake(seller.id) == Stake()
    assert chain.dollars("0x" + seller.wallet.address.hex()) == 200 * DOLLAR
    chain.mine(3)

    # What was done before can be meant again, once it is over.
    await seller.lock(100 * DOLLAR)
    assert (await bonds.stake(seller.id)).locked == 100 * DOLLAR


async def test_a_lock_that_is_asked_for_twice_before_it_is_mined_happens_once(chain: Anvil, seller: Seller) -> None:
    with chain.without_mining():
        first = await seller.bonds.lock(seller.terms, 100 * DOLLAR, seller.view.outcome)
        assert (first.act, first.outcome.state) == ("approve", "waiting")
        chain.mine()
        again = [await seller.bonds.lock(seller.terms, 100 * DOLLAR, seller.view.outcome) for _ in range(2)]
        assert [(done.act, done.outcome.state) for done in again] == [("lock", "waiting")] * 2
        assert again[0].key == again[1].key
        chain.mine()
    assert (await seller.bonds.stake(seller.id)).locked == 100 * DOLLAR


async def test_a_node_that_ends_amid_a_lock_and_a_chain_that_forgets_it_lock_it_once(
    chain: Anvil, seller: Seller, opens: Opens
) -> None:
    view = await opens(seller.wallet, folder="kept")
    with chain.without_mining():
        approved = await Bonds(view, seller.bonds.place.contract).lock(seller.terms, 100 * DOLLAR, view.outcome)
        assert approved.act == "approve"
        chain.mine()
        sent = await Bonds(view, seller.bonds.place.contract).lock(seller.terms, 100 * DOLLAR, view.outcome)
        await view.close()
        view = await opens(seller.wallet, folder="kept")
        again = await Bonds(view, seller.bonds.place.contract).lock(seller.terms, 100 * DOLLAR, view.outcome)
        assert (again.act, again.key, again.outcome.hash) == ("lock", sent.key, sent.outcome.hash)
        chain.mine()
        chain.reorganise(1)
        assert (await seller.bonds.stake(seller.id)).locked == 0
        await view.tend()
        chain.mine(3)
    assert (await seller.bonds.stake(seller.id)).locked == 100 * DOLLAR
    await view.tend()
    assert (await view.outcome(sent.key)).state == "settled"


async def test_an_act_waits_for_the_end_of_the_one_before_it(chain: Anvil, seller: Seller) -> None:
    await seller.bonds.lock(seller.terms, 100 * DOLLAR, seller.wait)
    chain.mine()
    deep, head = await seller.bonds.seen(seller.id)
    assert (deep.locked, head.locked) == (0, 100 * DOLLAR)
    with pytest.raises(BondRefused, match="not deep enough in the chain yet"):
        await seller.bonds.ask_back(seller.terms, 50 * DOLLAR)
    chain.mine(3)
    both = [seller.lock(150 * DOLLAR), seller.lock(150 * DOLLAR)]
    await asyncio.gather(*both)
    assert (await seller.bonds.stake(seller.id)).locked == 150 * DOLLAR


async def test_what_a_slash_holds_counts_no_more_and_cannot_be_taken(chain: Anvil, seller: Seller) -> None:
    await seller.lock(100 * DOLLAR)
    await seller.does(seller.bonds.ask_back(seller.terms, 100 * DOLLAR))
    seller.propose_slash(100 * DOLLAR)
    stake = await seller.bonds.stake(seller.id)
    assert (stake.reserved, stake.free) == (100 * DOLLAR, 0)
    chain.pass_time(DAY)
    with pytest.raises(BondRefused, match="held for slashes"):
        await seller.bonds.take(seller.terms)


async def test_acts_that_the_contract_would_refuse_say_what_to_do(seller: Seller, opens: Opens) -> None:
    bonds, terms = seller.bonds, seller.terms
    with pytest.raises(BondRefused, match="nothing of this bond was asked back"):
        await bonds.take(terms)
    with pytest.raises(BondRefused, match="0 millionths of a dollar are locked"):
        await bonds.ask_back(terms, 1)
    with pytest.raises(BondRefused, match="the wallet has 200000000 of the 200000001"):
        await seller.lock(200 * DOLLAR + 1)
    with pytest.raises(BondRefused, match="more than half must agree"):
        await bonds.lock(evolve(terms, quorum=1), DOLLAR, seller.wait)
    with pytest.raises(BondRefused, match="another token"):
        await bonds.lock(evolve(terms, token=bytes(20)), DOLLAR, seller.wait)
    stranger = Bonds(await opens(key(seller.chain)), bonds.place.contract)
    with pytest.raises(BondRefused, match="this wallet has another address"):
        await stranger.ask_back(terms, 1)
