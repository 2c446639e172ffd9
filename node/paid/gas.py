"""A bound on the gas that strangers can make this node spend: it is spent on who pays in, and on who is paid back.

Theory of operation. Money that is paid in can be asked back, so going in circles costs a stranger nothing and this node
the gas. Each wallet may cause a few transactions, and all together so many; one that the chain would refuse is never
sent, and counts for nothing.
"""

from collections.abc import Callable
from typing import Final

from node.exchange.rates import Rates
from node.paid.terms import PaymentRefused

# Transactions a second, after the first few: of one wallet, and of all.
_OF_ONE: Final = 1 / 120
_OF_ONE_AT_FIRST: Final = 4.0
_OF_ALL: Final = 1 / 5
_OF_ALL_AT_FIRST: Final = 40.0
_ALL: Final = ""


class Gas:
    """What may still be spent."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: seconds since 1970."""
        self._of_one = Rates(now, _OF_ONE, _OF_ONE_AT_FIRST)
        self._of_all = Rates(now, _OF_ALL, _OF_ALL_AT_FIRST)

    def check(self, wallet: bytes, code: str) -> None:
        """Whether one more may be sent for a wallet. Raises PaymentRefused."""
        if self._of_one.charge(wallet.hex(), 0) < 1:
            raise PaymentRefused(code, "this wallet has moved money here often enough by now: wait two minutes")
        if self._of_all.charge(_ALL, 0) < 1:
            raise PaymentRefused(code, "money is moved here often enough by now: try again in a minute")

    def spend(self, wallet: bytes) -> None:
        """One was sent."""
        self._of_one.charge(wallet.hex())
        self._of_all.charge(_ALL)
