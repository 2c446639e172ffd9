"""How much is to be paid in at once: what is worth the gas that it takes to bring it to the chain.

Theory of operation. What is asked for is the owner's least, doubled as often as the price of gas of a moment ago makes
necessary: so it seldom changes, and bears a price that rises a little. What was asked for is taken for as long as what
is signed for it can be good, whatever gas costs by then. Where it would have to be above the owner's most, nothing is
asked for in this way.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Self

from attrs import frozen

from ledger.money import MAX_AMOUNT
from ledger.rails.stablecoin.gas import WORTH

# Whoever asks for the price of an answer has the chain asked what gas costs, this often at most; and waits so long.
FRESH_S: Final = 10.0
_WAIT_S: Final = 2.0
# From an offer to the signature for it.
_SIGNING_S: Final = 60.0
Fee = Callable[[], Awaitable[int | None]]


class Toll:
    """What it takes to bring money to the chain, or back, as of a moment ago."""

    def __init__(self, fee: Fee, now: Callable[[], float]) -> None:
        """`fee` asks the chain, in the token's units (None: it does not say); `now`: seconds since 1970."""
        self._fee, self._now = fee, now
        self._looked = float("-inf")
        self._looking: asyncio.Task[int] | None = None
        self.needed: int = 0  # the least that is worth it, for all that is known

    async def look(self) -> None:
        """Ask the chain, if that was not done lately; where it takes long, what was known before holds."""
        if self._now() - self._looked >= FRESH_S and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self.ask())
            await asyncio.wait((self._looking,), timeout=_WAIT_S)

    async def ask(self) -> int:
        """Ask the chain now; the least that is worth it. Nothing is too little where it does not say."""
        fee = await self._fee()
        self._looked = self._now()
        if fee is None:
            return 0
        self.needed = WORTH * fee
        return self.needed


class Least:
    """The least that is paid in, in one way."""

    def __init__(self, toll: Toll, least: int, most: int, valid_s: float, now: Callable[[], float]) -> None:
        """`least` and `most` are the owner's bounds of it; what is signed is good for `valid_s`."""
        self.least: Final = least
        self.most: Final = most
        self._toll = toll
        self._held_s = _SIGNING_S + valid_s
        self._now = now
        self._offered: dict[int, float] = {}

    @property
    def needed(self) -> int:
        """What is worth its gas, for all that is known."""
        return self._toll.needed

    @property
    def amount(self) -> int | None:
        """What is asked for now; None: it would be above the owner's most."""
        found, needed = max(self.least, 1), self._toll.needed
        while found < needed:
            found *= 2
        return min(found, self.most) if needed <= self.most else None

    def offer(self) -> int | None:
        """The same, said to somebody."""
        amount, now = self.amount, self._now()
        if amount is not None:
            self._offered[amount] = now
        self._offered = {each: at for each, at in self._offered.items() if now - at < self._held_s}
        return amount

    async def lacks(self, amount: int) -> int | None:
        """What its gas asks for where so much is too little for it, and was not asked for lately; None: it will do."""
        needed, now = await self._toll.ask(), self._now()
        if amount >= needed or any(amount >= each and now - at < self._held_s for each, at in self._offered.items()):
            return None
        return needed


@frozen
class Worth:
    """What has to be paid in by transfers and by deposits; `back`: what is worth its gas where it goes back."""

    transfers: Least
    deposits: Least
    back: Toll
    _coming: Toll

    @classmethod
    def of(
        cls,
        fee: Fee,
        now: Callable[[], float],
        *,
        prepaid: int,
        most_prepaid: int,
        deposit: int,
        valid_s: tuple[float, float],
        is_brought_by_others: bool = False,
    ) -> Self:
        """By the owner's bounds; `valid_s` of transfers and deposits. What others bring costs this node no gas."""
        back = Toll(fee, now)
        coming = Toll(_nothing, now) if is_brought_by_others else back
        transfers = Least(coming, prepaid, most_prepaid, valid_s[0], now)
        return cls(transfers, Least(coming, deposit, MAX_AMOUNT, valid_s[1], now), back, coming)

    async def look(self) -> None:
        """See `Toll.look`."""
        await self._coming.look()


async def _nothing() -> int:
    return 0
