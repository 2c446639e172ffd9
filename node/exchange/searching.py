"""A search that may take minutes: it goes on by itself, and is asked for what it has found."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Search(Generic[T]):
    """One at a time, for all who ask."""

    def __init__(self, find: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._find = find
        self._task: asyncio.Task[T] | None = None

    async def ask(self, wait_s: float) -> T | None:
        """What it finds, begun if none goes on; None: it goes on. Raises what the search does."""
        task = self._task = self._task or asyncio.create_task(self._find())
        await asyncio.wait([task], timeout=wait_s)
        if not task.done():
            return None
        if self._task is task:
            self._task = None
        return task.result()

    async def close(self) -> None:
        """End one that goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
