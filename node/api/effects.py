"""`/node/v1/effects`: what rails were asked to move, and what the owner has looked at."""

from typing import Final

from aiohttp import web

from node.api.errors import ApiError
from node.api.owner import effect_row
from node.exchange.book import Book
from node.exchange.effects import EffectDriver, EffectRefused

_STATUS: Final = 409
_SHORTEST_PREFIX: Final = 6


class EffectsDoor:
    """Shows what is under way on rails, and puts aside what the owner has seen."""

    def __init__(self, book: Book, driver: EffectDriver) -> None:
        self._book = book
        self._driver = driver

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        return [
            web.get("/node/v1/effects", self.effects),
            web.post("/node/v1/effects/{id}/dismiss", self.dismiss),
        ]

    async def effects(self, _request: web.Request) -> web.Response:
        """What is under way, or bears watching."""
        tracked = self._book.journal.books.effects.values()
        return web.json_response({"effects": [effect_row(one, self._book.me) for one in tracked]})

    async def dismiss(self, request: web.Request) -> web.Response:
        """The owner has looked at what failed or was contradicted; the account goes on."""
        key = self._find(request.match_info["id"].lower())
        try:
            await self._driver.dismiss(key)
        except EffectRefused as error:
            raise ApiError(_STATUS, str(error), code="not_dismissed") from None
        return web.json_response({"id": key.hex(), "dismissed": True})

    def _find(self, prefix: str) -> bytes:
        if len(prefix) < _SHORTEST_PREFIX:
            raise ApiError(400, f"give at least {_SHORTEST_PREFIX} digits of its id", param="id")
        found = [one.effect.key for one in self._book.journal.books.effects.values()]
        found = [key for key in found if key.hex().startswith(prefix)]
        if len(found) != 1:
            how = "several payments" if found else "no payment under way"
            raise ApiError(404, f"{how} here begins with {prefix[:64]}: `idlemesh accounts` lists them", param="id")
        return found[0]
