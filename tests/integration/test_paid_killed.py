"""A node that strangers pay, killed in the middle of it: nobody pays twice."""

import asyncio
from typing import Any

import httpx

from ledger.rails.stablecoin.keys import create_keystore
from tests.chain import Anvil
from tests.integration.network import PRICE, Network, free_port, kill, owner_of, until, usd
from tests.node.strangers import asking, channel_scheme, client, settlement

DOLLARS = 1_000_000
NODE = "tests.integration.endless_seller"


def door_of(network: Network, chain: Anvil, port: int) -> dict[str, Any]:
    """A wallet in a home, and the sections of a node that strangers pay."""
    home = network.folder / "seller"
    home.mkdir()
    (home / "passphrase").write_text("for tests\n")
    create_keystore(home / "wallet.json", "for tests", secret=bytes(chain.wallet().key), cost=2)
    money = {
        "network": "anvil",
        "rpc": [chain.url],
        "passphrase_file": str(home / "passphrase"),
        "confirmations": 0,
        "ether": "0.01usd",  # so that small deposits are worth their gas
        "min_deposit": "0.005usd",
    }
    return {"stablecoin": money, "paid": {"port": port, "price": PRICE}}


def charged(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    return int(settlement(response).extra["chargedAmount"])


async def test_a_door_that_is_killed_charges_nobody_twice(network: Network, chain: Anvil) -> None:
    port = free_port()
    sections, url = door_of(network, chain, port), f"http://127.0.0.1:{port}/v1/chat/completions"
    first, second = chain.wallet(DOLLARS), chain.wallet(DOLLARS)
    async with client(channel_scheme(first, chain)) as one, client(channel_scheme(second, chain)) as two:
        node = await network.up("seller", sections, module=NODE)
        cost = charged(await one.post(url, json=asking(4, model="auto")))
        async with one.stream("POST", url, json=asking(400, model="auto", stream=True)) as stream:
            lines = stream.aiter_lines()
            for _ in range(6):
                await anext(lines)
            with chain.without_mining():
                waiting = asyncio.create_task(two.post(url, json=asking(4, model="auto")))

                async def sent() -> bool:
                    payer = second.address[2:].lower()
                    waits = (chain.rpc("eth_getTransactionByHash", each) for each in chain.pending())
                    return any(payer in each["input"] for each in waits if each is not None)

                await until(sent)
                # A stream is under way, and a deposit is sent and not mined.
                await kill(node)
                assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], Exception)
            chain.mine()

        node = await network.up("seller", sections, module=NODE)
        cost += charged(await one.post(url, json=asking(4, model="auto")))
        async with client(channel_scheme(second, chain)) as again:
            cost += charged(await again.post(url, json=asking(4, model="auto")))
        async with owner_of(node) as owner:
            accounts = (await owner.accounts())["accounts"]
        assert sum(usd(account["earned"]) for account in accounts) == cost
        deposited = 2 * DOLLARS - chain.dollars(first.address) - chain.dollars(second.address)
        assert deposited == 10_000, "each has deposited once"
