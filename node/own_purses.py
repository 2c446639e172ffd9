"""The purses of the owner's remote backends that are paid by x402: their limits, one wallet, one journal."""

from collections.abc import Collection
from typing import Final

import aiohttp

from ledger.rails.stablecoin.networks import Network, checksummed
from node.config import BadConfig, RemoteSettings
from node.engine.paying import Payer
from node.exchange.book import Book
from node.gateway.paying.asking_back import AskingBack
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
