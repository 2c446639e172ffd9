"""Commands and the node that runs in a home."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from node.home import Home, Running
from node.owner_client import OwnerClient, owner_client

T = TypeVar("T")


def call(home: Home, work: Callable[[OwnerClient], Awaitable[T]]) -> T:
    """Do some work against the node that runs in this home. Raises HomeError, CallFailed."""
    return asyncio.run(_with_client(home.running(), work))


async def _with_client(running: Running, work: Callable[[OwnerClient], Awaitable[T]]) -> T:
    async with owner_client(running) as client:
        return await work(client)
