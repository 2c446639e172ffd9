"""Where an answer's ids come from: this machine's engine, or a purchase; and what each came to."""

import contextlib
from collections.abc import AsyncGenerator, Iterable
from typing import Final, Protocol

from attrs import frozen

from ledger.identity import Did
from ledger.money import Amount, Unit
from node.engine.port import Engine, Job, Piece
from node.exchange.continuing import earlier_of
from node.exchange.purchase import Purchase
from node.wire.messages import Earlier

_STOPPED: Final = "the seller stopped before the end of the answer"


class AnswerCut(Exception):
    """The answer broke off after a part of it had come."""


@frozen
class Paper:
    """What one part of an answer came to; `record` is the digest of the last record that its seller signed for it:
    the receipt, or the last checkpoint where it was cut off. What is computed here has none, and costs nothing.
    `order` is the digest of what was ordered.
    """

    route: str  # `local` or the seller's did
    record: bytes | None = None
    cost: Amount | None = None
    order: bytes | None = None


def records_of(papers: Iterable[Paper]) -> tuple[bytes, ...]:
    """The digests of their receipts, or of the last checkpoints of what was cut off."""
    return tuple(paper.record for paper in papers if paper.record is not None)


def costs_of(papers: Iterable[Paper]) -> tuple[Amount, ...]:
    """What they cost together, in each unit that their sellers take."""
    sums: dict[Unit, int] = {}
    for cost in (paper.cost for paper in papers if paper.cost is not None):
        sums[cost.unit] = sums.get(cost.unit, 0) + cost.value
    return tuple(Amount(value, unit) for unit, value in sums.items())


class Source(Protocol):
    """Where an answer's ids come from."""

    @property
    def stops_itself(self) -> bool:
        """Whether it ends the answer at a stop string without being told."""
        ...

    @property
    def route(self) -> str:
        """Who computes it: `local` or a seller's did; of an answer in parts all of them, in their order."""
        ...

    def ids(self) -> AsyncGenerator[Piece, None]:
        """Pieces of new ids; closing stops the work. Raises AnswerCut, NotPlaced, EngineError."""
        ...

    async def papers(self) -> tuple[Paper, ...]:
        """What each part came to, once the ids have ended, in whatever way. Raises NotPlaced."""
        ...


class Origin(Source, Protocol):
    """A source of one part, which another can continue."""

    async def earlier(self) -> Earlier | None:
        """What shows it to a seller that continues it; None of what was computed here. Raises NotPlaced."""
        ...


class LocalSource:
    """This machine's own engine."""

    stops_itself: Final = False
    route: Final = "local"

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job

    async def ids(self) -> AsyncGenerator[Piece, None]:
        async with contextlib.aclosing(self._engine.generate(self._job)) as pieces:
            async for piece in pieces:
                yield piece

    async def papers(self) -> tuple[Paper, ...]:
        return (Paper(self.route),)

    async def earlier(self) -> Earlier | None:
        return None


class BoughtSource:
    """A purchase under way."""

    stops_itself: Final = True

    def __init__(self, purchase: Purchase, seller: Did) -> None:
        self._purchase = purchase
        self.route: Final[str] = seller

    async def ids(self) -> AsyncGenerator[Piece, None]:
        ended = False
        try:
            async for ids in self._purchase.tokens():
                yield Piece(ids)
            ended = True
        finally:
            if not ended:
                self._purchase.cancel()
        delivery = await self._purchase.outcome()
        if not delivery.complete:
            unpaid = delivery.receipt is not None and delivery.receipt.record.finish == "unpaid"
            why = "the seller was not paid in time, and ended the answer" if unpaid else _STOPPED
            raise AnswerCut(delivery.objection or why)

    async def papers(self) -> tuple[Paper, ...]:
        delivery = await self._purchase.outcome()
        last = delivery.receipt or delivery.checkpoint
        # What is paid, also where the receipt asks for more.
        paid = Amount(delivery.owed, delivery.terms.offer.record.price.unit)
        return (Paper(self.route, last.digest if last is not None else None, paid, delivery.terms.order.digest),)

    async def earlier(self) -> Earlier | None:
        return earlier_of(await self._purchase.outcome())
