"""An answer in the making that can give its engine's slot back, and go on later where it stands."""

import contextlib
from collections.abc import AsyncGenerator

from attrs import evolve

from node.engine.port import Engine, Job, Piece


class Work:
    """One job, done in one go or in several.

    Seed and positions are the same as without a rest, so the tokens are those that would have come anyway.
    """

    def __init__(self, engine: Engine, job: Job, end_ids: frozenset[int]) -> None:
        self._engine, self._job, self._end_ids = engine, job, end_ids
        self._given: tuple[int, ...] = ()
        self._running: AsyncGenerator[Piece, None] | None = None

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces as they come; after a rest it goes on by itself. Raises EngineError."""
        async with contextlib.aclosing(self):
            while not self._ended:
                self._running = self._running or self._engine.generate(self._rest_of_job())
                piece = await anext(self._running, None)
                if piece is None:
                    return
                self._given += piece.ids
                yield piece

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
