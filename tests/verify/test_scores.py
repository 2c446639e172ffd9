"""What scorers say: packing, bait, agreement, and what a word is worth."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ledger.records import Fingerprint, Sampling, Score
from verify.replay import MASKED
from verify.sampler import sample
from verify.scores import (
    LEAST_TOKENS,
    BadScore,
    Baited,
    Credibility,
    Opinion,
    TooShort,
    Word,
    agreed_margins,
    bait,
    compare,
    compare_to_known,
    heard,
    join,
    majority,
    opinion_of,
    pack,
    shuffled,
    took_bait,
    unpack,
)

VOCABULARY = 1_000
HOT = Sampling(temperature=1_000_000, top_p=1_000_000, min_p=0, top_k=0)
FINGERPRINT = Fingerprint("b1", "cpu", "f16", "gumbel-2")
SEED = 7


def logits_of(context: tuple[int, ...], weights: int = 0, noise: float = 0.0) -> NDArray[np.float32]:
    """What some weights say behind a context, with honest noise of this size."""
    dice = np.random.default_rng((weights, *context[-3:]))
    row = dice.normal(0, 3, VOCABULARY)
    return (row + np.random.default_rng((99, weights, *context[-3:])).normal(0, noise, VOCABULARY)).astype(np.float32)


def answer_of(tokens: int, weights: int = 0) -> tuple[int, ...]:
    """An honest answer by these weights to the prompt (1, 2, 3)."""
    ids: tuple[int, ...] = (1, 2, 3)
    for _ in range(tokens):
        ids += (sample(logits_of(ids, weights), HOT, SEED, len(ids)),)
    return ids[3:]


def scored(claimed: tuple[int, ...], weights: int = 0, noise: float = 0.0) -> Opinion:
    """What weights say of an answer to (1, 2, 3)."""
    ids = (1, 2, 3, *claimed)
    rows = np.stack([logits_of(ids[:place], weights, noise) for place in range(3, len(ids))])
    return opinion_of(rows, np.array(claimed), HOT, SEED, 3)


def echo(claimed: tuple[int, ...]) -> Opinion:
    """What one without weights says who hopes that all is well."""
    return Opinion(np.array(claimed), np.full(len(claimed), 9.0), np.zeros(len(claimed)))


def score(opinion: Opinion, **changes: Any) -> Score:
    best, values, margins = pack(opinion)
    fields: dict[str, Any] = {"tokens": opinion.tokens, "best": best, "values": values, "margins": margins}
    return Score(order=bytes(32), model=bytes(32), engine=FINGERPRINT, **(fields | changes))


ANSWER = answer_of(100)
BAITED = bait(ANSWER, VOCABULARY, frozenset({0}), bytes(16))


def entropy(number: int) -> bytes:
    return number.to_bytes(16, "little")


# Packing


def test_a_score_comes_back_as_it_was_said_to_a_millionth() -> None:
    said = scored(BAITED.claimed)
    read = unpack(score(said), BAITED.claimed)
    assert (read.best == said.best).all()
    assert np.abs(read.values - said.values).max() <= 1e-6
    assert ((read.margins - said.margins >= 0) & (read.margins - said.margins <= 1e-6)).all()


@given(st.lists(st.floats(0, MASKED), min_size=1, max_size=20))
def test_only_a_true_zero_is_packed_as_zero(margins: list[float]) -> None:
    found = np.array(margins)
    opinion = Opinion(np.where(found == 0, 5, 6), np.zeros(found.size), found)
    read = unpack(score(opinion), (5,) * found.size)
    assert ((read.margins == 0) == (found == 0)).all()


def test_a_forbidden_token_stays_forbidden_on_the_wire() -> None:
    read = unpack(score(Opinion(np.array([3]), np.array([1e9]), np.array([MASKED]))), (4,))
    assert (read.margins[0], read.values[0]) == (MASKED, (2**31 - 1) / 1e6)


@pytest.mark.parametrize("margin", [0, 1])
def test_a_score_that_contradicts_itself_is_refused(margin: int) -> None:
    best = 5 if margin else 6
    contradiction = score(Opinion(np.array([best]), np.zeros(1), np.zeros(1)), margins=margin.to_bytes(4, "little"))
    with pytest.raises(BadScore, match="contradicts"):
        unpack(contradiction, (5,))


def test_a_score_of_other_tokens_is_refused() -> None:
    with pytest.raises(BadScore, match="100 were to be scored"):
        unpack(score(scored(ANSWER[:50])), ANSWER)


def test_blocks_join() -> None:
    whole = scored(ANSWER)
    joined = join([whole.first(64), Opinion(whole.best[64:], whole.values[64:], whole.margins[64:])])
    assert (joined.margins == whole.margins).all()
    assert joined.tokens == 100


# Bait


@given(st.integers(LEAST_TOKENS, 3_000), st.integers(2, 50_000), st.integers(0, 2**64))
def test_bait_is_in_the_last_part_and_nowhere_else(tokens: int, vocabulary: int, number: int) -> None:
    answer = tuple(i % vocabulary for i in range(tokens))
    never = frozenset({0}) if vocabulary > 2 else frozenset[int]()
    baited = bait(answer, vocabulary, never, entropy(number))
    changed = [i for i in range(tokens) if baited.claimed[i] != answer[i]]
    assert tuple(changed) == baited.places
    assert 2 <= len(changed) <= 16
    assert baited.genuine == changed[0] >= tokens - max(4, tokens // 4)
    assert all(0 <= baited.claimed[i] < vocabulary and baited.claimed[i] not in never for i in changed)


def test_the_places_depend_on_the_entropy_alone_and_vary() -> None:
    baits = [bait(ANSWER, VOCABULARY, frozenset(), entropy(number)) for number in range(50)]
    assert len({baited.genuine for baited in baits}) > 10
    assert baits[3] == bait(ANSWER, VOCABULARY, frozenset(), entropy(3))


def test_what_stands_near_the_end_of_a_long_answer_is_evidence_now_and_then() -> None:
    answer = tuple(range(4_096))
    genuine = [bait(answer, 10_000, frozenset(), entropy(number)).genuine for number in range(100)]

    # A quarter of the answer may hold bait. Of its last half, some baits leave much as it was.
    assert sum(first > 4_096 - 512 for first in genuine) > 30
    assert sum(first > 4_096 - 128 for first in genuine) > 3


def test_a_short_answer_leaves_no_room() -> None:
    with pytest.raises(TooShort, match="7 tokens"):
        bait(ANSWER[:7], VOCABULARY, frozenset(), entropy(1))
    with pytest.raises(ValueError, match="draw 16"):
        bait(ANSWER, VOCABULARY, frozenset(), b"short")


def test_an_honest_scorer_does_not_take_the_bait_and_one_without_weights_does() -> None:
    for number in range(8):
        baited = bait(ANSWER, VOCABULARY, frozenset(), entropy(number))
        assert not took_bait(scored(baited.claimed), baited)
        assert took_bait(echo(baited.claimed), baited)


def test_an_honest_scorer_of_a_cheats_answer_does_not_take_the_bait_either() -> None:
    baited = bait(answer_of(60, weights=5), VOCABULARY, frozenset(), entropy(4))
    assert not took_bait(scored(baited.claimed), baited)


def test_of_an_honest_answer_all_margins_before_the_bait_are_zero_and_those_of_the_bait_are_large() -> None:
    said = scored(BAITED.claimed)
    assert not said.margins[: BAITED.genuine].any()
    assert (said.margins[list(BAITED.places)] > 0.5).all()
    assert said.best[BAITED.genuine] == ANSWER[BAITED.genuine]


# Agreement


def test_honest_scorers_agree_in_spite_of_rounding() -> None:
    for weights in (0, 5):
        claimed = bait(answer_of(80, weights), VOCABULARY, frozenset(), entropy(1)).claimed
        assert compare(scored(claimed), scored(claimed, noise=0.01), 60).agree


@pytest.mark.parametrize(
    "other",
    [
        echo(BAITED.claimed),
        scored(BAITED.claimed, weights=1),
        Opinion(np.full(100, 3), np.zeros(100), np.full(100, 2.0)),
    ],
    ids=["echo", "other weights", "made up"],
)
def test_what_is_not_from_the_weights_is_far_from_what_is(other: Opinion) -> None:
    compared = compare(scored(BAITED.claimed), other, BAITED.genuine)
    assert not compared.agree
    assert compared.gross


def test_margins_that_a_friend_takes_away_are_noticed() -> None:
    answer = list(ANSWER)
    answer[10], answer[40] = 7, 8
    honest = scored(tuple(answer))
    friend = Opinion(np.array(answer), honest.values, np.zeros(100))
    compared = compare(honest.first(30), friend.first(30), 30)
    assert not compared.agree


def pair_of(left: list[float], right: list[float]) -> tuple[Opinion, Opinion]:
    """Two opinions that differ in their margins alone."""
    one, other = np.array(left), np.array(right)
    return Opinion(np.arange(one.size), np.zeros(one.size), one), Opinion(
        np.arange(one.size), np.zeros(one.size), other
    )


@pytest.mark.parametrize(
    ("left", "right", "agree"),
    [
        ([20.0] * 10, [21.0] * 10, True),
        ([20.0] * 10, [26.0] * 10, False),
        ([0.05] * 10, [0.24] * 10, True),
        ([0.05] * 10, [0.3] * 10, False),
        ([0.05] * 10, [0.05] * 9 + [0.3], True),
        ([0.0] * 10, [0.09] * 10, True),
        ([0.0] * 10, [0.0] * 9 + [0.11], False),
        ([0.0] * 500, [0.0] * 499 + [0.11], True),
        ([0.1] * 10, [0.1] * 9 + [0.8], False),
    ],
)
def test_a_hair_of_difference_is_rounding_and_more_is_not(left: list[float], right: list[float], agree: bool) -> None:
    assert compare(*pair_of(left, right), len(left)).agree == agree


def test_behind_the_bait_margins_may_differ_by_more_but_not_all_of_them() -> None:
    assert compare(*pair_of([0.1] * 30, [0.1] * 24 + [0.9] * 2 + [0.1] * 4), 20).agree
    assert not compare(*pair_of([0.1] * 30, [0.1] * 24 + [0.9] * 4 + [0.1] * 2), 20).agree


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30), st.lists(st.floats(0, 5), min_size=1, max_size=30))
def test_comparison_does_not_depend_on_who_is_first(left: list[float], right: list[float]) -> None:
    size = min(len(left), len(right))
    one, other = pair_of(left[:size], right[:size])
    assert compare(one, other, size) == compare(other, one, size)
    assert compare(one, one, size // 2).agree


# Known answers


@pytest.mark.parametrize("number", range(5))
def test_a_known_answer_is_known_up_to_its_old_and_its_new_bait(number: int) -> None:
    known = scored(BAITED.claimed)
    again = bait(ANSWER, VOCABULARY, frozenset(), entropy(number))
    assert compare_to_known(known, scored(again.claimed, noise=0.01), again, BAITED.genuine).agree
    assert compare_to_known(known, echo(again.claimed), again, BAITED.genuine).gross


def test_at_the_first_bait_the_best_id_is_the_replaced_token() -> None:
    known = scored(ANSWER)
    until = BAITED.genuine + 1
    assert compare_to_known(known, scored(BAITED.claimed), BAITED, 100).agree
    blind = scored(BAITED.claimed)
    blind.best[:until] = 1
    assert compare_to_known(known, blind, BAITED, 100).other_best >= until - 1


def test_a_cheats_known_answer_betrays_one_who_says_that_all_is_well() -> None:
    answer = answer_of(60, weights=5)
    again = bait(answer, VOCABULARY, frozenset(), entropy(5))
    compared = compare_to_known(scored(answer), echo(again.claimed), again, 60)
    assert compared.gross


# Majority


def test_two_that_agree_are_enough() -> None:
    found = majority([scored(ANSWER), scored(ANSWER, noise=0.01)], 100)
    assert found is not None
    assert (found.agreed, found.odd) == ((0, 1), ())


def test_two_that_disagree_decide_nothing_and_a_third_does() -> None:
    honest, liar = scored(BAITED.claimed), scored(BAITED.claimed, weights=3)
    assert majority([honest, liar], BAITED.genuine) is None
    found = majority([honest, liar, scored(BAITED.claimed, noise=0.01)], BAITED.genuine)
    assert found is not None
    assert (found.agreed, found.odd) == ((0, 2), (1,))


def test_three_that_say_three_things_decide_nothing_and_neither_do_one_or_none() -> None:
    assert majority([scored(BAITED.claimed, weights=weights) for weights in (0, 1, 2)], BAITED.genuine) is None
    assert majority([scored(ANSWER)], 100) is None
    assert majority([], 0) is None


def test_the_least_margin_counts_so_that_one_liar_cannot_blacken_a_seller() -> None:
    honest = Opinion(np.arange(3), np.zeros(3), np.array([0.0, 0.2, 0.0]))
    liar = Opinion(np.arange(3), np.zeros(3), np.array([0.1, 0.25, 0.1]))
    assert agreed_margins([honest, liar]).tolist() == [0.0, 0.2, 0.0]


# Words


def test_one_that_was_caught_has_lost_its_word_for_good() -> None:
    credibility = heard(Credibility(agreed=100), "caught")
    assert credibility.lost
    assert heard(credibility, "agreed").lost


@given(st.lists(st.sampled_from(["agreed", "outvoted"]), max_size=30))
def test_one_that_is_outvoted_more_often_than_not_loses_its_word(words: list[Word]) -> None:
    credibility = Credibility()
    for word in words:
        credibility = heard(credibility, word)
    outvoted = words.count("outvoted")
    assert credibility.lost == (outvoted >= 3 and outvoted > words.count("agreed"))


@given(st.lists(st.integers(0, 100), max_size=30), st.binary(min_size=16, max_size=16))
def test_shuffling_keeps_all(items: list[int], seed: bytes) -> None:
    assert sorted(shuffled(items, seed)) == sorted(items)


def test_shuffling_is_fair_enough() -> None:
    firsts = [shuffled(range(4), entropy(number))[0] for number in range(400)]
    assert all(60 < firsts.count(i) < 140 for i in range(4))


def test_what_is_baited_is_not_shown() -> None:
    assert "claimed" not in repr(Baited((1, 2), (1,)))
