"""Real nodes, and answers that cost more than the seller's window: paid as they go, or ended."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import openai
import pytest

from node.demo.processes import NodeProcess
from tests.integration.network import (
    BUYER,
    STORY,
    Network,
    Sections,
    balance,
    client_of,
    free_port,
    kill,
    owner_of,
    sellers_are_known,
    settled,
    tapped,
    until,
    way_to,
)

ENDLESS: Final = "tests.integration.endless_seller"
FAST: Final = ("--pace", 0)
ACKNOWLEDGEMENTS: Final = b"POST /mesh/v1/acknowledgements "
# Of 128 tokens and a prompt, at two for a token and one for one of the prompt.
WINDOW: Final = 2 * 128 + 100
NARROW: Final[Sections] = {
    "node": {"slots": 4},
    "sell": {
        "price": "1usd:2usd",
        "open_credit": "0.1usd",
        "window": "0.000356usd",
        "exposure": "0.1usd",
        "patience": 10,
    },
}


async def ask(buyer: NodeProcess, tokens: int) -> openai.types.chat.ChatCompletion:
    async with client_of(buyer) as client:
        return await client.chat.completions.create(model="auto", messages=STORY, max_tokens=tokens)


async def streamed(client: openai.AsyncOpenAI, tokens: int) -> AsyncIterator[str]:
    stream = await client.chat.completions.create(model="auto", messages=STORY, max_tokens=tokens, stream=True)
    async with stream:
        async for chunk in stream:
            yield chunk.choices[0].delta.content or ""


async def watch_unpaid(seller: NodeProcess, buyer: str, stop: asyncio.Event) -> int:
    """The most that was unpaid at the seller, as often as it can be asked."""
    most = 0
    while not stop.is_set():
        most = max(most, (await balance(seller, buyer)).unpaid)
        await asyncio.sleep(0.2)
    return most


async def test_an_answer_of_600_tokens_goes_through_a_window_of_128(network: Network) -> None:
    seller = await network.up("seller", NARROW, module=ENDLESS, arguments=FAST)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    stop = asyncio.Event()
    watching = asyncio.create_task(watch_unpaid(seller, buyer.running.did, stop))

    said = await ask(buyer, 600)
    stop.set()

    assert said.usage is not None
    assert (said.usage.completion_tokens, said.choices[0].finish_reason) == (600, "length")
    books = await settled(buyer, seller)
    assert books.earned == books.authorized == said.usage.prompt_tokens + 2 * 600 > 3 * WINDOW
    assert await watching <= WINDOW
    for node in (buyer, seller):
        async with owner_of(node) as owner:
            (receipt,) = await owner.receipts(10)
        assert (receipt["accepted"], receipt["paid"]) == (True, receipt["cost"])


async def test_many_answers_at_once_share_one_window(network: Network) -> None:
    seller = await network.up(
        "seller", NARROW | {"sell": NARROW["sell"] | {"window": "0.001usd"}}, module=ENDLESS, arguments=FAST
    )
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    stop = asyncio.Event()
    watching = asyncio.create_task(watch_unpaid(seller, buyer.running.did, stop))

    answers = await asyncio.gather(*(ask(buyer, 300) for _ in range(4)))
    stop.set()

    assert [one.usage.completion_tokens for one in answers if one.usage is not None] == [300] * 4
    books = await settled(buyer, seller)
    assert books.earned == sum(one.usage.prompt_tokens + 600 for one in answers if one.usage is not None)
    assert await watching <= 1_000


async def test_a_buyer_that_stops_paying_gets_no_more_than_the_window_and_pays_what_it_got(network: Network) -> None:
    seller = await network.up("seller", NARROW, module=ENDLESS, arguments=FAST)
    async with tapped(seller.running.url) as tap:
        buyer = await network.up("buyer", BUYER, [(seller.running.did, tap.url)])
        await sellers_are_known(buyer)
        tap.drop(ACKNOWLEDGEMENTS)
        async with client_of(buyer) as client:
            raw = await client.chat.completions.with_raw_response.create(model="auto", messages=STORY, max_tokens=600)
        assert raw.headers["x-idlemesh-route"] == "local"  # nothing of it was shown yet, and so it is answered here
        assert "was not paid in time" in raw.headers["x-idlemesh-degraded"]
        async with owner_of(seller) as owner:
            (sold,) = await owner.receipts(10)
        assert (sold["finish"], sold["output_tokens"]) == ("unpaid", 128)
        assert (await balance(seller, buyer.running.did)).unpaid <= WINDOW
        tap.allow()
        books = await settled(buyer, seller)
    assert books.earned == books.authorized == sold["prompt_tokens"] + 2 * 128


@pytest.mark.parametrize("role", ["buyer", "seller"])
async def test_a_node_that_is_killed_in_mid_answer_has_paid_or_was_paid_once(network: Network, role: str) -> None:
    port = free_port()
    seller = await network.up("seller", NARROW, port=port, module=ENDLESS, arguments=FAST)
    buyer = await network.up("buyer", BUYER, [way_to(seller)])
    await sellers_are_known(buyer)
    async with client_of(buyer) as client:
        chunks = streamed(client, 1_500)
        for _ in range(250):
            await anext(chunks)
        await kill(buyer if role == "buyer" else seller)
        with contextlib.suppress(openai.APIError):
            async for _ in chunks:
                pass
    if role == "seller":
        seller = await network.up("seller", NARROW, port=port, module=ENDLESS, arguments=FAST)
    else:

        async def closed() -> bool:
            return not (await balance(seller, buyer.running.did)).reserved

        await until(closed)
        buyer = await network.up("buyer", BUYER, [way_to(seller)])

    async def paid() -> bool:
        ours, theirs = await balance(buyer, seller.running.did), await balance(seller, buyer.running.did)
        return ours.earned == ours.authorized == theirs.authorized >= 2 * 192 and not ours.reserved + theirs.reserved

    await until(paid)
    # A checkpoint that was on its way when the seller died is known to the seller alone.
    lost = (await balance(seller, buyer.running.did)).unpaid
    assert lost in ((0, 2 * 64) if role == "seller" else (0,))
