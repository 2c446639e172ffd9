"""What one party owes another, as a pure state machine: apply(account, change) -> account.

An `Account` stands for one (payer, payee, rail, unit). Both sides keep it and move it by the same function; a
node that buys from and sells to the same peer keeps two. All counters only grow (but the collateral, of which the
latest sight counts), so a message that comes twice or late does no harm. Two families of changes move them:

- an ACT is ours to do or leave. It has guards; a broken one raises its own `AccountError` and changes
  nothing.
- a FACT came from outside and is always accepted. It may leave a `shortfall`: visible, legal, and no new work
  starts.

    change               family  guard                                           effect
    -------------------  ------  ----------------------------------------------  --------------------------------
    Admitted             act     order unknown; first <= amount;                 order opened, first drawn
                                 max(owed + reserved + amount, authorized)
                                   <= capacity;
                                 owed + ahead + first - due <= window
    Reserved             act     as Admitted with all of the amount as first     order opened, all drawn
    Drawn                act     order open; its drawn <= total <= its amount;   the order's drawn = total
                                 owed + ahead, with this - due <= window
    Earned               act     order open; its earned <= total <= its drawn    earned grows, reserved shrinks
    Released             act     order known                                     order closed, its rest free
    Expired              act     -                                               as Released, of each order that
                                                                                 expired
    Forgotten            act     -                                               old orders dropped that are
                                                                                 closed and not in dispute
    Authorized           act     authorized <= total <= owed, or = authorized    authorized = total
    Forgiven             act     amount <= owed - authorized - disputed          forgiven grows, owed shrinks
    Claimed              act     claimed <= total <= min(owed, authorized)       claimed = total
    Granted              fact    - (an older sequence is ignored)                limit and window set
    Funded, Withdrawn    fact    - (an older sequence is ignored)                funded, withdrawn = total
    Acknowledged         fact    order known; total <= its amount (a lower       as Earned, on closed orders too;
                                 total is ignored)                               granted = total
    Disputed             fact    order closed; granted <= asked <= its amount    granted counts as acknowledged,
                                                                                 the rest is in dispute
    Resolved             fact    order disputed before; what is claimed stays    its cost is total at most, the
                                 owed (a higher total is ignored)                rest is waived: owed shrinks
    Recovered            fact    total <= the order's amount                     order known and closed,
                                                                                 earned at least total
    VoucherReceived      fact    - (a lower total is ignored)                    authorized = total, even above
                                                                                 owed
    ForgivenessReceived  fact    what is claimed stays owed (a lower total       forgiven = total, owed shrinks
                                 is ignored)
    Settled, Netted      fact    - (a lower total is ignored)                    settled, netted = total

    an order:  unknown --Admitted,-> open --Released, Expired--> closed --Forgotten--> unknown
                         Reserved    Drawn*, Earned*             Acknowledged*
                                     Acknowledged*                 |     ^
                                                            Disputed     Resolved to what is granted,
                                                                   v     Acknowledged up to what is asked
                                                                 in dispute

    the rail:  credit                 lightning, stablecoin,   one that is not known here
                                      prepaid
    capacity:  limit + settled        funded - withdrawn       0
               + netted

An order reserves its whole cost of the capacity, and draws from the window only what is delivered before the next pay:
`ahead` is what open orders have drawn and not earned. So an answer may cost more than the window, if it is paid as it
goes.

The payer's `Authorized` is the payee's `VoucherReceived`: one promises no more than it owes, the other takes
what it is promised. So are `Forgiven` and `ForgivenessReceived`: the payee's act, and its growing total at the
payer, which may have promised more meanwhile; then the promise covers work to come. `Earned` is the delivery as it
goes; `Acknowledged` is what both signatures stand for, and may come after the order was closed: a seller that crashed
has closed its orders, and its buyer acknowledges the last checkpoint later.

In a dispute each side keeps its own count of the order, the payee what it asks and the payer what it grants. The
payee's word only falls (`Resolved`) and the payer's only grows (`Acknowledged`); both books take the lower of the two
once each has heard the other, in whatever order they hear it.

A journal that was cut or restored from an older copy has lost signatures of ours that the other side still has. They
are facts: orders come back by `Recovered`, the payer's promises by `VoucherReceived`, which may leave more authorized
than is owed; then the promise stands, and covers work to come.

What bears no signature of ours is no fact, and is refused like an act: an acknowledgement of an order that was never
opened, or above what it reserved; a dispute of an order that is open; forgiveness of what we have claimed.
"""

from collections.abc import Mapping
from typing import Final

from attrs import define, field, frozen

from ledger.changes import (
    Acknowledged,
    Admitted,
    Authorized,
    Change,
    Claimed,
    Disputed,
    Drawn,
    Earned,
    Expired,
    Forgiven,
    ForgivenessReceived,
    Forgotten,
    Funded,
    Granted,
    InvalidUnit,
    Netted,
    Recovered,
    Released,
    Reserved,
    Resolved,
    Settled,
    VoucherReceived,
    Withdrawn,
)
from ledger.money import UNITS, Unit
from ledger.orders import Orders, evolve


class AccountError(Exception):
    """A guard that a change broke; the account is as it was. Each subclass is one guard, with its values."""


@define
class OrderKnown(AccountError):
    """The order already has a reservation here."""

    order: bytes

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} was reserved before: ask for its outcome instead"


@define
class OrderUnknown(AccountError):
    """The order was never reserved here, or closed and forgotten since."""

    order: bytes

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} has no reservation in this account: reserve it first"


@define
class OrderClosed(AccountError):
    """The order was released; it earns nothing more by our own act."""

    order: bytes

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} is closed: only an acknowledged cost can still be added to it"


@define
class OrderOpen(AccountError):
    """Only the cost of an order that is over can be disputed."""

    order: bytes

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} is still open: release it before its cost is disputed"


@define
class OrderUndisputed(AccountError):
    """Only a disputed order is resolved."""

    order: bytes

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} was never disputed: there is nothing to resolve"


@define
class AboveAsked(AccountError):
    """A dispute is about what is asked and not granted."""

    asked: int
    granted: int

    def __str__(self) -> str:
        return f"{self.asked} is asked and {self.granted} granted: there is nothing in dispute"


@define
class AboveCapacity(AccountError):
    """The order costs more than the collateral that is left."""

    amount: int
    left: int

    def __str__(self) -> str:
        return f"{self.amount} is more than the {self.left} that the collateral covers: settle, or order less"


@define
class AboveWindow(AccountError):
    """What is drawn is more than the unpaid work that is borne at a time."""

    amount: int
    left: int

    def __str__(self) -> str:
        return f"{self.amount} is more than the {self.left} left of the window: pay for open work, or order less"


@define
class EarnedFell(AccountError):
    """An order's delivered cost only grows."""

    order: bytes
    earned: int
    total: int

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} has earned {self.earned}, and cannot go back to {self.total}"


@define
class AboveReservation(AccountError):
    """An order earns at most what it reserved."""

    order: bytes
    amount: int
    total: int

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} reserved {self.amount}, less than {self.total}: dispute the rest"


@define
class AboveDrawn(AccountError):
    """An order earns at most what it has drawn from the window."""

    order: bytes
    drawn: int
    total: int

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} has drawn {self.drawn}: draw {self.total} before it is delivered"


@define
class DrawnFell(AccountError):
    """What an order has drawn only grows."""

    order: bytes
    drawn: int
    total: int

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} has drawn {self.drawn}, and cannot go back to {self.total}"


@define
class AuthorizedFell(AccountError):
    """The total of our vouchers only grows."""

    authorized: int
    total: int

    def __str__(self) -> str:
        return f"{self.authorized} was authorized already: a voucher for {self.total} takes nothing back"


@define
class AboveOwed(AccountError):
    """We authorize no more than we owe."""

    owed: int
    total: int

    def __str__(self) -> str:
        return f"{self.owed} is owed: do not authorize {self.total} before the work is delivered"


@define
class ForgivenAboveUnpaid(AccountError):
    """Only what is owed, not authorized and not in dispute can be forgiven."""

    unpaid: int
    amount: int

    def __str__(self) -> str:
        return f"{self.unpaid} is unpaid and undisputed: {self.amount} is more than there is to forgive"


@define
class BelowClaimed(AccountError):
    """What was claimed from the rail cannot be let go any more."""

    claimed: int
    owed: int

    def __str__(self) -> str:
        return f"{self.claimed} was claimed: what is owed cannot fall to {self.owed}; pay the difference back instead"


@define
class ClaimedFell(AccountError):
    """The total of our claims only grows."""

    claimed: int
    total: int

    def __str__(self) -> str:
        return f"{self.claimed} was claimed already: a claim of {self.total} takes nothing back"


@define
class AboveDue(AccountError):
    """We claim no more than what is both owed and authorized."""

    due: int
    total: int

    def __str__(self) -> str:
        return f"{self.due} is owed and authorized: do not claim {self.total}"


# On these the payer's collateral lies with the rail.
_DEPOSIT_RAILS: Final = frozenset({"lightning", "stablecoin", "prepaid"})


def _is_unit(_: object, __: object, value: str) -> None:
    if value not in UNITS:
        raise InvalidUnit(value)


@frozen(cache_hash=True)
class AccountKey:
    """Whose debt to whom, on which rail and in which unit."""

    payer: str
    payee: str
    rail: str
    unit: Unit = field(validator=_is_unit)


@frozen(slots=False)
class Reservation:
    """What one order may cost at most, what of it is drawn from the window and delivered, and whether more may come.

    `granted` is the most that its payer has acknowledged. Where it disputed the rest, `asked` is what it was asked for,
    and `at_most` what the payee has come down to.
    """

    amount: int
    expires: int
    earned: int = 0
    open: bool = True
    granted: int = 0
    asked: int | None = None
    at_most: int | None = None
    drawn: int = 0

    @property
    def rest(self) -> int:
        """What the order may still earn."""
        return self.amount - self.earned if self.open else 0

    @property
    def ahead(self) -> int:
        """What it may deliver before it draws again."""
        return self.drawn - self.earned if self.open and self.drawn > self.earned else 0

    @property
    def waived(self) -> int:
        """What of its earned the payee has let go."""
        return 0 if self.at_most is None else max(self.earned - self.at_most, 0)

    @property
    def disputed(self) -> int:
        """What is asked and not granted. The payer has not earned it, the payee has."""
        if self.asked is None:
            return 0
        asked = max(self.asked, self.earned)
        return max((asked if self.at_most is None else min(asked, self.at_most)) - self.granted, 0)

    @property
    def unanswered(self) -> bool:
        """Whether it is over, and its payer has neither acknowledged all of it nor disputed the rest."""
        return not self.open and self.asked is None and self.granted < self.earned

    @property
    def binds(self) -> bool:
        """Whether it must be remembered: it may earn more, or is in dispute."""
        return self.open or self.disputed > 0


def _sealed(orders: Mapping[bytes, Reservation]) -> Orders[Reservation]:
    return orders if isinstance(orders, Orders) else Orders(orders)


_NO_ORDERS: Final[Orders[Reservation]] = Orders()


@frozen(hash=False, slots=False)
class Account:
    """The counters of one debt, in the key's unit. `waived` is what of `earned` was let go in disputes."""

    key: AccountKey
    limit: int = 0
    window: int = 0
    grant_sequence: int = 0
    funded: int = 0
    funded_sequence: int = 0
    withdrawn: int = 0
    withdrawn_sequence: int = 0
    authorized: int = 0
    earned: int = 0
    waived: int = 0
    forgiven: int = 0
    claimed: int = 0
    settled: int = 0
    netted: int = 0
    orders: Orders[Reservation] = field(default=_NO_ORDERS, converter=_sealed)

    @property
    def owed(self) -> int:
        """What was delivered and not let go, paid or not."""
        owed = self.earned - self.waived - self.forgiven
        # Forgiveness may be heard of before the delivery that it is for.
        return owed if owed > 0 else 0

    @property
    def unpaid(self) -> int:
        """What is owed and has no voucher yet."""
        return max(self.owed - self.authorized, 0)

    @property
    def forgivable(self) -> int:
        """What is unpaid and not in dispute: a dispute is resolved."""
        return max(self.unpaid - self.disputed, 0)

    @property
    def reserved(self) -> int:
        """What the open orders may still earn."""
        return self.orders.rest

    @property
    def disputed(self) -> int:
        """What is asked and not granted, of all orders."""
        return sum(order.disputed for order in self.orders.values())

    @property
    def backed(self) -> int:
        """What stands behind the debt and is more than trust: payments, services in return, deposits."""
        if self.key.rail == "credit":
            return self.settled + self.netted
        return max(self.funded - self.withdrawn, 0) if self.on_deposit else 0

    @property
    def on_deposit(self) -> bool:
        """Whether the payer's collateral lies with the rail."""
        return self.key.rail in _DEPOSIT_RAILS

    @property
    def capacity(self) -> int:
        """The collateral that stands behind the debt; a rail that this version does not know has none."""
        return self.backed + self.limit if self.key.rail == "credit" else self.backed

    @property
    def unsettled(self) -> int:
        """What is due and neither paid for good nor set off."""
        return max(self.due - self.settled - self.netted, 0)

    @property
    def shortfall(self) -> int:
        """By how much the debt is above its collateral; while it is, no new work starts."""
        return max(self.owed + self.reserved - self.capacity, self.authorized - self.capacity, 0)

    @property
    def available(self) -> int:
        """The most that a further order may cost in all before it outgrows the collateral."""
        return 0 if self.shortfall else self.capacity - self.owed - self.reserved

    @property
    def window_left(self) -> int:
        """What may still be drawn before more work is unpaid than is borne at a time."""
        return max(self.window + self.due - self.owed - self.orders.ahead, 0)

    @property
    def due(self) -> int:
        """What can be claimed: owed as well as authorized."""
        return min(self.owed, self.authorized)


def apply(account: Account, change: Change) -> Account:
    """The account after a change. Raises AccountError, one subclass for each broken guard."""
    # What each order comes by is first: a long journal is made of it, and every case that is passed costs.
    match change:
        case Earned(order, total):
            return _earn(account, order, total)
        case Drawn(order, total):
            return _draw(account, order, total)
        case Admitted(order, amount, first, expires):
            return _admit(account, order, Reservation(amount, expires, drawn=first))
        case Reserved(order, amount, expires):
            return _admit(account, order, Reservation(amount, expires, drawn=amount))
        case Released(order):
            return _with_order(account, order, evolve(_known(account, order), open=False))
        case Acknowledged(order, total):
            return _acknowledge(account, order, total)
        case VoucherReceived(total):
            return evolve(account, authorized=max(account.authorized, total))
        case Expired(before):
            return _expire(account, before)
        case Forgotten(before):
            kept = {d: r for d, r in account.orders.items() if r.binds or r.expires >= before}
            return evolve(account, orders=Orders(kept))
        case Authorized(total):
            return _authorize(account, total)
        case Forgiven(amount):
            if amount > account.forgivable:
                raise ForgivenAboveUnpaid(account.forgivable, amount)
            return evolve(account, forgiven=account.forgiven + amount)
        case Claimed(total):
            return _claim(account, total)
        case Granted(limit, window, sequence):
            if sequence <= account.grant_sequence:
                return account
            return evolve(account, limit=limit, window=window, grant_sequence=sequence)
        case Funded(total, sequence):
            if sequence <= account.funded_sequence:
                return account
            return evolve(account, funded=total, funded_sequence=sequence)
        case Withdrawn(total, sequence):
            if sequence <= account.withdrawn_sequence:
                return account
            return evolve(account, withdrawn=total, withdrawn_sequence=sequence)
        case Disputed(order, asked, granted):
            return _dispute(account, order, asked, granted)
        case Resolved(order, total):
            return _resolve(account, order, total)
        case Recovered(order, amount, expires, total):
            return _recover(account, order, Reservation(amount, expires, open=False), total)
        case ForgivenessReceived(total):
            return _with_claims_owed(evolve(account, forgiven=max(account.forgiven, total)))
        case Settled(total):
            return evolve(account, settled=max(account.settled, total))
        case Netted(total):
            return evolve(account, netted=max(account.netted, total))


def _known(account: Account, order: bytes) -> Reservation:
    known = account.orders.find(order)
    if known is None:
        raise OrderUnknown(order)
    return known


def _with_order(account: Account, order: bytes, reservation: Reservation) -> Account:
    return evolve(account, orders=account.orders.with_one(order, reservation))


def _admit(account: Account, order: bytes, reservation: Reservation) -> Account:
    if order in account.orders:
        raise OrderKnown(order)
    if reservation.drawn > reservation.amount:
        raise AboveReservation(order, reservation.amount, reservation.drawn)
    debt = account.owed + account.reserved + reservation.amount
    if max(debt, account.authorized) > account.capacity:
        raise AboveCapacity(reservation.amount, account.available)
    return _with_drawn(account, order, reservation, reservation.drawn)


def _draw(account: Account, order: bytes, total: int) -> Account:
    reservation = _known_open(account, order)
    if total < reservation.drawn:
        raise DrawnFell(order, reservation.drawn, total)
    if total > reservation.amount:
        raise AboveReservation(order, reservation.amount, total)
    return _with_drawn(account, order, evolve(reservation, drawn=total), total - reservation.drawn)


def _with_drawn(account: Account, order: bytes, reservation: Reservation, more: int) -> Account:
    orders = account.orders.with_one(order, reservation)
    if orders.ahead > account.orders.ahead and account.owed + orders.ahead - account.due > account.window:
        raise AboveWindow(more, account.window_left)
    return evolve(account, orders=orders)


def _known_open(account: Account, order: bytes) -> Reservation:
    reservation = _known(account, order)
    if not reservation.open:
        raise OrderClosed(order)
    return reservation


def _earn(account: Account, order: bytes, total: int) -> Account:
    reservation = _known_open(account, order)
    if total < reservation.earned:
        raise EarnedFell(order, reservation.earned, total)
    if reservation.drawn < total <= reservation.amount:
        raise AboveDrawn(order, reservation.drawn, total)
    return _with_earned(account, order, reservation, total)


def _with_earned(account: Account, order: bytes, known: Reservation, total: int) -> Account:
    if total > known.amount:
        raise AboveReservation(order, known.amount, total)
    return _with_counted(account, order, known, evolve(known, earned=total))


def _with_counted(account: Account, order: bytes, before: Reservation, after: Reservation) -> Account:
    """The account with an order as it is now, and the counters that follow from it."""
    orders = account.orders.with_one(order, after)
    earned = account.earned + after.earned - before.earned
    if after.at_most is None:
        return evolve(account, orders=orders, earned=earned)
    waived = account.waived + after.waived - before.waived
    return evolve(account, orders=orders, earned=earned, waived=waived)


def _with_claims_owed(account: Account) -> Account:
    if account.claimed > account.owed:
        raise BelowClaimed(account.claimed, account.owed)
    return account


def _expire(account: Account, before: int) -> Account:
    orders = {
        digest: evolve(order, open=False) if order.open and order.expires < before else order
        for digest, order in account.orders.items()
    }
    return evolve(account, orders=Orders(orders))


def _acknowledge(account: Account, order: bytes, total: int) -> Account:
    reservation = _known(account, order)
    earned, granted = max(total, reservation.earned), max(total, reservation.granted)
    if earned > reservation.amount:
        raise AboveReservation(order, reservation.amount, earned)
    return _with_counted(account, order, reservation, evolve(reservation, earned=earned, granted=granted))


def _recover(account: Account, order: bytes, lost: Reservation, total: int) -> Account:
    known = evolve(account.orders.get(order, lost), open=False)
    return _with_earned(_with_order(account, order, known), order, known, max(total, known.earned))


def _dispute(account: Account, order: bytes, asked: int, granted: int) -> Account:
    reservation = _known(account, order)
    if reservation.open:
        raise OrderOpen(order)
    if granted > asked:
        raise AboveAsked(asked, granted)
    if asked > reservation.amount:
        raise AboveReservation(order, reservation.amount, asked)
    moved = _acknowledge(account, order, granted)
    return _with_order(moved, order, evolve(moved.orders[order], asked=max(asked, reservation.asked or 0)))


def _resolve(account: Account, order: bytes, total: int) -> Account:
    reservation = _known(account, order)
    if reservation.asked is None:
        raise OrderUndisputed(order)
    lowest = total if reservation.at_most is None else min(total, reservation.at_most)
    return _with_claims_owed(_with_counted(account, order, reservation, evolve(reservation, at_most=lowest)))


def _authorize(account: Account, total: int) -> Account:
    if total < account.authorized:
        raise AuthorizedFell(account.authorized, total)
    if total > max(account.owed, account.authorized):
        raise AboveOwed(account.owed, total)
    return evolve(account, authorized=total)


def _claim(account: Account, total: int) -> Account:
    if total < account.claimed:
        raise ClaimedFell(account.claimed, total)
    if total > account.due:
        raise AboveDue(account.due, total)
    return evolve(account, claimed=total)
