"""What one party owes another, as a pure state machine: apply(account, change) -> account.

An `Account` stands for one (payer, payee, rail, unit). Both sides keep it and move it by the same function; a
node that buys from and sells to the same peer keeps two. All counters only grow, so a message that comes
twice or late does no harm. Two families of changes move them:

- an ACT is ours to do or leave. It has guards; a broken one raises its own `AccountError` and changes
  nothing.
- a FACT came from outside and is always accepted. It may leave a `shortfall`: visible, legal, and no new work
  starts.

    change           family  guard                                            effect
    ---------------  ------  -----------------------------------------------  ------------------------------
    Reserved         act     order unknown;                                   order opened
                             max(owed + reserved + amount, authorized)
                               <= capacity;
                             owed + reserved + amount - due <= window
    Earned           act     order open; its earned <= total <= its amount    earned grows, reserved shrinks
    Released         act     order known                                      order closed, its rest free
    Forgotten        act     -                                                old closed orders dropped
    Authorized       act     authorized <= total <= owed                      authorized = total
    Forgiven         act     amount <= owed - authorized                      owed shrinks
    Claimed          act     claimed <= total <= min(owed, authorized)        claimed = total
    Granted          fact    - (an older sequence is ignored)                 limit and window set
    Acknowledged     fact    - (order known; total <= its amount)             as Earned, on closed orders too;
                                                                              a lower total is ignored
    VoucherReceived  fact    - (a lower total is ignored)                     authorized = total, even above
                                                                              owed
    Settled          fact    - (a lower total is ignored)                     settled = total

    an order:  unknown --Reserved--> open --Released--> closed --Forgotten--> unknown
                                     Earned*            Acknowledged*
                                     Acknowledged*

The payer's `Authorized` is the payee's `VoucherReceived`: one promises no more than it owes, the other takes
what it is promised. `Earned` is the delivery as it goes; `Acknowledged` is what both signatures stand for,
and may come after the order was closed: a seller that crashed has closed its orders, and its buyer
acknowledges the last checkpoint later. An acknowledgement of an order that was never opened, or above what
the order reserved, bears no signature of ours: it is no fact, and is refused like an act.
"""

from collections.abc import Mapping
from types import MappingProxyType

from attrs import define, evolve, field, frozen

from ledger.changes import (
    Acknowledged,
    Authorized,
    Change,
    Claimed,
    Earned,
    Forgiven,
    Forgotten,
    Granted,
    InvalidUnit,
    Released,
    Reserved,
    Settled,
    VoucherReceived,
)
from ledger.money import UNITS, Unit


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
class AboveCapacity(AccountError):
    """The order costs more than the collateral that is left."""

    amount: int
    left: int

    def __str__(self) -> str:
        return f"{self.amount} is more than the {self.left} that the collateral covers: settle, or order less"


@define
class AboveWindow(AccountError):
    """The order costs more than the unpaid work that is borne at a time."""

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
    """Only what is owed and not authorized can be forgiven."""

    unpaid: int
    amount: int

    def __str__(self) -> str:
        return f"{self.unpaid} is unpaid: {self.amount} is more than there is to forgive"


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


def _is_unit(_: object, __: object, value: str) -> None:
    if value not in UNITS:
        raise InvalidUnit(value)


@frozen
class AccountKey:
    """Whose debt to whom, on which rail and in which unit."""

    payer: str
    payee: str
    rail: str
    unit: Unit = field(validator=_is_unit)


@frozen
class Reservation:
    """What one order may cost at most, what of it is delivered, and whether more may come."""

    amount: int
    expires: int
    earned: int = 0
    open: bool = True

    @property
    def rest(self) -> int:
        """What the order may still earn."""
        return self.amount - self.earned if self.open else 0


def _sealed(orders: Mapping[bytes, Reservation]) -> Mapping[bytes, Reservation]:
    return MappingProxyType(dict(orders))


@frozen(hash=False)
class Account:
    """The counters of one debt, in the key's unit. `funded` and `withdrawn` wait for rails with deposits."""

    key: AccountKey
    limit: int = 0
    window: int = 0
    grant_sequence: int = 0
    funded: int = 0
    withdrawn: int = 0
    authorized: int = 0
    earned: int = 0
    forgiven: int = 0
    claimed: int = 0
    settled: int = 0
    orders: Mapping[bytes, Reservation] = field(factory=dict, converter=_sealed)

    @property
    def owed(self) -> int:
        """What was delivered and not forgiven, paid or not."""
        return self.earned - self.forgiven

    @property
    def unpaid(self) -> int:
        """What is owed and has no voucher yet."""
        return max(self.owed - self.authorized, 0)

    @property
    def reserved(self) -> int:
        """What the open orders may still earn."""
        return sum(order.rest for order in self.orders.values())

    @property
    def capacity(self) -> int:
        """The collateral that stands behind the debt; a rail that this version does not know has none."""
        return self.limit + self.settled if self.key.rail == "credit" else 0

    @property
    def shortfall(self) -> int:
        """By how much the debt is above its collateral; while it is, no new work starts."""
        return max(self.owed + self.reserved - self.capacity, self.authorized - self.capacity, 0)

    @property
    def capacity_left(self) -> int:
        """What a further order may cost before it outgrows the collateral."""
        return 0 if self.shortfall else self.capacity - self.owed - self.reserved

    @property
    def window_left(self) -> int:
        """What a further order may cost before more work is unpaid than is borne at a time."""
        return max(self.window + self.due - self.owed - self.reserved, 0)

    @property
    def available(self) -> int:
        """The most that a further order may cost, as `Reserved` admits it; 0 also where it admits nothing."""
        return min(self.capacity_left, self.window_left)

    @property
    def due(self) -> int:
        """What can be claimed: owed as well as authorized."""
        return min(self.owed, self.authorized)


def apply(account: Account, change: Change) -> Account:
    """The account after a change. Raises AccountError, one subclass for each broken guard."""
    match change:
        case Reserved(order, amount, expires):
            return _reserve(account, order, Reservation(amount, expires))
        case Earned(order, total):
            return _earn(account, order, total)
        case Released(order):
            return _with_order(account, order, evolve(_known(account, order), open=False))
        case Forgotten(before):
            kept = {d: r for d, r in account.orders.items() if r.open or r.expires >= before}
            return evolve(account, orders=kept)
        case Authorized(total):
            return _authorize(account, total)
        case Forgiven(amount):
            if amount > account.unpaid:
                raise ForgivenAboveUnpaid(account.unpaid, amount)
            return evolve(account, forgiven=account.forgiven + amount)
        case Claimed(total):
            return _claim(account, total)
        case Granted(limit, window, sequence):
            if sequence <= account.grant_sequence:
                return account
            return evolve(account, limit=limit, window=window, grant_sequence=sequence)
        case Acknowledged(order, total):
            earned = max(total, _known(account, order).earned)
            return _with_earned(account, order, earned)
        case VoucherReceived(total):
            return evolve(account, authorized=max(account.authorized, total))
        case Settled(total):
            return evolve(account, settled=max(account.settled, total))


def _known(account: Account, order: bytes) -> Reservation:
    if order not in account.orders:
        raise OrderUnknown(order)
    return account.orders[order]


def _with_order(account: Account, order: bytes, reservation: Reservation) -> Account:
    return evolve(account, orders={**account.orders, order: reservation})


def _reserve(account: Account, order: bytes, reservation: Reservation) -> Account:
    if order in account.orders:
        raise OrderKnown(order)
    debt = account.owed + account.reserved + reservation.amount
    if max(debt, account.authorized) > account.capacity:
        raise AboveCapacity(reservation.amount, account.capacity_left)
    if debt - account.due > account.window:
        raise AboveWindow(reservation.amount, account.window_left)
    return _with_order(account, order, reservation)


def _earn(account: Account, order: bytes, total: int) -> Account:
    reservation = _known(account, order)
    if not reservation.open:
        raise OrderClosed(order)
    if total < reservation.earned:
        raise EarnedFell(order, reservation.earned, total)
    return _with_earned(account, order, total)


def _with_earned(account: Account, order: bytes, total: int) -> Account:
    reservation = account.orders[order]
    if total > reservation.amount:
        raise AboveReservation(order, reservation.amount, total)
    earned = account.earned + total - reservation.earned
    return evolve(_with_order(account, order, evolve(reservation, earned=total)), earned=earned)


def _authorize(account: Account, total: int) -> Account:
    if total < account.authorized:
        raise AuthorizedFell(account.authorized, total)
    if total > account.owed:
        raise AboveOwed(account.owed, total)
    return evolve(account, authorized=total)


def _claim(account: Account, total: int) -> Account:
    if total < account.claimed:
        raise ClaimedFell(account.claimed, total)
    if total > account.due:
        raise AboveDue(account.due, total)
    return evolve(account, claimed=total)
