"""A whole node buys from a seller of x402's own code, and is killed while it does not know what it has paid."""

from typing import Any
from urllib.parse import quote

import openai
import pytest

from ledger.rails.stablecoin.keys import create_keystore
from node.demo.processes import NodeProcess
from node.owner_client import owner_client
from tests.chain import X402_CHANNELS, Anvil
from tests.integration.network import STORY, Network, client_of, kill, owner_of, until, usd
from tests.node.x402_seller import selling

PASSPHRASE = "for tests"
NODE = "tests.integration.hurried_node"
WAYS = {"X-IdleMesh-Privacy": "public", "X-IdleMesh-Route": "remotes"}


async def ask(node: NodeProcess) -> tuple[str, int]:
    """What the shop answers, and what the client is told that it costs."""
    async with client_of(node) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="shop", messages=STORY[:1], max_tokens=16, extra_headers=WAYS | {"X-IdleMesh-Degrade": "never"}
        )
        return raw.parse().choices[0].message.content or "", usd(raw.headers["x-idlemesh-cost"])


async def accounts(node: NodeProcess) -> list[dict[str, Any]]:
    async with owner_of(node) as owner:
        found: list[dict[str, Any]] = (await owner.accounts())["accounts"]
        return found


async def test_a_remote_that_is_paid_by_x402_is_never_paid_twice(network: Network, chain: Anvil) -> None:
    wallet, home = chain.wallet(dollars=1_000_000), network.folder / "owner"
    home.mkdir()
    (home / "passphrase").write_text(PASSPHRASE)
    create_keystore(home / "wallet.json", PASSPHRASE, secret=bytes(wallet.key), cost=2)
    async with selling(chain, "batch-settlement") as shop:
        shop.charge = 300
        remote = {"name": "shop", "url": shop.url, "model": "m", "pay": "x402", "max_payment": "0.001usd"}
        money = {"network": "anvil", "rpc": [chain.url], "passphrase_file": str(home / "passphrase")}
        sections = {"stablecoin": money, "remotes": [remote]}
        node = await network.up("owner", sections, module=NODE)
        assert [await ask(node) for _ in range(2)] == [("Once upon", 300)] * 2

        shop.loses = True
        with pytest.raises(openai.APIStatusError):
            await ask(node)
        await kill(node)
        shop.loses = False
        chain.mine(2)  # the deposit is deep enough to be taken back
        node = await network.up("owner", sections, module=NODE)

        assert await ask(node) == ("Once upon", 300)
        (account,) = await accounts(node)
        assert (account["rail"], account["direction"]) == ("stablecoin", "we pay")
        assert (usd(account["earned"]), usd(account["authorized"]), usd(account["reserved"])) == (1_200, 1_200, 0)
        assert chain.dollars(X402_CHANNELS) == 10_000
        assert chain.dollars(wallet.address) == 990_000

        # What is left in the channel comes back after its notice, also from a seller that does not help.
        async with owner_client(node.running) as owner:
            (channel,) = (await owner.get("/node/v1/wallet/channels"))["channels"]
            await owner.post(f"/node/v1/wallet/withdraw/{quote(channel['peer'], safe='')}")
        delay = shop.batch.get_withdraw_delay()

        async def is_back() -> bool:
            chain.pass_time(delay)
            return chain.dollars(wallet.address) == 1_000_000 - 1_200

        await until(is_back)
