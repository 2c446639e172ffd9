"""`/node/v1/disputes`: orders of which more is asked than granted, as owners end them; `/forgiveness`: debts let go."""

from typing import Any, Final

from aiohttp import web

from ledger.money import Amount, MoneyError, parse_amount
from node.api.errors import ApiError
from node.api.settlements import peer_of
from node.exchange.disputes import Disputes, LetGoTwice, NotLetGo, Shown

_STATUS: Final = 409
_SHORTEST_PREFIX: Final = 6


class DisputesDoor:
    """Shows disputes, resolves them, and forgives debts."""

    def __init__(self, disputes: Disputes, me: str) -> None:
        self._disputes = disputes
        self._me = me

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        return [
            web.get("/node/v1/disputes", self.list),
            web.post("/node/v1/disputes/{order}/resolve", self.resolve),
            web.post("/node/v1/disputes/{order}/resolve/{amount}", self.resolve),
            web.post("/node/v1/forgiveness/{peer}/{amount}", self.forgive),
        ]

    async def list(self, _request: web.Request) -> web.Response:
        """All that is in dispute, once this node's sellers were asked what they let go."""
        await self._disputes.sweep()
        return web.json_response({"disputes": [self._row(shown) for shown in await self._disputes.shown()]})

    def _row(self, shown: Shown) -> dict[str, Any]:
        dispute, unit = shown.dispute, shown.unit
        asks = dispute.key.payee == self._me
        return {
            "order": dispute.order.hex(),
            "peer": dispute.key.payer if asks else dispute.key.payee,
            "direction": "they pay" if asks else "we pay",
            "asked": str(Amount(dispute.asked, unit)),
            "granted": str(Amount(dispute.granted, unit)),
            "disputed": str(Amount(dispute.asked - dispute.granted, unit)),
            "reason": shown.reason,
        }

    async def resolve(self, request: web.Request) -> web.Response:
        """End a dispute at an amount; without one, at what the other side says. `anyway=1`: also a second time."""
        prefix = request.match_info["order"]
        if len(prefix) < _SHORTEST_PREFIX:
            raise ApiError(400, f"give at least {_SHORTEST_PREFIX} digits of the order", param="order")
        wanted = _amount(request) if "amount" in request.match_info else None
        if wanted is None:
            await self._disputes.sweep()  # what the other side says by now
        try:
            dispute = self._disputes.find(prefix)
            if wanted is not None and wanted.unit != dispute.key.unit:
                raise NotLetGo(f"the order is counted in {dispute.key.unit}, and the amount in {wanted.unit}")
            total = wanted.value if wanted is not None else None
            twice = request.query.get("anyway") == "1"
            cost = await self._disputes.resolve(dispute, total, twice=twice)
        except LetGoTwice as error:
            raise ApiError(_STATUS, f"{error}: say --anyway if you mean it", code="let_go_before") from None
        except NotLetGo as error:
            raise ApiError(_STATUS, str(error), code="not_resolved") from None
        return web.json_response({"order": dispute.order.hex(), "cost": str(cost)})

    async def forgive(self, request: web.Request) -> web.Response:
        """Let go of what a peer owes without a voucher."""
        peer, amount = peer_of(request), _amount(request)
        try:
            let = await self._disputes.forgive(peer, amount)
        except NotLetGo as error:
            raise ApiError(_STATUS, str(error), code="not_forgiven") from None
        return web.json_response(
            {"peer": peer, "amount": str(amount), "forgiven": str(let.forgiven), "left": str(let.left)}
        )


def _amount(request: web.Request) -> Amount:
    try:
        return parse_amount(request.match_info["amount"])
    except MoneyError as error:
        raise ApiError(400, str(error), param="amount") from None
