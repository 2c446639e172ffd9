"""The door on a chain whose gas is dear: it asks for what it takes, takes what it asked for, and says why where not."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from x402.schemas import PaymentRequirements

from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.errors import Refused
from node.engine.memory import MemoryEngine
from node.models.tokenizer import Tokenizer
from node.paid import worth
from node.paid.terms import BELOW_GAS
from tests.chain import Anvil
from tests.node.strangers import (
    RICH,
    Stall,
    asking,
    channel_scheme,
    client,
    exact_scheme,
    refusal,
    required,
    settlement,
    signed,
    stall,
)

Open = Callable[..., AbstractAsyncContextManager[Stall]]
BUDGET = 2_000
# So much that a transfer has to be of some hundredths of a dollar, and a hundred times that where gas is dear.
ETHER = 100_000_000
DEAR = 40 * 10**9


@pytest.fixture
def door(chain: Anvil, tmp_path: Path, speaking: Tokenizer, engine: MemoryEngine) -> Open:
    wallet = chain.wallet()
    return partial(stall, chain, tmp_path, speaking, engine, wallet, budget=BUDGET, ether=ETHER)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each who asks has the chain asked."""
    monkeypatch.setattr(worth, "FRESH_S", 0.0)


def offered(response: httpx.Response) -> dict[str, PaymentRequirements]:
    return {each.scheme: each for each in required(response).accepts}


async def test_a_transfer_is_asked_for_that_is_worth_its_gas_and_x402_s_client_pays_it(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with door() as open_door, client(exact_scheme(buyer)) as paying, httpx.AsyncClient() as plain:
        needed = 2 * (await open_door.rail.fee("top_up", 1) or 0)
        assert needed > BUDGET
        amount = int(offered(await plain.post(open_door.chat, json=asking()))["exact"].amount)
        assert needed <= amount < 2 * needed
        moved = []
        for _ in range(2):
            response = await paying.post(open_door.chat, json=asking())
            assert response.status_code == 200, response.text
            moved.append(settlement(response).amount)
        assert moved == [str(amount), "0"], "the rest is the payer's, and pays the next request"
        assert open_door.prepaid(buyer).funded == amount == RICH - chain.dollars(buyer.address)


@pytest.mark.usefixtures("at_once")
async def test_what_was_asked_for_is_taken_when_gas_has_become_dear_and_others_are_asked_for_more(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with door() as open_door, httpx.AsyncClient() as plain:
        headers = await signed(exact_scheme(buyer), open_door.chat, json=asking())
        before = int(offered(await plain.post(open_door.chat, json=asking()))["exact"].amount)
        with chain.gas_at(DEAR):
            after = int(offered(await plain.post(open_door.chat, json=asking()))["exact"].amount)
            paid = await plain.post(open_door.chat, json=asking(), headers=headers)
        assert after > before
        assert (paid.status_code, settlement(paid).amount) == (200, str(before))


@pytest.mark.usefixtures("at_once")
async def test_who_is_refused_is_told_why_and_how_much_will_do(door: Open, chain: Anvil, buyer: LocalAccount) -> None:
    async with door() as before:
        headers = await signed(exact_scheme(buyer), before.chat, json=asking())
    with chain.gas_at(DEAR):
        async with door() as open_door, httpx.AsyncClient() as plain:
            refused = await plain.post(open_door.chat, json=asking(), headers=headers)
            assert refusal(refused) == refused.json()["error"]["code"] == BELOW_GAS
            why = refused.json()["error"]["message"]
            assert "gas is so dear now that no less than" in why
            said = settlement(refused)
            assert (said.success, said.error_reason, said.error_message) == (False, BELOW_GAS, why)
            assert not open_door.book.strangers.transfers
            enough = await signed(exact_scheme(buyer), open_door.chat, json=asking())
            paid = await plain.post(open_door.chat, json=asking(), headers=enough)
            assert (paid.status_code, settlement(paid).amount) == (200, offered(refused)["exact"].amount)


@pytest.mark.usefixtures("at_once")
async def test_above_the_owner_s_most_no_transfer_is_asked_for_and_a_balance_pays_all_the_same(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    bounds: dict[str, Any] = {"most_prepaid": 200_000}
    async with door(**bounds) as open_door, client(exact_scheme(buyer)) as paying, httpx.AsyncClient() as plain:
        assert (await paying.post(open_door.chat, json=asking())).status_code == 200
        headers = await signed(exact_scheme(buyer), open_door.chat, json=asking())
        with chain.gas_at(DEAR):
            asked = await plain.post(open_door.chat, json=asking())
            assert list(offered(asked)) == ["batch-settlement"]
            assert "and 0.200000usd is the most here" in asked.json()["error"]["message"]
            paid = await plain.post(open_door.chat, json=asking(), headers=headers)
            assert (paid.status_code, settlement(paid).amount) == (200, "0")
        assert "exact" in offered(await plain.post(open_door.chat, json=asking()))


async def test_a_door_that_takes_transfers_alone_says_that_none_can_be_paid_now(door: Open) -> None:
    async with door(schemes=("exact",), most_prepaid=BUDGET) as open_door, httpx.AsyncClient() as plain:
        for method in ("POST", "GET"):
            asked = await plain.request(method, open_door.chat, json=asking())
            error = asked.json()["error"]
            assert (asked.status_code, error["code"], asked.headers["Retry-After"]) == (503, BELOW_GAS, "60")
            assert "and 0.002000usd is the most here" in error["message"]


@pytest.mark.usefixtures("at_once")
async def test_a_deposit_is_asked_for_that_is_worth_its_gas(door: Open, chain: Anvil, buyer: LocalAccount) -> None:
    with chain.gas_at(DEAR):
        async with door() as open_door, client(channel_scheme(buyer, chain)) as paying, httpx.AsyncClient() as plain:
            needed = 2 * (await open_door.rail.fee("top_up", 1) or 0)
            asked = offered(await plain.post(open_door.chat, json=asking()))["batch-settlement"]
            assert int(asked.extra["minDeposit"]) >= needed > 5_000
            response = await paying.post(open_door.chat, json=asking())
            assert response.status_code == 200, response.text
            (account,) = open_door.accounts("stablecoin")
            assert account.funded >= needed


@pytest.mark.parametrize("by_channel", [False, True])
async def test_what_an_endpoint_says_of_the_owner_s_wallet_or_key_is_told_to_no_stranger(
    door: Open, chain: Anvil, buyer: LocalAccount, monkeypatch: pytest.MonkeyPatch, by_channel: bool
) -> None:
    scheme = channel_scheme(buyer, chain) if by_channel else exact_scheme(buyer)

    async def refuse(*_: object) -> None:
        raise Refused("insufficient funds: 0x1234 has 5; project 0f0f0f")

    async with door() as open_door, httpx.AsyncClient() as plain:
        headers = await signed(scheme, open_door.chat, json=asking())
        monkeypatch.setattr(Chain, "submit", refuse)
        refused = await plain.post(open_door.chat, json=asking(), headers=headers)
        assert (refused.status_code, "try later" in refused.text) == (402, True)
        told = refused.text + repr(required(refused)) + repr(refused.headers)
        if not by_channel:
            told += repr(settlement(refused))
        assert not any(secret in told for secret in ("insufficient", "1234", "0f0f0f"))
