"""A bound on the gas that strangers can make this node spend: it is spent on who pays in, and on who is paid back.

Theory of operation. Money that is paid in can be asked back, so going in circles costs a stranger nothing and this node
the gas. Each wallet may cause a few transactions, and all together so many; one that the chain would refuse is never
sent, and counts for nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from ledger.rails.stablecoin.errors import ChainError
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

    @contextlib.contextmanager
    def spending(self, wallet: bytes, code: str) -> Iterator[None]:
        """One is sent for a wallet in the context; where nothing was sent, it raises so. Raises PaymentRefused.

        It counts from the beginning: of many at once, none was sent yet when the last is checked.
        """
        self.check(wallet, code)
        self._charge(wallet, 1)
        try:
            yield
        except (ChainError, PaymentRefused):
            self._charge(wallet, -1)
            raise

    def _charge(self, wallet: bytes, transactions: int) -> None:
        self._of_one.charge(wallet.hex(), transactions)
        self._of_all.charge(_ALL, transactions)
