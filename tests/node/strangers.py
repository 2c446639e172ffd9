"""A seller whose door is open to strangers, on a real chain, and strangers with x402's own client."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
from aiohttp import web
from attrs import define
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from x402 import x402Client, x402FacilitatorSync
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.clients import x402HttpxClient
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme, BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.batch_settlement.facilitator import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme as ExactFacilitator
from x402.mechanisms.evm.signers import EthAccountSigner, EthAccountSignerWithRPC
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements

from ledger.account import Account
from ledger.identity import Identity
from ledger.journal import Journal, MemoryJournal
from ledger.rails.policy import Policy
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.keys import Key
from ledger.rails.stablecoin.networks import Network, network
from ledger.rails.stablecoin.rail import Stablecoin
from ledger.rails.stablecoin.transfers import Authorization
from node.api.connections import Bounds, serving
from node.api.paid import PaidDoor
from node.engine.port import Engine
from node.exchange.book import Book
from node.exchange.channels import Channels
from node.exchange.effects import EffectDriver
from node.exchange.pacing import Pace
from node.exchange.sale import Ware
from node.exchange.strangers import did_of_wallet
from node.exchange.tabs import Tabs, stranger_config
from node.gateway.shop import Shop
from node.models.tokenizer import Tokenizer
from node.paid.bank import Bank, Facilitator
from node.paid.prepaid import Prepaid
from node.paid.presented import SignedTransfer
from node.paid.refunds import Refunds
from node.paid.terms import TIMEOUT_S, TRANSFER_S, Scheme, Terms
from node.paid.till import Till
from node.paid.watched import Watched
from node.paid.worth import Worth
from node.ports import SystemClock, SystemEntropy
from node.wire.messages import Refused
from tests.chain import X402_CHANNELS, Anvil
from tests.node.trading import PRICE

NETWORK: Final = "eip155:31337"
# What a stranger's wallet has, in millionths of a dollar.
RICH: Final = 10_000_000
DELAY_S: Final = 3_600


async def until(holds: Callable[[], bool]) -> None:
    """Return when it holds, by what goes on in the background."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def raw(address: str) -> bytes:
    return bytes.fromhex(address[2:])


@define
class Stall:
    """One node's door, and what is behind it."""

    url: str
    book: Book
    tabs: Tabs
    driver: EffectDriver
    chain: Chain
    bank: Bank
    shop: Shop
    channels: Channels
    rail: Stablecoin
    till: Till

    @property
    def chat(self) -> str:
        """Where requests go."""
        return f"{self.url}/v1/chat/completions"

    def accounts(self, rail: str) -> list[Account]:
        books = self.book.journal.books.accounts
        return [account for key, account in books.items() if key.rail == rail and account.key.payee == self.book.me]

    async def watch(self, transfer: Authorization, wallet: LocalAccount) -> None:
        """Show a transfer that a wallet signs."""
        network = self.chain.network
        typed = encode_typed_data(full_message=transfer.typed(network.chain_id, network.token))
        signature = wallet.sign_message(typed).signature
        await self.till.transfers.watch(SignedTransfer(transfer, bytes(signature)))

    def prepaid(self, wallet: LocalAccount) -> Account:
        return self.tabs.account(self.tabs.key(did_of_wallet(NETWORK, raw(wallet.address)), "prepaid"))


@contextlib.asynccontextmanager
async def stall(
    anvil: Anvil,
    folder: Path,
    tokenizer: Tokenizer,
    engine: Engine,
    wallet: LocalAccount,
    *,
    journal: Journal | None = None,
    schemes: Sequence[Scheme] = ("exact", "batch-settlement"),
    facilitator: Facilitator | None = None,
    budget: int = 2_000,
    most_prepaid: int = 10**9,
    may_sell: Callable[[], Refused | None] = lambda: None,
    wait_s: float = 20.0,
    ether: int = 1,
    miss: Callable[[], None] = lambda: None,
) -> AsyncIterator[Stall]:
    """Open a door. The chain's confirmations are 0: its blocks come with transactions alone."""
    identity, clock, entropy = Identity(b"\x01" * 32), SystemClock(), SystemEntropy()
    book = await Book.open(journal or MemoryJournal(identity.did), identity, clock)
    tabs = Tabs(book, entropy)
    await tabs.sweep()
    here: Network = network("anvil").with_(confirmations=0)
    key = Key.of(bytes(wallet.key))
    chain = await Chain.open(here, [anvil.url], folder, key, contract=raw(X402_CHANNELS), poll_s=0.05)
    channels = Channels(book, lambda _: None, lambda key: stranger_config(book.strangers, key))
    rail = Stablecoin(chain, channels, book.me, ether=ether, gather_s=0.0)
    pace = Pace(round_s=0.05, look_s=0.0, look_again_s=0.0, first_retry_s=0.0, last_retry_s=0.0)
    policies = dict.fromkeys(("stablecoin", "prepaid"), Policy(move_at=1, max_fee_ppm=1_000_000))
    driver = EffectDriver(book, entropy, [rail, Prepaid(chain)], policies, pace)
    shop = Shop([Ware(engine, tokenizer, "memory", PRICE, miss=miss)], book.me, may_sell, 16)
    worth = Worth.of(
        partial(rail.fee, "top_up", 1),
        book.now,
        prepaid=budget,
        most_prepaid=most_prepaid,
        deposit=5_000,
        valid_s=(TRANSFER_S, TIMEOUT_S),
        is_brought_by_others=facilitator is not None,
    )
    await worth.look()
    watched = Watched.open(folder / "shown.jsonl", book.now(), book.strangers.knows)
    bank = Bank(book, tabs, chain, worth, watched, facilitator, wait_s)
    terms = Terms(chain.place, here.token, chain.address, DELAY_S, schemes, worth)
    till = Till(book, tabs, terms, bank, rail, channels.has)
    door = PaidDoor(
        shop, till, Refunds(book, tabs, till, bank, driver.ask), clock, entropy, lambda address: address == "127.0.0.1"
    )
    listener = socket.create_server(("127.0.0.1", 0))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(chain.close)
        moving = asyncio.create_task(driver.run())
        stack.push_async_callback(_ended, moving)
        await stack.enter_async_context(serving(door.app(), listener, Bounds()))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Stall(url, book, tabs, driver, chain, bank, shop, channels, rail, till)


@contextlib.asynccontextmanager
async def facilitator(anvil: Anvil) -> AsyncIterator[HTTPFacilitatorClient]:
    """Somebody else's facilitator: x402's own, on a socket, with a wallet of its own; and x402's client of it."""
    signer = FacilitatorWeb3Signer(anvil.wallet().key.hex(), anvil.url)
    settling = x402FacilitatorSync()
    settling.register([NETWORK], BatchSettlementEvmFacilitator(signer)).register([NETWORK], ExactFacilitator(signer))

    async def settle(request: web.Request) -> web.Response:
        body = await request.json()
        payload = PaymentPayload.model_validate(body["paymentPayload"])
        requirements = PaymentRequirements.model_validate(body["paymentRequirements"])
        said = await asyncio.to_thread(settling.settle, payload, requirements)
        return web.json_response(said.model_dump(by_alias=True, exclude_none=True))

    app = web.Application()
    app.add_routes([web.post("/settle", settle)])
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with serving(app, listener, Bounds()), HTTPFacilitatorClient(FacilitatorConfig(url)) as paying:
        yield paying


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def channel_scheme(wallet: LocalAccount, anvil: Anvil, salt: int = 0) -> BatchSettlementEvmScheme:
    """x402's client scheme for channels, as it comes; each salt opens another channel."""
    options = BatchSettlementEvmSchemeOptions(salt="0x" + salt.to_bytes(32, "big").hex())
    return BatchSettlementEvmScheme(EthAccountSignerWithRPC(wallet, anvil.url), options)


def exact_scheme(wallet: LocalAccount) -> ExactEvmScheme:
    """x402's client scheme for transfers, as it comes."""
    return ExactEvmScheme(EthAccountSigner(wallet))


async def signed(scheme: Any, url: str, **request: Any) -> dict[str, str]:
    """The header that x402's client sends for a request, to be sent by hand."""
    paying = x402Client().register(NETWORK, scheme)
    paying.set_spend_controls(False)
    async with httpx.AsyncClient() as plain:
        asked = await plain.request(request.pop("method", "POST"), url, **request)
    payload = await paying.create_payment_payload(required(asked))
    return {"PAYMENT-SIGNATURE": encode_payment_signature_header(payload)}


def refusal(response: httpx.Response) -> str:
    """Why a payment was not taken, in x402's word."""
    assert response.status_code == 402, response.text
    return str(required(response).error)


def required(response: httpx.Response) -> PaymentRequired:
    """What PAYMENT-REQUIRED asks for."""
    asked = decode_payment_required_header(response.headers["PAYMENT-REQUIRED"])
    assert isinstance(asked, PaymentRequired)
    return asked


def client(scheme: Any) -> x402HttpxClient:
    """x402's httpx client, as it comes; the tests' dollar is none that it knows."""
    paying = x402Client().register(NETWORK, scheme)
    paying.set_spend_controls(False)
    return x402HttpxClient(paying, timeout=30)


def asking(max_tokens: int = 8, **more: Any) -> dict[str, Any]:
    """A request's body."""
    messages = [{"role": "user", "content": "Tell me a story"}]
    return {"model": "memory", "messages": messages, "max_tokens": max_tokens, "seed": 1, **more}


def settlement(response: httpx.Response) -> Any:
    """What PAYMENT-RESPONSE says."""
    return decode_payment_response_header(response.headers["PAYMENT-RESPONSE"])
