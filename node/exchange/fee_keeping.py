"""What the chain's network has taken for this node's transactions: told to the journal when one is final, once.

Theory of operation. The chain's outbox keeps what became of each transaction, with its fee. A wallet's transactions are
numbered (nonces), and of one number one alone is ever final: so what was told is known by its number, whatever was
forgotten, sent again, or replaced together with its block.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from ledger.events import MAX_FEE, FeePaid
from ledger.rails.stablecoin.outbox import Outcome
from node.exchange.book import Book

# So many are told in one entry.
_AT_ONCE: Final = 100


class Payer(Protocol):
    """The chain, as far as it costs: see `ledger.rails.stablecoin.chain.Chain`."""

    @property
    def address(self) -> bytes:
        """The wallet's."""

    @property
    def over(self) -> Sequence[Outcome]:
        """The transactions that are final, the latest of them at least."""


class FeeKeeper:
    """Tells the journal; call `sweep` now and then."""

    def __init__(self, book: Book, chain: Payer, network: str, rail: str) -> None:
        """`network` by its CAIP-2 name, whose coin the fees are paid in; `rail` is what they are paid for."""
        self._book, self._chain = book, chain
        self._network, self._rail = network, rail

    async def sweep(self) -> None:
        """Tell what is final by now and was not told. Raises LedgerError."""
        payer = f"0x{self._chain.address.hex()}"
        # Of one number, the one that is there by now: a block that was deep may have been replaced.
        latest = {
            one.nonce: FeePaid(self._rail, self._network, payer, one.nonce, one.hash, min(one.fee, MAX_FEE))
            for one in self._chain.over
            if one.fee and one.hash is not None and one.nonce is not None
            if not self._book.fees.knows(self._network, payer, one.nonce)
        }
        events = list(latest.values())
        for first in range(0, len(events), _AT_ONCE):
            await self._book.post(*events[first : first + _AT_ONCE])
