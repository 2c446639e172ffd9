"""What arbiters sign, and what comes of it, on a real chain."""

import hashlib
import json
from typing import Any

import pytest
from attrs import astuple, evolve

from ledger.rails.stablecoin.bond_terms import BondRefused
from ledger.rails.stablecoin.bonds import TooEarly
from ledger.rails.stablecoin.keys import Key
from ledger.rails.stablecoin.slashes import Slashes
from ledger.rails.stablecoin.statements import BadStatement, Judgement, Statement, Word, merged
from ledger.rails.stablecoin.typed import digest_of
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.channels import key
from tests.ledger.rails.stablecoin.conftest import Opens
from tests.ledger.rails.stablecoin.test_bonds import DAY, DOLLAR, Seller

ANSWER = hashlib.sha256(b"it was the weather").digest()
BUYER = b"\x77" * 20


class Court:
    """A seller with 100 dollars at stake, and its arbiters."""

    def __init__(self, chain: Anvil, seller: Seller) -> None:
        self.chain, self.seller = chain, seller
        self.slashes = Slashes(seller.view, seller.bonds.place)

    def states(self, says: Word, evidence: bytes, judges: int = 2, **changes: Any) -> Statement:
        """A statement that so many arbiters have signed."""
        judgement = Judgement(BUYER, 30 * DOLLAR, 40 * DOLLAR, self.chain.time + DAY)
        said = {"judgement": judgement} if says == "slash" else {"answer": ANSWER} if says == "uphold" else {}
        statement = Statement(self.slashes.place, self.seller.terms, says, evidence, **(said | changes))
        for arbiter in self.seller.arbiters[:judges]:
            statement = statement.with_signature(arbiter.address, arbiter.signature(statement.digest))
        return statement

    async def proposed(self, name: bytes) -> bytes:
        """The evidence of a slash that runs."""
        evidence = hashlib.sha256(name).digest()
        await self.seller.does(self.slashes.bring(self.states("slash", evidence)))
        return evidence

    async def stake(self) -> tuple[int, int]:
        """Dollars that are locked, and those that slashes hold."""
        stake = await self.seller.bonds.stake(self.seller.id)
        return stake.locked // DOLLAR, stake.reserved // DOLLAR


@pytest.fixture
async def court(chain: Anvil, opens: Opens) -> Court:
    seller = await Seller.open(chain, opens)
    await seller.lock(100 * DOLLAR)
    return Court(chain, seller)


@pytest.mark.parametrize("says", ["slash", "uphold", "dismiss"])
def test_what_is_signed_is_what_the_contract_hashes_and_a_signer_is_shown(
    chain: Anvil, court: Court, says: Word
) -> None:
    statement = court.states(says, bytes(31) + b"\1", judges=0)
    bond, evidence = statement.bond, statement.evidence
    asked: tuple[str, list[Any]]
    if statement.judgement is not None:
        said = (evidence, *astuple(statement.judgement))
        asked = "getSlashDigest(bytes32,(bytes32,address,uint128,uint128,uint40))", [bond, said]
    elif statement.answer is not None:
        asked = "getUpholdDigest(bytes32,bytes32,bytes32)", [bond, evidence, statement.answer]
    else:
        asked = "getDismissDigest(bytes32,bytes32)", [bond, evidence]
    assert chain.call(chain.deployed.bonds, asked[0], *asked[1], returns="bytes32") == statement.digest
    assert digest_of(_with_domain(statement.shown["typed_data"])) == statement.digest


def _with_domain(typed: dict[str, Any]) -> dict[str, Any]:
    fields = (("name", "string"), ("version", "string"), ("chainId", "uint256"), ("verifyingContract", "address"))
    domain = [{"name": name, "type": of} for name, of in fields]
    return {**typed, "types": {**typed["types"], "EIP712Domain": domain}}


async def test_a_slash_that_nobody_answers_is_carried_out_and_what_is_due_is_fetched(
    chain: Anvil, court: Court
) -> None:
    slashes, terms = court.slashes, court.seller.terms
    evidence = await court.proposed(b"a dishonest receipt")
    (running,) = await slashes.running(terms)
    assert (running.evidence, running.amount, running.buyer) == (evidence, 40 * DOLLAR, BUYER)
    assert await slashes.terms(court.seller.id) == terms
    with pytest.raises(BondRefused, match="its slash is proposed"):
        await slashes.bring(court.states("slash", evidence))
    with pytest.raises(TooEarly, match="the seller may still answer until"):
        await slashes.end(terms, evidence)
    chain.pass_time(running.answer_by - chain.time)
    with pytest.raises(BondRefused, match="the time for an answer was over"):
        await slashes.answer(terms, evidence, ANSWER)
    await court.seller.does(slashes.end(terms, evidence))
    assert await court.stake() == (60, 0)
    assert (await slashes.of(court.seller.id, terms.challenge, evidence)).state == "executed"
    assert await slashes.running(terms) == []
    await court.seller.does(slashes.pay_out(BUYER))
    assert chain.dollars("0x" + BUYER.hex()) == 30 * DOLLAR
    with pytest.raises(BondRefused, match="left nothing"):
        await slashes.pay_out(BUYER)
    with pytest.raises(BondRefused, match="the slash is executed"):
        await slashes.end(terms, evidence)


async def test_a_slash_that_was_answered_needs_the_arbiters_once_more_or_lapses(chain: Anvil, court: Court) -> None:
    slashes, terms = court.slashes, court.seller.terms
    upheld, lapsing = await court.proposed(b"one"), await court.proposed(b"two")
    for evidence in (upheld, lapsing):
        await court.seller.does(slashes.answer(terms, evidence, ANSWER))
    first, second = await slashes.running(terms)
    assert {first.answer, second.answer} == {ANSWER}
    with pytest.raises(TooEarly, match="may still answer something else"):
        await slashes.bring(court.states("uphold", upheld))
    chain.pass_time(second.answer_by - chain.time)
    with pytest.raises(BondRefused, match="answered something else"):
        await slashes.bring(court.states("uphold", upheld, answer=bytes(31) + b"\1"))
    await court.seller.does(slashes.bring(court.states("uphold", upheld)))
    assert await court.stake() == (60, 40)
    with pytest.raises(TooEarly, match="may still uphold it"):
        await slashes.end(terms, lapsing)
    chain.pass_time(second.ends_by - chain.time)
    await court.seller.does(slashes.end(terms, lapsing))
    assert await court.stake() == (60, 0)


async def test_arbiters_can_take_a_slash_back(court: Court) -> None:
    evidence = await court.proposed(b"a mistake")
    assert await court.stake() == (100, 40)
    await court.seller.does(court.slashes.bring(court.states("dismiss", evidence)))
    assert await court.stake() == (100, 0)


async def test_running_slashes_are_found_by_their_events_however_long_ago(
    chain: Anvil, court: Court, opens: Opens
) -> None:
    found = {await court.proposed(name) for name in (b"one", b"two")}
    chain.mine(50)
    stranger = Slashes(await opens(key(chain)), court.slashes.place)
    assert {slash.evidence for slash in await stranger.running(court.seller.terms)} == found
    with pytest.raises(BondRefused, match="only its seller"):
        await stranger.answer(court.seller.terms, found.pop(), ANSWER)
    with pytest.raises(BondRefused, match="was ever locked"):
        await stranger.terms(b"\1" * 32)


async def test_too_few_signatures_go_nowhere(court: Court) -> None:
    evidence = hashlib.sha256(b"x").digest()
    with pytest.raises(BondRefused, match="1 of the 2 signatures that it needs"):
        await court.slashes.bring(court.states("slash", evidence, judges=1))
    with pytest.raises(BondRefused, match="no slash was proposed for this evidence"):
        await court.slashes.bring(court.states("dismiss", evidence))
    elsewhere = evolve(court.slashes.place, contract=b"\5" * 20)
    with pytest.raises(BondRefused, match="another one is known here"):
        await court.slashes.bring(evolve(court.states("slash", evidence, judges=0), place=elsewhere))


# The file that travels


@pytest.mark.parametrize("says", ["slash", "uphold", "dismiss"])
async def test_a_statement_travels_as_json_and_copies_give_their_signatures(court: Court, says: Word) -> None:
    statement = court.states(says, b"\1" * 32, judges=3)
    assert Statement.from_plain(json.loads(json.dumps(statement.to_plain()))) == statement
    bare = evolve(statement, signatures={})
    copies = [evolve(bare, signatures={one: signed}) for one, signed in statement.signatures.items()]
    assert merged(copies).signed == statement.signed
    with pytest.raises(BadStatement, match="different statements"):
        merged([bare, evolve(bare, evidence=b"\2" * 32)])


async def test_what_was_changed_on_the_way_is_noticed(court: Court) -> None:
    plain = court.states("slash", b"\1" * 32).to_plain()
    signatures = list(plain["signatures"].items())
    changes: list[tuple[str, Any, str]] = [
        ("amount", 41 * DOLLAR, "is not its signature"),
        ("evidence", "0x" + "02" * 32, "is not its signature"),
        ("terms", {**plain["terms"], "quorum": 3}, "does not follow from its terms"),
        ("terms", {**plain["terms"], "quorum": 1}, "more than half"),
        ("terms", [], "is missing or wrong"),
        ("buyer", plain["terms"]["seller"], "not the seller"),
        ("buyer", None, "is missing or wrong"),
        ("damage", -1, "is missing or wrong"),
        ("damage", 0, "are above 0"),
        ("says", "praise", "says nothing that is known"),
        ("network", "solana:1", "names no network"),
        ("signatures", {signatures[0][0]: signatures[1][1]}, "is not its signature"),
        ("signatures", {"0x" + "11" * 20: signatures[0][1]}, "none of the bond's arbiters"),
        ("signatures", [], "is missing or wrong"),
    ]
    for name, value, why in changes:
        with pytest.raises(BondRefused, match=why):
            Statement.from_plain({**plain, name: value})
    nothing: object
    for nothing in (None, [], "slash", {}):
        with pytest.raises(BadStatement, match="is missing or wrong"):
            Statement.from_plain(nothing)
    stranger = Key.of(b"\3" * 32)
    statement = court.states("slash", b"\1" * 32)
    with pytest.raises(BadStatement, match="none of the bond's arbiters"):
        statement.with_signature(stranger.address, stranger.signature(statement.digest))
