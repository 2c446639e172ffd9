"""Acknowledgements on their way: handed to each seller, and again with backoff until it has them.

Theory of operation. Some go at a time, the oldest first, so that a seller writes many at once: one after the other they
would fall behind the orders of a busy buyer. Whatever order they come in, a seller counts the same; those of one order
follow each other all the same, for what it granted comes before what it disputes.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from ledger.identity import Did
from ledger.records import Acknowledgement, Signed
from node.exchange.background import Background
from node.wire.messages import Refused, Unreachable
from node.wire.peer import Peer

_FIRST_RETRY_S: Final = 0.5
_LAST_RETRY_S: Final = 60.0
# So many that a seller writes them together, and so few that orders find their way beside them.
_AT_ONCE: Final = 16
# Refusals that are not meant for good.
_LATER: Final = frozenset({"busy", "too_many_requests", "not_selling", "failed"})

_log = logging.getLogger(__name__)


class Outbox:
    """What is signed and on disk, and not yet with its seller."""

    def __init__(self, dial: Callable[[Did], Peer | None], background: Background) -> None:
        self._dial = dial
        self._background = background
        self._unsent: dict[Did, list[Signed[Acknowledgement]]] = {}
        self._sending: set[Did] = set()

    def add(self, seller: Did, acknowledgement: Signed[Acknowledgement]) -> None:
        """One more for a seller, behind those before it."""
        self._unsent.setdefault(seller, []).append(acknowledgement)

    def holds_for(self, seller: Did) -> bool:
        """Whether something is not yet with a seller."""
        return bool(self._unsent.get(seller))

    @property
    def sellers(self) -> list[Did]:
        """Those for whom there was something."""
        return list(self._unsent)

    def hand_over(self, seller: Did) -> None:
        """Send what there is, in the background."""
        peer = self._dial(seller)
        if peer is not None and seller not in self._sending:
            self._sending.add(seller)
            self._background.start(self._send(seller, peer))

    async def _send(self, seller: Did, peer: Peer) -> None:
        """Hand over what is unsent, oldest first, until the seller has all of it."""
        wait_s = _FIRST_RETRY_S
        try:
            while unsent := self._unsent.get(seller):
                sent = _next(unsent)
                taken = await asyncio.gather(*(self._taken(one, seller, peer) for one in sent))
                for one in (one for one, has in zip(sent, taken, strict=True) if has):
                    unsent.remove(one)
                    wait_s = _FIRST_RETRY_S
                if not all(taken):
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _LAST_RETRY_S)
        finally:
            # At once, and not when the task is over: what is settled in between must find that nobody is sending.
            self._sending.discard(seller)

    async def _taken(self, acknowledgement: Signed[Acknowledgement], seller: Did, peer: Peer) -> bool:
        """Whether a seller has an acknowledgement, or will never take it; if not, it is to be tried again."""
        try:
            await peer.acknowledge(acknowledgement.raw)
        except Unreachable:
            return False
        except Refused as refusal:
            if refusal.code in _LATER:
                return False
            # It will not take it now or later; the voucher in the next one stands for this one too.
            _log.warning("%s refused an acknowledgement: %s", seller, refusal.message)
        return True


def _next(unsent: Sequence[Signed[Acknowledgement]]) -> list[Signed[Acknowledgement]]:
    """The oldest, of different orders; what follows one that has to wait behind another of its order may go before."""
    first: dict[bytes, Signed[Acknowledgement]] = {}
    for one in unsent[: 4 * _AT_ONCE]:
        first.setdefault(one.record.order, one)
    return list(first.values())[:_AT_ONCE]
