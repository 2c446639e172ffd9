"""An answer on its way to the client: text as it comes, whoever computes it, and what it was in the end."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal, Protocol

from attrs import frozen

from ledger.money import Amount
from node.engine.port import Engine, Job, Piece
from node.exchange.delivery import Delivery
from node.exchange.purchase import NotPlaced, Purchase
from node.models.text import TextStream


class AnswerCut(Exception):
    """The answer broke off after the client had seen a part of it."""


@frozen
class Ending:
    """How an answer ended: `receipt` is the digest of the receipt of a bought one."""

    finish: Literal["stop", "length"]
    tokens: int
    receipt: bytes | None = None
    cost: Amount | None = None


class Source(Protocol):
    """Where an answer's ids come from."""

    stops_itself: bool  # whether it ends the answer at a stop string without being told

    def ids(self) -> AsyncGenerator[Piece, None]:
        """Pieces of new ids; closing stops the work."""
        ...

    async def paper(self) -> tuple[bytes | None, Amount | None]:
        """The receipt's digest and the cost, after the last ids. Raises AnswerCut."""
        ...


class LocalSource:
    """This machine's own engine: no receipt, no cost."""

    stops_itself = False

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job

    async def ids(self) -> AsyncGenerator[Piece, None]:
        async with contextlib.aclosing(self._engine.generate(self._job)) as pieces:
            async for piece in pieces:
                yield piece

    async def paper(self) -> tuple[bytes | None, Amount | None]:
        return None, None


class BoughtSource:
    """A purchase under way."""

    stops_itself = True

    def __init__(self, purchase: Purchase) -> None:
        self._purchase = purchase

    async def ids(self) -> AsyncGenerator[Piece, None]:
        ended = False
        try:
            async for ids in self._purchase.tokens():
                yield Piece(ids)
            ended = True
        finally:
            if not ended:
                self._purchase.cancel()

    async def outcome(self) -> Delivery:
        """How the purchase ended. Raises NotPlaced if it brought nothing."""
        return await self._purchase.outcome()

    async def paper(self) -> tuple[bytes | None, Amount | None]:
        try:
            delivery = await self._purchase.outcome()
        except NotPlaced as error:
            raise AnswerCut(str(error)) from None
        if delivery.receipt is None or not delivery.complete:
            raise AnswerCut(delivery.objection or "the seller stopped before the end of the answer")
        # What is paid, also where the receipt asks for more.
        return delivery.receipt.digest, Amount(delivery.owed, delivery.terms.offer.record.price.unit)


class Answer:
    """One answer under way. Read `text` to its end, then `ending` tells the rest."""

    def __init__(
        self,
        source: Source,
        stream: TextStream,
        eog: frozenset[int],
        *,
        route: str,
        model: str,
        prompt_tokens: int,
        degraded: str | None = None,
    ) -> None:
        """`route` is `local` or the seller's did; `degraded` says why it is not what was wished, if it is not."""
        self.route, self.model, self.prompt_tokens, self.degraded = route, model, prompt_tokens, degraded
        self.ending: Ending | None = None
        self._source = source
        self._stream = stream
        self._eog = eog
        self._tokens = 0
        self._last: int | None = None
        self._ids = source.ids()
        self._waiting: list[str] = []

    async def begin(self) -> bool:
        """Wait for the first ids; False if none came. Raises what the source raises."""
        try:
            piece = await anext(self._ids, None)
            if piece is None:
                return False
            self._waiting.append(self._take(piece))
        except BaseException:
            await self.close()
            raise
        return True

    async def collect(self) -> str:
        """The whole text at once. Raises AnswerCut and what the source raises."""
        return "".join([part async for part in self.text()])

    async def gather(self) -> None:
        """Wait for the whole answer before any of it is shown, so that a failure can still be mended unseen."""
        self._waiting = [await self.collect()]

    async def text(self) -> AsyncIterator[str]:
        """The text as it comes, in pieces that are safe to show. Raises AnswerCut and what the source raises."""
        for part in self._waiting:
            yield part
        self._waiting = []
        if self.ending is not None:
            return
        try:
            while self._wants_more() and (piece := await anext(self._ids, None)) is not None:
                if part := self._take(piece):
                    yield part
            if rest := self._stream.finish():
                yield rest
        finally:
            await self.close()
        receipt, cost = await self._source.paper()
        stopped = self._stream.stopped_at is not None or self._last in self._eog
        self.ending = Ending("stop" if stopped else "length", self._tokens, receipt, cost)

    async def close(self) -> None:
        """Stop the work, here or at the seller."""
        await self._ids.aclose()

    def _wants_more(self) -> bool:
        return self._stream.stopped_at is None or self._source.stops_itself

    def _take(self, piece: Piece) -> str:
        before = self._stream.tokens
        text = self._stream.feed(piece.ids)
        taken = self._stream.tokens - before
        self._tokens += taken
        self._last = piece.ids[taken - 1] if taken else self._last
        return text
