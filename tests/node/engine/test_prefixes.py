"""Prefixes are found, forgotten by last use, and never another client's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from node.engine.prefixes import Prefix, Prefixes, as_ids, common

ROWS = st.lists(st.integers(0, 2), max_size=12)


@given(ROWS, ROWS)
def test_what_two_rows_have_in_common(first: list[int], second: list[int]) -> None:
    shared = common(as_ids(first), as_ids(second))
    assert first[:shared] == second[:shared]
    assert shared == min(len(first), len(second)) or first[shared] != second[shared]


def prefix(client: str, ids: list[int]) -> Prefix:
    return Prefix(client, as_ids(ids), np.zeros(len(ids), np.uint8))


@given(st.lists(st.tuples(st.sampled_from("ab"), ROWS), max_size=8), st.sampled_from("ab"), ROWS)
def test_the_longest_is_found_among_the_clients_own(
    kept: list[tuple[str, list[int]]], client: str, ids: list[int]
) -> None:
    prefixes = Prefixes(1_000)
    for whose, held in kept:
        prefixes.keep(prefix(whose, held))
    found = prefixes.longest(client, as_ids(ids))
    best = max((common(as_ids(held), as_ids(ids)) for whose, held in kept if whose == client), default=0)
    assert (found[1] if found else 0) == best
    if found:
        assert found[0].client == client


@given(st.lists(st.tuples(st.sampled_from("ab"), ROWS), max_size=20), st.integers(0, 30))
def test_no_more_is_kept_than_may_be(kept: list[tuple[str, list[int]]], most: int) -> None:
    prefixes = Prefixes(most)
    for client, ids in kept:
        prefixes.keep(prefix(client, ids))
        assert prefixes.tokens <= most


def test_the_one_not_used_for_longest_goes_first() -> None:
    prefixes = Prefixes(6)
    rows = [prefix("a", [number, 9]) for number in range(4)]
    for row in rows[:3]:
        prefixes.keep(row)
    prefixes.touch(rows[0])
    prefixes.keep(rows[3])
    assert [prefixes.longest("a", row.ids) is not None for row in rows] == [True, False, True, True]


def test_what_a_longer_one_begins_with_is_not_kept_twice() -> None:
    prefixes = Prefixes(100)
    for client, ids in (("a", [1, 2]), ("b", [1, 2]), ("a", [1, 2, 3])):
        prefixes.keep(prefix(client, ids))
    assert (len(prefixes), prefixes.tokens) == (2, 5)
