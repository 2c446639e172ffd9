"""An answer that goes on elsewhere when whoever computes it fails in the middle, without a seam for who reads it."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from attrs import field, frozen

from node.engine.port import EngineClosed, EngineError, EngineFailed, Piece
from node.exchange.purchase import NotPlaced
from node.gateway.sources import AnswerCut, Origin, Paper
from node.wire.messages import Earlier

# An answer that breaks more often than this has another trouble than its sellers.
MAX_PARTS: Final = 8
# After so many candidates have failed, one more is not likely to do better, and the client has waited long enough.
MAX_ATTEMPTS: Final = 4


@frozen
class SoFar:
    """Where an answer stands: its ids, what shows the last part of them if that was bought, and the parts' papers."""

    ids: tuple[int, ...] = field(default=(), repr=False)
    earlier: Earlier | None = None
    papers: tuple[Paper, ...] = ()

    def cost(self, unit: str) -> int:
        """What the parts so far cost in one unit."""
        return sum(paper.cost.value for paper in self.papers if paper.cost is not None and paper.cost.unit == unit)


# Gives who goes on from there, None if nobody can; told what stopped the one before.
Following = Callable[[SoFar, Exception], Awaitable[Origin | None]]


class ContinuedSource:
    """A `Source` of one part or more. A part that is bought and brings nothing as the first raises NotPlaced."""

    def __init__(self, first: Origin, following: Following) -> None:
        self._part = first
        self._following = following
        self._so_far = SoFar()  # as of the end of the part before the one at work
        self._given: list[int] = []
        self._why: Exception | None = None  # what ended the last part that gave ids
        self._attempts = 0  # failed since then

    @property
    def stops_itself(self) -> bool:
        return self._part.stops_itself

    @property
    def route(self) -> str:
        earlier = [paper.route for paper in self._so_far.papers]
        return ", ".join([*earlier, self._part.route] if self._counts else earlier)

    async def papers(self) -> tuple[Paper, ...]:
        earlier = self._so_far.papers
        return (*earlier, *await self._part.papers()) if self._counts else earlier

    @property
    def ended(self) -> tuple[Paper, ...]:
        """The papers of the parts that broke off."""
        return self._so_far.papers

    @property
    def _counts(self) -> bool:
        """Whether the part at work is a part of the answer: one that gave no ids is none, if another did."""
        return not self._so_far.papers or len(self._given) > len(self._so_far.ids)

    async def ids(self) -> AsyncGenerator[Piece, None]:
        while True:
            try:
                async with contextlib.aclosing(self._part.ids()) as pieces:
                    async for piece in pieces:
                        self._given += piece.ids
                        yield piece
            except EngineClosed:
                raise
            except (AnswerCut, NotPlaced, EngineError) as error:
                trouble = error
            else:
                return
            self._part = await self._next(trouble)

    async def _next(self, trouble: Exception) -> Origin:
        """Who goes on. Raises what stopped the answer if nobody does."""
        if not self._given and not isinstance(trouble, EngineFailed):
            raise trouble  # nothing has been seen: there may be better than the same model's other sellers
        if len(self._given) > len(self._so_far.ids):
            await self._close_part()
            self._why, self._attempts = trouble, 0
        else:
            self._why, self._attempts = self._why or trouble, self._attempts + 1
        following = None
        if len(self._so_far.papers) < MAX_PARTS and self._attempts < MAX_ATTEMPTS:
            following = await self._following(self._so_far, trouble)
        if following is None:
            raise self._why
        return following

    async def _close_part(self) -> None:
        try:
            papers, earlier = await self._part.papers(), await self._part.earlier()
        except NotPlaced as error:
            raise AnswerCut(str(error)) from None  # it failed here, and nothing shows what came of it
        self._so_far = SoFar(tuple(self._given), earlier, (*self._so_far.papers, *papers))
