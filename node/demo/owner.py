"""The tour's hand at a node: it asks over the same HTTP API as any program of the owner."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp

from node.home import Running
from node.owner_client import OwnerClient

MAX_TOKENS: Final = 96
_POLL_S: Final = 0.1


class Owner:
    """One node's API, as the tour needs it. What the node refuses is raised as CallFailed."""

    def __init__(self, session: aiohttp.ClientSession, running: Running) -> None:
        self._client = OwnerClient(session, running)

    async def buy(self, prompt: str, show: Callable[[str], None]) -> dict[str, Any]:
        """Ask for one story at T = 1, show its text as it streams, and give what the last event says of it."""
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 1.0,
            "max_tokens": MAX_TOKENS,
        }
        facts: dict[str, Any] = {}
        async for event in self._client.chat(body, {}):
            facts = event.get("idlemesh", facts)
            for choice in event["choices"]:
                show(choice["delta"].get("content") or "")
        return facts

    async def offers_are_here(self, count: int) -> None:
        """Return once so many offers of others are open."""

        async def here() -> bool:
            offers = (await self._client.get("/node/v1/offers"))["offers"]
            return len([offer for offer in offers if not offer["own"]]) >= count

        await poll(here)

    async def all_is_settled(self, count: int) -> None:
        """Return once so many receipts are acknowledged."""

        async def settled() -> bool:
            return len([r for r in await self.receipts(count) if r["acknowledged"]]) >= count

        await poll(settled)

    async def receipts(self, most: int) -> list[dict[str, Any]]:
        """The newest receipts."""
        listed: list[dict[str, Any]] = (await self._client.get("/node/v1/receipts", limit=str(most)))["receipts"]
        return listed

    async def peers(self) -> list[dict[str, Any]]:
        """The named peers."""
        named: list[dict[str, Any]] = (await self._client.get("/node/v1/peers"))["peers"]
        return named

    async def export(self, receipt: str) -> dict[str, Any]:
        """One receipt with all that it takes to check it."""
        exported: dict[str, Any] = await self._client.get(f"/node/v1/receipts/{receipt}/export", ids="1")
        return exported

    async def accounts(self) -> dict[str, Any]:
        """Every balance."""
        balances: dict[str, Any] = await self._client.get("/node/v1/accounts")
        return balances


async def poll(condition: Callable[[], Awaitable[bool]]) -> None:
    """Another process cannot set an Event of ours, so it is asked again and again."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
