"""`/node/v1/settlements`: payments by other means, as owners ask for and confirm them; `/nettings`: mutual aid."""

from typing import Any, Final

from aiohttp import web

from ledger.identity import Did, NotADid, parse_did
from ledger.money import Amount, MoneyError, parse_amount
from node.api.errors import ApiError
from node.exchange.netting import Netter, NotNetted
from node.exchange.settling import AboveDebt, Asked, Settling, SettlingError

_STATUS: Final = 409
ABOVE_DEBT: Final = "above_debt"


class SettlementsDoor:
    """Asks for settlements, shows what peers asked for, confirms it, and sets off mutual debts."""

    def __init__(self, settling: Settling, netter: Netter) -> None:
        self._settling = settling
        self._netter = netter

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        return [
            web.get("/node/v1/settlements", self.waiting),
            web.post("/node/v1/settlements/{peer}/{amount}/ask", self.ask),
            web.post("/node/v1/settlements/{peer}/{amount}/confirm", self.confirm),
            web.post("/node/v1/nettings/{peer}", self.net),
        ]

    async def waiting(self, _request: web.Request) -> web.Response:
        """What peers say they have paid, and nobody has confirmed yet."""
        rows = [{"peer": asked.peer, "amount": str(asked.amount)} for asked in self._settling.waiting]
        return web.json_response({"waiting": rows})

    async def ask(self, request: web.Request) -> web.Response:
        """Ask a peer to count a payment. `in_advance=1`: also more than is owed."""
        peer, amount = _what(request)
        try:
            asked = await self._settling.ask(peer, amount, in_advance=request.query.get("in_advance") == "1")
        except AboveDebt as error:
            raise ApiError(_STATUS, str(error), code=ABOVE_DEBT) from None
        except SettlingError as error:
            raise ApiError(_STATUS, str(error), code="not_settled") from None
        return _answer(peer, amount, asked)

    async def confirm(self, request: web.Request) -> web.Response:
        """A peer's payment has arrived."""
        peer, amount = _what(request)
        try:
            await self._settling.confirm(peer, amount)
        except SettlingError as error:
            raise ApiError(_STATUS, str(error), code="not_settled") from None
        return _answer(peer, amount, Asked(confirmed=True))

    async def net(self, request: web.Request) -> web.Response:
        """Set off what a peer and this node owe each other."""
        peer = peer_of(request)
        try:
            amounts = await self._netter.ask(peer)
        except NotNetted as error:
            raise ApiError(_STATUS, str(error), code="not_netted") from None
        return web.json_response({"peer": peer, "netted": [str(amount) for amount in amounts]})


def _answer(peer: str, amount: Amount, asked: Asked) -> web.Response:
    replaced = None if asked.replaced is None else str(asked.replaced)
    body: dict[str, Any] = {"peer": peer, "amount": str(amount), "confirmed": asked.confirmed, "replaced": replaced}
    return web.json_response(body)


def peer_of(request: web.Request) -> Did:
    try:
        return parse_did(request.match_info["peer"])
    except NotADid as error:
        raise ApiError(400, f"{error}: `idlemesh accounts --json` shows who owes what", param="peer") from None


def _what(request: web.Request) -> tuple[Did, Amount]:
    peer = peer_of(request)
    try:
        return peer, parse_amount(request.match_info["amount"])
    except MoneyError as error:
        raise ApiError(400, str(error), param="amount") from None
