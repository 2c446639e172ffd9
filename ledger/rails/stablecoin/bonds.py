"""The contract of bonds on a chain: what is locked there, and the seller's acts: lock, ask back, keep, take.

Theory of operation. Each act is a transaction under a key that follows from what it does and from what the stake was
before it. So an act whose answer was lost can be asked for again: it is the same transaction, not a second one. Only
when that one has come to its end and the stake stands where it stood, a new one is meant. Another act has to wait for
the end of the one before it: what it would build on is not known yet.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final, Literal

from attrs import astuple, define, frozen

from ledger.rails.stablecoin.bond_terms import BondPlace, BondRefused, BondTerms, Stake, check_terms
from ledger.rails.stablecoin.chain import Chain, Outcome
from ledger.rails.stablecoin.contracts import Call, encoded
from ledger.rails.stablecoin.digests import MAX_UINT128

Act = Literal[
    "approve",
    "lock",
    "ask back",
    "keep",
    "take",
    "propose a slash",
    "uphold a slash",
    "dismiss a slash",
    "answer a slash",
    "carry out a slash",
    "let a slash lapse",
    "pay out",
]
_FUNCTIONS: Final[dict[Act, str]] = {
    "lock": "bond",
    "ask back": "requestUnlock",
    "keep": "cancelUnlock",
    "take": "unlock",
}
_ENDED: Final = ("settled", "failed")
_NOTHING: Final = Outcome("settled")


@define
class TooEarly(BondRefused):
    """The notice is not over; `at` is in seconds since 1970."""

    at: int


@frozen
class Done:
    """An act, and what is known of its transaction, by the key that it goes under (none: there was nothing to do).

    `waiting` and `mined` go on by themselves.
    """

    act: Act
    outcome: Outcome
    key: bytes = b""


class Bonds:
    """One contract of bonds, as the wallet of a chain uses it. Everything raises ChainError, acts also BondRefused."""

    def __init__(self, chain: Chain, contract: bytes) -> None:
        self.chain: Final = chain
        self._acting = asyncio.Lock()
        self._acts: dict[bytes, bytes] = {}  # by bond: the key of the last act's transaction
        self.place: Final = BondPlace(chain.network.chain_id, contract)

    async def stake(self, bond: bytes, *, deep: bool = False) -> Stake:
        """A bond's money at the head, or where it stays."""
        return Stake(*await self.chain.read(self.place.contract, "bonds", bond, deep=deep))

    async def seen(self, bond: bytes) -> tuple[Stake, Stake]:
        """A bond's money where it stays, and at the head: the less of the two is what counts."""
        return await self.stake(bond, deep=True), await self.stake(bond)

    async def find(self) -> list[BondTerms]:
        """All that the wallet has ever locked here, from the chain alone (slow: all blocks)."""
        return await self.chain.find_bonds(self.place, self.chain.address)

    async def lock(self, terms: BondTerms, total: int, wait: Callable[[bytes], Awaitable[Outcome]]) -> Done:
        """Lock what lacks to `total`, out of the wallet; nothing, if so much is locked.

        `wait` for the approval's transaction, by its key, as long as you like: one that is still on its way comes back
        instead of the lock. Ask again when it is through.
        """
        self._check(terms, total)
        check_terms(terms)
        async with self._acting:
            return await self._lock(terms, total, wait)

    async def _lock(self, terms: BondTerms, total: int, wait: Callable[[bytes], Awaitable[Outcome]]) -> Done:
        stake = await self.stake(self.place.bond_id(terms))
        amount = total - stake.locked
        if amount <= 0:
            return Done("lock", _NOTHING)
        held = await self.chain.tokens()
        if held < amount:
            raise BondRefused(f"the wallet has {held} of the {amount} millionths of a dollar: send some there first")
        (allowed,) = await self.chain.read(terms.token, "allowance", terms.seller, self.place.contract)
        if allowed < amount:
            approval = Call(terms.token, encoded("approve", self.place.contract, amount))
            key = await key_of(self.chain, "approve", self.place.bond_id(terms), (stake.locked, amount))
            outcome = await self.chain.submit(key, approval)
            if outcome.state not in ("mined", *_ENDED):
                outcome = await wait(key)
            if outcome.state not in ("mined", "settled"):
                return Done("approve", outcome, key)
        return await self._act("lock", terms, (stake.locked, amount), astuple(terms, recurse=False), amount)

    async def ask_back(self, terms: BondTerms, amount: int) -> Done:
        """Begin the notice for a part of the stake."""
        self._check(terms, amount)
        async with self._acting:
            stake = await self.stake(self.place.bond_id(terms))
            if stake.unlocking:
                raise BondRefused("a part was asked back already: take it after its notice, or keep it locked first")
            if amount > stake.locked:
                raise BondRefused(f"{stake.locked} millionths of a dollar are locked: ask for no more than that")
            return await self._act("ask back", terms, (stake.locked, amount), astuple(terms, recurse=False), amount)

    async def keep(self, terms: BondTerms) -> Done:
        """Let what was asked back stay locked."""
        async with self._acting:
            stake = await self._asked_back(terms)
            return await self._act("keep", terms, (stake.unlocks_at,), astuple(terms, recurse=False))

    async def take(self, terms: BondTerms) -> Done:
        """Take what was asked back, or the part of it that no slash holds, once its notice is over."""
        async with self._acting:
            stake = await self._asked_back(terms)
            _, now = await self.chain.block()
            if now < stake.unlocks_at:
                raise TooEarly("the notice is not over yet", stake.unlocks_at)
            if stake.locked == stake.reserved:
                raise BondRefused("all that is locked is held for slashes that are not decided: try again after that")
            return await self._act("take", terms, (stake.unlocks_at, stake.unlocking), astuple(terms, recurse=False))

    async def _asked_back(self, terms: BondTerms) -> Stake:
        self._check(terms, 1)
        stake = await self.stake(self.place.bond_id(terms))
        if not stake.unlocking:
            raise BondRefused("nothing of this bond was asked back")
        return stake

    def _check(self, terms: BondTerms, amount: int) -> None:
        if terms.seller != self.chain.address:
            raise BondRefused(f"the bond is that of 0x{terms.seller.hex()}, and this wallet has another address")
        if terms.token != self.chain.network.token.address:
            raise BondRefused("the bond is in another token than this network's dollar")
        if not 0 < amount <= MAX_UINT128:
            raise BondRefused("the amount must be above 0")

    async def _act(self, act: Act, terms: BondTerms, before: tuple[int, ...], *values: Any) -> Done:
        bond = self.place.bond_id(terms)
        key = await key_of(self.chain, act, bond, before)
        last = self._acts.get(bond, key)
        if last != key and (await self.chain.outcome(last)).state in ("waiting", "mined"):
            raise BondRefused("what was asked for before is not deep enough in the chain yet: try again in a while")
        outcome = await self.chain.submit(key, Call(self.place.contract, encoded(_FUNCTIONS[act], *values)))
        self._acts[bond] = key
        return Done(act, outcome, key)


async def key_of(chain: Chain, act: Act, about: bytes, before: tuple[int, ...]) -> bytes:
    """The key of an act that has not come to its end."""
    said = f"idlemesh bond {act} {' '.join(map(str, before))} ".encode() + about
    for attempt in count():
        key = hashlib.sha256(said + attempt.to_bytes(8, "big")).digest()
        if (await chain.outcome(key)).state not in _ENDED:
            break
    return key
