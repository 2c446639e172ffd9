"""A buyer without the weights: other sellers tell it who cheats."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from ledger.records import Offer, open_record
from node.config import DEMO_MODEL
from node.demo.processes import NodeProcess
from node.engine.calibration import CalibrationFiles
from node.home import Home
from node.models.llama import quantize
from node.wire.client import HttpPeer
from tests.integration.network import (
    STORY,
    Network,
    client_of,
    closed,
    owner_of,
    sellers_are_known,
    until,
    way_to,
)
from verify.calibration import STRATA, Calibration

# What honest engines of one build may show at most, in 100,000 tokens.
HONEST = (99_000, 500, 300, 140, 50, 10, 0, 0, 0, 0)
CHEAPER = {"sell": {"price": "0.5usd:1usd", "open_credit": "0.1usd"}}
DEARER = {"sell": {"price": "1usd:2usd", "open_credit": "0.1usd"}}
BUYER = {"api": {"route": "peers"}, "audit": {"rate": 1.0, "first": 8}}


async def calibrate(buyer: Path, seller: NodeProcess) -> None:
    """Let a buyer know what honest margins of the seller's engine against itself are."""
    async with aiohttp.ClientSession() as session:
        (raw,) = await HttpPeer(session, seller.running.url).offers()
    offer = open_record(raw, Offer).record
    known = Calibration(offer.engine, offer.engine, offer.model, dict.fromkeys(STRATA, HONEST))
    CalibrationFiles(Home(buyer).calibrations).save(offer.model, [known])


async def bought(buyer: NodeProcess) -> list[dict[str, Any]]:
    async with owner_of(buyer) as owner:
        return [receipt for receipt in await owner.receipts(50) if receipt["role"] == "bought"]


async def test_a_cheat_is_condemned_by_two_sellers_of_the_same_weights(network: Network, tmp_path: Path) -> None:
    cheap = tmp_path / "cheap.gguf"
    await asyncio.to_thread(quantize, DEMO_MODEL, cheap, "Q2_K")
    cheat, *honest = await asyncio.gather(
        network.up("cheat", CHEAPER, module="node.demo.cheat", arguments=("--weights", cheap)),
        network.up("first", DEARER),
        network.up("second", DEARER),
    )
    await calibrate(network.folder / "buyer", cheat)
    sellers = [cheat, *honest]
    buyer = await network.up("buyer", BUYER, [way_to(seller) for seller in sellers], arguments=("--model", cheap))
    await sellers_are_known(buyer, 3)

    async def condemned() -> bool:
        return "dishonest" in [verdict["outcome"] for one in await bought(buyer) for verdict in one["verdicts"]]

    async with client_of(buyer) as client:
        for seed in range(8):
            sold = await client.chat.completions.with_raw_response.create(
                model="auto", messages=STORY, max_tokens=120, temperature=1.3, seed=seed
            )
            if sold.headers["x-idlemesh-route"] != cheat.running.did:
                break
    await until(condemned)

    assert (await closed(buyer, cheat.running.did)).unpaid == 0
    convicted = [one for one in await bought(buyer) if "dishonest" in [v["outcome"] for v in one["verdicts"]]]
    assert {(one["seller"], one["accepted"]) for one in convicted} == {(cheat.running.did, False)}
    # Both were asked, and were paid for it.
    assert all([(await closed(buyer, seller.running.did)).authorized > 0 for seller in honest])
