"""Several processes of one node, each with its own home and address, on one ledger in PostgreSQL."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from typing import Final

import openai

from ledger.database import Database, Part
from node.demo.processes import NodeProcess
from node.home import Home
from tests.integration.network import (
    BUYER,
    SELLER,
    STORY,
    Network,
    Sections,
    Wiretap,
    balance,
    client_of,
    did_in,
    idlemesh,
    kill,
    owner_of,
    sellers_are_known,
    settled,
    tapped,
    until,
    way_to,
    write_config,
)

ENDLESS: Final = "tests.integration.endless_seller"
FAST: Final = ("--pace", 0)
WINDOW: Final = 1_000
SELLING: Final[Sections] = {
    "node": {"slots": 8},
    "sell": {"price": "1usd:2usd", "open_credit": "0.1usd", "window": "0.001usd", "exposure": "0.1usd"},
}


async def twins(
    network: Network, names: tuple[str, str], sections: Sections, peers: list[tuple[str, str]], *arguments: object
) -> tuple[NodeProcess, NodeProcess]:
    """Two processes of one identity, each in a home of its own."""
    module = ENDLESS if arguments else "node.cli"
    first = await network.up(names[0], sections, peers, module=module, arguments=arguments)
    Home(network.folder / names[1]).make()
    shutil.copy(network.folder / names[0] / "identity.key", network.folder / names[1])
    return first, await network.up(names[1], sections, peers, module=module, arguments=arguments)


@contextlib.asynccontextmanager
async def taps_on(nodes: tuple[NodeProcess, NodeProcess]) -> AsyncIterator[tuple[Wiretap, Wiretap]]:
    async with tapped(nodes[0].running.url) as one, tapped(nodes[1].running.url) as other:
        yield one, other


async def ask(buyer: NodeProcess, tokens: int) -> openai.types.chat.ChatCompletion:
    async with client_of(buyer) as client:
        return await client.chat.completions.create(model="auto", messages=STORY, max_tokens=tokens)


async def watch_unpaid(seller: NodeProcess, buyer: str, stop: asyncio.Event) -> int:
    """The most that was unpaid in the sellers' books, as often as it can be asked."""
    most = 0
    while not stop.is_set():
        most = max(most, (await balance(seller, buyer)).unpaid)
        await asyncio.sleep(0.2)
    return most


async def test_two_sell_to_one_buyer_at_once_within_one_window_and_one_statement(
    network: Network, postgres_url: str
) -> None:
    ledger = {"ledger": {"url": postgres_url}}
    sellers = await twins(network, ("one", "other"), SELLING | ledger, [], *FAST)
    did = sellers[0].running.did
    assert sellers[1].running.did == did
    async with taps_on(sellers) as taps:
        buyer = await network.up("buyer", BUYER, [(did, tap.url) for tap in taps])
        await sellers_are_known(buyer)
        stop = asyncio.Event()
        watching = asyncio.create_task(watch_unpaid(sellers[1], buyer.running.did, stop))

        answers = await asyncio.gather(*(ask(buyer, 300) for _ in range(6)))
        stop.set()

        assert [one.usage.completion_tokens for one in answers if one.usage is not None] == [300] * 6
        assert min(tap.orders for tap in taps) >= 2
        earned = sum(one.usage.prompt_tokens + 600 for one in answers if one.usage is not None)
        for seller in sellers:
            books = await settled(buyer, seller)
            assert books.earned == books.authorized == earned
            async with owner_of(seller) as owner:
                assert len(await owner.receipts(10)) == 6
        assert await watching <= WINDOW
    said = await idlemesh("ledger", "statement", "--json", "--home", network.folder / "one")
    rows = json.loads(said.out)["accounts"]
    assert {row["counterparty"] for row in rows} == {buyer.running.did}
    parts = [(await idlemesh("status", "--home", network.folder / name)).out for name in ("one", "other")]
    assert [sum(part in said for said in parts) for part in ("this one leads", "another one leads")] == [1, 1]
    # A third home of the node, in which none runs, sees all of it meanwhile.
    third = Home(network.folder / "third")
    third.make()
    shutil.copy(network.folder / "one" / "identity.key", third.folder)
    write_config(third.folder, ledger, [], 0)
    whole = await idlemesh("ledger", "verify", "--home", third.folder)
    assert "The journal is whole" in whole.out, whole.err


async def test_of_two_sellers_one_is_killed_and_the_other_goes_on_and_ends_what_it_left(
    network: Network, postgres_url: str
) -> None:
    sellers = await twins(network, ("one", "other"), SELLING | {"ledger": {"url": postgres_url}}, [], "--pace", 0.02)
    did = sellers[0].running.did
    async with taps_on(sellers) as taps:
        buyer = await network.up("buyer", BUYER, [(did, tap.url) for tap in taps])
        await sellers_are_known(buyer)
        async with client_of(buyer) as client:
            stream = await client.chat.completions.create(model="auto", messages=STORY, max_tokens=200, stream=True)
            said, seen = "", 0
            async for chunk in stream:
                said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                seen += 1
                if seen == 80:
                    first = 0 if taps[0].orders else 1
                    await kill(sellers[first])
        assert len(said) > 80
        # The answer went on at the other one, as the same seller.
        assert taps[1 - first].orders == 1
        survivor = sellers[1 - first]
        books = await settled(buyer, survivor)
        assert books.earned == books.authorized > 0
        assert (await ask(buyer, 10)).usage is not None


async def test_of_two_buyers_one_is_killed_and_the_other_settles_what_it_left(
    network: Network, postgres_url: str
) -> None:
    seller = await network.up("seller", SELLING, module=ENDLESS, arguments=("--pace", 0.02))
    buyers = await twins(network, ("one", "other"), BUYER | {"ledger": {"url": postgres_url}}, [way_to(seller)])
    for buyer in buyers:
        await sellers_are_known(buyer)
    await asyncio.gather(*(ask(buyer, 64) for buyer in buyers))
    async with client_of(buyers[0]) as client:
        stream = await client.chat.completions.create(model="auto", messages=STORY, max_tokens=400, stream=True)
        with contextlib.suppress(openai.APIError):
            async for seen in counted(stream):
                if seen == 80:
                    # The other one is at work on the same account meanwhile.
                    other = asyncio.create_task(ask(buyers[1], 64))
                    await kill(buyers[0])
    assert (await other).usage is not None

    async def nothing_is_left() -> bool:
        return not (await balance(buyers[1], seller.running.did)).reserved

    await until(nothing_is_left)
    books = await settled(buyers[1], seller)
    assert books.earned == books.authorized > 3 * 2 * 64


async def counted(stream: openai.AsyncStream[openai.types.chat.ChatCompletionChunk]) -> AsyncIterator[int]:
    """How many chunks came by now."""
    seen = 0
    async for _ in stream:
        seen += 1
        yield seen


async def test_one_process_alone_may_move_money(network: Network, postgres_url: str) -> None:
    home = Home(network.folder / "node")
    ledger = {"ledger": {"url": postgres_url}}
    await network.up("first", ledger | SELLER)
    home.make()
    shutil.copy(network.folder / "first" / "identity.key", home.folder)
    config = write_config(home.folder, ledger | {"stablecoin": {"network": "base"}}, [], 0)
    async with await Database.open(postgres_url, did_in(home.folder), part=Part(moves_money=True)):
        said = await idlemesh("up", "--home", home.folder, "--config", config)
    assert said.status == 1
    assert "has [stablecoin], and one alone may move its money" in said.err
    assert "Leave [stablecoin] and [paid] out here" in said.err
