"""Two nodes and a chain, each a process of its own: channels, orders, claims, and all of them killed on the way."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from attrs import astuple, define, evolve, field
from coincurve import PrivateKey
from eth_utils.crypto import keccak

from ledger.identity import Did, Identity
from ledger.money import Amount
from ledger.rails.stablecoin.books import Deposit
from ledger.rails.stablecoin.channels import open_channel, salt_of
from ledger.rails.stablecoin.contracts import CONFIG
from ledger.rails.stablecoin.digests import ChannelConfig, Place, authorization, config_of, deposit_nonce, domain
from ledger.rails.stablecoin.keys import create_keystore
from ledger.rails.stablecoin.networks import network
from ledger.rails.stablecoin.vouchers import account_name, signed, voucher_key
from ledger.records import Acknowledgement, Channel, ChannelTerms, Signed, Voucher, open_record, sign
from node.demo.owner import Owner
from node.home import Home
from node.ports import SystemEntropy
from node.wire.messages import decode_refusal, encode_bringing
from tests.chain import CHAIN_ID, Anvil
from tests.integration.forking import fork_server
from tests.integration.network import PRICE, free_port, until, usd, write_config

DEPOSIT: Final = 2_000_000
WINDOW: Final = 10_000
# The wallet that pays has dollars and no ether: whoever is paid brings the deposit to the chain.
MONEY: Final = 3_000_000
ORDERS: Final = 1_000
AT_ONCE: Final = 16
PASSPHRASE: Final = "for tests"


@define
class Paying:
    """A node: a home with a wallet, an address, and a process that comes and goes."""

    home: Home
    wallet: str
    key: bytes
    port: int = field(factory=free_port)
    pid: int = 0
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None

    @property
    def identity(self) -> Identity:
        return self.home.identity(SystemEntropy())

    @property
    def did(self) -> Did:
        return self.identity.did

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, server: Path) -> None:
        """Fork its process, and wait until it is there."""
        self._reader, self._writer = await asyncio.open_unix_connection(server)
        folder = self.home.folder
        settings = {"home": folder, "config": folder / "config.toml", "log": folder / "log.txt"}
        said = await self.ask(**{name: str(path) for name, path in settings.items()})
        self.pid = said["pid"]

    async def ask(self, **what: Any) -> dict[str, Any]:
        """One line there and one back."""
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(json.dumps(what).encode() + b"\n")
        line = await self._reader.readline()
        assert line, (self.home.folder / "log.txt").read_text()
        found: dict[str, Any] = json.loads(line)
        return found

    async def kill(self) -> None:
        """End it as a power cut would."""
        assert self._reader is not None
        os.kill(self.pid, signal.SIGKILL)
        while await self._reader.read(4096):
            pass
        self.close()

    def close(self) -> None:
        """It ends by itself, in good order."""
        if self._writer is not None:
            self._writer.close()


@define
class Market:
    """A buyer with an empty wallet but for dollars, and a seller that is paid by channel alone."""

    chain: Anvil
    server: Path
    nodes: dict[str, Paying] = field(factory=dict)

    @property
    def wallets(self) -> dict[str, str]:
        """Their addresses."""
        return {name: node.wallet for name, node in self.nodes.items()}

    def make(self, name: str, folder: Path, dollars: int, ether: int) -> None:
        """A home with a wallet."""
        folder.mkdir()
        wallet = self.chain.wallet(dollars, ether)
        (folder / "passphrase").write_text(PASSPHRASE + "\n")
        create_keystore(folder / "wallet.json", PASSPHRASE, secret=bytes(wallet.key), cost=2)
        self.nodes[name] = Paying(Home(folder), wallet.address, bytes(wallet.key))

    def configure(self, window: int = WINDOW) -> None:
        """Write the settings of both."""
        buyer, seller = self.nodes["buyer"], self.nodes["seller"]
        chain = {
            "network": "anvil",
            "rpc": [self.chain.url],
            "contract": self.chain.deployed.channels,
            "min_deposit": "0.1usd",
            "claim_at": "1000usd",
            "ether": "0.01usd",  # so that a few orders are worth a claim
        }
        selling = {"sell": {"price": PRICE, "open_credit": "0usd", "window": str(Amount(window, "uusd"))}}
        buying = {"api": {"route": "peers"}, "audit": {"rate": 0, "first": 0}}
        for node, sections, more, peers in (
            (seller, selling, {}, []),
            (buyer, buying, {"deposit": "2usd"}, [(seller.did, seller.url)]),
        ):
            passphrase = {"passphrase_file": str(node.home.folder / "passphrase")}
            write_config(node.home.folder, {**sections, "stablecoin": chain | passphrase | more}, peers, node.port)

    async def up(self, name: str) -> None:
        """Start a node, or start it again."""
        await self.nodes[name].start(self.server)

    async def again(self, name: str) -> None:
        """Kill a node and start it again."""
        await self.nodes[name].kill()
        await self.up(name)

    async def account(self, name: str, **asked: Any) -> dict[str, Any]:
        """The account as one side sees it, after something was asked of its driver."""
        parties = {"payer": self.nodes["buyer"].did, "payee": self.nodes["seller"].did}
        return await self.nodes[name].ask(**parties, **asked)

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

    async def funded(self, window: int = WINDOW) -> None:
        """Wait until both sides have seen the deposit, and orders can be paid."""
        async with aiohttp.ClientSession() as session:
            await Owner(session, self.nodes["buyer"].home.running()).offers_are_here(1)
        await self.sees("seller", funded=DEPOSIT)
        await self.sees("buyer", funded=DEPOSIT, window=window)

    async def channel(self) -> Signed[Channel]:
        """The buyer's, as it signed it."""
        status, raw = await self.post("channel-terms")
        assert status == 200
        terms = open_record(raw, ChannelTerms).record
        buyer, seller = self.nodes["buyer"], self.nodes["seller"]
        return open_channel(buyer.identity, seller.did, terms, self.place, bytes.fromhex(buyer.wallet[2:]))

    @property
    def place(self) -> Place:
        return Place(CHAIN_ID, bytes.fromhex(self.chain.deployed.channels[2:]))

    def deposit(self, config: ChannelConfig, amount: int) -> Deposit:
        """One that the buyer's wallet has signed."""
        token, channel, salt = network("anvil").token, self.place.channel_id(config), b"\5" * 32
        domain_of = domain(token.name, token.version, CHAIN_ID, config.token)
        collector, until_s = bytes.fromhex(self.chain.deployed.erc3009_collector[2:]), self.chain.time + 600
        nonce = deposit_nonce(channel, salt)
        digest = authorization(domain_of, config.payer, collector, amount, 0, until_s, nonce)
        return Deposit(channel, amount, 0, until_s, salt, signed(PrivateKey(self.nodes["buyer"].key), digest))

    async def post(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Ask the seller's door for peers; without a body, by GET."""
        async with aiohttp.ClientSession() as session:
            method, url = "POST" if body is not None else "GET", f"{self.nodes['seller'].url}/mesh/v1/{path}"
            async with session.request(method, url, data=body) as response:
                return response.status, await response.read()

    async def refused(self, path: str, body: bytes) -> str:
        """Why the seller does not take something."""
        status, raw = await self.post(path, body)
        assert status >= 400, raw
        return decode_refusal(raw).message

    async def sent(self) -> None:
        """Wait until a transaction waits to be mined."""

        async def waits() -> bool:
            return bool(self.chain.pending())

        await until(waits)

    async def more(self) -> None:
        """Wait until the buyer has paid for one more order."""
        paid = (await self.account("buyer"))["authorized"]

        async def has() -> bool:
            return bool((await self.account("buyer"))["authorized"] > paid)

        await until(has)

    async def agree(self, least: int = 0) -> int:
        """Wait until both sides' books say the same, and all that is owed is promised; how much.

        Orders that a killed buyer had placed are reserved there until they expire.
        """
        bought: dict[str, Any] = {}
        sold: dict[str, Any] = {}

        async def do() -> bool:
            nonlocal bought, sold
            bought, sold = await self.account("buyer"), await self.account("seller")
            sums = {side[name] for side in (bought, sold) for name in ("owed", "authorized")}
            return len(sums) == 1 and not sold["reserved"] and sold["owed"] >= least

        try:
            await until(do)
        except TimeoutError:
            raise AssertionError(f"the buyer's book says {bought}, the seller's {sold}") from None
        return int(sold["authorized"])

    async def vouchers(self) -> list[Voucher]:
        """Those that the seller was given, the latest first."""
        found = (await self.account("seller", kind=Acknowledgement.kind))["raw"]
        given = [open_record(bytes.fromhex(raw), Acknowledgement).record for raw in found]
        return [open_record(one.voucher, Voucher).record for one in given]

    async def order(self, count: int, tokens: int = 1) -> int:
        """So many orders, some at a time; what they cost together."""
        costs: list[int] = []
        left = iter(range(count))

        async def some(session: aiohttp.ClientSession) -> None:
            for _ in left:
                body = {"model": "auto", "prompt": "One evening a fox", "max_tokens": tokens}
                async with session.post(self.nodes["buyer"].url + "/v1/completions", json=body) as response:
                    assert response.status == 200, await response.text()
                    assert response.headers["x-idlemesh-route"] != "local", dict(response.headers)
                    assert (await response.json())["usage"]["completion_tokens"] == tokens
                    costs.append(usd(response.headers["x-idlemesh-cost"]))

        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            for _ in range(min(count, AT_ONCE)):
                tasks.create_task(some(session))
        return sum(costs)

    def claims(self) -> int:
        """How many claims the chain has had of this seller's channels."""
        topic = "0x" + keccak(text="Claimed(bytes32,uint128)").hex()
        logs = self.chain.rpc("eth_getLogs", {"fromBlock": "0x0", "topics": [topic]})
        return len({log["transactionHash"] for log in logs})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fork_server("tests.integration.paying_node", tmp_path_factory.mktemp("paying") / "socket") as path:
        yield path


@pytest.fixture
async def market(tmp_path: Path, server: Path, chain: Anvil) -> AsyncIterator[Market]:
    found = Market(chain, server)
    found.make("seller", tmp_path / "seller", dollars=0, ether=10**18)
    found.make("buyer", tmp_path / "buyer", dollars=MONEY, ether=0)
    found.configure()
    await found.up("seller")
    yield found
    for node in found.nodes.values():
        node.close()


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


async def test_a_long_answer_is_paid_on_the_way_and_the_chain_pays_out_its_last_voucher(market: Market) -> None:
    chain, wallets, tokens, window = market.chain, market.wallets, 400, 200
    market.configure(window)
    await market.again("seller")
    await market.up("buyer")
    await market.funded(window)
    cost = await market.order(1, tokens)
    assert await market.agree(cost) == cost > 2 * tokens

    given = [*reversed(await market.vouchers())]
    totals = [0, *(voucher.total for voucher in given)]
    steps = [later - earlier for earlier, later in pairwise(totals)]
    # The window bears no more than 64 tokens: at each checkpoint the answer stands still until it is paid for.
    assert (len(steps), min(steps) > 0, max(steps) <= window) == (tokens // 64, True, True), totals
    channel = market.place.channel_id(config_of((await market.channel()).record))
    account, network_name = account_name(channel), network("anvil").caip2
    assert {(one.network, one.account, one.rail) for one in given} == {(network_name, account, "stablecoin")}
    assert chain.channel(channel) == (DEPOSIT, 0)

    await market.account("seller", ask="claim", amount=cost)
    sold = await market.sees("seller", settled=cost, effect=None)
    bought = await market.sees("buyer", settled=cost)
    assert chain.channel(channel) == (DEPOSIT, cost)
    assert chain.dollars(wallets["seller"]) == cost == sold["owed"] == bought["owed"] == totals[-1]


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
        await market.more()
        await market.again(name)
        with contextlib.suppress(ExceptionGroup):  # what the buyer placed in time may have gone through
            await orders
        if name == "seller":  # what it has signed and nobody saw is told when its buyer connects anew
            await market.again("buyer")
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


async def test_a_seller_that_has_lost_its_ledger_is_given_back_channel_and_vouchers(market: Market) -> None:
    await market.up("buyer")
    await market.funded()
    cost = await market.order(5)
    await market.agree()
    seller = market.nodes["seller"]
    await seller.kill()
    for file in seller.home.folder.glob("ledger.db*"):
        file.unlink()
    await market.up("seller")
    await market.again("buyer")  # so that it connects anew
    await market.funded()
    assert await market.agree(cost) == cost
    await market.account("seller", ask="claim", amount=cost)
    await market.sees("seller", settled=cost, effect=None)
    assert market.chain.dollars(seller.wallet) == cost


async def test_what_begins_to_leave_is_claimed_and_pays_no_further_order(market: Market) -> None:
    chain, wallets = market.chain, market.wallets
    await market.up("buyer")
    await market.funded()
    orders = asyncio.create_task(market.order(ORDERS))
    await market.more()
    config = astuple(config_of((await market.channel()).record))
    chain.fund(wallets["buyer"], ether=10**18)
    leaving, contract = DEPOSIT - 1, chain.deployed.channels
    chain.send(contract, f"initiateWithdraw({CONFIG},uint128)", config, leaving, sender=wallets["buyer"])
    with pytest.raises(ExceptionGroup):  # those that come after the seller has seen it
        await orders
    cost = await market.agree()

    # Without being asked for, whatever the threshold; what was not promised is all that can leave.
    await market.sees("seller", settled=cost, withdrawn=DEPOSIT - cost, available=0)
    await market.sees("buyer", settled=cost, withdrawn=DEPOSIT - cost, available=0)
    chain.pass_time(config[5] + 1)
    chain.send(contract, f"finalizeWithdraw({CONFIG})", config, sender=wallets["buyer"])
    assert (chain.dollars(wallets["seller"]), chain.dollars(wallets["buyer"])) == (cost, MONEY - cost)


async def test_a_seller_takes_no_channel_voucher_or_deposit_that_is_not_good(market: Market) -> None:
    chain, buyer, seller = market.chain, market.nodes["buyer"], market.nodes["seller"]
    good = await market.channel()
    said, thief = good.record, Identity(b"\7" * 32)
    await_money = await market.refused("channels", good.raw)
    assert "the channel holds 0 by now" in await_money
    await market.up("buyer")
    await market.funded()

    stolen = sign(evolve(said, payer=thief.did), thief)
    assert "that of the two dids" in await market.refused("channels", stolen.raw)
    salted = sign(evolve(said, payer=thief.did, salt=salt_of(thief.did, seller.did)), thief)
    assert "has not signed that it is" in await market.refused("channels", salted.raw)
    elsewhere = sign(evolve(said, network="eip155:1"), buyer.identity)
    assert "network is eip155:1" in await market.refused("channels", elsewhere.raw)
    other = sign(evolve(said, withdraw_delay=said.withdraw_delay + 1), buyer.identity)
    assert await market.refused("channels", other.raw)

    block = chain.block
    forged = Deposit(market.place.channel_id(config_of(said)), DEPOSIT, 0, chain.time + 600, bytes(32), b"\1" * 65)
    assert "cannot be brought" in await market.refused("deposits", encode_bringing(good.raw, forged.encode()))
    small = evolve(forged, amount=1)
    assert "are not brought" in await market.refused("deposits", encode_bringing(good.raw, small.encode()))
    assert chain.block == block  # nothing was sent for them

    # One that is good moves its money once, however often it comes.
    deposit = market.deposit(config_of(said), amount := 500_000)
    for _ in range(2):
        await market.post("deposits", encode_bringing(good.raw, deposit.encode()))
    await market.sees("seller", funded=DEPOSIT + amount)
    chain.mine(5)
    assert chain.dollars(buyer.wallet) == MONEY - DEPOSIT - amount

    await market.order(1)
    cost = await market.agree()
    before = await market.account("seller")
    last = bytes.fromhex((await market.account("buyer", kind=Acknowledgement.kind))["raw"][0])
    acknowledged, key = open_record(last, Acknowledgement).record, voucher_key(buyer.identity)
    paid = open_record(acknowledged.voucher, Voucher).record
    place, channel = market.place, market.place.channel_id(config_of(said))
    another = place.channel_id(evolve(config_of(said), salt=bytes(32)))
    for voucher, why in (
        (evolve(paid, network="eip155:1"), "for network and account"),
        (evolve(paid, account=account_name(another)), "for network and account"),
        (evolve(paid, signature=None), "signature is not that of"),
        (evolve(paid, total=cost + 1), "signature is not that of"),
        (evolve(paid, signature=signed(key, Place(1, place.contract).voucher(channel, cost))), "signature is not"),
        (evolve(paid, signature=signed(key, Place(CHAIN_ID, bytes(20)).voucher(channel, cost))), "signature is not"),
        (evolve(paid, signature=signed(key, place.voucher(another, cost))), "signature is not that of"),
        (evolve(paid, total=MONEY, signature=signed(key, place.voucher(channel, MONEY))), "the channel bears"),
    ):
        lie = sign(evolve(acknowledged, reason="again", voucher=sign(voucher, buyer.identity).raw), buyer.identity)
        assert why in await market.refused("acknowledgements", lie.raw)
    assert await market.account("seller") == before
    many = [await market.post("channels", good.raw) for _ in range(12)]
    assert {status for status, _ in many} == {204, 429}
