"""Turns change when somebody has waited, not by the second, and nobody is left out."""

from itertools import pairwise

from attrs import define, field

from node.engine.turns import Pace, Turns

PACE = Pace(after=2, drain=100, residence=30, pause=1, comeback=15)


@define
class Room:
    """One model fits at a time; time is told."""

    turns: Turns[str] = field(factory=lambda: Turns(PACE))
    here: str | None = None

    def load(self, one: str, now: float) -> None:
        if self.here is not None:
            self.turns.dropped(self.here)
        self.here = one
        self.turns.loaded(one, now)

    def look(self, now: float) -> str | None:
        """For whom room is made."""
        loaded = [(self.here, 1)] if self.here else []
        self.turns.look(now, {one: 1 for one in "abc" if one != self.here}, loaded)
        return self.turns.next


def test_room_is_made_once_somebody_has_waited_and_the_model_has_had_its_time() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.use("a", False, 0)
    room.turns.wait("b", False, 10)
    assert [room.look(now) for now in (10, 12, 29.9, 30)] == [None, None, None, "b"]
    assert room.turns.keeps_out("a", sold=False)
    room.turns.wait("c", False, 32)
    assert room.look(40) == "b"


def test_room_is_not_made_before_somebody_has_waited() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.wait("b", False, 50)
    assert [room.look(now) for now in (50, 51.9, 52)] == [None, None, "b"]


def test_two_busy_models_take_turns_of_the_least_time() -> None:
    room, now, changes = Room(), 0.0, []
    room.load("a", 0)
    room.turns.wait("b", False, 0)
    while now < 300:
        now += 0.5
        room.turns.use(str(room.here), False, now)
        if (following := room.look(now)) is not None:
            room.turns.wait(str(room.here), False, now)
            room.load(following, now)
            room.turns.leave(following, False, now, comes_back=False)
            changes.append(now)
    assert [later - earlier for earlier, later in pairwise(changes)] == [PACE.residence] * 9


def test_what_is_loaded_before_its_turn_keeps_nobody_waiting() -> None:
    turns: Turns[str] = Turns(PACE)
    turns.loaded("small", 0)
    turns.use("small", False, 0)
    turns.wait("large", False, 0)
    turns.wait("other", False, 9)
    turns.loaded("other", 10)
    turns.use("other", False, 10)
    turns.leave("other", False, 10, comes_back=False)
    made: list[str | None] = []
    for now in (29, 30):
        turns.look(now, {"large": 2}, [("small", 1), ("other", 1)])
        made.append(turns.next)
    assert (made, turns.leaves("other")) == ([None, "large"], True)


def test_who_waited_longest_is_first_and_the_owner_before_all() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.wait("b", True, 40)
    room.turns.wait("c", True, 41)
    assert room.look(50) == "b"
    room.turns.wait("c", False, 50)
    assert (room.look(50), room.look(52)) == ("c", "c")
    room.turns.leave("c", False, 53, comes_back=False)
    assert room.look(53) == "b"


def test_sold_work_makes_room_for_sold_work_and_the_owner_for_nobody_but_the_owner() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.wait("b", True, 40)
    assert room.look(50) == "b"
    assert (room.turns.keeps_out("a", sold=True), room.turns.keeps_out("a", sold=False)) == (True, False)
    room.turns.wait("b", False, 50)
    assert room.turns.keeps_out("a", sold=False)


def test_a_turn_is_kept_for_who_was_told_to_come_again_and_for_a_while_only() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.wait("b", False, 40)
    room.turns.leave("b", False, 50, comes_back=True)
    assert [room.look(now) for now in (50, 64.9, 65)] == ["b", "b", None]
    assert not room.turns.keeps_out("a", sold=False)


def test_room_for_which_nobody_comes_is_taken_back_for_the_least_time() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.miss("b", True, 40)
    assert [room.look(now) for now in (41, 42, 54, 55)] == [None, "b", "b", None]
    room.turns.miss("b", True, 56)
    assert [room.look(now) for now in (58, 70)] == [None, None]
    room.turns.miss("b", True, 71)
    assert [room.look(now) for now in (84, 85)] == [None, "b"]


def test_who_went_away_keeps_no_turn() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.wait("b", False, 40)
    assert room.look(50) == "b"
    room.turns.leave("b", False, 50, comes_back=False)
    assert room.look(50) is None
    assert not room.turns.keeps_out("a", sold=True)


def test_a_model_that_does_not_get_done_takes_work_again_for_the_least_time() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.wait("b", False, 40)
    assert [room.look(now) for now in (50, 149, 150, 179, 180)] == ["b", "b", None, None, "b"]


def test_a_model_stays_over_a_pause_between_two_uses_while_its_time_lasts() -> None:
    room = Room()
    room.load("a", 0)
    room.turns.use("a", False, 10)
    assert [room.turns.pauses("a", now) for now in (10, 10.9, 11)] == [True, True, False]
    room.turns.use("a", False, 29.5)
    assert [room.turns.pauses("a", now) for now in (29.9, 30)] == [True, False]


def test_the_next_moment_that_matters_is_known() -> None:
    room = Room()
    assert room.turns.soonest(0) == float("inf")
    room.load("a", 0)
    room.turns.wait("b", False, 10)
    assert [room.turns.soonest(now) for now in (0, 1, 12)] == [1, 12, 30]
    room.look(30)
    assert room.turns.soonest(30) == 130
