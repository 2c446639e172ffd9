"""What the transactions of channels cost, before anybody knows the price of gas.

Measured with `contracts/` and a plain token (`benchmarks/channel_gas.py`, which a test runs; docs/stablecoin.md is made
from it), for a seller that has claimed before.
"""

from typing import Final

from attrs import frozen

from ledger.effects import Kind
from ledger.rails.stablecoin.contracts import MAX_ROWS

WEI_PER_ETHER: Final = 10**18
# What others pay in is brought to the chain for them where it is worth so many times the gas for it.
WORTH: Final = 2


@frozen
class Spent:
    """One transaction's gas, and its size in bytes as it is sent: some networks charge for that besides."""

    gas: int
    size: int

    def times(self, count: int) -> "Spent":
        """So many of it."""
        return Spent(self.gas * count, self.size * count)

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.gas + other.gas, self.size + other.size)


OPEN: Final = Spent(113_308, 727)  # the deposit that opens a channel, signed by its payer and sent by anyone
DEPOSIT: Final = Spent(92_933, 727)  # a later one
SETTLE: Final = Spent(45_761, 183)
REFUND: Final = Spent(61_634, 567)
WITHDRAWAL: Final = Spent(100_389, 718)  # its notice, and its end
_CLAIM: Final = Spent(27_350, 183)  # without its rows
_ROW: Final = Spent(16_360, 480)
# A token behind a proxy, as USDC is, takes so much more than a plain one each time it moves.
_MOVE: Final = Spent(10_000, 0)


def claim(rows: int) -> Spent:
    """A claim from so many channels."""
    return _CLAIM + _ROW.times(rows)


def needed(kind: Kind, accounts: int) -> list[Spent]:
    """The transactions that it takes to move so many accounts by effects of one kind, with a token behind a proxy."""
    match kind:
        case "top_up":
            return [OPEN + _MOVE.times(2)] * accounts  # by way of the collector
        case "claim":
            return [*_claims(accounts), SETTLE + _MOVE]
        case "refund":
            return [WITHDRAWAL + _MOVE] * accounts  # as its payer does it, which costs the most
        case "close":
            return [*_claims(accounts), SETTLE + _MOVE, *([REFUND + _MOVE] * accounts)]
        case "pay":
            return []


def _claims(rows: int) -> list[Spent]:
    whole, rest = divmod(rows, MAX_ROWS)
    return [claim(MAX_ROWS)] * whole + ([claim(rest)] if rest else [])


def in_uusd(wei: int, ether: int) -> int:
    """What so much of a chain's own money is worth, rounded up; `ether` is what one is worth, in uusd."""
    return -(-wei * ether // WEI_PER_ETHER)
