"""What is damaged is found and named: receipts, ledgers, model files; and what is taken cannot be taken twice."""

import asyncio
import base64
import contextlib
import json
import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from node.home import Home
from node.ports import SystemEntropy
from tests.integration.conftest import Pair
from tests.integration.network import (
    BUYER,
    STORY,
    Network,
    client_of,
    idlemesh,
    kill,
    owner_of,
    sellers_are_known,
    settled,
    terminate,
    until,
    way_to,
)


def flipped(raw: bytes, at: int) -> bytes:
    """The bytes with one bit changed."""
    at %= len(raw)
    return raw[:at] + bytes([raw[at] ^ 0x01]) + raw[at + 1 :]


async def exported(pair: Pair) -> dict[str, Any]:
    """A receipt with everything that it takes to check it."""
    await sellers_are_known(pair.buyer)
    async with client_of(pair.buyer) as client, owner_of(pair.buyer) as owner:
        raw = await client.chat.completions.with_raw_response.create(
            model="auto", messages=STORY, max_tokens=5, extra_headers={"X-IdleMesh-Route": "peers"}
        )
        receipt = raw.headers["x-idlemesh-receipt"]

        async def acknowledged() -> bool:
            return "acknowledgement" in await owner.export(receipt)

        await until(acknowledged)
        return await owner.export(receipt)


def flip_record(body: dict[str, Any], name: str) -> dict[str, Any]:
    raw = base64.b64decode(body[name])
    return body | {name: base64.b64encode(flipped(raw, len(raw) // 2)).decode()}


async def test_an_exported_receipt_is_valid(pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(await exported(pair)))
    said = await idlemesh("verify", file)
    assert (said.status, said.out.splitlines()[-1]) == (0, "The receipt is valid.")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda body: flip_record(body, "receipt"), "signatures"),
        (lambda body: flip_record(body, "acknowledgement"), "signatures"),
        (lambda body: flip_record(body, "salt"), "prompt commitment"),
        (lambda body: body | {"answer": [*body["answer"][:-1], body["answer"][-1] ^ 1]}, "answer commitment"),
    ],
    ids=["receipt", "acknowledgement", "salt", "answer"],
)
async def test_a_flipped_byte_in_an_exported_receipt_is_found(
    pair: Pair, tmp_path: Path, damage: Callable[[dict[str, Any]], dict[str, Any]], found: str
) -> None:
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(damage(await exported(pair))))
    said = await idlemesh("verify", file)
    assert said.status == 1
    assert said.out.splitlines()[-1] == "The receipt is NOT valid."
    assert found in next(line for line in said.out.splitlines() if line.startswith("WRONG"))


@pytest.fixture(scope="module")
def traded(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a node that bought, was paid for it, and was stopped."""
    home = tmp_path_factory.mktemp("traded") / "buyer"

    async def trade() -> None:
        async with contextlib.AsyncExitStack() as stack:
            node = await Network(home.parent, stack).up("buyer", BUYER, [way_to(pair.seller)])
            await sellers_are_known(node)
            async with client_of(node) as client:
                await client.chat.completions.create(model="auto", messages=STORY, max_tokens=5)
            await settled(node, pair.seller)
            assert await terminate(node) == 0

    asyncio.run(trade())
    return home


@pytest.fixture
def home(traded: Path, tmp_path: Path) -> Path:
    """A copy of that home, to be damaged."""
    shutil.copytree(traded, tmp_path / "home")
    return tmp_path / "home"


async def both_say(home: Path, *words: str) -> None:
    """`up`, when it has no snapshot to go on from, and `ledger verify` end with status 1 and these words."""
    with contextlib.suppress(sqlite3.DatabaseError), closing(sqlite3.connect(home / "ledger.db")) as database, database:
        database.execute("DELETE FROM snapshots")
    for command in (("ledger", "verify", "--json"), ("up", "--port", 0)):
        said = await idlemesh(*command, "--home", home)
        assert said.status == 1, said
        assert said.out == ""
        assert "Traceback" not in said.err
        for word in words:
            assert word in said.err


async def test_after_a_trade_the_ledger_is_whole_on_disk(home: Path) -> None:
    said = await idlemesh("accounts", "--home", home)
    assert said.status == 0
    assert "The journal is whole" in said.out


@pytest.mark.parametrize("column", ["payload", "previous", "hash"])
async def test_a_flipped_byte_in_a_row_of_the_journal_is_found(home: Path, column: str) -> None:
    with closing(sqlite3.connect(home / "ledger.db")) as database, database:
        ((value,),) = database.execute(f"SELECT {column} FROM journal WHERE sequence = 2")
        database.execute(f"UPDATE journal SET {column} = ? WHERE sequence = 2", (flipped(value, 7),))
    await both_say(home, "the ledger is damaged at entry 2", "put a backup in its place")


async def test_a_flipped_byte_in_a_kept_record_is_found(home: Path) -> None:
    with closing(sqlite3.connect(home / "ledger.db")) as database, database:
        ((digest, raw),) = database.execute("SELECT digest, raw FROM records WHERE kind = 'receipt'")
        database.execute("UPDATE records SET raw = ? WHERE digest = ?", (flipped(raw, 40), digest))
    await both_say(home, "the ledger is damaged", "receipt", "do not match its digest")


async def test_a_ledger_that_is_no_database_is_found(home: Path) -> None:
    (home / "ledger.db").write_bytes(b"not a database" * 100)
    await both_say(home, "the ledger is damaged")


async def test_the_ledger_of_another_node_is_found(home: Path) -> None:
    (home / "identity.key").unlink()
    Home(home).identity(SystemEntropy())
    await both_say(home, "it is the ledger of another node")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a GGUF file"),
        (b"#!/bin/sh\n", "not a GGUF file"),
        (b"GGUF" + b"\xff" * 64, "version"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, ""),
    ],
    ids=["empty", "a script", "a strange version", "absurd counts"],
)
async def test_a_model_file_that_is_none_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(content)
    said = await idlemesh("up", "--home", tmp_path / "home", "--port", 0, "--model", model)
    assert said.status == 1
    assert str(model) in said.err
    assert complaint in said.err
    assert "Traceback" not in said.err


async def test_a_model_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = await idlemesh("up", "--home", tmp_path / "home", "--port", 0, "--model", tmp_path / "nowhere.gguf")
    assert said.status == 1
    assert "nowhere.gguf: it cannot be read" in said.err


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = await idlemesh("up", "--home", tmp_path / "home", "--port", port)
    assert said.status == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said.err
    assert "choose another --port" in said.err


async def test_two_nodes_cannot_have_one_home(pair: Pair) -> None:
    said = await idlemesh("up", "--home", pair.buyer.home.folder, "--port", 0)
    assert said.status == 1
    assert f"{pair.buyer.home.folder} is in use, by a node or another command: stop it" in said.err
    # And the one that runs is still found.
    assert (await idlemesh("peers", "--home", pair.buyer.home.folder, "--json")).status == 0


async def test_a_home_whose_node_was_killed_can_be_used_again(network: Network, pair: Pair) -> None:
    node = await network.up("buyer", BUYER, [way_to(pair.seller)])
    await kill(node)
    said = await idlemesh("peers", "--home", node.home.folder)
    assert said.status == 1
    assert "no node is running" in said.err
    again = await network.up("buyer", BUYER, [way_to(pair.seller)])
    assert again.running.did == node.running.did
    await sellers_are_known(again)
