"""Slashes of bonds: what arbiters have proposed, and what a wallet does about it.

Theory of operation. Each act is a transaction under a key that follows from what it is about, so asked for again it is
the same one. Whether it can be done is read from the contract first; anyone may bring what arbiters have signed, end a
slash whose time is over, and have money paid out to whom it is due, and only the seller may answer. The contract lists
no slashes: they are found by their events, from the last block back, until they come to what the bond has reserved.
"""

import asyncio
import time
from typing import Any, Final

from attrs import astuple, frozen

from ledger.rails.stablecoin.bond_terms import BondPlace, BondRefused, BondTerms, Stake
from ledger.rails.stablecoin.bonds import Act, Done, TooEarly, key_of
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.contracts import Call, encoded
from ledger.rails.stablecoin.networks import address, checksummed
from ledger.rails.stablecoin.statements import Statement

_NONE, _PROPOSED = 0, 1
_STATES: Final = ("none", "proposed", "executed", "dismissed", "lapsed")
_BROUGHT: Final[dict[str, tuple[Act, str]]] = {
    "slash": ("propose a slash", "proposeSlash"),
    "uphold": ("uphold a slash", "upholdSlash"),
    "dismiss": ("dismiss a slash", "dismissSlash"),
}


@frozen
class Slash:
    """What became of a piece of evidence. The seller may answer until `answer_by`; `answer` is empty while it has not.

    Answered, arbiters may uphold it from then on until `ends_by`, and after that it lapses.
    """

    evidence: bytes
    state: str
    answer_by: int
    ends_by: int
    buyer: bytes
    amount: int
    damage: int
    answer: bytes

    @property
    def running(self) -> bool:
        """Whether it is not decided."""
        return self.state == _STATES[_PROPOSED]


class Slashes:
    """Those in one contract of bonds, as the wallet of a chain sees them. Everything raises ChainError, BondRefused."""

    def __init__(self, chain: Chain, place: BondPlace) -> None:
        self._chain = chain
        self.place: Final = place
        self._acting = asyncio.Lock()
        self._known: dict[bytes, set[bytes]] = {}  # evidence that is known of, by bond

    async def of(self, bond: bytes, challenge: int, evidence: bytes) -> Slash:
        """What the contract says of a piece of evidence; `challenge` is the bond's period."""
        said = await self._chain.read(self.place.contract, "slashes", bond, evidence)
        status, ends, buyer, amount, damage, answer = said
        state = _STATES[status] if status < len(_STATES) else "unknown"
        answered = answer if any(answer) else b""
        return Slash(
            evidence, state, ends, ends + challenge if answered else ends, address(buyer), amount, damage, answered
        )

    async def running(self, terms: BondTerms) -> list[Slash]:
        """Those that are not decided, by their deadlines; slow, where one is not known of (blocks are read)."""
        bond = self.place.bond_id(terms)
        reserved = (await self.stake(bond)).reserved
        known = self._known.setdefault(bond, set())
        found: list[Slash] = []

        async def enough(more: set[bytes]) -> bool:
            nonlocal found
            known.update(more)
            looked = [await self.of(bond, terms.challenge, evidence) for evidence in sorted(known)]
            found = [slash for slash in looked if slash.running]
            return bool(sum(slash.amount for slash in found) >= reserved)

        if not await enough(set()):
            await self._chain.search_slashes(self.place, bond, 2 * terms.challenge, enough)
        return sorted(found, key=lambda slash: (slash.answer_by, slash.evidence))

    async def terms(self, bond: bytes) -> BondTerms:
        """A bond's terms, from the event that locked it (slow: blocks are read)."""
        found = await self._chain.find_bond(self.place, bond)
        if found is None:
            raise BondRefused(f"no bond 0x{bond.hex()} was ever locked in the contract that is known here")
        return found

    async def stake(self, bond: bytes) -> Stake:
        """A bond's money at the head."""
        return Stake(*await self._chain.read(self.place.contract, "bonds", bond))

    # Acts

    async def bring(self, statement: Statement) -> Done:
        """Bring what arbiters have signed: to propose a slash, to uphold it, or to dismiss it."""
        statement.check()
        if statement.place != self.place:
            where = f"{checksummed(statement.place.contract)} on {statement.place.network}"
            raise BondRefused(f"the statement is about the contract {where}, and another one is known here")
        terms, quorum = statement.terms, statement.terms.quorum
        if len(statement.signatures) < quorum:
            have = f"{len(statement.signatures)} of the {quorum} signatures that it needs"
            raise BondRefused(f"{have} are there: another arbiter has to sign it")
        slash = await self.of(statement.bond, terms.challenge, statement.evidence)
        if statement.says == "slash":
            if slash.state != _STATES[_NONE]:
                raise BondRefused(f"this evidence was brought before: its slash is {slash.state}")
            said: list[Any] = [(statement.evidence, *_values(statement))]
        else:
            _check_running(slash)
            said = [statement.evidence]
            if statement.says == "uphold" and slash.answer != statement.answer:
                raise BondRefused("the seller has answered something else meanwhile: arbiters have to judge that")
            if statement.says == "uphold":
                await self._check_time(slash.answer_by, "the seller may still answer something else")
        act, function = _BROUGHT[statement.says]
        return await self._act(act, statement.bond + statement.evidence, function, terms, *said, statement.signed)

    async def answer(self, terms: BondTerms, evidence: bytes, answer: bytes) -> Done:
        """Answer a slash as the seller: with the digest of what the arbiters are told."""
        if terms.seller != self._chain.address:
            raise BondRefused(f"only its seller {checksummed(terms.seller)} may answer, and this wallet is another's")
        if not any(answer):
            raise BondRefused("an answer is a digest that is not zero")
        bond = self.place.bond_id(terms)
        slash = await self.of(bond, terms.challenge, evidence)
        _check_running(slash)
        _, now = await self._chain.block()
        if now >= slash.answer_by:
            raise BondRefused(f"the time for an answer was over on {_moment(slash.answer_by)}")
        return await self._act("answer a slash", bond + evidence + answer, "answerSlash", terms, evidence, answer)

    async def end(self, terms: BondTerms, evidence: bytes) -> Done:
        """Once its time is over, carry out a slash that nobody answered, or drop one that was and is not upheld."""
        bond = self.place.bond_id(terms)
        slash = await self.of(bond, terms.challenge, evidence)
        _check_running(slash)
        if slash.answer:
            await self._check_time(slash.ends_by, "the seller has answered, and arbiters may still uphold it")
            return await self._act("let a slash lapse", bond + evidence, "lapseSlash", terms, evidence)
        await self._check_time(slash.answer_by, "the seller may still answer")
        return await self._act("carry out a slash", bond + evidence, "executeSlash", terms, evidence)

    async def due(self, account: bytes) -> int:
        """What slashes have left for an account, and it has not got yet."""
        token = self._chain.network.token.address
        (found,) = await self._chain.read(self.place.contract, "credits", account, token)
        return int(found)

    async def pay_out(self, account: bytes) -> Done:
        """Have an account get what slashes have left for it; anyone may ask for that."""
        token, due = self._chain.network.token.address, await self.due(account)
        if not due:
            raise BondRefused(f"slashes have left nothing for {checksummed(account)}")
        async with self._acting:
            key = await key_of(self._chain, "pay out", account, (due,))
            call = Call(self.place.contract, encoded("payOut", account, token))
            return Done("pay out", await self._chain.submit(key, call), key)

    async def _act(self, act: Act, about: bytes, function: str, terms: BondTerms, *values: Any) -> Done:
        async with self._acting:
            key = await key_of(self._chain, act, about, ())
            call = Call(self.place.contract, encoded(function, astuple(terms, recurse=False), *values))
            return Done(act, await self._chain.submit(key, call), key)

    async def _check_time(self, begins: int, why: str) -> None:
        _, now = await self._chain.block()
        if now < begins:
            raise TooEarly(f"{why} until {_moment(begins)}", begins)


def _values(statement: Statement) -> tuple[Any, ...]:
    assert statement.judgement is not None  # it was checked
    return astuple(statement.judgement)


def _check_running(slash: Slash) -> None:
    if not slash.running:
        known = "no slash was proposed for this evidence" if slash.state == "none" else f"the slash is {slash.state}"
        raise BondRefused(f"{known}: `idlemesh wallet slash list` shows what is running")


def _moment(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
