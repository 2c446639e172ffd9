"""Disks that are full, read-only or damaged, and clocks that are set back: nothing is lost, and the owner is told."""

from pathlib import Path

import aiohttp

from tests.integration.crashes import STAGES, ForkServer, Pair, Point, Stage, check_ledger, finish, points_of
from tests.integration.network import until


async def test_a_disk_that_takes_nothing_at_any_write_costs_nothing_once_it_does_again(tmp_path: Path) -> None:
    tried: list[Point] = []
    async with ForkServer.running(tmp_path / "socket") as server, aiohttp.ClientSession() as http:
        async with Pair(tmp_path, (None, None), server, http) as pair:
            for stage in STAGES:
                for point in await points_of(pair, stage):
                    if point.name.endswith("before the first row"):
                        await fill_disk(pair, stage, point)
                        tried.append(point)
        for node in pair.nodes.values():
            await check_ledger(node)
    assert len(tried) >= 13


async def fill_disk(pair: Pair, stage: Stage, point: Point) -> None:
    """Let a node's disk take nothing from a point on, then again, and let both finish what they were at."""
    await stage.prepare(pair)
    before = await pair.agree()
    victim = pair.nodes[point.node]
    await victim.do("watch", fatal=[point.name, point.nth], disk=True)
    await stage.run(pair, before)

    async def is_told() -> bool:
        return "ledger cannot be used" in ((await pair.status(victim))["ledger"]["trouble"] or "")

    await until(is_told)
    answer = await pair.ask(victim, 5, "X-IdleMesh-Route", "local")
    assert answer is not None
    assert answer.status == 200
    await victim.do("seen")
    await victim.do("write", on=True)
    await victim.do("sweep")
    assert (await pair.status(victim))["ledger"]["trouble"] is None
    await finish(pair, stage, point, before)
