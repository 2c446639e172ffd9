"""What moving money on a chain costs: gas by kind of effect, measured, and bytes where a network charges for them."""

from typing import Final

from attrs import frozen

from ledger.effects import Kind
from ledger.rails.stablecoin.chain import GasPrice
from ledger.rails.stablecoin.contracts import MAX_ROWS

_WEI: Final = 10**18
# Of a whole transaction, for a receiver and payer that have moved money before; a token behind a proxy, as USDC is,
# costs some 20,000 more than a plain one where it moves.
_CLAIM, _ROW, _SETTLE = 27_400, 16_400, 66_000
_DEPOSIT, _REFUND, _WITHDRAWAL = 98_000, 88_000, 140_000
# Bytes as they are sent, with signature and envelope.
_CLAIM_SIZE, _ROW_SIZE, _SETTLE_SIZE = 190, 480, 190
_DEPOSIT_SIZE, _REFUND_SIZE, _WITHDRAWAL_SIZE = 850, 620, 750


@frozen
class Work:
    """What a chain charges for: gas, and the bytes of transactions."""

    gas: int
    size: int

    def times(self, count: int) -> "Work":
        """So many of it."""
        return Work(self.gas * count, self.size * count)

    def __add__(self, other: "Work") -> "Work":
        return Work(self.gas + other.gas, self.size + other.size)


def work(kind: Kind, accounts: int) -> Work:
    """What so many effects of a kind take; claims go together, the rest alone."""
    batches = -(-accounts // MAX_ROWS)
    once = Work(_CLAIM, _CLAIM_SIZE) + Work(_SETTLE, _SETTLE_SIZE)
    claims = once.times(batches) + Work(_ROW, _ROW_SIZE).times(accounts)
    match kind:
        case "claim":
            return claims
        case "close":
            return claims + Work(_REFUND, _REFUND_SIZE).times(accounts)
        case "top_up":
            return Work(_DEPOSIT, _DEPOSIT_SIZE).times(accounts)
        case "refund":
            return Work(_WITHDRAWAL, _WITHDRAWAL_SIZE).times(accounts)
        case "pay":
            return Work(0, 0)


def fee(kind: Kind, accounts: int, price: GasPrice, ether: int) -> int:
    """The same in millionths of a dollar, rounded up; `ether` is what one costs in those."""
    needed = work(kind, accounts)
    return -(-price.cost(needed.gas, needed.size) * ether // _WEI)
