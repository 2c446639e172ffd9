"""Whose turn it is to be in memory, where models do not fit side by side: pure bookkeeping that is told the time.

Theory of operation. Who waits for a model that is not in memory claims a turn for it; the owner's claims go before
those of sold work, and of each the oldest first. A model in constant use would keep all others out for ever: so once
the first claim has waited for a while, models make room for it. Those used longest ago are chosen, they take no more
work, and what they have at hand they finish. So that two busy models do not take turns by the second, each stays for a
least time once it was loaded (from an owner's claim only if the owner uses it), and is not taken at a short pause
between two uses. Who was sent away and told to come again keeps the claim for a while. Models that do not get done
within a bounded time take work again, for the least time at least, and the claim goes to the end of the line; so they
do where nobody comes for the room that they have made. What is loaded before its turn, because there was room for it
just then, has no least time: else small models could keep a large one waiting for ever.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from attrs import define, frozen

K = TypeVar("K", bound=Hashable)


@frozen
class Pace:
    """How soon turns change, all in seconds: `after` a claim has waited so long, models make room for it; they have
    `drain` to finish; each stays for `residence`, and meanwhile goes only if it was not used for `pause`; a claim
    holds for `comeback` after who made it was told to come again."""

    after: float = 2.0
    drain: float = 120.0
    residence: float = 30.0
    pause: float = 1.0
    comeback: float = 15.0


@define
class _Claim:
    since: float
    waiting: int = 0
    until: float = 0.0  # how long it holds where nobody waits


@define
class _Stay:
    """A model's time in memory."""

    since: float
    used: float
    owners: bool = False  # whether the owner has used it


@frozen
class _Drain(Generic[K]):
    one: K  # for which room is made
    leaving: frozenset[K]
    since: float


class Turns(Generic[K]):
    """The claims for room, and who makes it."""

    def __init__(self, pace: Pace) -> None:
        self._pace: Final = pace
        self._claims: dict[tuple[K, bool], _Claim] = {}  # by model, and whether it is for sold work
        self._stays: dict[K, _Stay] = {}
        self._drain: _Drain[K] | None = None

    # What happens

    def wait(self, one: K, sold: bool, now: float) -> None:
        """One more waits for a model."""
        claim = self._claims.get((one, sold))
        if claim is None or not _holds(claim, now):
            claim = self._claims[one, sold] = _Claim(now)
        claim.waiting += 1

    def leave(self, one: K, sold: bool, now: float, comes_back: bool) -> None:
        """One waits no longer; `comes_back` if it was told to."""
        claim = self._claims.get((one, sold))
        if claim is None:
            return
        claim.waiting -= 1
        if comes_back:
            claim.until = now + self._pace.comeback
        if not _holds(claim, now):
            del self._claims[one, sold]

    def miss(self, one: K, sold: bool, now: float) -> None:
        """One was sent away at once, and told to come again."""
        self.wait(one, sold, now)
        self.leave(one, sold, now, comes_back=True)

    def use(self, one: K, sold: bool, now: float) -> None:
        """A model in memory is used, or was until now."""
        stay = self._stays.get(one)
        if stay is not None:
            stay.used, stay.owners = now, stay.owners or not sold

    def loaded(self, one: K, now: float) -> None:
        """A model is in memory, by its turn or because there was room."""
        since = now if self._first() in (one, None) else now - self._pace.residence
        self._stays[one] = _Stay(since, now, owners=self._for_owner(one))
        for sold in (False, True):
            claim = self._claims.get((one, sold))
            if claim is not None:
                claim.until = 0.0
        if self._drain is not None and self._drain.one == one:
            self._drain = None

    def dropped(self, one: K) -> None:
        """A model is not in memory any more."""
        self._stays.pop(one, None)

    def look(self, now: float, lacking: dict[K, int], loaded: Sequence[tuple[K, int]]) -> None:
        """Decide who makes room. `lacking`: what each model that is not in memory lacks of room; `loaded`: those in
        memory with their sizes, in the order in which they should go."""
        self._forget(now)
        first = self._first()
        drain = self._drain
        if drain is not None and (now >= drain.since + self._pace.drain or not self._is_claimed(drain.one)):
            self._give_up(drain, now)
            drain, first = None, self._first()
        if drain is not None and drain.one == first:
            return
        self._drain = None
        if first is None or now < self._since(first) + self._pace.after:
            return
        leaving: set[K] = set()
        left = lacking.get(first, 0)
        for one, size in loaded:
            if left > 0 and not self._protected(one, now, self._for_owner(first)):
                leaving.add(one)
                left -= size
        if leaving and left <= 0:
            self._drain = _Drain(first, frozenset(leaving), now)

    # What follows

    def keeps_out(self, one: K, sold: bool) -> bool:
        """Whether a model takes no more of this work because it makes room; from the owner only for the owner."""
        drain = self._drain
        return drain is not None and one in drain.leaving and (sold or self._for_owner(drain.one))

    def leaves(self, one: K) -> bool:
        """Whether a model makes room."""
        return self._drain is not None and one in self._drain.leaving

    @property
    def next(self) -> K | None:
        """The model for which room is made, if any is."""
        return self._drain.one if self._drain is not None else None

    def pauses(self, one: K, now: float) -> bool:
        """Whether a model that nobody uses just now should stay for the next use."""
        stay = self._stays.get(one)
        return stay is not None and now < min(stay.since + self._pace.residence, stay.used + self._pace.pause)

    def soonest(self, now: float) -> float:
        """When time alone may change something; infinity if never."""
        return min((moment for moment in self._moments() if moment > now), default=float("inf"))

    def _moments(self) -> Iterator[float]:
        for claim in self._claims.values():
            yield claim.since + self._pace.after if claim.waiting else claim.until
        for stay in self._stays.values():
            yield stay.since + self._pace.residence
            yield stay.used + self._pace.pause
        if self._drain is not None:
            yield self._drain.since + self._pace.drain

    def _forget(self, now: float) -> None:
        for key in [key for key, claim in self._claims.items() if not _holds(claim, now)]:
            del self._claims[key]

    def _first(self) -> K | None:
        claims = [(sold, claim.since, one) for (one, sold), claim in self._claims.items() if one not in self._stays]
        return min(claims, key=lambda claim: claim[:2], default=(False, 0.0, None))[2]

    def _is_claimed(self, one: K) -> bool:
        return (one, False) in self._claims or (one, True) in self._claims

    def _since(self, one: K) -> float:
        return min(claim.since for (of, _), claim in self._claims.items() if of == one)

    def _for_owner(self, one: K) -> bool:
        return (one, False) in self._claims

    def _protected(self, one: K, now: float, from_owner: bool) -> bool:
        stay = self._stays.get(one)
        if stay is None or now >= stay.since + self._pace.residence:
            return False
        return stay.owners or not from_owner

    def _give_up(self, drain: _Drain[K], now: float) -> None:
        for one in drain.leaving & self._stays.keys():
            self._stays[one].since = now
            self._stays[one].owners = True
        for sold in (False, True):
            if (claim := self._claims.get((drain.one, sold))) is not None:
                claim.since = now
        self._drain = None


def _holds(claim: _Claim, now: float) -> bool:
    return claim.waiting > 0 or now < claim.until
