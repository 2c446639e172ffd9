"""`/node/v1/wallet/slashes`: what arbiters want to take of bonds, and what the owner does about it."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from ledger.rails.stablecoin.bond_terms import BondRefused, BondTerms
from ledger.rails.stablecoin.bonds import Done
from ledger.rails.stablecoin.networks import checksummed, typed_address
from ledger.rails.stablecoin.slashes import Slashes
from ledger.rails.stablecoin.statements import Statement
from node.api.errors import ApiError
from node.api.slash_rows import dollars, slash_row
from node.api.wallet import answering
from node.exchange.bonding import OwnBonds

_MAX_STATEMENT: Final = 2**16
_DIGEST: Final = re.compile(r"(0x)?([0-9a-fA-F]{64})")


class SlashesDoor:
    """Shows slashes, and acts on them."""

    def __init__(
        self, slashes: Slashes, own: OwnBonds, address: bytes, followed: Callable[[Done], Awaitable[Done]]
    ) -> None:
        """`address` is the wallet's; `followed` waits for an act, for a while."""
        self._slashes, self._own, self._address, self._followed = slashes, own, address, followed

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        at = "/node/v1/wallet/slashes"
        return [
            web.get(at, answering(self.running)),
            web.get(f"{at}/bonds/{{bond}}", answering(self.terms)),
            web.get(f"{at}/bonds/{{bond}}/{{evidence}}", answering(self.one)),
            web.post(f"{at}/bring", answering(self.bring)),
            web.post(f"{at}/answer/{{bond}}/{{evidence}}/{{answer}}", answering(self.answer)),
            web.post(f"{at}/end/{{bond}}/{{evidence}}", answering(self.end)),
            web.post(f"{at}/pay-out", answering(self.pay_out)),
        ]

    async def running(self, request: web.Request) -> dict[str, Any]:
        """Those that are not decided, of this node's bonds, or of a `bond`."""
        bond = request.query.get("bond", "")
        if bond:
            terms = await self._terms(bond)
            some = [(self._slashes.place.bond_id(terms), terms, await self._slashes.running(terms))]
        else:
            some = [(one.id, one.terms, await self._own.running(one)) for one in self._own.all]
        rows = [slash_row(id_, slash) for id_, _, slashes in some for slash in slashes]
        return {"slashes": rows, "due": dollars(await self._slashes.due(self._address))}

    async def terms(self, request: web.Request) -> dict[str, Any]:
        """What a statement about a bond begins with: where it is, and its terms; and its stake (units of the token)."""
        bond = request.match_info["bond"]
        if not self._own.all and _DIGEST.fullmatch(bond) is None:
            raise BondRefused(f"{bond[:80]!r} is no bond's whole id (64 digits): `idlemesh offers --json` has it")
        terms = await self._terms(bond)
        said = Statement(self._slashes.place, terms, "dismiss", b"\1" * 32).to_plain()
        stake = await self._slashes.stake(self._slashes.place.bond_id(terms))
        return {name: said[name] for name in ("network", "contract", "bond", "terms")} | {"stake": str(stake.locked)}

    async def one(self, request: web.Request) -> dict[str, Any]:
        """What became of a piece of evidence."""
        terms = await self._terms(request.match_info["bond"])
        bond = self._slashes.place.bond_id(terms)
        return slash_row(bond, await self._slashes.of(bond, terms.challenge, _digest(request, "evidence")))

    async def bring(self, request: web.Request) -> dict[str, Any]:
        """Bring a signed statement to the chain."""
        raw = await request.content.read(_MAX_STATEMENT + 1)
        try:
            said = json.loads(raw[:_MAX_STATEMENT])
        except (ValueError, RecursionError):
            raise BondRefused("this is no statement about a bond: it is not JSON") from None
        return await self._acted(await self._slashes.bring(Statement.from_plain(said)))

    async def answer(self, request: web.Request) -> dict[str, Any]:
        """Answer a slash, with the digest of what the arbiters are told."""
        terms = await self._terms(request.match_info["bond"])
        evidence, answer = _digest(request, "evidence"), _digest(request, "answer")
        return await self._acted(await self._slashes.answer(terms, evidence, answer))

    async def end(self, request: web.Request) -> dict[str, Any]:
        """Carry a slash out, or let it lapse, whichever its time has come for."""
        terms = await self._terms(request.match_info["bond"])
        return await self._acted(await self._slashes.end(terms, _digest(request, "evidence")))

    async def pay_out(self, request: web.Request) -> dict[str, Any]:
        """Have the wallet, or an `account`, get what slashes have left for it."""
        account = request.query.get("account")
        try:
            to = self._address if account is None else typed_address(account)
        except ValueError:
            raise ApiError(
                400, f"{str(account)[:80]!r} is no address: it is 0x and 40 digits", param="account"
            ) from None
        due = await self._slashes.due(to)
        said = await self._acted(await self._slashes.pay_out(to))
        return said | {"account": checksummed(to), "amount": dollars(due)}

    async def _terms(self, bond: str) -> BondTerms:
        """Of a bond of this node's, by the beginning of its id (- for the only one), or of any, by the whole."""
        whole = _DIGEST.fullmatch(bond)
        own = {one.id: one.terms for one in self._own.all}
        if whole is None:
            return self._own.find("" if bond == "-" else bond).terms
        id_ = bytes.fromhex(whole[2])
        return own[id_] if id_ in own else await self._slashes.terms(id_)

    async def _acted(self, done: Done) -> dict[str, Any]:
        done = await self._followed(done)
        await self._own.look()
        outcome = done.outcome
        transaction = None if outcome.hash is None else f"0x{outcome.hash.hex()}"
        return {"act": done.act, "state": outcome.state, "transaction": transaction}


def _digest(request: web.Request, name: str) -> bytes:
    found = _DIGEST.fullmatch(request.match_info[name])
    if found is None:
        raise ApiError(400, f"{name} is a digest: 0x and 64 hexadecimal digits", param=name)
    return bytes.fromhex(found[2])
