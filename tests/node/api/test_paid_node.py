"""A whole node with a door for strangers: x402's clients pay it, and its owner sees what they paid."""

import asyncio
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
from node.home import Home
from tests.chain import Anvil
from tests.node.api.conftest import load_exact
from tests.node.api.running import settings
from tests.node.strangers import asking, channel_scheme, client, exact_scheme, settlement

PASSPHRASE = "for tests"


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
