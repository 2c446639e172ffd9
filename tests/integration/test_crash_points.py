"""Nodes are killed at every point of a trade, one point after another; afterwards nothing is missing or doubled."""

from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from ledger.database import Place
from tests.integration.crashes import STAGES, ForkServer, Pair, Point, check_ledger, crash, points_of


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_a_node_that_is_killed_at_any_point_of_a_trade_loses_and_doubles_nothing(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    place: Place | None = None if database == "sqlite" else request.getfixturevalue("postgres_url")
    missed: list[Point] = []
    killed: Counter[str] = Counter()
    async with ForkServer.running(tmp_path / "socket") as server, aiohttp.ClientSession() as http:
        async with Pair(tmp_path, (place, place), server, http) as pair:
            for stage in STAGES:
                for point in await points_of(pair, stage):
                    if await crash(pair, stage, point):
                        killed[stage.name] += 1
                    else:
                        missed.append(point)
        for node in pair.nodes.values():
            await check_ledger(node)
    print(f"killed at {killed.total()} points on {database}: {dict(killed)}")
    assert not missed
