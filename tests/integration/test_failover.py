"""A seller that is killed in the middle of an answer: the next one goes on, and nobody who reads it notices."""

import json

import openai
import pytest
from attrs import frozen
from openai import AsyncStream
from openai.types.chat import ChatCompletionChunk

from ledger.commitments import CHECKPOINT_TOKENS
from node.demo.processes import NodeProcess
from tests.integration.network import (
    BUYER,
    PRICE,
    SELLER,
    STORY,
    Network,
    client_of,
    closed,
    free_port,
    idlemesh,
    kill,
    sellers_are_known,
    settled,
    usd,
    way_to,
)

ENDLESS = "tests.integration.endless_seller"
MOST = 260
SEED = 5
CHEAP = {"sell": {"price": "1usd:1usd", "open_credit": "0.1usd"}}


@frozen
class Read:
    """What a client had of one stream."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    facts: dict[str, str]


async def begun(client: openai.AsyncOpenAI) -> AsyncStream[ChatCompletionChunk]:
    return await client.chat.completions.create(
        model="auto",
        messages=STORY,
        seed=SEED,
        max_tokens=MOST,
        stream=True,
        stream_options={"include_usage": True},
    )


async def read(stream: AsyncStream[ChatCompletionChunk], *victims: NodeProcess) -> Read:
    """Read to the end; after 90 pieces of text the victims are killed."""
    texts: list[str] = []
    async with stream:
        async for chunk in stream:
            texts += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            if len(texts) == 90:
                for victim in victims:
                    await kill(victim)
            if chunk.usage is not None:
                facts = (chunk.model_extra or {})["idlemesh"]
                return Read("".join(texts), chunk.usage.prompt_tokens, chunk.usage.completion_tokens, facts)
    raise AssertionError("the stream ended without its usage")


async def test_when_the_seller_is_killed_the_next_one_goes_on_with_the_same_answer(network: Network) -> None:
    port = free_port()
    first = await network.up("first", CHEAP, port=port, module=ENDLESS)
    second = await network.up("second", SELLER, module=ENDLESS)
    buyer = await network.up("buyer", BUYER, [way_to(first), way_to(second)])
    await sellers_are_known(buyer, 2)

    async with client_of(buyer) as client:
        broken = await read(await begun(client), first)
        whole = await read(await begun(client))

    assert broken.text == whole.text
    assert (broken.prompt_tokens, broken.completion_tokens) == (whole.prompt_tokens, MOST)
    assert broken.facts["route"] == f"{first.running.did}, {second.running.did}"
    assert whole.facts["route"] == second.running.did

    # Each is paid by its own order, and both sides of each account say the same.
    owed = (await closed(buyer, first.running.did)).earned
    assert owed >= CHECKPOINT_TOKENS
    assert owed % CHECKPOINT_TOKENS == 0
    rest = usd(broken.facts["cost"]) - owed
    both = await settled(buyer, second)
    assert both.earned == both.authorized == rest + usd(whole.facts["cost"])
    first = await network.up("first", CHEAP, port=port, module=ENDLESS)
    assert (await settled(buyer, first)).authorized == owed

    # And each part's last signed record can be shown to others.
    for record in broken.facts["receipt"].split(", "):
        said = await idlemesh("export", record, "--ids", "--home", buyer.home.folder)
        assert said.status == 0, said.err
        path = network.folder / f"{record[:12]}.json"
        path.write_text(said.out)
        assert ("receipt" in json.loads(said.out)) != ("checkpoint" in json.loads(said.out))
        verified = await idlemesh("verify", path)
        assert verified.status == 0, verified.out


async def test_when_nobody_can_go_on_the_stream_says_that_it_broke_off(network: Network) -> None:
    first = await network.up("first", CHEAP, module=ENDLESS)
    second = await network.up("second", {"sell": {"price": PRICE, "open_credit": "0.1usd"}}, module=ENDLESS)
    buyer = await network.up("buyer", BUYER, [way_to(first), way_to(second)])
    await sellers_are_known(buyer, 2)

    async with client_of(buyer) as client:
        with pytest.raises(openai.APIError, match="broke off"):
            await read(await begun(client), first, second)
    assert (await closed(buyer, second.running.did)).earned == 0
