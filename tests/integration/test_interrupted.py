"""A trade that is broken off, at any end of it: the books of both sides still say the same in the end."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from ledger.commitments import CHECKPOINT_TOKENS
from ledger.money import Amount
from node.demo.processes import NodeProcess
from tests.integration.network import (
    BUYER,
    SELLER,
    STORY,
    Network,
    balance,
    client_of,
    closed,
    did_in,
    free_port,
    kill,
    owner_of,
    sellers_are_known,
    settled,
    tapped,
    terminate,
    until,
    way_to,
)

ENDLESS = "tests.integration.endless_seller"
MOST = 1_500


async def chunks_of(client: openai.AsyncOpenAI) -> AsyncIterator[ChatCompletionChunk]:
    """A long answer as it comes."""
    stream = await client.chat.completions.create(model="auto", messages=STORY, max_tokens=MOST, stream=True)
    async with stream:
        async for chunk in stream:
            yield chunk


async def read(chunks: AsyncIterator[ChatCompletionChunk], least: int) -> str:
    """The text of so many more chunks."""
    text = ""
    for _ in range(least):
        chunk = await anext(chunks)
        text += chunk.choices[0].delta.content or ""
    return text


async def test_what_arrived_from_a_killed_seller_is_kept_and_paid_up_to_the_last_checkpoint(network: Network) -> None:
    port = free_port()
    seller = await network.up("seller", SELLER, port=port, module=ENDLESS)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    async with client_of(buyer) as client:
        chunks = chunks_of(client)
        text = await read(chunks, CHECKPOINT_TOKENS + 20)
        assert text
        await kill(seller)
        with pytest.raises(openai.APIError, match="broke off") as caught:
            await read(chunks, MOST)
    owed = (await closed(buyer, seller.running.did)).earned
    assert f"costs {Amount(owed, 'uusd')}; `idlemesh export " in str(caught.value)
    assert owed > 0
    assert owed % (2 * CHECKPOINT_TOKENS) == 0  # the output alone, up to a checkpoint: two for a token
    seller = await network.up("seller", SELLER, port=port, module=ENDLESS)
    assert (await settled(buyer, seller)).earned == owed


async def test_when_the_seller_is_killed_the_next_one_answers_who_takes_no_stream(network: Network) -> None:
    first = await network.up("first", {"sell": {"price": "0.01usd:0.01usd", "open_credit": "0.1usd"}}, module=ENDLESS)
    second = await network.up("second", SELLER)
    buyer = await network.up("buyer", BUYER, [way_to(first), way_to(second)])
    await sellers_are_known(buyer, 2)
    async with client_of(buyer) as client:
        asking = asyncio.ensure_future(
            client.chat.completions.with_raw_response.create(model="auto", messages=STORY, max_tokens=MOST)
        )
        async with owner_of(first) as owner:

            async def sells() -> bool:
                return any(account["reserved"] != "0.000000usd" for account in (await owner.accounts())["accounts"])

            await until(sells)
        await kill(first)
        raw = await asking
        assert raw.headers["x-idlemesh-route"].split(", ")[-1] == second.running.did
        assert raw.parse().choices[0].message.content
        # And the next question, too: nobody waits for the dead.
        raw = await client.chat.completions.with_raw_response.create(model="auto", messages=STORY)
        assert raw.headers["x-idlemesh-route"] == second.running.did
    await settled(buyer, second)


async def test_when_nobody_is_left_this_machine_answers_and_says_so(network: Network) -> None:
    seller = await network.up("seller", SELLER)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    await kill(seller)
    async with client_of(buyer) as client:
        raw = await client.chat.completions.with_raw_response.create(model="auto", messages=STORY)
        assert raw.headers["x-idlemesh-route"] == "local"
        assert seller.running.did in raw.headers["x-idlemesh-degraded"]
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(
                model="auto", messages=STORY, extra_headers={"X-IdleMesh-Degrade": "never"}
            )
    assert caught.value.status_code == 503
    assert seller.running.did in caught.value.message
    assert (await balance(buyer, seller.running.did)).reserved == 0


async def test_a_client_that_goes_away_stops_the_work_at_the_seller(network: Network) -> None:
    seller = await network.up("seller", SELLER, module=ENDLESS)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    async with client_of(buyer) as client:
        chunks = chunks_of(client)
        await read(chunks, 30)
    # The client is closed, and with it its connection.
    books = await settled(buyer, seller)
    async with owner_of(seller) as owner:
        (sold,) = await owner.receipts(10)
    assert sold["finish"] == "cancelled"
    assert 20 <= sold["output_tokens"] < MOST
    assert books.earned == sold["prompt_tokens"] + 2 * sold["output_tokens"]
    async with owner_of(buyer) as owner:
        (bought,) = await owner.receipts(10)
    assert bought["accepted"]
    assert bought["id"] == sold["id"]


async def test_a_seller_that_is_stopped_properly_ends_its_sale_properly(network: Network) -> None:
    port = free_port()
    seller = await network.up("seller", SELLER, port=port, module=ENDLESS)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    async with client_of(buyer) as client:
        chunks = chunks_of(client)
        await read(chunks, CHECKPOINT_TOKENS + 20)
        assert await terminate(seller) == 0
        with pytest.raises(openai.APIError, match="broke off"):
            await read(chunks, MOST)
    seller = await network.up("seller", SELLER, port=port, module=ENDLESS)
    assert (await settled(buyer, seller)).earned % (2 * CHECKPOINT_TOKENS) == 0


async def test_a_killed_buyer_pays_what_it_received_when_it_is_back(network: Network) -> None:
    seller = await network.up("seller", SELLER)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    async with client_of(buyer) as client:
        chunks = chunks_of(client)
        await read(chunks, 2)
        await kill(buyer)
        await chunks.aclose()  # type: ignore[attr-defined]

    async def delivered() -> bool:
        return (await balance(seller, buyer.running.did)).earned > 0

    await until(delivered)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    assert (await settled(buyer, seller)).earned > 0


async def test_an_acknowledgement_that_was_not_sent_is_sent_after_a_restart(network: Network) -> None:
    seller = await network.up("seller", SELLER)
    async with tapped(seller.running.url) as tap:
        deaf = await network.up("buyer", BUYER, [(seller.running.did, tap.url)])
        await sellers_are_known(deaf)
        tap.drop(b"POST /mesh/v1/acknowledgements ")
        async with client_of(deaf) as client:
            await client.chat.completions.create(model="auto", messages=STORY, max_tokens=5)

        async def acknowledged() -> bool:
            books = await balance(deaf, seller.running.did)
            return books.authorized == books.earned > 0

        await until(acknowledged)
        assert (await balance(seller, deaf.running.did)).authorized == 0
        await kill(deaf)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    assert did_in(network.folder / "buyer") == deaf.running.did
    books = await settled(buyer, seller)
    assert books.authorized == books.earned > 0


@pytest.mark.parametrize("role", ["seller", "buyer"])
async def test_a_node_that_is_told_to_stop_ends_with_status_0(network: Network, role: str) -> None:
    seller = await network.up("seller", SELLER)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    node: NodeProcess = {"seller": seller, "buyer": buyer}[role]
    assert await terminate(node) == 0
    assert not (node.home.folder / "node.json").exists()
    assert "Traceback" not in (node.home.folder / "log.txt").read_text()
