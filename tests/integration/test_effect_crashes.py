"""A node is killed at every point of what it has a rail move; afterwards the money has moved once, and is counted."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.integration.moving import Movement, Mover

_HONEST: Final = tuple(Movement(kind) for kind in ("top_up", "pay", "claim", "refund", "close"))
# The request is lost; it is carried out and the answer lost; it is refused, and tried again.
_TROUBLED: Final = (
    Movement("pay", ["lose"]),
    Movement("pay", ["forget"]),
    Movement("pay", ["refuse"]),
    Movement("top_up", ["forget"]),
    Movement("claim", ["forget"]),
    Movement("close", ["lose"]),
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
    await kill_everywhere(Mover(tmp_path, forking, place), _HONEST, database)


async def test_a_node_that_is_killed_while_its_rail_gives_no_answer_finds_out_what_has_moved(
    tmp_path: Path, forking: Path
) -> None:
    await kill_everywhere(Mover(tmp_path, forking, None), _TROUBLED, "sqlite")


async def kill_everywhere(mover: Mover, movements: Sequence[Movement], database: str) -> None:
    """Kill the node at each point of each movement, and check the bank, the books and the chain."""
    killed: Counter[str] = Counter()
    await mover.node.start()
    for movement in movements:
        points = await mover.points_of(movement)
        for point in points:
            for _ in range(_TRIES):
                if await mover.crash(movement, point):
                    killed[str(movement)] += 1
                    break
        assert killed[str(movement)] == len(points) >= _LEAST, f"{movement}: {points}"
    await mover.node.stop()
    await mover.check_ledger()
    print(f"killed at {killed.total()} points on {database}: {dict(killed)}")
