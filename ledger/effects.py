"""Money that a rail is asked to move: in the journal before it is tried, and followed until its fate is known.

An `Effect` asks a rail for one movement on one account. Its `total` is what a growing counter of the account comes to
by it, and `before` what that counter was: a movement is counted from there, once. An account has one effect at a time.

    kind      asked by       counter    its guard when it is planned, and what is counted at once
    --------  -------------  ---------  ------------------------------------------------------------------------
    top_up    the payer      funded     -
    pay       the payer      settled    at most what is unsettled
    claim     the payee      settled    at most what is unsettled; Claimed
    refund    either side    withdrawn  at most the collateral that covers nothing; Withdrawn: it is on its way
    close     the payee      settled    no order open, all that is unsettled; Claimed, and Withdrawn of the rest

What the rail says of it moves a `Tracked` effect from state to state:

    state         settled  failed  unknown  retried  contradicted  vanished  confirmed  dismissed
    ------------  -------  ------  -------  -------  ------------  --------  ---------  ---------
    planned       settled  failed  unknown  -        contradicted  -         -          -
    unknown       settled  failed  unknown  -        contradicted  -         -          -
    failed        -        -       -        planned  contradicted  -         -          forgotten
    settled       -        -       -        -        contradicted  planned   forgotten  -
    contradicted  -        -       -        planned  -             -         -          forgotten

`planned` says that it may have been tried, and may not: whoever picks it up asks the rail. `unknown` was tried, and no
answer came; that it is so still is told where there is another reason for it. While either stands, nothing else is
tried on the account, and no wait makes it fail. What failed is tried again under the same key: rails move the money of
one key once at most, so even a rail that says "failed" and means something else cannot be made to pay twice. Only a
claim may be planned anew over one that failed: rails pay claims by their totals. For the same reason a claim that
settled and has `vanished`, as a chain that is reorganised can lose it, is made again without its owner; what was
counted stands, and is not counted twice. `contradicted` is a rail that said two things, or moved another amount than it
was asked to: what was counted stands, what is above what was asked is never counted, and the account is left alone
until its owner has looked: it is retried under its key, and counted up to what was asked, or dismissed.
"""

from typing import Any, Final, Literal, get_args

from attrs import Attribute, define, evolve, field, frozen

from ledger.account import AboveDue, Account, AccountError, AccountKey
from ledger.changes import Change, Claimed, InvalidChange, Withdrawn
from ledger.money import MAX_AMOUNT, Amount

Kind = Literal["top_up", "pay", "claim", "refund", "close"]
State = Literal["planned", "unknown", "failed", "settled", "contradicted"]
News = Literal["settled", "failed", "unknown", "retried", "contradicted", "vanished", "confirmed", "dismissed"]
KEY_BYTES: Final = 32
MAX_WHY: Final = 256

_COUNTER: Final[dict[Kind, str]] = {
    "top_up": "funded",
    "pay": "settled",
    "claim": "settled",
    "refund": "withdrawn",
    "close": "settled",
}
# What may be heard in a state, and the state after it; None: nothing is left to follow.
_NEXT: Final[dict[tuple[State, News], State | None]] = {
    ("planned", "settled"): "settled",
    ("planned", "failed"): "failed",
    ("planned", "unknown"): "unknown",
    ("planned", "contradicted"): "contradicted",
    ("unknown", "settled"): "settled",
    ("unknown", "failed"): "failed",
    ("unknown", "unknown"): "unknown",
    ("unknown", "contradicted"): "contradicted",
    ("failed", "retried"): "planned",
    ("failed", "contradicted"): "contradicted",
    ("failed", "dismissed"): None,
    ("settled", "contradicted"): "contradicted",
    ("settled", "vanished"): "planned",
    ("settled", "confirmed"): None,
    ("contradicted", "retried"): "planned",
    ("contradicted", "dismissed"): None,
}


@define
class InvalidEffect(InvalidChange):
    """Values that no effect can have."""

    why: str

    def __str__(self) -> str:
        return f"not an effect: {self.why}"


class EffectError(AccountError):
    """A rule of effects that an event broke; each subclass is one, and nothing of its entry was written."""


@define
class EffectUnderWay(EffectError):
    """The account has an effect that must come to its end first."""

    kind: str
    state: str

    def __str__(self) -> str:
        if self.state == "failed":
            return f"a {self.kind} of this account failed: `idlemesh accounts` shows it; then `retry` or `dismiss` it"
        return f"a {self.kind} of this account is {self.state}: one at a time; `idlemesh accounts` shows it"


@define
class EffectUnknown(EffectError):
    """The account has no such effect."""

    key: bytes

    def __str__(self) -> str:
        return f"no effect {self.key.hex()[:16]} stands in this account: `idlemesh accounts` shows those that do"


@define
class NewsUnfit(EffectError):
    """This cannot be heard of an effect in that state."""

    state: str
    news: str

    def __str__(self) -> str:
        return f"an effect that is {self.state} cannot be {self.news}"


@define
class CounterMoved(EffectError):
    """It builds on another value of the counter than the account has by now."""

    counter: str
    expected: int
    found: int

    def __str__(self) -> str:
        return f"it builds on {self.counter} {self.found}, and the account stands at {self.expected}: reckon it again"


@define
class AboveAskedFor(EffectError):
    """More would be counted than was asked for."""

    left: int
    moved: int

    def __str__(self) -> str:
        return f"{self.moved} would be counted, and {self.left} is what was asked for and not counted yet"


@define
class AboveFree(EffectError):
    """Only collateral that covers neither debt nor open orders nor vouchers goes back."""

    free: Amount
    amount: Amount

    def __str__(self) -> str:
        return f"{self.free} of the collateral covers nothing: {self.amount} cannot go back"


@define
class OrdersOpen(EffectError):
    """An account is closed when no order is open on it."""

    reserved: int

    def __str__(self) -> str:
        return f"open orders may still earn {self.reserved}: close the account when they are over"


def _is_key(_: object, __: "Attribute[bytes]", value: object) -> None:
    if type(value) is not bytes or len(value) != KEY_BYTES:
        raise InvalidEffect(f"its key has {KEY_BYTES} bytes")


def _is_count(_: object, attribute: "Attribute[int]", value: object) -> None:
    # type(...) and not isinstance: True is not a number here.
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT:
        raise InvalidEffect(f"{attribute.name} must be an integer from 0 to {MAX_AMOUNT}")


def _one_of(names: Any) -> Any:
    known = get_args(names)

    def check(_: object, attribute: "Attribute[str]", value: object) -> None:
        if value not in known:
            raise InvalidEffect(f"{attribute.name} must be one of {', '.join(known)}, not {str(value)[:80]!r}")

    return check


def _is_short(_: object, attribute: "Attribute[str]", value: object) -> None:
    if type(value) is not str or len(value) > MAX_WHY:
        raise InvalidEffect(f"{attribute.name} is a text of at most {MAX_WHY} characters")


@frozen
class Effect:
    """One movement that a rail is asked for. `key` names it to the rail, which moves its money once at most.

    `before` and `total` are amounts in the account's unit. Raises InvalidEffect.
    """

    key: bytes = field(validator=_is_key)
    account: AccountKey
    kind: Kind = field(validator=_one_of(Kind))
    before: int = field(validator=_is_count)
    total: int = field(validator=_is_count)

    def __attrs_post_init__(self) -> None:
        # Closing may have nothing left to claim.
        if self.total < self.before or (self.total == self.before and self.kind != "close"):
            raise InvalidEffect(f"a {self.kind} moves a counter up, not from {self.before} to {self.total}")

    @property
    def amount(self) -> int:
        """What is to move."""
        return self.total - self.before

    @property
    def settles(self) -> bool:
        """Whether it pays a debt; else it moves collateral alone."""
        return _COUNTER[self.kind] == "settled"

    @property
    def asked_by_payer(self) -> bool | None:
        """Which side asks its rail for it; None: either may."""
        return None if self.kind == "refund" else self.kind in ("top_up", "pay")


@frozen
class Tracked:
    """An effect and what is known of it. Times in seconds since 1970; `moved` is how much of it was counted."""

    effect: Effect
    planned: int = field(validator=_is_count)
    state: State = field(default="planned", validator=_one_of(State))
    heard: int = field(default=0, validator=_is_count)
    tries: int = field(default=1, validator=_is_count)
    moved: int = field(default=0, validator=_is_count)
    why: str = field(default="", validator=_is_short)

    @property
    def under_way(self) -> bool:
        """Whether its money may or may not have moved: only the rail knows."""
        return self.state in ("planned", "unknown")


@frozen
class EffectPlanned:
    """Event: an effect is about to be tried, at `time` (seconds since 1970)."""

    effect: Effect
    time: int = field(validator=_is_count)


@frozen
class EffectTold:
    """Event: what became of an effect. `moved` is what is counted of it in the same entry.

    `settled` is the account's counter on which that counting builds, so that nothing counted meanwhile is lost.
    """

    account: AccountKey
    key: bytes = field(validator=_is_key)
    news: News = field(validator=_one_of(News))
    time: int = field(validator=_is_count)
    moved: int = field(default=0, validator=_is_count)
    settled: int = field(default=0, validator=_is_count)
    why: str = field(default="", validator=_is_short)


EffectEvent = EffectPlanned | EffectTold


def draw_up(account: Account, kind: Kind, amount: int, key: bytes) -> Effect:
    """The effect that moves `amount` more on an account as it is now. Raises InvalidEffect."""
    before = getattr(account, _COUNTER[kind])
    return Effect(key, account.key, kind, before, before + amount)


def free_collateral(account: Account) -> int:
    """What of the collateral covers neither debt nor open orders nor vouchers."""
    return max(account.capacity - max(account.owed + account.reserved, account.authorized), 0)


def claimable(account: Account, leaving: int) -> int:
    """What a payee can have now of what is unsettled: where deposits stand behind it, no more than lies there.

    `leaving` is what of the collateral its payer has begun to take back, which can still be claimed.
    """
    if not account.on_deposit:
        return account.unsettled
    lies = account.funded - account.withdrawn + leaving - account.settled
    return max(min(account.unsettled, lies), 0)


def counted_at_once(effect: Effect, account: Account) -> tuple[Change, ...]:
    """What planning an effect changes in its account, in the same entry."""
    # Counted on from the last sight of the collateral; the next one goes on from there.
    sequence = account.withdrawn_sequence + 1
    match effect.kind:
        case "claim":
            # Less than before, where what was to be claimed has left meanwhile.
            return (Claimed(effect.total),) if effect.total > account.claimed else ()
        case "refund":
            return (Withdrawn(effect.total, sequence),)
        case "close":
            rest = max(account.funded - effect.total, account.withdrawn)
            return Claimed(effect.total), Withdrawn(rest, sequence)
    return ()


def follow(tracked: Tracked | None, event: EffectEvent, account: Account) -> Tracked | None:
    """An account's effect after an event; None: there is nothing to follow. Raises EffectError, AboveDue."""
    match event:
        case EffectPlanned(effect, time):
            _check_free_for(tracked, effect)
            _check_guard(effect, account)
            return Tracked(effect, time, heard=time)
        case EffectTold(_, key, news):
            if tracked is None or tracked.effect.key != key:
                raise EffectUnknown(key)
            return _told(tracked, news, event, account)


def _check_free_for(tracked: Tracked | None, effect: Effect) -> None:
    again = tracked is not None and tracked.state == "failed" and {tracked.effect.kind, effect.kind} == {"claim"}
    if tracked is not None and not again:
        raise EffectUnderWay(tracked.effect.kind, tracked.state)


def _check_guard(effect: Effect, account: Account) -> None:
    counter = _COUNTER[effect.kind]
    if getattr(account, counter) != effect.before:
        raise CounterMoved(counter, getattr(account, counter), effect.before)
    match effect.kind:
        case "pay" | "claim":
            _check_unsettled(effect.amount, account)
        case "refund":
            if effect.amount > free_collateral(account):
                unit = account.key.unit
                raise AboveFree(Amount(free_collateral(account), unit), Amount(effect.amount, unit))
        case "close":
            if account.reserved:
                raise OrdersOpen(account.reserved)
            if effect.amount != account.unsettled:
                raise CounterMoved("unsettled", account.unsettled, effect.amount)


def _check_unsettled(amount: int, account: Account) -> None:
    if amount > account.unsettled:
        raise AboveDue(account.unsettled, amount)


def _told(tracked: Tracked, news: News, event: EffectTold, account: Account) -> Tracked | None:
    if (tracked.state, news) not in _NEXT or (news == "vanished" and tracked.effect.kind != "claim"):
        raise NewsUnfit(tracked.state, news)
    if event.moved:
        if event.moved > tracked.effect.amount - tracked.moved:
            raise AboveAskedFor(tracked.effect.amount - tracked.moved, event.moved)
        if event.settled != account.settled:
            raise CounterMoved("settled", account.settled, event.settled)
    if news == "retried" and tracked.effect.kind == "pay":
        _check_unsettled(tracked.effect.amount - tracked.moved, account)  # it may have been paid in another way since
    state = _NEXT[tracked.state, news]
    if state is None:
        return None
    moved, tries = tracked.moved + event.moved, tracked.tries + (news in ("retried", "vanished"))
    return evolve(tracked, state=state, heard=event.time, tries=tries, moved=moved, why=event.why)
