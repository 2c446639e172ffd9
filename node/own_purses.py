"""The purses of the owner's remote backends that are paid by x402: their limits, one wallet, one journal."""

from collections.abc import Callable

from ledger.rails.stablecoin.networks import Network, checksummed
from node.config import RemoteSettings
from node.engine.paying import Payer
from node.exchange.book import Book
from node.gateway.paying.limits import PayLimits
from node.gateway.paying.purse import Purse
from node.gateway.paying.signing import Signing, Wallet
from node.gateway.paying.terms import Coin
from node.gateway.paying.till import Till
from node.ports import Entropy


async def open_purses(
    book: Book, entropy: Entropy, wallet: Wallet, network: Network
) -> Callable[[RemoteSettings], Payer]:
    """Who pays each remote. What an earlier run left unknown is taken up: call it before other services start."""
    token = network.token
    till = Till(book, entropy)
    await till.open()
    coin = Coin(network.caip2, checksummed(token.address), token.name, token.version)
    signing = Signing(wallet, book.identity, coin)

    def purse(settings: RemoteSettings) -> Payer:
        limits = PayLimits(
            settings.name,
            settings.price,
            settings.schemes,
            settings.max_payment,
            settings.max_per_day,
            settings.max_deposit,
            settings.pay_to,
        )
        return Purse(limits, signing, till)

    return purse
