"""Two nodes and a chain, each a process of its own: channels, orders, claims, and all of them killed on the way."""

import asyncio
import json
from typing import Any, Final

import openai
import pytest
from attrs import define, field

from ledger.rails.stablecoin.keys import create_keystore
from node.demo.processes import NodeProcess
from tests.chain import Anvil
from tests.integration.network import (
    PRICE,
    STORY,
    Network,
    client_of,
    did_in,
    free_port,
    kill,
    sellers_are_known,
    until,
    usd,
)

DEPOSIT: Final = 2_000_000
# The wallet that pays has dollars and no ether: whoever is paid brings the deposit to the chain.
MONEY: Final = 3_000_000
ORDERS: Final = 1_000
AT_ONCE: Final = 16
PASSPHRASE: Final = "for tests"


@define
class Market:
    """A buyer with an empty wallet but for dollars, and a seller that is paid by channel alone."""

    network: Network
    chain: Anvil
    wallets: dict[str, str] = field(factory=dict)
    nodes: dict[str, NodeProcess] = field(factory=dict)
    ports: dict[str, int] = field(factory=dict)

    @property
    def parties(self) -> dict[str, str]:
        """The account of the two."""
        folder = self.network.folder
        return {"payer": did_in(folder / "buyer"), "payee": did_in(folder / "seller")}

    def make(self, name: str, dollars: int, ether: int) -> None:
        """A home with a wallet."""
        folder = self.network.folder / name
        folder.mkdir()
        wallet = self.chain.wallet(dollars, ether)
        (folder / "passphrase").write_text(PASSPHRASE + "\n")
        create_keystore(folder / "wallet.json", PASSPHRASE, secret=bytes(wallet.key), cost=2)
        self.wallets[name], self.ports[name] = wallet.address, free_port()

    async def up(self, name: str, **settings: Any) -> None:
        """Start a node, or start it again."""
        folder = self.network.folder / name
        chain = {
            "network": "anvil",
            "rpc": [self.chain.url],
            "contract": self.chain.deployed.channels,
            "passphrase_file": str(folder / "passphrase"),
            "min_deposit": "0.1usd",
            "claim_at": "1000usd",
            **settings,
        }
        sections: dict[str, Any] = {"stablecoin": chain}
        peers = []
        if name == "seller":
            sections |= {"sell": {"price": PRICE, "open_credit": "0usd", "window": "0.01usd"}, "node": {"slots": 16}}
        else:
            sections |= {"api": {"route": "peers"}, "audit": {"rate": 0, "first": 0}}
            chain["deposit"] = "2usd"
            peers = [(self.parties["payee"], self.nodes["seller"].running.url)]
        module = "tests.integration.paying_node"
        self.nodes[name] = await self.network.up(name, sections, peers, self.ports[name], module)

    async def again(self, name: str) -> None:
        """Kill a node and start it again."""
        await kill(self.nodes[name])
        await self.up(name)

    async def account(self, name: str, **asked: Any) -> dict[str, Any]:
        """The account as one side sees it, after something was asked of its driver."""
        reader, writer = await asyncio.open_unix_connection(self.network.folder / name / "door")
        writer.write(json.dumps(self.parties | asked).encode() + b"\n")
        found: dict[str, Any] = json.loads(await reader.readline())
        writer.close()
        return found

    async def sees(self, name: str, **counters: Any) -> dict[str, Any]:
        """Wait until one side sees the account so; the chain goes on meanwhile."""
        found: dict[str, Any] = {}

        async def so() -> bool:
            nonlocal found
            self.chain.mine()
            found = await self.account(name)
            return all(found[counter] == value for counter, value in counters.items())

        try:
            await until(so)
        except TimeoutError:
            raise AssertionError(f"the {name} sees {found}") from None
        return found

    async def funded(self) -> None:
        """Wait until both sides have seen the deposit, and orders can be paid."""
        await sellers_are_known(self.nodes["buyer"])
        await self.sees("seller", funded=DEPOSIT)
        await self.sees("buyer", funded=DEPOSIT, window=10_000)

    async def sent(self) -> None:
        """Wait until a transaction waits to be mined."""

        async def waits() -> bool:
            return bool(self.chain.pending())

        await until(waits)

    async def agree(self) -> int:
        """Wait until both sides' books say the same, and all that is owed is promised; how much.

        Orders that a killed buyer had placed are reserved there until they expire.
        """
        bought: dict[str, Any] = {}
        sold: dict[str, Any] = {}

        async def do() -> bool:
            nonlocal bought, sold
            bought, sold = await self.account("buyer"), await self.account("seller")
            sums = {side[name] for side in (bought, sold) for name in ("owed", "authorized")}
            return len(sums) == 1 and not sold["reserved"]

        try:
            await until(do)
        except TimeoutError:
            raise AssertionError(f"the buyer's book says {bought}, the seller's {sold}") from None
        return int(sold["authorized"])

    async def order(self, count: int) -> int:
        """So many orders, some at a time; what they cost together. Those that fail cost nothing."""
        costs: list[int] = []
        left = iter(range(count))

        async def some(client: openai.AsyncOpenAI) -> None:
            for _ in left:
                raw = await client.chat.completions.with_raw_response.create(
                    model="auto", messages=STORY[:1], max_tokens=1
                )
                costs.append(usd(raw.headers["x-idlemesh-cost"]))

        async with client_of(self.nodes["buyer"]) as client, asyncio.TaskGroup() as tasks:
            for _ in range(min(count, AT_ONCE)):
                tasks.create_task(some(client))
        return sum(costs)

    def claims(self) -> int:
        """How many claims the chain has had of this seller's channels."""
        topic = "0x" + _keccak("Claimed(bytes32,uint128)").hex()
        logs = self.chain.rpc("eth_getLogs", {"fromBlock": "0x0", "topics": [topic]})
        return len({log["transactionHash"] for log in logs})


def _keccak(text: str) -> bytes:
    from eth_utils.crypto import keccak

    return bytes(keccak(text=text))


@pytest.fixture
async def market(network: Network, chain: Anvil) -> Market:
    found = Market(network, chain)
    found.make("seller", dollars=0, ether=10**18)
    found.make("buyer", dollars=MONEY, ether=0)
    await found.up("seller")
    return found


async def test_a_thousand_orders_are_one_claim_and_the_chain_has_what_both_ledgers_say(market: Market) -> None:
    chain, wallets = market.chain, market.wallets
    await market.up("buyer")
    await market.funded()
    before = market.claims()
    cost = await market.order(ORDERS)
    bought = await market.sees("buyer", authorized=cost, owed=cost, reserved=0)
    sold = await market.sees("seller", authorized=cost, owed=cost, reserved=0)
    assert (market.claims(), bought["settled"], sold["settled"]) == (before, 0, 0)

    assert not (await market.account("seller", ask="claim", amount=cost))["refused"]
    await market.sees("seller", settled=cost, effect=None)
    await market.sees("buyer", settled=cost)
    assert (market.claims(), chain.dollars(wallets["seller"])) == (before + 1, cost)

    assert not (await market.account("seller", ask="close"))["refused"]
    await market.sees("seller", withdrawn=DEPOSIT - cost, effect=None)
    await market.sees("buyer", withdrawn=DEPOSIT - cost, settled=cost)
    assert chain.dollars(wallets["seller"]) == cost
    assert chain.dollars(wallets["buyer"]) == MONEY - cost
    assert chain.dollars(chain.deployed.channels) == 0


async def test_whoever_is_killed_at_whichever_step_nothing_is_lost_and_nothing_paid_twice(market: Market) -> None:
    chain, wallets = market.chain, market.wallets
    with chain.without_mining():  # a deposit is on its way
        await market.up("buyer")
        await market.sent()
        await market.again("seller")
        await market.again("buyer")
    await market.funded()

    with chain.down():  # a dead chain stops no inference within the collateral that is there
        await market.order(AT_ONCE)
    for name in ("buyer", "seller"):  # orders are under way
        orders = asyncio.create_task(market.order(ORDERS))
        paid = (await market.account("buyer"))["authorized"]

        async def more(paid: int = paid) -> bool:
            return bool((await market.account("buyer"))["authorized"] > paid)

        await until(more)
        await market.again(name)
        with pytest.raises(ExceptionGroup):
            await orders
        await market.funded()
        await market.agree()
    await market.order(1)
    cost = await market.agree()

    before = market.claims()
    with chain.without_mining():  # a claim is on its way
        await market.account("seller", ask="claim", amount=cost)
        await market.sent()
        await market.again("seller")
    with chain.down():
        pass  # what waited to be mined is forgotten
    await market.sees("seller", settled=cost, effect=None)
    assert (market.claims(), chain.dollars(wallets["seller"])) == (before + 1, cost)
    with chain.without_mining():  # the rest is on its way back
        await market.account("seller", ask="close")
        await market.sent()
        await market.again("seller")
    await market.sees("seller", withdrawn=DEPOSIT - cost, effect=None)
    await market.again("buyer")
    await market.sees("buyer", withdrawn=DEPOSIT - cost, settled=cost)
    assert (chain.dollars(wallets["seller"]), chain.dollars(wallets["buyer"])) == (cost, MONEY - cost)
    assert chain.dollars(chain.deployed.channels) == 0
