"""`/node/v1/effects`: what rails were asked to move, and what the owner has looked at."""

from typing import Any, Final

from aiohttp import web

from ledger.effects import Tracked
from ledger.money import Amount
from node.api.errors import ApiError
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
            web.post("/node/v1/effects/{id}/retry", self.retry),
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

    async def retry(self, request: web.Request) -> web.Response:
        """The owner has looked, and wants it asked for once more."""
        key = self._find(request.match_info["id"].lower())
        try:
            await self._driver.retry(key)
        except EffectRefused as error:
            raise ApiError(_STATUS, str(error), code="not_retried") from None
        found = [one for one in self._book.journal.books.effects.values() if one.effect.key == key]
        return web.json_response({"id": key.hex(), "effects": [effect_row(one, self._book.me) for one in found]})

    def _find(self, prefix: str) -> bytes:
        if len(prefix) < _SHORTEST_PREFIX:
            raise ApiError(400, f"give at least {_SHORTEST_PREFIX} digits of its id", param="id")
        found = [one.effect.key for one in self._book.journal.books.effects.values()]
        found = [key for key in found if key.hex().startswith(prefix)]
        if len(found) != 1:
            how = "several payments" if found else "no payment under way"
            raise ApiError(404, f"{how} here begins with {prefix[:64]}: `idlemesh accounts` lists them", param="id")
        return found[0]


def effect_row(tracked: Tracked, me: str) -> dict[str, Any]:
    """What a rail was asked to move, and what is known of it; times in seconds since 1970.

    `heard` is when its state came to be so, or the latest reason for it.
    """
    effect, key = tracked.effect, tracked.effect.account
    return {
        "id": effect.key.hex(),
        "peer": key.payee if key.payer == me else key.payer,
        "direction": "we pay" if key.payer == me else "they pay",
        "rail": key.rail,
        "kind": effect.kind,
        "amount": str(Amount(effect.amount, key.unit)),
        "moved": str(Amount(tracked.moved, key.unit)),
        "state": tracked.state,
        "why": tracked.why,
        "planned": tracked.planned,
        "heard": tracked.heard,
        "tries": tracked.tries,
    }
