"""What is offered for gas where an endpoint says that it costs much more than it does."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ledger.rails.stablecoin import contracts
from ledger.rails.stablecoin.errors import TooDear
from ledger.rails.stablecoin.keys import Key
from ledger.rails.stablecoin.networks import network, networks
from ledger.rails.stablecoin.prices import Prices
from ledger.rails.stablecoin.rpc import Endpoints, hexed
from tests.chain import CHAIN_ID, Anvil
from tests.ledger.rails.stablecoin.channels import raw
from tests.ledger.rails.stablecoin.conftest import Opens
from tests.ledger.rails.stablecoin.endpoints import between

GWEI = 10**9


class Dear:
    """Says that blocks and tips cost so many wei, once it is told to."""

    def __init__(self) -> None:
        self.tip = self.base = 0

    def __call__(self, method: str, parameters: list[Any], found: Any) -> Any:
        if self.tip and method == "eth_maxPriorityFeePerGas":
            return hexed(self.tip)
        if self.base and method == "eth_getBlockByNumber":
            return found | {"baseFeePerGas": hexed(self.base)}
        return found


async def test_a_price_many_times_what_was_seen_is_offered_in_part_until_it_was_seen_often(
    chain: Anvil, tmp_path: Path
) -> None:
    said = Dear()
    said.base, said.tip = 3 * GWEI, GWEI
    async with between(chain.url, said) as (address, _):
        endpoints = Endpoints([address], CHAIN_ID)

        def prices() -> Prices:
            return Prices(endpoints, network("anvil"), 1_000 * GWEI, tmp_path / "prices.json", every_s=0)

        one = prices()
        for _ in range(8):
            assert (await one.offer()).most == 7 * GWEI
        said.base = said.tip = 400 * GWEI
        for looking in (one, prices()):  # it is remembered by the next run
            offer = await looking.offer()
            assert (offer.expected, offer.most, offer.tip) == (40 * GWEI,) * 3
            assert await looking.offer_again(50 * GWEI, 3 * GWEI) == (50 * GWEI, 40 * GWEI)
        for _ in range(8):
            await one.offer()
        assert (await one.offer()).expected == 800 * GWEI
        said.base = 900 * GWEI
        with pytest.raises(TooDear):
            await one.offer()
        assert await one.offer_again(50 * GWEI, 3 * GWEI) == (1_000 * GWEI, 400 * GWEI)
        await endpoints.close()


async def test_a_new_node_has_the_networks_bound(chain: Anvil, opens: Opens) -> None:
    said = Dear()
    said.tip = 1_000 * GWEI
    async with between(chain.url, said) as (address, _):
        sender = await opens(Key.of(bytes(chain.wallet().key)), rpc=(address,), max_gas_price=None)
        with pytest.raises(TooDear, match="max_gas_price is 50"):
            await sender.submit(b"1", contracts.approve(raw(chain.deployed.dollar), sender.address, 1))


async def test_a_transaction_goes_out_for_what_gas_really_costs_whatever_the_only_endpoint_says(
    chain: Anvil, opens: Opens, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    really, said = int(chain.rpc("eth_gasPrice"), 16), Dear()
    said.tip = 40 * GWEI
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / f"prices-{CHAIN_ID}.json").write_text(json.dumps({"seen": [really] * 20}))
    async with between(chain.url, said) as (address, _):
        sender = await opens(Key.of(bytes(chain.wallet().key)), rpc=(address,), folder="kept")
        with caplog.at_level(logging.WARNING):
            await sender.submit(b"1", contracts.approve(raw(chain.deployed.dollar), sender.address, 1))
        assert "gas is said to cost" in caplog.text
        chain.catch_up()
        chain.mine(3)
        outcome = await sender.outcome(b"1")
        assert outcome.state == "settled"
        assert outcome.fee <= outcome.gas * 10 * really < outcome.gas * said.tip


@pytest.mark.parametrize("kept", ["", "{", "5", "[]", "{}", '{"seen": 5}', '{"seen": ["x", -1, null, 1.5]}'])
async def test_what_was_kept_and_cannot_be_read_bounds_nothing(chain: Anvil, tmp_path: Path, kept: str) -> None:
    (tmp_path / "prices.json").write_text(kept)
    endpoints = Endpoints([chain.url], CHAIN_ID)
    prices = Prices(endpoints, network("anvil"), 1_000 * GWEI, tmp_path / "prices.json")
    assert await prices.offer() == await prices.said()
    await endpoints.close()


def test_every_network_has_a_bound_far_above_what_it_asks_at_least() -> None:
    assert {each.name: each.max_gas_price // GWEI for each in networks()} == {
        "base": 2,
        "base-sepolia": 2,
        "arbitrum": 2,
        "polygon": 1_000,
        "anvil": 50,
    }
