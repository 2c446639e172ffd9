"""Channels as `/node/v1/wallet/channels` shows them."""

from typing import Any

from ledger.money import Amount
from node.api.effects import effect_row
from node.exchange.channel_rows import ChannelRow


def channel_row(row: ChannelRow, me: str) -> dict[str, Any]:
    """A channel, and what is under way on it."""
    account, key = row.account, row.account.key
    money = {
        "deposited": account.funded,
        "gone_back": account.withdrawn,
        "owed": account.owed,
        "promised": account.authorized,
        "paid": account.settled,
        "to_claim": account.unsettled,
        "free": row.free,
        "at_risk": row.at_risk,
    }
    return {
        "peer": key.payee if key.payer == me else key.payer,
        "direction": "we pay" if key.payer == me else "they pay",
        "by": "x402" if row.x402 else "node",
        "channel": None if row.id is None else f"0x{row.id.hex()}",
        **{name: str(Amount(value, key.unit)) for name, value in money.items()},
        "effect": None if row.effect is None else effect_row(row.effect, me),
    }
