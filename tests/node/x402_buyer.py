"""A node's side that buys from sellers paid by x402: journal on disk, wallet on a real chain, the rail over it."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from attrs import define
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount

from ledger.database import Database
from ledger.identity import Identity
from ledger.money import Amount, Price
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.keys import Key
from ledger.rails.stablecoin.networks import network
from ledger.rails.stablecoin.rail import Stablecoin
from node.engine.completions import CompletionsClient, Endpoint
from node.exchange.book import Book
from node.exchange.channels import Channels
from node.exchange.effects import EffectDriver
from node.exchange.pacing import Pace
from node.exchange.tabs import stranger_config
from node.gateway.paying.asking_back import AskingBack
from node.gateway.paying.limits import PayLimits
from node.gateway.paying.payments import Payments
from node.gateway.paying.purse import Purse
from node.gateway.paying.signing import CHANNELS, Signing
from node.gateway.paying.terms import Coin
from node.paid.prepaid import Prepaid
from node.ports import ManualClock, SeededEntropy
from tests.chain import Anvil
from tests.node.x402_seller import NETWORK, X402Seller

ASKED = [{"role": "user", "content": "Tell me a story."}]
DOLLARS = 1_000_000
ME = Identity(b"\7" * 32)


def uusd(value: int) -> Amount:
    return Amount(value, "uusd")


class OpenWallet:
    """A wallet that signs what it is shown, and reads the chain; it can be cut off from it."""

    def __init__(self, chain: Anvil, account: LocalAccount) -> None:
        self._chain, self.account = chain, account
        self.address = bytes.fromhex(account.address[2:])
        self.signed: list[str] = []

    async def sign_typed(self, typed: Mapping[str, Any]) -> bytes:
        self.signed.append(typed["primaryType"])
        return bytes(self.account.sign_message(encode_typed_data(full_message=dict(typed))).signature)

    async def read(self, to: bytes, name: str, *values: Any, deep: bool = False) -> tuple[Any, ...]:
        shapes = {
            "authorizationState": ("(address,bytes32)", "bool"),
            "balanceOf": ("(address)", "uint256"),
            "channels": ("(bytes32)", "uint128,uint128"),
            "pendingWithdrawals": ("(bytes32)", "uint128,uint40"),
        }
        arguments, returns = shapes[name]
        found = self._chain.call("0x" + to.hex(), name + arguments, *values, returns=returns)
        return found if isinstance(found, tuple) else (found,)


@define
class Buyer:
    """A node's paying side, with its journal on disk."""

    book: Book
    wallet: OpenWallet
    signing: Signing
    payments: Payments
    session: aiohttp.ClientSession
    clock: ManualClock

    def purse(self, **limits: Any) -> Purse:
        given: dict[str, Any] = {
            "name": "shop",
            "price": Price(10 * DOLLARS, 10 * DOLLARS, "uusd"),
            "max_payment": uusd(1_000),
        }
        return Purse(PayLimits(**(given | limits)), self.signing, self.payments)

    async def ask(self, seller: X402Seller, purse: Purse, max_tokens: int = 100) -> str:
        return await self.ask_at(seller.url, purse, "m", max_tokens)

    async def ask_at(self, url: str, purse: Purse, model: str, max_tokens: int) -> str:
        client = CompletionsClient(self.session, Endpoint("shop", url, model), 10.0, purse)
        return "".join([said.text async for said in client.chat(ASKED, {"max_tokens": max_tokens})])


@contextlib.asynccontextmanager
async def buying(chain: Anvil, folder: Path, wallet: OpenWallet | None = None) -> AsyncIterator[Buyer]:
    clock = ManualClock(time.time())  # x402 signs by the machine's
    async with (
        await Database.open(folder / "ledger.db", ME.did) as database,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        book = await Book.open(database, ME, clock)
        coin = Coin(NETWORK, chain.deployed.dollar, "USD Coin", "2")
        wallet = wallet or OpenWallet(chain, chain.wallet(DOLLARS))
        payments = Payments(book, SeededEntropy(1))
        await payments.open()
        yield Buyer(book, wallet, Signing(wallet, ME, coin), payments, session, clock)


@contextlib.asynccontextmanager
async def moving(anvil: Anvil, folder: Path, buyer: Buyer, *doors: str) -> AsyncIterator[EffectDriver]:
    """What moves the buyer's money by the rails themselves, over a view of the chain of its own; go on by `step`.

    `doors` are the urls of the seller that is called `shop`.
    """
    key = Key.of(bytes(buyer.wallet.account.key))
    chain = await Chain.open(network("anvil"), [anvil.url], folder, key, contract=CHANNELS, poll_s=0.05)
    channels = Channels(buyer.book, lambda _: None, lambda key: stranger_config(buyer.book.strangers, key))
    rail = Stablecoin(chain, channels, ME.did, ether=1)
    pace = Pace(round_s=0.05, look_s=0.0, look_again_s=0.0, rest_s=0.0, first_retry_s=0.0, last_retry_s=0.0)
    asking = AskingBack(buyer.session, buyer.signing)
    for url in doors:
        asking.know("shop", url, lambda: buyer.payments.pay_to("shop"))
    driver = EffectDriver(buyer.book, SeededEntropy(2), [rail, Prepaid(chain, asking)], pace=pace)
    try:
        yield driver
    finally:
        await driver.close()
        await rail.close()
        await chain.close()
