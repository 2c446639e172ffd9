"""The door for anyone who pays, with x402's own client, unchanged, on a real chain."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
from eth_account.signers.local import LocalAccount

from node.engine.memory import MemoryEngine
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.vocab import open_vocab
from tests.chain import X402_CHANNELS, Anvil
from tests.node.conftest import tokenizer_digest
from tests.node.strangers import Stall, asking, channel_scheme, client, exact_scheme, settlement, stall
from tests.node.trading import DEMO, engine_of

Open = Callable[..., AbstractAsyncContextManager[Stall]]


@pytest.fixture
async def speaking() -> AsyncIterator[Tokenizer]:
    """A tokenizer that renders conversations."""
    renderer = TemplateRenderer()
    await renderer.start()
    yield Tokenizer(open_vocab(DEMO), tokenizer_digest(), renderer)
    await renderer.close()


@pytest.fixture
async def engine(speaking: Tokenizer) -> AsyncIterator[MemoryEngine]:
    engine = engine_of(speaking, slots=4)
    yield engine
    await engine.close()


@pytest.fixture
def seller(chain: Anvil) -> LocalAccount:
    return chain.wallet(dollars=10_000)


@pytest.fixture
def buyer(chain: Anvil) -> LocalAccount:
    return chain.wallet(dollars=1_000_000)


@pytest.fixture
def door(chain: Anvil, tmp_path: Path, speaking: Tokenizer, engine: MemoryEngine, seller: LocalAccount) -> Open:
    return partial(stall, chain, tmp_path, speaking, engine, seller)


async def test_a_channel_pays_for_requests_and_is_charged_what_they_cost(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with door() as open_door, client(channel_scheme(buyer, chain)) as paying:
        for _ in range(3):
            response = await paying.post(f"{open_door.url}/v1/chat/completions", json=asking())
            assert response.status_code == 200, response.text
            usage, said = response.json()["usage"], settlement(response)
            cost = usage["prompt_tokens"] + 2 * usage["completion_tokens"]
            assert said.extra["chargedAmount"] == str(cost)
        (account,) = open_door.accounts("stablecoin")
        assert account.owed == account.authorized == 3 * cost
        assert account.reserved == 0
        channel = bytes.fromhex(account.key.payer.rpartition("0x")[2])
        assert chain.channel(channel, X402_CHANNELS) == (account.funded, 0)
        assert chain.dollars(buyer.address) == 1_000_000 - account.funded


async def test_a_transfer_pays_in_advance_and_the_next_requests_spend_of_it(
    door: Open, chain: Anvil, buyer: LocalAccount, seller: LocalAccount
) -> None:
    async with door(budget=500) as open_door, client(exact_scheme(buyer)) as paying:
        moved = []
        for _ in range(3):
            response = await paying.post(f"{open_door.url}/v1/chat/completions", json=asking())
            assert response.status_code == 200, response.text
            moved.append(settlement(response).amount)
        account = open_door.prepaid(buyer)
        assert moved == ["500", "0", "0"], "money is fetched only where the balance does not cover the request"
        assert (account.funded, chain.dollars(seller.address)) == (500, 10_500)
        assert account.owed == account.settled > 0
