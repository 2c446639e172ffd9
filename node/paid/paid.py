"""What a stranger is told that has paid: x402's `PAYMENT-RESPONSE`."""

from typing import Any

from attrs import define
from x402.schemas import SettleResponse

from ledger.account import Account
from ledger.rails.stablecoin.networks import checksummed
from node.exchange.strangers import CHANNEL_RAIL
from node.exchange.tabs import Tab
from node.paid.bank import Moved


@define
class Paid:
    """A request that is paid for: `tab` holds what it may cost; `moved` is what the chain moved for it, if anything."""

    tab: Tab
    payer: bytes
    network: str
    moved: Moved | None

    def response(self) -> SettleResponse:
        """x402's `PAYMENT-RESPONSE`: without a charge until that is known."""
        said = told(self.tab.account, self.payer, self.network, self.moved)
        if self.tab.charged is not None:
            said.extra = {**(said.extra or {}), "chargedAmount": str(self.tab.charged)}
        return said


def told(account: Account, payer: bytes, network: str, moved: Moved | None) -> SettleResponse:
    """What a payer is told of what the chain moved for it, and of its account."""
    in_channel = account.key.rail == CHANNEL_RAIL
    return SettleResponse(
        success=True,
        payer=checksummed(payer),
        transaction="0x" + moved.transaction.hex() if moved and moved.transaction else "",
        network=network,
        amount=str(moved.amount if moved else 0),
        extra={"channelState": channel_state(account)} if in_channel else {"balance": str(account.available)},
    )


def channel_state(account: Account) -> dict[str, Any]:
    """What x402's clients are told of a channel."""
    channel = account.key.payer.partition("#")[2]
    return {
        "channelId": channel,
        "balance": str(account.capacity),
        "totalClaimed": str(account.settled),
        "chargedCumulativeAmount": str(account.owed),
    }
