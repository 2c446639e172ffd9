"""The port between buyer and seller: what one node may ask of another.

A seller's service implements it; so does the HTTP client that dials one. Everything is bytes as signed, for the
receiving side checks it itself.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol


class Peer(Protocol):
    """Another node. Every call may raise `messages.Refused` or `messages.Unreachable`."""

    async def offers(self) -> Sequence[bytes]:
        """Its signed Offers that are open now. Raises Refused (`not_selling`) while it sells nothing."""
        ...

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        """Its signed Grant for one buyer in one unit: how much credit, and how large a window, on a rail."""
        ...

    async def manifest(self, model: bytes) -> bytes:
        """The manifest of a model by its digest."""
        ...

    async def tokenizer(self, digest: bytes) -> bytes:
        """A tokenizer file by its digest."""
        ...

    def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        """Place a signed Order with its sealed request; the bytes of the answer's stream come back.

        A refusal is raised before the first bytes. Closing the generator hangs up, and the seller stops.
        """
        ...

    async def receipt(self, order: bytes) -> bytes | None:
        """The Receipt of a finished order by the order's digest; None while there is none."""
        ...

    async def acknowledge(self, raw: bytes) -> None:
        """Hand over a signed Acknowledgement. The same one may be handed over again."""
        ...

    async def cancel(self, raw: bytes) -> None:
        """Hand over the buyer's signed Cancel of a running order."""
        ...
