"""What bonds are, and how much of one counts for a buyer."""

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ledger.identity import Identity
from ledger.rails.stablecoin.bond_terms import (
    BondPlace,
    BondRefused,
    BondTerms,
    KnownBonds,
    Stake,
    check_terms,
    named,
    salt_of,
    terms_of,
)

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "bonds.json").read_text())
SELLER = Identity(bytes(32)).did
OTHER = Identity(bytes(31) + b"\1").did
ARBITERS = tuple(bytes([n]) * 20 for n in (1, 2, 3))
PLACE = BondPlace(8453, b"\xb0" * 20)
DOLLAR = b"\xd0" * 20
DAY = 86_400
TERMS = BondTerms(b"\x5e" * 20, DOLLAR, bytes(20), DAY, 3 * DAY, 2, ARBITERS, salt_of(SELLER, 1))


def raw(text: str) -> bytes:
    return bytes.fromhex(text[2:])


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["chain_id"]))
def test_a_bond_has_the_id_that_the_contract_gives_it(case: dict[str, Any]) -> None:
    said = case["terms"]
    terms = BondTerms(
        raw(said["seller"]),
        raw(said["token"]),
        raw(said["sink"]),
        said["noticePeriod"],
        said["challengePeriod"],
        said["quorum"],
        tuple(map(raw, said["arbiters"])),
        raw(said["salt"]),
    )
    place = BondPlace(case["chain_id"], raw(VECTORS["contract"]))
    assert place.bond_id(terms).hex() == case["bondId"][2:]
    check_terms(terms)


def test_an_offer_names_a_bond_by_its_terms() -> None:
    assert terms_of(named(TERMS, PLACE, 1, 100), SELLER) == TERMS


def test_a_bond_that_was_locked_for_another_node_is_another_bond() -> None:
    stolen = terms_of(named(TERMS, PLACE, 1, 100), OTHER)
    assert PLACE.bond_id(stolen) != PLACE.bond_id(TERMS)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"arbiters": ()}, "from 1 to 16"),
        ({"arbiters": (bytes(20), *ARBITERS[:2])}, "by its address"),
        ({"arbiters": ARBITERS[::-1]}, "ascending"),
        ({"arbiters": (ARBITERS[0],) * 3}, "twice"),
        ({"seller": ARBITERS[0]}, "its own bond"),
        ({"sink": TERMS.seller}, "its own bond"),
        ({"quorum": 1}, "from 2 to 3"),
        ({"quorum": 4}, "from 2 to 3"),
        ({"notice": DAY - 1}, "between 1 and 90 days"),
        ({"challenge": DAY - 1}, "the notice and 90 days"),
        ({"challenge": 91 * DAY}, "the notice and 90 days"),
    ],
    ids=str,
)
def test_terms_that_the_contract_would_refuse_are_refused_before(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BondRefused, match=why):
        check_terms(evolve(TERMS, **change))


@pytest.mark.parametrize(("trusted", "counts"), [(0, False), (1, False), (2, True), (3, True)], ids=str)
def test_a_bond_counts_where_the_trusted_arbiters_alone_are_a_quorum(trusted: int, counts: bool) -> None:
    known = KnownBonds(PLACE, DOLLAR, {*ARBITERS[:trusted], b"\x77" * 20})
    bond = named(TERMS, PLACE, 1, 100)
    if counts:
        assert known.check(bond, SELLER) == TERMS
    else:
        with pytest.raises(BondRefused, match=f"{trusted} are trusted here, and 2 must agree"):
            known.check(bond, SELLER)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (KnownBonds(BondPlace(1, PLACE.contract), DOLLAR, set(ARBITERS)), "another contract of bonds"),
        (KnownBonds(BondPlace(8453, bytes(20)), DOLLAR, set(ARBITERS)), "another contract of bonds"),
        (KnownBonds(PLACE, bytes(20), set(ARBITERS)), "another token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bond_elsewhere_counts_for_nothing(known: KnownBonds, why: str) -> None:
    with pytest.raises(BondRefused, match=why):
        known.check(named(TERMS, PLACE, 1, 100), SELLER)


def test_what_exceeds_the_damage_must_not_come_back_to_the_seller() -> None:
    known = KnownBonds(PLACE, DOLLAR, set(ARBITERS))
    for sink, counts in ((bytes(20), True), (ARBITERS[0], True), (b"\x51" * 20, False)):
        bond = named(evolve(TERMS, sink=sink), PLACE, 1, 100)
        if counts:
            assert known.check(bond, SELLER).sink == sink
        else:
            with pytest.raises(BondRefused, match="who may be the seller"):
                known.check(bond, SELLER)


amounts = st.integers(0, 2**60)


@given(amounts, amounts, amounts, st.integers(1, 2**53 - 1))
def test_what_slashes_hold_or_the_seller_asked_back_does_not_count(
    free: int, reserved: int, unlocking: int, said: int
) -> None:
    stake = Stake(free + reserved + unlocking, reserved, unlocking, 1)
    bond = named(TERMS, PLACE, 1, said)
    assert KnownBonds.counted(bond, [stake]) == min(free, said)
    assert KnownBonds.counted(bond, [stake, Stake()]) == 0


def test_a_slash_of_what_was_asked_back_leaves_nothing_below_zero() -> None:
    assert Stake(locked=10, reserved=8, unlocking=5).free == 0
