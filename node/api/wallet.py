"""`/node/v1/wallet`: the owner's money on a chain, in channels and in bonds."""

from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

from ledger.effects import Tracked
from ledger.identity import NotADid, parse_did
from ledger.money import Amount, MoneyError, parse_amount
from ledger.rails.stablecoin.bond_terms import BondRefused, Stake
from ledger.rails.stablecoin.bonds import Done
from ledger.rails.stablecoin.digests import NOBODY
from ledger.rails.stablecoin.errors import ChainError
from ledger.rails.stablecoin.networks import Network, checksummed, typed_address
from ledger.records import MAX_ARBITERS
from node.api.channel_rows import channel_row
from node.api.effects import effect_row
from node.api.errors import ApiError
from node.api.slash_rows import dollars, slash_row
from node.exchange.bonding import Conditions, OwnBond
from node.exchange.channels import UNIT
from node.exchange.effects import EffectRefused
from node.exchange.finding import Finding, Found
from node.exchange.opening import OpeningError
from node.exchange.wallet import Wallet
from node.exchange.wallet_refusals import WalletRefused

_STATUS: Final = 409
_DAY_S: Final = 86_400
_WEI: Final = 10**18
# A search is asked for what it has found, for so long at a time.
_FIND_S: Final = 10.0
# A seller that wants its stake back has a week to be found out, unless it says otherwise.
_NOTICE_DAYS: Final = 7


def answering(handle: Any) -> Any:
    """A handler whose refusals are answers that say what to do."""

    async def handler(request: web.Request) -> web.Response:
        try:
            return web.json_response(await handle(request))
        except MoneyError as error:
            raise ApiError(400, str(error), param="amount") from None
        except NotADid as error:
            raise ApiError(400, f"{error}: `idlemesh peers` lists the named ones", param="peer") from None
        except (WalletRefused, EffectRefused, OpeningError, BondRefused) as error:
            raise ApiError(_STATUS, str(error), code="not_moved") from None
        except ChainError as error:
            raise ApiError(503, str(error), code="chain") from None

    return handler


class WalletDoor:
    """Shows what the wallet has, and moves it."""

    def __init__(self, wallet: Wallet, network: Network, me: str, finding: Finding) -> None:
        self._wallet = wallet
        self._finding = finding
        self._network = network
        self._me = me

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        at = "/node/v1/wallet"
        return [
            web.get(at, answering(self.holdings)),
            web.get(f"{at}/channels", answering(self.channels)),
            web.post(f"{at}/find", answering(self.find)),
            web.post(f"{at}/deposit/{{peer}}/{{amount}}", answering(self.deposit)),
            web.post(f"{at}/claim", answering(self.claim)),
            web.post(f"{at}/claim/{{peer}}", answering(self.claim)),
            web.post(f"{at}/withdraw/{{peer}}", answering(self.withdraw)),
            web.get(f"{at}/bonds", answering(self.bonds)),
            web.post(f"{at}/find-bonds", answering(self.find_bonds)),
            web.post(f"{at}/bonds/{{amount}}", answering(self.lock)),
            web.post(f"{at}/unbond", answering(self.unbond)),
        ]

    async def holdings(self, _request: web.Request) -> dict[str, Any]:
        """What is in it, outside of channels and bonds; without the chain, where it is."""
        where = {
            "address": checksummed(self._wallet.address),
            "network": self._network.caip2,
            "network_name": self._network.name,
            "token": checksummed(self._network.token.address),
            "coin_name": self._network.coin,
        }
        try:
            found = await self._wallet.holdings()
        except ChainError as error:
            return {**where, "dollars": None, "coin": None, "trouble": str(error)}
        coin = f"{found.coin // _WEI}.{found.coin % _WEI:018}"
        return {**where, "dollars": str(Amount(found.dollars, UNIT)), "coin": coin, "trouble": None}

    async def channels(self, _request: web.Request) -> dict[str, Any]:
        """Each channel, and what is under way on it."""
        return {"channels": [channel_row(row, self._me) for row in self._wallet.channels()]}

    async def find(self, _request: web.Request) -> dict[str, Any]:
        """Look for channels on the chain that the ledger has lost; asked again while it goes on."""
        found = await self._finding.find(_FIND_S)
        return {"searching": found is None, "channels": [self._found(one) for one in found or ()]}

    def _found(self, one: Found) -> dict[str, Any]:
        again, view = one.again, one.again.view
        we_pay = again.payer == self._me
        return {
            "peer": again.payee if we_pay else again.payer,
            "direction": "we pay" if we_pay else "they pay",
            "channel": f"0x{one.id.hex()}",
            "state": one.state,
            "deposited": dollars(view.deposited if view is not None else 0),
            "unclaimed": dollars(view.balance - view.claimed if view is not None else 0),
            "withdrawing": dollars(view.withdrawing if view is not None else 0),
        }

    async def deposit(self, request: web.Request) -> dict[str, Any]:
        """Put money into the channel to a peer."""
        peer, amount = parse_did(request.match_info["peer"]), parse_amount(request.match_info["amount"])
        return self._moved([await self._wallet.deposit(peer, amount)])

    async def claim(self, request: web.Request) -> dict[str, Any]:
        """Claim what a peer, or everybody, has promised. `close=1`: and give the rest of its channel back."""
        peer = request.match_info.get("peer")
        if request.query.get("close") == "1":
            if peer is None:
                raise ApiError(400, "name the peer whose channel is to be closed", param="peer")
            return self._moved([await self._wallet.close(peer)])
        return self._moved(await self._wallet.claim(peer))

    async def withdraw(self, request: web.Request) -> dict[str, Any]:
        """Take back what covers nothing from a channel. `give_back=1`: from a peer's to this node.

        `what_is_left=1`: what a seller that was paid in advance says is left.
        """
        peer, amount = request.match_info["peer"], _amount(request)
        if request.query.get("what_is_left") == "1":
            if amount is not None or request.query.get("give_back") == "1":
                raise ApiError(400, "what is left is no amount of your own, and yours: name the seller alone")
            tracked, more = await self._wallet.withdraw_what_is_left(peer)
            return self._moved([tracked]) | {"granted": str(more)}
        back = self._wallet.give_back if request.query.get("give_back") == "1" else self._wallet.withdraw
        return self._moved([await back(peer, amount)])

    def _moved(self, found: Sequence[Tracked | None]) -> dict[str, Any]:
        return {"effects": [effect_row(tracked, self._me) for tracked in found if tracked is not None]}

    # Bonds

    async def bonds(self, _request: web.Request) -> dict[str, Any]:
        """This node's bonds, and what is in them."""
        running: dict[bytes, list[dict[str, Any]]] = {}
        for bond, slash in await self._wallet.slashes():
            running.setdefault(bond.id, []).append(slash_row(bond.id, slash))
        found = await self._wallet.bonds()
        return {"bonds": [{**_bond(bond, stake), "slashes": running.get(bond.id, [])} for bond, stake in found]}

    async def find_bonds(self, _request: web.Request) -> dict[str, Any]:
        """Look through the chain for bonds that the ledger has lost; asked again while it goes on."""
        found = await self._wallet.find_bonds(_FIND_S)
        return {"searching": found is None, "bonds": [_bond(bond) for bond in found or ()]}

    async def lock(self, request: web.Request) -> dict[str, Any]:
        """Lock so much in all: with `arbiter`s in the bond that has such terms, else in `bond`."""
        total, said = parse_amount(request.match_info["amount"]), _conditions(request)
        return _acted(*await self._wallet.lock(total, said, request.query.get("bond", "")))

    async def unbond(self, request: web.Request) -> dict[str, Any]:
        """Ask for an `amount` of a bond back, or for all; `keep=1` lets it stay, `take=1` takes it after its notice."""
        bond = request.query.get("bond", "")
        if request.query.get("keep") == "1":
            return _acted(*await self._wallet.keep(bond))
        if request.query.get("take") == "1":
            return _acted(*await self._wallet.take(bond))
        return _acted(*await self._wallet.ask_back(bond, _amount(request)))


def _amount(request: web.Request) -> Amount | None:
    text = request.query.get("amount")
    return None if text is None else parse_amount(text)


def _conditions(request: web.Request) -> Conditions | None:
    """The terms that a request names; None: it names none."""
    named = request.query.getall("arbiter", [])
    if not named:
        if {"quorum", "notice", "challenge", "sink"} & set(request.query):
            raise ApiError(400, "terms begin with arbiters: name each with --arbiter", param="arbiter")
        return None
    if len(named) > MAX_ARBITERS:
        raise ApiError(400, f"a bond has at most {MAX_ARBITERS} arbiters", param="arbiter")
    arbiters = tuple(_address(text, "arbiter") for text in named)
    notice = _number(request, "notice", _NOTICE_DAYS)
    return Conditions(
        arbiters,
        _number(request, "quorum", len(set(arbiters)) // 2 + 1),
        notice * _DAY_S,
        _number(request, "challenge", notice) * _DAY_S,
        _address(request.query["sink"], "sink") if "sink" in request.query else NOBODY,
    )


def _address(text: str, param: str) -> bytes:
    try:
        return typed_address(text)
    except ValueError as error:
        why = str(error) if "checksum" in str(error) else f"{text[:80]!r} is no address: it is 0x and 40 digits"
        raise ApiError(400, why, param=param) from None


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 365:
        raise ApiError(400, f"{name} is a number from 1 to 365", param=name)
    return int(text)


def _bond(bond: OwnBond, stake: Stake | None = None) -> dict[str, Any]:
    terms = bond.terms
    said: dict[str, Any] = {
        "bond": f"0x{bond.id.hex()}",
        "arbiters": [checksummed(one) for one in terms.arbiters],
        "quorum": terms.quorum,
        "notice_days": terms.notice / _DAY_S,
        "challenge_days": terms.challenge / _DAY_S,
        "sink": None if terms.sink == NOBODY else checksummed(terms.sink),
    }
    if stake is not None:
        money = {
            "locked": stake.locked,
            "held_for_slashes": stake.reserved,
            "asked_back": stake.unlocking,
            "counts": stake.free,
        }
        said |= {name: dollars(value) for name, value in money.items()}
        said["back_at"] = stake.unlocks_at or None
    return said


def _acted(bond: OwnBond, done: Done) -> dict[str, Any]:
    outcome = done.outcome
    return {
        **_bond(bond),
        "act": done.act,
        "state": outcome.state,
        "transaction": None if outcome.hash is None else f"0x{outcome.hash.hex()}",
    }
