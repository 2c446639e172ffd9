"""A node whose ledger is put back to an older copy: its peer gives back what it has lost, and trade goes on."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from node.demo.processes import NodeProcess
from tests.integration.network import (
    BUYER,
    SELLER,
    STORY,
    Network,
    client_of,
    free_port,
    idlemesh,
    kill,
    owner_of,
    sellers_are_known,
    settled,
    way_to,
)


async def buy(buyer: NodeProcess, seller: NodeProcess) -> int:
    """One answer more; what both sides count as earned then."""
    await sellers_are_known(buyer)
    async with client_of(buyer) as client:
        await client.chat.completions.create(model="auto", messages=STORY, max_tokens=5)
    return (await settled(buyer, seller)).earned


def copied(folder: Path) -> bytes:
    """The ledger as it is now, though its node is at work on it."""
    with (
        contextlib.closing(sqlite3.connect(folder / "ledger.db")) as ledger,
        contextlib.closing(sqlite3.connect(":memory:")) as copy,
    ):
        ledger.backup(copy)
        return copy.serialize()


def put_back(folder: Path, copy: bytes) -> None:
    """The ledger as it was when it was copied."""
    for left in folder.glob("ledger.db*"):
        left.unlink()
    (folder / "ledger.db").write_bytes(copy)


@pytest.mark.parametrize("restored", ["seller", "buyer"])
async def test_a_restored_ledger_is_healed_by_the_peer(network: Network, restored: str) -> None:
    port, folder = free_port(), network.folder / restored

    async def up_seller() -> NodeProcess:
        return await network.up("seller", SELLER, port=port)

    async def up_buyer(seller: NodeProcess) -> NodeProcess:
        return await network.up("buyer", BUYER, [way_to(seller)])

    seller = await up_seller()
    buyer = await up_buyer(seller)
    before = await buy(buyer, seller)
    copy = copied(folder)
    after = await buy(buyer, seller)
    assert after > before
    await kill(buyer)
    buyer = await up_buyer(seller)
    await sellers_are_known(buyer)  # and accounts are compared
    await kill(buyer)
    await kill(seller)
    put_back(folder, copy)

    seller = await up_seller()
    buyer = await up_buyer(seller)

    await sellers_are_known(buyer)
    assert (await settled(buyer, seller)).earned == after
    assert await buy(buyer, seller) > after
    said = await idlemesh("accounts", "--home", folder)
    assert "This ledger was cut or restored from an older copy" in said.out
    async with owner_of({"seller": buyer, "buyer": seller}[restored]) as owner:
        body = await owner.accounts()
    assert body["cut"] is None
    assert [one["differences"] for one in body["comparisons"]] == [[]]
