"""A node that buys by x402 from the door of another: both books say the same, and so does the chain."""

import asyncio
from pathlib import Path

import httpx
import pytest
from attrs import evolve
from eth_account import Account as EthAccount
from eth_account.signers.local import LocalAccount

from ledger.effects import free_collateral
from ledger.money import Amount
from ledger.rails.stablecoin.keys import create_keystore
from node.app import run_node
from node.cli import wallet_channels
from node.config import BuySettings, Config, RemoteSettings
from node.home import Home
from node.models.tokenizer import Tokenizer
from tests.chain import Anvil
from tests.node.api.conftest import load_exact
from tests.node.api.running import settings
from tests.node.strangers import asking, client, exact_scheme, settlement, stall, until
from tests.node.trading import engine_of

WAYS = {"X-IdleMesh-Privacy": "public", "X-IdleMesh-Route": "remotes", "X-IdleMesh-Degrade": "never"}


def buyer_of(chain: Anvil, folder: Path, url: str, scheme: str, secret: bytes | None = None, **more: str) -> Config:
    """A wallet in a home, and the settings of a node that has the door as its remote."""
    folder.mkdir()
    (folder / "passphrase").write_text("for tests\n")
    secret = secret or bytes(chain.wallet(dollars=1_000_000).key)
    create_keystore(folder / "wallet.json", "for tests", secret=secret, cost=2)
    money = {"network": "anvil", "rpc": [chain.url], "passphrase_file": str(folder / "passphrase"), "confirmations": 0}
    shop = RemoteSettings.model_validate(
        {
            "name": "shop",
            "url": url,
            "model": "memory",
            "pay": "x402",
            "price": "1usd:2usd",
            "max_payment": "0.01usd",
            "schemes": [scheme],
            **more,
        }
    )
    return settings(stablecoin=money).model_copy(update={"remotes": (shop,)})


@pytest.mark.parametrize("scheme", ["exact", "batch-settlement"])
async def test_two_nodes_that_know_nothing_of_each_other_trade_by_x402(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer, scheme: str
) -> None:
    engine, wallet, home = engine_of(speaking, slots=4), chain.wallet(), Home(tmp_path / "buyer")
    async with (
        stall(chain, tmp_path / "seller", speaking, engine, wallet) as door,
        run_node(home, buyer_of(chain, home.folder, f"{door.url}/v1", scheme), load_exact) as buyer,
        httpx.AsyncClient(headers=WAYS, timeout=30) as owner,
    ):
        for streaming in (False, True, False, True):
            body = asking(model="shop", stream=streaming)
            response = await owner.post(f"{buyer.url}/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
        (sold,) = door.accounts("prepaid" if scheme == "exact" else "stablecoin")
        bought = [a for key, a in buyer.book.journal.books.accounts.items() if key.payer == buyer.book.me]
        assert sum(account.earned for account in bought) == sold.earned > 0
    await engine.close()


@pytest.mark.parametrize(
    ("own", "of_all", "most", "bound"),
    [
        ("5usd", None, "1.000000usd", "[buy] max_per_day"),
        ("5usd", "0.00001usd", "0.000010usd", "[buy] max_per_day"),
        ("0.5usd", None, "0.500000usd", "[[remotes]] max_per_day"),
    ],
)
async def test_the_owner_is_told_which_bound_holds_for_what_a_remote_is_paid(
    chain: Anvil, tmp_path: Path, own: str, of_all: str | None, most: str, bound: str
) -> None:
    home = Home(tmp_path / "buyer")
    config = buyer_of(chain, home.folder, "http://127.0.0.1:1/v1", "exact", max_per_day=own)
    buy = BuySettings.model_validate({} if of_all is None else {"max_per_day": of_all})
    async with (
        run_node(home, config.model_copy(update={"buy": buy}), load_exact) as buyer,
        httpx.AsyncClient(headers=WAYS, timeout=30) as owner,
    ):
        headers = {"Authorization": f"Bearer {buyer.token}"}
        (remote,) = (await owner.get(f"{buyer.url}/node/v1/status", headers=headers)).json()["remotes"]
        assert (remote["max_per_day"], remote["bounded_by"]) == (most, bound)
        refused = await owner.post(f"{buyer.url}/v1/chat/completions", json=asking(model="shop"))
        is_said = f"over the most of {most} by {bound}" in refused.json()["error"]["message"]
        assert (refused.is_success, is_said) == (False, of_all is not None)


async def test_what_a_seller_says_is_left_comes_back_and_what_it_charged_unheard_is_granted(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, seller, home = engine_of(speaking, slots=4), chain.wallet(), Home(tmp_path / "buyer")
    secret = bytes(chain.wallet(dollars=1_000_000).key)
    wallet: LocalAccount = EthAccount.from_key(secret)

    async def withdraw(payee: str) -> str:
        await asyncio.to_thread(wallet_channels.withdraw, payee, None, what_is_left=True, home=home.folder)
        return capsys.readouterr().out

    async with stall(chain, tmp_path / "seller", speaking, engine, seller) as door:
        config = buyer_of(chain, home.folder, f"{door.url}/v1", "exact", secret=secret)
        async with run_node(home, config, load_exact) as buyer, httpx.AsyncClient(headers=WAYS, timeout=30) as owner:
            answer = await owner.post(f"{buyer.url}/v1/chat/completions", json=asking(model="shop"))
            assert answer.status_code == 200, answer.text
            # The same wallet pays there for what this node does not hear of.
            async with client(exact_scheme(wallet)) as elsewhere:
                unheard = await elsewhere.post(door.chat, json=asking())
            (ours,) = (a for key, a in buyer.book.journal.books.accounts.items() if key.payer == buyer.book.me)
            left, more = free_collateral(door.prepaid(wallet)), int(settlement(unheard).extra["chargedAmount"])
            assert free_collateral(ours) - left == more > 0

            said = await withdraw(ours.key.payee)
            assert f"The seller has charged {Amount(more, 'uusd')} more than was known here" in said
            assert f"refund of {Amount(left, 'uusd')}, we pay did:pkh" in said
            await until(lambda: chain.dollars(wallet.address) == 1_000_000 - door.prepaid(wallet).owed)
            ours = buyer.book.journal.books.account(ours.key)
            assert (ours.owed, ours.settled, free_collateral(ours)) == (door.prepaid(wallet).owed,) * 2 + (0,)
    await engine.close()


async def test_a_seller_that_says_nothing_is_granted_nothing(chain: Anvil, tmp_path: Path, speaking: Tokenizer) -> None:
    engine, home = engine_of(speaking, slots=4), Home(tmp_path / "buyer")
    async with stall(chain, tmp_path / "seller", speaking, engine, chain.wallet()) as door:
        config = buyer_of(chain, home.folder, f"{door.url}/v1", "exact")
        async with run_node(home, config, load_exact) as buyer, httpx.AsyncClient(headers=WAYS, timeout=30) as owner:
            answer = await owner.post(f"{buyer.url}/v1/chat/completions", json=asking(model="shop"))
            assert answer.status_code == 200, answer.text
            (ours,) = (a for key, a in buyer.book.journal.books.accounts.items() if key.payer == buyer.book.me)
            door.till.terms = evolve(door.till.terms, schemes=("batch-settlement",))  # type: ignore[misc]
            at = f"{buyer.url}/node/v1/wallet/withdraw/{ours.key.payee}?what_is_left=1"
            refused = await owner.post(at, headers={"Authorization": f"Bearer {buyer.token}"})
            assert refused.status_code == 409
            assert "gives nothing back that was paid in advance: it has no /balance" in refused.text
            assert buyer.book.journal.books.account(ours.key) == ours
            both = await owner.post(f"{at}&amount=1usd", headers={"Authorization": f"Bearer {buyer.token}"})
            assert (both.status_code, "name the seller alone" in both.text) == (400, True)
    await engine.close()
