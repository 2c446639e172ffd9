"""The purses of the owner's remote backends that are paid by x402: their limits, one wallet, one journal."""

from collections.abc import Collection
from typing import Final

import aiohttp

from ledger.account import AccountKey
from ledger.effects import free_collateral
from ledger.rails.stablecoin.networks import Network, checksummed
from node.config import BadConfig, RemoteSettings
from node.engine.paying import Payer
from node.exchange.book import Book
from node.exchange.wallet_refusals import SellerUnheard
from node.gateway.paying.asking_back import AskingBack, NotSaid
from node.gateway.paying.fates import Sweeper
from node.gateway.paying.limits import PayLimits, Scheme
from node.gateway.paying.payments import Payments
from node.gateway.paying.purse import Purse
from node.gateway.paying.signing import CHANNELS, Signing, Wallet
from node.gateway.paying.terms import Coin
from node.ports import Entropy


class Purses:
    """Who pays each remote."""

    def __init__(self, payments: Payments, signing: Signing, schemes: Collection[Scheme], asking: AskingBack) -> None:
        self._payments, self._signing, self._schemes = payments, signing, schemes
        self.asking: Final = asking
        self.sweep: Final = Sweeper(payments, signing).sweep

    async def grant(self, key: AccountKey) -> int:
        """Count what a seller says it has charged more than is known here; how much that is. Raises WalletRefused."""
        payments = self._payments
        async with payments.lock(key.payee):
            if await payments.pending(key) is not None:
                raise SellerUnheard(
                    "a payment to it is under way, of which nothing was heard yet: try again in a while"
                )
            try:
                left = await self.asking.left(key.payee)
            except NotSaid as error:
                raise SellerUnheard(str(error)) from None
            more = max(free_collateral(payments.account(key)) - left, 0)
            if more:
                await payments.concede(key, more)
        return more

    def payer_of(self, settings: RemoteSettings) -> Payer:
        """The payer of a remote that is paid by x402. Raises BadConfig."""
        schemes = tuple(scheme for scheme in settings.schemes if scheme in self._schemes)
        if not schemes:
            raise BadConfig(
                f"the remote {settings.name} is paid from channels, which are in x402's own contract: "
                "take [stablecoin] contract out, or add exact to its schemes"
            )
        limits = PayLimits(
            settings.name,
            settings.price,
            schemes,
            settings.max_payment,
            settings.max_per_day,
            settings.max_deposit,
            settings.pay_to,
        )
        self.asking.know(settings.name, settings.url, lambda: settings.pay_to or self._payments.pay_to(settings.name))
        return Purse(limits, self._signing, self._payments)


async def open_purses(
    book: Book,
    entropy: Entropy,
    wallet: Wallet,
    network: Network,
    channels: bytes,
    session: aiohttp.ClientSession,
) -> Purses:
    """What an earlier run left unknown is taken up: call it before other services start. Call `sweep` now and then.

    `channels` is the contract that this node's channels are in.
    """
    token = network.token
    payments = Payments(book, entropy)
    await payments.open()
    coin = Coin(network.caip2, checksummed(token.address), token.name, token.version)
    # In another contract its channels would be none that the rail sees, or takes money back from.
    schemes: tuple[Scheme, ...] = ("exact", "batch-settlement") if channels == CHANNELS else ("exact",)
    signing = Signing(wallet, book.identity, coin)
    return Purses(payments, signing, schemes, AskingBack(session, signing))
