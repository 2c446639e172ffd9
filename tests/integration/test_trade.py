"""Two nodes trade over real sockets, and their books say the same."""

import asyncio

import openai
import pytest

from tests.integration.conftest import Pair
from tests.integration.network import (
    BUYER,
    STORY,
    Network,
    client_of,
    owner_of,
    sellers_are_known,
    settled,
    tapped,
    usd,
)

PEERS = {"X-IdleMesh-Route": "peers"}


async def test_a_bought_answer_is_received_acknowledged_and_paid(pair: Pair) -> None:
    await sellers_are_known(pair.buyer)
    before = await settled(pair.buyer, pair.seller)
    async with client_of(pair.buyer) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="auto", messages=STORY, max_tokens=20, extra_headers=PEERS
        )
    completion = raw.parse()
    assert completion.choices[0].message.content
    assert completion.usage is not None
    assert raw.headers["x-idlemesh-route"] == pair.seller.running.did
    cost = usd(raw.headers["x-idlemesh-cost"])
    assert cost == completion.usage.prompt_tokens + 2 * completion.usage.completion_tokens
    after = await settled(pair.buyer, pair.seller)
    assert after.earned - before.earned == after.authorized - before.authorized == cost
    async with owner_of(pair.buyer) as owner:
        bought = next(r for r in await owner.receipts(50) if r["id"] == raw.headers["x-idlemesh-receipt"])
    async with owner_of(pair.seller) as owner:
        sold = next(r for r in await owner.receipts(50) if r["id"] == raw.headers["x-idlemesh-receipt"])
    assert (bought["role"], sold["role"]) == ("bought", "sold")
    assert bought["accepted"] is sold["accepted"] is True
    assert bought["paid"] == sold["paid"] == bought["cost"]
    assert bought["verdicts"][-1]["outcome"] == "honest"


async def test_a_bought_stream_says_at_its_end_what_it_was(pair: Pair) -> None:
    await sellers_are_known(pair.buyer)
    async with client_of(pair.buyer) as client:
        stream = await client.chat.completions.create(
            model="auto", messages=STORY, stream=True, stream_options={"include_usage": True}, extra_headers=PEERS
        )
        chunks = [chunk async for chunk in stream]
    facts = (chunks[-1].model_extra or {})["idlemesh"]
    assert facts["route"] == pair.seller.running.did
    assert chunks[-1].usage is not None
    assert usd(facts["cost"]) == chunks[-1].usage.prompt_tokens + 2 * chunks[-1].usage.completion_tokens
    async with owner_of(pair.buyer) as owner:
        assert facts["receipt"] in [receipt["id"] for receipt in await owner.receipts(50)]


async def test_the_same_seed_gives_the_same_answer_here_and_there(pair: Pair) -> None:
    await sellers_are_known(pair.buyer)
    async with client_of(pair.buyer) as client:
        here, there = [
            await client.chat.completions.create(
                model="auto", messages=STORY, seed=5, extra_headers={"X-IdleMesh-Route": route}
            )
            for route in ("local", "peers")
        ]
    assert here.choices[0].message == there.choices[0].message
    assert here.usage == there.usage


async def test_a_stop_string_ends_a_bought_answer(pair: Pair) -> None:
    await sellers_are_known(pair.buyer)
    async with client_of(pair.buyer) as client:
        whole = await client.chat.completions.create(
            model="auto", messages=STORY, temperature=0, extra_headers={"X-IdleMesh-Route": "local"}
        )
        text = whole.choices[0].message.content or ""
        word = text.split()[4]
        cut = await client.chat.completions.create(
            model="auto", messages=STORY, temperature=0, stop=word, extra_headers=PEERS
        )
    assert cut.choices[0].message.content == text[: text.index(word)]
    assert cut.choices[0].finish_reason == "stop"
    await settled(pair.buyer, pair.seller)


async def test_this_machine_answers_first_and_for_nothing(pair: Pair) -> None:
    await sellers_are_known(pair.buyer)
    before = await settled(pair.buyer, pair.seller)
    async with client_of(pair.buyer) as client:
        raw = await client.chat.completions.with_raw_response.create(model="auto", messages=STORY, max_tokens=5)
    assert raw.headers["x-idlemesh-route"] == "local"
    assert await settled(pair.buyer, pair.seller) == before


async def test_questions_at_once_are_answered_each_by_its_own(pair: Pair) -> None:
    """More than the seller has slots for: the rest is answered here, and says so."""
    await sellers_are_known(pair.buyer)
    async with client_of(pair.buyer) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model="auto", messages=STORY, seed=seed, extra_headers=PEERS)
                for seed in range(6)
            )
        )
        alone = [
            await client.chat.completions.create(
                model="auto", messages=STORY, seed=seed, extra_headers={"X-IdleMesh-Route": "local"}
            )
            for seed in range(6)
        ]
    assert [a.choices[0].message.content for a in answers] == [a.choices[0].message.content for a in alone]
    await settled(pair.buyer, pair.seller)


async def test_what_may_not_leave_this_machine_does_not(network: Network, pair: Pair) -> None:
    async with tapped(pair.seller.running.url) as tap:
        buyer = await network.up("buyer", BUYER, [(pair.seller.running.did, tap.url)])
        await sellers_are_known(buyer)
        async with client_of(buyer) as client:
            for level in ("confidential", "restricted"):
                raw = await client.chat.completions.with_raw_response.create(
                    model="auto", messages=STORY, max_tokens=3, extra_headers={"X-IdleMesh-Privacy": level}
                )
                assert raw.headers["x-idlemesh-route"] == "local"
                assert level in raw.headers["x-idlemesh-degraded"]
                with pytest.raises(openai.InternalServerError, match="must not leave this machine") as caught:
                    await client.chat.completions.create(
                        model="auto",
                        messages=STORY,
                        metadata={"privacy": level},
                        extra_headers={"X-IdleMesh-Degrade": "never"},
                    )
                assert caught.value.status_code == 503
            assert tap.orders == 0
            raw = await client.chat.completions.with_raw_response.create(
                model="auto", messages=STORY, max_tokens=3, extra_headers={"X-IdleMesh-Privacy": "internal"}
            )
        assert raw.headers["x-idlemesh-route"] == pair.seller.running.did
        assert tap.orders == 1
        assert b"story about a fox" not in tap.heard  # three letters may stand anywhere in what is encrypted
        assert (await settled(buyer, pair.seller)).earned > 0
