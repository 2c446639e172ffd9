"""Prefixes are found, forgotten by last use, and never another client's."""

from hypothesis import given
from hypothesis import strategies as st

from node.engine.prefixes import Prefix, Prefixes, as_ids, common

ROWS = st.lists(st.integers(0, 2), max_size=12)


@given(ROWS, ROWS)
def test_what_two_rows_have_in_common(first: list[int], second: list[int]) -> None:
    shared = common(as_ids(first), as_ids(second))
    assert first[:shared] == second[:shared]
    assert shared == min(len(first), len(second)) or first[shared] != second[shared]


@given(st.lists(st.tuples(st.sampled_from("ab"), ROWS), max_size=8), st.sampled_from("ab"), ROWS)
def test_the_longest_is_found_among_the_clients_own(
    kept: list[tuple[str, list[int]]], client: str, ids: list[int]
) -> None:
    prefixes = Prefixes()
    for sequence, (whose, held) in enumerate(kept):
        prefixes.keep(Prefix(sequence, whose, as_ids(held)))
    found = prefixes.longest(client, as_ids(ids))
    best = max((common(as_ids(held), as_ids(ids)) for whose, held in kept if whose == client), default=0)
    assert (found[1] if found else 0) == best
    if found:
        assert found[0].client == client


def test_the_one_not_used_for_longest_goes_first() -> None:
    prefixes = Prefixes()
    for sequence in range(3):
        prefixes.keep(Prefix(sequence, "a", as_ids([sequence, 9])))
    prefixes.touch(0)
    assert prefixes.oldest() == 1
    assert prefixes.oldest(spared=1) == 2
    prefixes.take(1)
    assert prefixes.oldest() == 2
    assert len(prefixes) == 2


def test_what_a_longer_one_begins_with_is_not_kept_twice() -> None:
    prefixes = Prefixes()
    prefixes.keep(Prefix(0, "a", as_ids([1, 2])))
    prefixes.keep(Prefix(1, "b", as_ids([1, 2])))
    assert prefixes.keep(Prefix(2, "a", as_ids([1, 2, 3]))) == [0]
    assert len(prefixes) == 2
