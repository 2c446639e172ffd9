"""An answer in the making that can give its engine's slot back, and go on later where it stands."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Final

from attrs import evolve

from node.engine.port import Engine, EngineBusy, Job, Piece

# After a rest there may be no slot at once; then it is looked for again after so many seconds.
_AGAIN_S: Final = 0.25
_PATIENCE_S: Final = 30.0


class NoSlotLeft(EngineBusy):
    """An answer that gave its slot back finds none to go on with."""

    def __init__(self) -> None:
        super().__init__(0, _PATIENCE_S)
        self.args = ("no slot has come free for an answer that gave its own back: go on elsewhere",)


class Work:
    """One job, done in one go or in several.

    Seed and positions are the same as without a rest, so the tokens are those that would have come anyway.
    """

    def __init__(
        self, engine: Engine, job: Job, end_ids: frozenset[int], miss: Callable[[], None] = lambda: None
    ) -> None:
        """`miss` is told, again and again, while no slot is free after a rest."""
        self._engine, self._job, self._end_ids, self._miss = engine, job, end_ids, miss
        self.patience_s = _PATIENCE_S  # how long to look for a slot after a rest
        self._given: tuple[int, ...] = ()
        self._running: AsyncGenerator[Piece, None] | None = None

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces as they come; after a rest it goes on by itself. Raises EngineError, after a rest NoSlotLeft."""
        async with contextlib.aclosing(self):
            while not self._ended:
                piece = await self._next()
                if piece is None:
                    return
                self._given += piece.ids
                yield piece

    async def _next(self) -> Piece | None:
        if not self._given or self._running is not None:
            return await self._asked()
        loop = asyncio.get_running_loop()
        until = loop.time() + self.patience_s
        while True:
            # Not in the engine's line, where the wait has no end: once the work has begun it is not given up.
            if self._engine.free_slots():
                with contextlib.suppress(EngineBusy):
                    return await self._asked()
                self._running = None
            if loop.time() >= until:
                raise NoSlotLeft
            self._miss()
            await asyncio.sleep(_AGAIN_S)

    async def _asked(self) -> Piece | None:
        self._running = self._running or self._engine.generate(self._rest_of_job())
        return await anext(self._running, None)

    @property
    def _ended(self) -> bool:
        return len(self._given) == self._job.max_tokens or bool(self._end_ids.intersection(self._given[-1:]))

    def _rest_of_job(self) -> Job:
        job, given = self._job, self._given
        left = job.max_tokens - len(given)
        return evolve(job, prompt=job.prompt + given, max_tokens=left, earlier=job.earlier + len(given))

    async def aclose(self) -> None:
        """Give the slot back until the next piece is asked for; not while one is awaited."""
        running, self._running = self._running, None
        if running is not None:
            await running.aclose()
