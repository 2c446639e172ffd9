"""A node is killed at every point of what it has a rail move; afterwards the money has moved once, and is counted."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from ledger.database import Place
from tests.integration.moving import Movement, Mover

_HONEST: Final = tuple(Movement(kind) for kind in ("top_up", "pay", "claim", "refund", "close"))
# The request is lost; it is refused, and tried again; it is carried out, and the answer lost.
_TROUBLED: Final = (
    Movement("pay", ["lose"]),
    Movement("pay", ["refuse"]),
    Movement("top_up", ["forget"]),
    Movement("close", ["forget"]),
)
# Fewer would mean that the points are not found any more: what is planned, told, heard and confirmed.
_LEAST: Final = 14
# A round in the background may take a point away.
_TRIES: Final = 3


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_a_node_that_is_killed_at_any_point_of_a_movement_of_money_moves_it_once(
    tmp_path: Path, forking: Path, database: str, request: pytest.FixtureRequest
) -> None:
    place: str | None = None if database == "sqlite" else request.getfixturevalue("postgres_url")
    killed = await kill_everywhere(tmp_path, forking, place, _HONEST)
    print(f"killed at {sum(killed.values())} points on {database}: {killed}")


async def test_a_node_that_is_killed_while_its_rail_gives_no_answer_finds_out_what_has_moved(
    tmp_path: Path, forking: Path
) -> None:
    killed = await kill_everywhere(tmp_path, forking, None, _TROUBLED)
    print(f"killed at {sum(killed.values())} points on sqlite: {killed}")


async def kill_everywhere(
    folder: Path, forking: Path, place: Place | None, movements: Sequence[Movement]
) -> dict[str, int]:
    """Kill a node for each movement, all of them side by side; how often each was killed."""
    async with asyncio.TaskGroup() as group:
        killing = [group.create_task(kill_one(folder / str(one), forking, place, one)) for one in movements]
    return {str(one): task.result() for one, task in zip(movements, killing, strict=True)}


async def kill_one(folder: Path, forking: Path, place: Place | None, movement: Movement) -> int:
    """Kill a node at each point of a movement, and check the bank, the books and the chain; at how many."""
    mover = Mover(folder, forking, place)
    await mover.node.start()
    points = await mover.points_of(movement)
    assert len(points) >= _LEAST
    for point in points:
        for _ in range(_TRIES):
            if await mover.crash(movement, point):
                break
        else:
            raise AssertionError(f"{movement} never came to {point} again")
    await mover.node.stop()
    await mover.check_ledger()
    return len(points)
