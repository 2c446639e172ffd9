"""Disks that are full, read-only or damaged, and clocks that are set back: nothing is lost, and the owner is told."""

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from ledger.database import Database
from node.home import Home
from node.ports import SystemEntropy
from tests.integration.crashes import (
    COST,
    LONG,
    STAGES,
    CrashingNode,
    Pair,
    Point,
    Reply,
    Stage,
    check_ledger,
    finish,
    points_of,
)
from tests.integration.network import idlemesh, until
from tests.postgres import Server

_DAY_S: Final = 24 * 3600
# Room for a home with a ledger of a few trades.
_SMALL: Final = "8m"
# For a database of PostgreSQL, which begins with as much as that.
_MEDIUM: Final = "24m"
# An order takes some kilobytes, and pages that are there already bear a few.
_MOST_ORDERS: Final = 30


@pytest.fixture
def small_disk() -> Iterator[Callable[..., None]]:
    """Puts a file system of its own, and of a few megabytes, at a folder."""
    with contextlib.ExitStack() as stack:

        def mount(folder: Path, size: str = _SMALL) -> None:
            folder.mkdir()
            stack.callback(folder.rmdir)
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False)
            if done.returncode != 0:
                pytest.skip("no file system can be mounted here: run this as root")
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)

        yield mount


def make_read_only(folder: Path) -> None:
    """As the kernel does when a disk fails."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no room on a disk; the file that takes it."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4_096))
    return filler


async def local_answer(pair: Pair, node: CrashingNode) -> Reply:
    """What a node answers by itself."""
    answer = await pair.ask(node, 5, "X-IdleMesh-Route", "local")
    assert answer is not None
    assert (answer.status, answer.headers["x-idlemesh-route"]) == (200, "local")
    return answer


async def trouble(pair: Pair, node: CrashingNode) -> str:
    """What a node says is wrong with its ledger; empty if nothing is."""
    return (await pair.status(node))["ledger"]["trouble"] or ""


async def test_a_disk_that_takes_nothing_at_any_write_costs_nothing_once_it_does_again(
    tmp_path: Path, forking: Path
) -> None:
    tried: list[Point] = []
    async with Pair(tmp_path, forking) as pair:
        for stage in STAGES:
            for point in await points_of(pair, stage):
                if point.name.endswith("before the first row"):
                    await disk_fails(pair, stage, point)
                    tried.append(point)
    for node in pair.nodes.values():
        await check_ledger(node)
    assert len(tried) >= 13


async def disk_fails(pair: Pair, stage: Stage, point: Point) -> None:
    """Let a node's disk take nothing from a point on, then again, and let both finish what they were at."""
    await stage.prepare(pair)
    before = await pair.agree()
    victim = pair.nodes[point.node]
    await victim.do("watch", fatal=[point.name, point.nth], disk=True)
    await stage.run(pair, before)

    async def is_told() -> bool:
        return "ledger cannot be used" in await trouble(pair, victim)

    await until(is_told)
    await local_answer(pair, victim)
    await victim.do("seen")
    await victim.do("write", on=True)
    await victim.do("sweep")
    assert not await trouble(pair, victim)
    await finish(pair, stage, point, before)


@pytest.mark.parametrize("whose", ["buyer", "seller"])
async def test_a_node_whose_disk_is_full_answers_by_itself_until_there_is_room_again(
    tmp_path: Path, forking: Path, small_disk: Callable[[Path], None], whose: str
) -> None:
    small_disk(tmp_path / whose)
    async with Pair(tmp_path, forking) as pair:
        await pair.order(pair.buyer, LONG)
        before = await pair.agree()
        filler = fill(tmp_path / whose)
        answer = await pair.ask(pair.buyer, LONG, "X-IdleMesh-Route", "peers")
        assert answer is not None
        assert (answer.status, answer.headers["x-idlemesh-route"]) == (200, "local")
        assert "ledger cannot be used now" in answer.headers["x-idlemesh-degraded"]
        assert "disk is full" in await trouble(pair, pair.nodes[whose])
        assert await pair.agree() == before
        filler.unlink()
        await pair.nodes[whose].do("sweep")
        await pair.start()
        await pair.order(pair.buyer, LONG)
        assert (await pair.agree())["bought"]["authorized"] == 2 * COST
    for node in pair.nodes.values():
        await check_ledger(node)


@contextlib.contextmanager
def database_on(server: Server, disk: Path) -> Iterator[str]:
    """A database for ledgers whose tables lie on a disk of their own; its URL."""
    owner = server.folder.stat()
    os.chown(disk, owner.st_uid, owner.st_gid)
    server.run("postgres", f"CREATE TABLESPACE disk LOCATION '{disk}'")
    try:
        server.run("postgres", "CREATE DATABASE disk TEMPLATE upgraded TABLESPACE disk")
        try:
            yield server.url("disk")
        finally:
            server.run("postgres", "DROP DATABASE disk WITH (FORCE)")
    finally:
        server.run("postgres", "DROP TABLESPACE disk")


async def test_nodes_whose_server_has_a_full_disk_answer_by_themselves_until_there_is_room_again(
    tmp_path: Path, forking: Path, small_disk: Callable[..., None], postgres: Server
) -> None:
    disk = postgres.folder / "disk"
    small_disk(disk, _MEDIUM)
    with database_on(postgres, disk) as url:
        async with Pair(tmp_path, forking, url) as pair:
            await pair.order(pair.buyer, LONG)
            filler = fill(disk)
            for _ in range(_MOST_ORDERS):
                await pair.ask(pair.buyer, LONG, "X-IdleMesh-Route", "peers")
                if await trouble(pair, pair.buyer):
                    break
            assert "No space left on device" in await trouble(pair, pair.buyer)
            assert "has space" in await trouble(pair, pair.buyer)
            await local_answer(pair, pair.buyer)
            filler.unlink()
            for node in pair.nodes.values():
                await node.do("sweep")
                assert not await trouble(pair, node)
            # What was just being written may be there without its writer having heard of it: an order that never went.
            before = await pair.recover()
            await pair.order(pair.buyer, LONG)
            assert (await pair.agree())["bought"]["authorized"] == before["bought"]["authorized"] + COST
        for node in pair.nodes.values():
            await check_ledger(node)


async def test_a_home_on_a_full_disk_is_named(tmp_path: Path, small_disk: Callable[[Path], None]) -> None:
    small_disk(tmp_path / "disk")
    fill(tmp_path / "disk")
    said = await idlemesh("up", "--port", 0, "--home", tmp_path / "disk" / "home")
    assert said.status == 1
    assert "cannot be written: No space left on device: check the disk's space" in said.err
    assert "Traceback" not in said.err


async def test_a_home_on_a_read_only_file_system_is_named(tmp_path: Path, small_disk: Callable[[Path], None]) -> None:
    disk = tmp_path / "disk"
    small_disk(disk)
    home = Home(disk / "home")
    await (await Database.open(home.ledger, home.identity(SystemEntropy()).did)).close()
    make_read_only(disk)
    for command in (("up", "--port", 0), ("accounts",)):
        said = await idlemesh(*command, "--home", disk / "home")
        assert said.status == 1
        assert "cannot be written: Read-only file system: check" in said.err
        assert "Traceback" not in said.err


async def test_a_row_that_is_damaged_under_a_running_node_is_named_when_it_is_read(
    tmp_path: Path, forking: Path
) -> None:
    async with Pair(tmp_path, forking) as pair:
        await pair.order(pair.buyer, LONG)
        await pair.agree()
        with closing(sqlite3.connect(tmp_path / "buyer" / "ledger.db")) as database, database:
            database.execute("UPDATE records SET raw = zeroblob(length(raw)) WHERE kind = 'receipt'")
        listed = await pair.receipts(pair.buyer)
        assert listed.status == 503
        assert "the ledger is damaged at entry" in listed.body["error"]["message"]
        await local_answer(pair, pair.buyer)
    said = await idlemesh("ledger", "verify", "--home", tmp_path / "buyer")
    assert said.status == 1
    assert "do not match its digest" in said.err


async def test_a_clock_that_is_set_back_a_day_stops_trade_until_offers_are_made_anew_and_loses_nothing(
    tmp_path: Path, forking: Path
) -> None:
    async def buy(pair: Pair) -> dict[str, Any]:
        await pair.start()
        await pair.order(pair.buyer, LONG)
        return dict((await pair.agree())["bought"])

    async with Pair(tmp_path, forking) as pair:
        await buy(pair)
        pair.move_clock(-_DAY_S)
        assert (await buy(pair))["authorized"] == 2 * COST
        await pair.stop()
        assert (await buy(pair))["authorized"] == 3 * COST
        await pair.seller.stop()
        assert (await buy(pair))["authorized"] == 4 * COST
        pair.move_clock(_DAY_S)
        assert (await buy(pair))["authorized"] == 5 * COST
    for node in pair.nodes.values():
        await check_ledger(node)


@pytest.mark.parametrize("column", ["books", "memory"])
async def test_a_torn_snapshot_is_made_again_from_the_chain(tmp_path: Path, forking: Path, column: str) -> None:
    async with Pair(tmp_path, forking) as pair:
        await pair.order(pair.buyer, LONG)
        before = await pair.agree()
        await pair.stop()
        with closing(sqlite3.connect(tmp_path / "buyer" / "ledger.db")) as database, database:
            torn = database.execute(f"UPDATE snapshots SET {column} = substr({column}, 1, length({column}) / 2)")
            assert torn.rowcount == 1
        await pair.start()
        assert await pair.agree() == before
        assert "snapshot" in (tmp_path / "buyer" / "log.txt").read_text()
        await pair.order(pair.buyer, LONG)
        assert (await pair.agree())["bought"]["authorized"] == 2 * COST
    for node in pair.nodes.values():
        await check_ledger(node)
