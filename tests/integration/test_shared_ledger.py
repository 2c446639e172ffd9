"""Two nodes whose ledgers are in one database of PostgreSQL."""

import asyncio

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
    sellers_are_known,
    settled,
    terminate,
    way_to,
)


async def test_they_trade_are_killed_and_find_their_books_again(network: Network, postgres_url: str) -> None:
    ledger = {"ledger": {"url": postgres_url}}
    port = free_port()

    async def up() -> tuple[NodeProcess, NodeProcess]:
        seller = await network.up("seller", SELLER | ledger, port=port)
        return seller, await network.up("buyer", BUYER | ledger, [way_to(seller)])

    seller, buyer = await up()
    await sellers_are_known(buyer)
    async with client_of(buyer) as client:
        await client.chat.completions.create(model="auto", messages=STORY, max_tokens=8)
    before = await settled(buyer, seller)
    assert before.earned == before.authorized > 0
    await asyncio.gather(kill(seller), kill(buyer))
    seller, buyer = await up()
    assert await settled(buyer, seller) == before
    assert not (network.folder / "seller" / "ledger.db").exists()
    assert await terminate(buyer) == 0
    said = await idlemesh("accounts", "--home", network.folder / "buyer")
    assert said.status == 0
    assert "The journal is whole" in said.out
