"""What is remembered of comparisons of accounts."""

from typing import Any

import pytest

from ledger.events import Observed
from node.exchange.meetings import Compared, Cut, Meetings, compared, cut

ME, ALICE, BOB = "did:key:me", "did:key:alice", "did:key:bob"
ONE, OTHER = b"1" * 32, b"2" * 32
FOUND = Cut(ALICE, 9, 4, 1_000)


def folded(*events: Observed) -> Meetings:
    meetings = Meetings()
    for event in events:
        meetings.take(event)
    return meetings


def test_the_last_comparison_with_each_peer_counts() -> None:
    meetings = folded(compared(ALICE, ONE, b""), compared(BOB, ONE, OTHER), compared(ALICE, OTHER, ONE))
    assert meetings.compared == {ALICE: Compared(OTHER, ONE), BOB: Compared(ONE, OTHER)}


def test_after_a_cut_nobody_is_compared_with_until_it_is_done_again() -> None:
    meetings = folded(compared(ALICE, ONE, b""), compared(BOB, ONE, b""), cut(ME, FOUND), compared(BOB, OTHER, b""))
    assert (meetings.cut, meetings.after_cut) == (FOUND, {BOB})
    assert set(meetings.compared) == {ALICE, BOB}


def test_what_others_wrote_is_passed_over() -> None:
    odd = (
        Observed(ALICE, "compared", {"theirs": b"short", "ours": b""}),
        Observed(ALICE, "compared", {"theirs": ONE}),
        Observed(ME, "cut", {"peer": 7, "signed": 1, "entries": 1, "found_ms": 1}),
        Observed(ALICE, "delivered", {"tokens": 3}),
    )
    assert folded(*odd).to_plain() == Meetings().to_plain()


@pytest.mark.parametrize(
    "events", [(), (compared(BOB, ONE, OTHER), cut(ME, FOUND), compared(ALICE, OTHER, b""))], ids=["none", "some"]
)
def test_they_are_written_down_and_read_back(events: tuple[Observed, ...]) -> None:
    meetings = folded(*events)
    plain = meetings.to_plain()
    assert Meetings.from_plain(plain).to_plain() == plain
    copy = meetings.copy()
    copy.take(compared(BOB, OTHER, b""))
    assert meetings.to_plain() == plain != copy.to_plain()


@pytest.mark.parametrize(
    "odd",
    [
        {"compared": [[ALICE, ONE]], "cut": None, "after_cut": []},
        {"compared": [], "cut": [ALICE, 1], "after_cut": []},
        {"compared": [], "cut": None, "after_cut": [7]},
        {"compared": [], "cut": None},
    ],
)
def test_what_was_never_written_down_is_not_read(odd: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError)):
        Meetings.from_plain(odd)
