from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.money import MAX_AMOUNT, Amount, Price, Unit
from ledger.records import Offer, Privacy, Signed
from node.market.candidates import (
    DEFAULT_MAX_PER_DAY,
    Candidate,
    Hardware,
    Limits,
    Remote,
    Way,
    Weights,
    Wish,
    quality_of,
    rank,
    rule_out,
)
from tests.node.market.conftest import MakeOffer, offer_by

MODEL = bytes([7]) * 32
ANYTHING = Wish(models=None, prompt_tokens=1_000, max_tokens=500, privacy="public")


def uusd(value: int) -> Amount:
    return Amount(value, "uusd")


def candidate(offer: Signed[Offer] | None, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {"model": MODEL, "name": "a model", "quality": 0.5, "relation": "named", "context": 4_096}
    return Candidate(**fields | {"offer": offer} | changes)


@pytest.fixture
def here() -> Candidate:
    return candidate(None, relation="self")


# Hard limits: each has its reason. The candidate's order costs 1000 * 1 + 500 * 2 = 2000.


def test_whoever_keeps_every_limit_may_answer(make_offer: MakeOffer, here: Candidate) -> None:
    offer = make_offer()
    limits = Limits(
        max_input_price=uusd(1_000_000),
        max_output_price=uusd(2_000_000),
        max_order_cost=uusd(2_000),
        max_per_day=uusd(5_000),
        min_reputation=0.5,
        allowed=frozenset({offer.signer}),
    )
    wish = evolve(ANYTHING, spent_today={"uusd": 3_000, "msat": 10**9})

    assert rule_out(candidate(offer, reputation=0.5, ways=(Way("credit", 2_000, 1_128),)), wish, limits) is None
    assert rule_out(here, wish, limits) is None


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (
            Limits(max_input_price=uusd(999_999)),
            "asks 1.000000usd for a million prompt tokens, over the most of 0.999999usd by [buy] max_input_price",
        ),
        (
            Limits(max_output_price=uusd(1_999_999)),
            "asks 2.000000usd for a million output tokens, over the most of 1.999999usd by [buy] max_output_price",
        ),
        (
            Limits(max_order_cost=uusd(1_999)),
            "may cost 0.002000usd for this order, over the most of 0.001999usd by [buy] max_order_cost",
        ),
        (
            Limits(max_per_day=uusd(2_999)),
            "would bring today's spending to 0.003000usd, over the most of 0.002999usd by [buy] max_per_day",
        ),
        (Limits(max_order_cost=Amount(10**9, "msat")), "may cost 0.002000usd for this order, over the most of 10000"),
        (Limits(min_reputation=0.51), "has a reputation of 0.50, under the least of 0.51"),
        (Limits(allowed=frozenset()), "is not among the allowed peers"),
    ],
)
def test_each_of_the_owners_limits_rules_out_with_its_reason(
    make_offer: MakeOffer, limits: Limits, reason: str
) -> None:
    wish = evolve(ANYTHING, spent_today={"uusd": 1_000})

    said = rule_out(candidate(make_offer(), reputation=0.5), wish, limits)

    assert said is not None
    assert said.startswith(reason)


@pytest.mark.parametrize(
    ("changes", "wish", "reason"),
    [
        ({}, evolve(ANYTHING, models=frozenset({bytes(32)})), "runs another model"),
        ({}, evolve(ANYTHING, models=frozenset()), "runs another model"),
        ({}, evolve(ANYTHING, route="local"), "the route is local"),
        ({"condemned": True}, ANYTHING, "was found cheating"),
        (
            {"ways": (Way("credit", 1_999, 9_999),)},
            ANYTHING,
            "may cost 0.002000usd for this order, and its credit bears 0.001999",
        ),
        (
            {"ways": (Way("credit", 9_999, 1_127),)},
            ANYTHING,
            "delivers up to 0.001128usd before it is paid, and its window bears 0.001127",
        ),
        (
            {"ways": (Way("credit", 9_999, 1_999),), "paid_on_the_way": False},
            ANYTHING,
            "delivers up to 0.002000usd before it is paid",
        ),
        ({"relation": "anyone"}, evolve(ANYTHING, privacy="internal"), "may see prompts up to public, and this one is"),
        ({}, evolve(ANYTHING, max_tokens=3_097), "has a context of 4096 tokens, and 4097 are needed"),
    ],
)
def test_what_the_request_needs_rules_out_with_its_reason(
    make_offer: MakeOffer, changes: dict[str, Any], wish: Wish, reason: str
) -> None:
    said = rule_out(candidate(make_offer(), **changes), wish, Limits())

    assert said is not None
    assert said.startswith(reason)


@pytest.mark.parametrize("unit", ["uusd", "msat"])
def test_where_the_owner_sets_no_limit_to_a_days_spending_there_is_one(make_offer: MakeOffer, unit: Unit) -> None:
    asking = candidate(make_offer(price=Price(1_000_000, 2_000_000, unit)))
    before = DEFAULT_MAX_PER_DAY[unit].value - 2_000

    assert rule_out(asking, evolve(ANYTHING, spent_today={unit: before}), Limits()) is None
    said = rule_out(asking, evolve(ANYTHING, spent_today={unit: before + 1}), Limits())
    assert said is not None
    assert said.startswith("would bring today's spending to")
    assert said.endswith(f"over the most of {DEFAULT_MAX_PER_DAY[unit]} by [buy] max_per_day")


def test_a_price_beyond_all_amounts_is_ruled_out(make_offer: MakeOffer) -> None:
    dear = candidate(make_offer(price=Price(MAX_AMOUNT, MAX_AMOUNT, "uusd")), context=4_000_000)
    wish = evolve(ANYTHING, prompt_tokens=1_000_000, max_tokens=1)

    assert rule_out(dear, wish, Limits(max_per_day=uusd(MAX_AMOUNT))) == "asks more than can be paid at all"


def test_a_seller_that_takes_no_credit_is_ruled_out(make_offer: MakeOffer) -> None:
    said = rule_out(candidate(make_offer(rails=("lightning",)), ways=()), ANYTHING, Limits())

    assert said is not None
    assert said == "is paid by lightning, and this node has no money there"


@pytest.mark.parametrize(
    ("privacy", "served_by"),
    [
        ("public", {"self", "attested", "named", "anyone"}),
        ("internal", {"self", "attested", "named"}),
        ("confidential", {"self", "attested"}),
        ("restricted", {"self"}),
    ],
)
def test_a_prompt_goes_no_further_than_its_level(make_offer: MakeOffer, privacy: Privacy, served_by: set[str]) -> None:
    wish = evolve(ANYTHING, privacy=privacy)
    everybody = [candidate(None, relation="self")]
    everybody += [candidate(make_offer(), relation=relation) for relation in ("attested", "named", "anyone")]

    assert {c.relation for c in everybody if rule_out(c, wish, Limits()) is None} == served_by


def test_the_owners_money_limits_do_not_bind_this_machine(here: Candidate) -> None:
    strict = Limits(max_order_cost=uusd(0), max_per_day=uusd(0), min_reputation=1.0, allowed=frozenset())

    assert rule_out(here, ANYTHING, strict) is None
    assert rule_out(here, evolve(ANYTHING, route="peers"), strict) == "the route is peers"


@pytest.mark.parametrize("condemned_reputation", [0.0, 1.0])
def test_a_condemned_seller_never_comes_to_be_ranked(make_offer: MakeOffer, condemned_reputation: float) -> None:
    cheat = candidate(make_offer(price=Price(0, 0, "uusd")), condemned=True, reputation=condemned_reputation)

    assert rule_out(cheat, ANYTHING, Limits()) == "was found cheating"


# The ranking.

shares = st.floats(0, 1)
speeds = st.none() | st.floats(0.1, 1_000)
prices = st.integers(0, 10**9)


@st.composite
def candidates(draw: st.DrawFn, make_offer: MakeOffer) -> list[Candidate]:
    made = []
    for seller in range(1, draw(st.integers(2, 5)) + 1):
        offer = make_offer(seller, price=Price(draw(prices), draw(prices), "uusd"))
        made.append(
            candidate(
                offer,
                quality=draw(shares),
                reputation=draw(shares),
                tokens_per_s=draw(speeds),
                first_token_ms=draw(speeds),
            )
        )
    return made


def place(of: Candidate, among: list[Candidate]) -> int:
    """Its place in the ranking, 0 the best."""
    return [c.seller for c in rank(among, ANYTHING, Weights())].index(of.seller)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_asking_more_never_improves_the_rank(data: st.DataObject) -> None:
    among = data.draw(candidates(offer_by))
    index = data.draw(st.integers(0, len(among) - 1))
    price = among[index].offer.record.price  # type: ignore[union-attr]
    dearer = Price(price.input + data.draw(prices), price.output + data.draw(prices), "uusd")
    raised = evolve(among[index], offer=offer_by(index + 1, price=dearer))

    after = place(raised, [*among[:index], raised, *among[index + 1 :]])

    assert after >= place(among[index], among)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["reputation", "quality"]))
def test_a_worse_reputation_or_quality_never_improves_the_rank(data: st.DataObject, part: str) -> None:
    among = data.draw(candidates(offer_by))
    index = data.draw(st.integers(0, len(among) - 1))
    less: dict[str, Any] = {part: data.draw(st.floats(0, getattr(among[index], part)))}
    worse = evolve(among[index], **less)

    after = place(worse, [*among[:index], worse, *among[index + 1 :]])

    assert after >= place(among[index], among)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_ranking_does_not_depend_on_the_order_of_the_candidates(data: st.DataObject) -> None:
    among = data.draw(candidates(offer_by))
    shuffled = data.draw(st.permutations(among))

    assert rank(shuffled, ANYTHING, Weights()) == rank(among, ANYTHING, Weights())


def test_of_two_equal_sellers_the_cheaper_the_faster_and_the_better_known_come_first(make_offer: MakeOffer) -> None:
    plain = candidate(make_offer(1), reputation=0.5, tokens_per_s=10.0)
    cheaper = candidate(make_offer(2, price=Price(1_000, 1_000, "uusd")), reputation=0.5, tokens_per_s=10.0)
    faster = candidate(make_offer(3), reputation=0.5, tokens_per_s=100.0)
    better_known = candidate(make_offer(4), reputation=0.9, tokens_per_s=10.0)

    for favourite in (cheaper, faster, better_known):
        assert rank([plain, favourite], ANYTHING, Weights())[0] == favourite


def test_this_machine_comes_before_an_equal_peer(make_offer: MakeOffer, here: Candidate) -> None:
    free = candidate(make_offer(price=Price(0, 0, "uusd")), reputation=1.0)

    assert rank([free, here], ANYTHING, Weights())[0] == here


def test_weights_say_what_counts(make_offer: MakeOffer) -> None:
    cheap = candidate(make_offer(1, price=Price(1, 1, "uusd")), reputation=0.2)
    trusted = candidate(make_offer(2), reputation=0.9)

    assert rank([cheap, trusted], ANYTHING, Weights(cost=10.0, reputation=0.0))[0] == cheap
    assert rank([cheap, trusted], ANYTHING, Weights(cost=0.0, reputation=10.0))[0] == trusted


def test_of_two_equal_sellers_the_one_that_would_lose_a_stake_comes_first(make_offer: MakeOffer) -> None:
    among = [candidate(make_offer(n), bond=bond) for n, bond in ((1, None), (2, uusd(0)), (3, uusd(10_000)))]
    more = candidate(make_offer(4), bond=uusd(20_000_000))

    ranked = rank([*among, more], ANYTHING, Weights())

    assert ranked[:2] == [more, among[2]]
    assert [c.seller for c in rank(among, ANYTHING, Weights(bond=0.0))] == sorted(c.seller or "" for c in among)


def test_a_bond_counts_in_full_where_it_pays_for_ten_thousand_such_orders(make_offer: MakeOffer) -> None:
    enough = candidate(make_offer(1), bond=uusd(10_000 * 2_000))
    more = candidate(make_offer(2), bond=uusd(10_000 * 2_000 * 1_000))
    other_money = candidate(make_offer(3), bond=Amount(10**12, "msat"), reputation=0.99)

    bonds = Weights(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, bond=1.0)
    names = [c.seller for c in rank([enough, more, other_money], ANYTHING, bonds)]
    assert names[:2] == sorted([enough.seller or "", more.seller or ""])
    assert names[2] == other_money.seller


def test_nobody_is_ranked_to_nobody() -> None:
    assert rank([], ANYTHING, Weights()) == []


def test_quality_grows_with_size_and_tier_and_stays_a_share() -> None:
    sizes = [quality_of(parameters, 0.5) for parameters in (0, 10**6, 10**9, 10**12, 10**15)]

    assert sizes == sorted(sizes)
    assert quality_of(10**9, 0.2) < quality_of(10**9, 0.9)
    assert all(0 <= quality_of(parameters, tier) <= 1 for parameters in (0, 10**15) for tier in (0.0, 1.0))


# Remote backends.

FREE = Price(0, 0, "uusd")


def remote(**terms: Any) -> Candidate:
    said: dict[str, Any] = {"name": "cloud", "price": FREE}
    return candidate(None, relation="remote", remote=Remote(**said | terms))


@pytest.mark.parametrize(
    ("hardware", "same", "retains", "sovereignty"),
    [
        ("own", False, True, 1.0),
        ("rented", False, True, 0.8),
        ("cloud", True, False, 0.4),
        ("cloud", True, True, 0.3),
        ("cloud", False, False, 0.2),
        ("cloud", False, True, 0.1),
    ],
)
def test_how_far_the_owner_is_in_command_of_a_remote(
    hardware: Hardware, same: bool, retains: bool, sovereignty: float
) -> None:
    assert remote(hardware=hardware, same_jurisdiction=same, retains=retains).sovereignty == sovereignty


def test_of_a_remote_the_owner_says_nothing_about_the_worst_is_thought() -> None:
    assert (remote().sovereignty, remote().ceiling) == (0.1, "public")


def test_a_remote_sees_public_prompts_unless_its_owner_raises_that() -> None:
    wish = evolve(ANYTHING, privacy="internal")
    assert rule_out(remote(), wish, Limits()) == "may see prompts up to public, and this one is internal"
    assert rule_out(remote(ceiling="internal"), wish, Limits()) is None


def test_a_remote_s_price_counts_as_a_seller_s_does() -> None:
    dear = remote(price=Price(1_000_000, 2_000_000, "uusd"))
    assert dear.cost(1_000, 500) == 2_000
    reason = rule_out(dear, ANYTHING, Limits(max_order_cost=uusd(1_999)))
    assert reason is not None
    assert reason.startswith("may cost 0.002000usd")


@pytest.mark.parametrize(("route", "may"), [("auto", True), ("remotes", True), ("local", False), ("peers", False)])
def test_only_its_own_route_leads_to_a_remote(route: Any, may: bool) -> None:
    assert (rule_out(remote(), evolve(ANYTHING, route=route), Limits()) is None) is may


def test_the_route_to_remotes_leads_to_them_alone(make_offer: MakeOffer, here: Candidate) -> None:
    wish = evolve(ANYTHING, route="remotes")
    assert rule_out(here, wish, Limits()) == rule_out(candidate(make_offer()), wish, Limits()) == "the route is remotes"


def test_of_two_remotes_alike_the_one_under_the_owner_s_own_law_is_better() -> None:
    near, far = remote(name="near", same_jurisdiction=True, retains=False), remote(name="far")
    assert rank([far, near], ANYTHING, Weights()) == [near, far]
