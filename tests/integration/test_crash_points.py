"""Nodes are killed at every point of a trade, one point after another; afterwards both books say the same."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.integration.crashes import (
    PAID_IN_THE_END,
    PAID_ON_THE_WAY,
    STAGES,
    Pair,
    Point,
    Stage,
    check_ledger,
    crash,
    points_of,
)

# Fewer would mean that the points are not found any more.
_LEAST: Final = 35
# Two messages that cross may change places, and what is written together with them.
_TRIES: Final = 3


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_a_node_that_is_killed_at_any_point_of_a_trade_loses_and_doubles_nothing(
    tmp_path: Path, forking: Path, database: str, request: pytest.FixtureRequest
) -> None:
    place: str | None = None if database == "sqlite" else request.getfixturevalue("postgres_url")
    await kill_everywhere(Pair(tmp_path, forking, place, PAID_IN_THE_END), STAGES, database)


async def test_a_node_that_is_killed_while_an_answer_is_paid_on_the_way_pays_and_is_paid_once(
    tmp_path: Path, forking: Path
) -> None:
    await kill_everywhere(Pair(tmp_path, forking, None, PAID_ON_THE_WAY), STAGES[:1], "sqlite")


async def kill_everywhere(pair: Pair, stages: Sequence[Stage], database: str) -> None:
    """Kill either node at each point of each stage, and check both ledgers."""
    missed: list[Point] = []
    killed: Counter[str] = Counter()
    async with pair:
        for stage in stages:
            for point in await points_of(pair, stage):
                for _ in range(_TRIES):
                    if await crash(pair, stage, point):
                        killed[stage.name] += 1
                        break
                else:
                    missed.append(point)
    for node in pair.nodes.values():
        await check_ledger(node)
    print(f"killed at {killed.total()} points on {database}: {dict(killed)}")
    assert not missed
    assert killed.total() >= _LEAST
