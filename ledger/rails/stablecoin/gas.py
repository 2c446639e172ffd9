"""What the transactions of channels cost, before anybody knows the price of gas.

Measured on a chain with `contracts/` and a plain token (`benchmarks/channel_gas.py`, which a test runs), for a seller
that has claimed before. A token behind a proxy, as USDC, takes some ten thousand more for each time it moves.
"""

from typing import Final

from attrs import frozen

from ledger.effects import Kind
from ledger.rails.stablecoin.contracts import MAX_ROWS

WEI_PER_ETHER: Final = 10**18


@frozen
class Spent:
    """One transaction's gas, and its size in bytes as it is sent: some networks charge for that besides."""

    gas: int
    size: int


OPEN: Final = Spent(113_308, 727)  # the deposit that opens a channel, signed by its payer and sent by anyone
DEPOSIT: Final = Spent(92_933, 727)  # a later one
SETTLE: Final = Spent(45_761, 183)
REFUND: Final = Spent(61_634, 567)
_CLAIM_ONCE: Final = Spent(27_350, 183)
_CLAIM_EACH: Final = Spent(16_360, 480)


def claim(rows: int) -> Spent:
    """A claim from so many channels."""
    return Spent(_CLAIM_ONCE.gas + rows * _CLAIM_EACH.gas, _CLAIM_ONCE.size + rows * _CLAIM_EACH.size)


def needed(kind: Kind, accounts: int) -> list[Spent]:
    """The transactions that it takes to move so many accounts by effects of one kind."""
    match kind:
        case "top_up":
            return [OPEN] * accounts
        case "claim":
            return [*_claims(accounts), SETTLE]
        case "refund":
            return [REFUND] * accounts
        case "close":
            return [*_claims(accounts), SETTLE, *([REFUND] * accounts)]
    return []


def _claims(rows: int) -> list[Spent]:
    whole, rest = divmod(rows, MAX_ROWS)
    return [claim(MAX_ROWS)] * whole + ([claim(rest)] if rest else [])


def in_uusd(wei: int, ether: int) -> int:
    """What so much of a chain's own money is worth, rounded up; `ether` is what one costs, in millionths of a dollar."""
    return -(-wei * ether // WEI_PER_ETHER)
