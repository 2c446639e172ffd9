"""A whole node with a door for strangers: x402's clients pay it, and its owner sees what they paid."""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from ledger.money import Amount
from ledger.rails.stablecoin.keys import create_keystore
from node.app import run_node
from node.cli import ledger, show
from node.cli.client import call
from node.config import Config
from node.exchange.pacing import Pace
from node.home import Home
from node.own_money import NoMoney
from tests.chain import Anvil
from tests.node.api.conftest import load_exact
from tests.node.api.running import settings
from tests.node.strangers import asking, channel_scheme, client, exact_scheme, settlement, until

PASSPHRASE = "for tests"
PACE = Pace(round_s=0.05, look_s=0.0, look_again_s=0.0, rest_s=0.0, confirm_s=0.0, first_retry_s=0.0, last_retry_s=0.0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def seller(chain: Anvil, folder: Path) -> Config:
    """A wallet in a home, and the settings for a door."""
    wallet = chain.wallet()
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    create_keystore(folder / "wallet.json", PASSPHRASE, secret=bytes(wallet.key), cost=2)
    money = {
        "network": "anvil",
        "rpc": [chain.url],
        "passphrase_file": str(folder / "passphrase"),
        "confirmations": 0,
        "min_deposit": "0.01usd",
        "ether": "0.01usd",  # so that small deposits are worth their gas
    }
    return settings(stablecoin=money, paid={"port": free_port(), "price": "1usd:2usd"})


async def test_strangers_pay_a_node_by_channel_and_by_transfer_and_it_remembers(
    chain: Anvil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, home = seller(chain, tmp_path), Home(tmp_path)
    assert config.paid is not None
    url = f"http://127.0.0.1:{config.paid.port}/v1/chat/completions"
    buyer, saver = chain.wallet(dollars=1_000_000), chain.wallet(dollars=1_000_000)
    owed: dict[str, int] = {"stablecoin": 0, "prepaid": 0}
    async with client(channel_scheme(buyer, chain)) as by_channel, client(exact_scheme(saver)) as by_transfer:
        for _ in range(2):
            async with run_node(home, config, load_exact) as node:
                for paying, rail in ((by_channel, "stablecoin"), (by_transfer, "prepaid")):
                    response = await paying.post(url, json=asking(model="auto"))
                    assert response.status_code == 200, response.text
                    owed[rail] += int(settlement(response).extra["chargedAmount"])
                show.status(await asyncio.to_thread(call, home, lambda client: client.get("/node/v1/status")))
                said = "Strangers can pay at its door by transfers of 0.100000usd or more in advance and from channels."
                assert said in capsys.readouterr().out
                accounts: Any = await asyncio.to_thread(call, home, lambda client: client.get("/node/v1/accounts"))
                assert node.book.journal.books.accounts
    seen = {account["rail"]: account["earned"] for account in accounts["accounts"]}
    assert seen == {rail: str(Amount(sum_, "uusd")) for rail, sum_ in owed.items()}
    assert chain.dollars(saver.address) == 900_000, "one transfer has paid for both requests"
    show.accounts(accounts)
    assert "did:pkh" in capsys.readouterr().out
    await asyncio.to_thread(ledger.verify, home.folder, False)
    assert "every counterparty's postings sum to zero" in capsys.readouterr().out


async def test_a_refund_is_not_sent_again_by_another_wallet_of_the_same_ledger(chain: Anvil, tmp_path: Path) -> None:
    config, home, buyer = seller(chain, tmp_path), Home(tmp_path), chain.wallet(dollars=1_000_000)
    assert config.paid is not None
    assert config.stablecoin is not None
    url, first = f"http://127.0.0.1:{config.paid.port}", (tmp_path / "wallet.json").read_bytes()
    with contextlib.ExitStack() as stack:
        async with run_node(home, config, load_exact), client(exact_scheme(buyer)) as paying:
            response = await paying.post(f"{url}/v1/chat/completions", json=asking(model="auto"))
            assert response.status_code == 200, response.text
            stack.enter_context(chain.without_mining())
            said = await paying.post(f"{url}/v1/refunds")
            assert (said.status_code, settlement(said).extra["underWay"]) == (200, True)
        # The node has ended, and what it sent is lost.
        for waiting in chain.pending():
            chain.drop(waiting)
    cost = int(settlement(response).extra["chargedAmount"])

    other = chain.wallet(dollars=1_000_000)
    (tmp_path / "wallet.json").unlink()
    create_keystore(tmp_path / "wallet.json", PASSPHRASE, secret=bytes(other.key), cost=2)
    with pytest.raises(NoMoney, match=f"and {other.address} on eip155:31337 would send it again"):
        async with run_node(home, config, load_exact):
            pass
    assert chain.dollars(buyer.address) == 900_000

    (tmp_path / "wallet.json").write_bytes(first)
    async with run_node(home, config, load_exact, pace=PACE) as node:
        await until(lambda: not any(key.rail == "prepaid" for key in node.book.journal.books.effects))
    assert chain.dollars(buyer.address) == 1_000_000 - cost
    (tmp_path / "wallet.json").unlink()
    create_keystore(tmp_path / "wallet.json", PASSPHRASE, secret=bytes(other.key), cost=2)
    async with run_node(home, config, load_exact):
        pass
    assert (chain.dollars(buyer.address), chain.dollars(other.address)) == (1_000_000 - cost, 1_000_000)
