"""What can happen to one order of an account, and what that does to the account's counters.

These are the moves that `ledger.account.apply` is made of; its docstring has them in one table.
"""

from ledger.debt import Account, Reservation
from ledger.guards import (
    AboveAsked,
    AboveCapacity,
    AboveDrawn,
    AboveReservation,
    AboveWindow,
    BelowClaimed,
    DrawnFell,
    EarnedFell,
    OrderClosed,
    OrderKnown,
    OrderOpen,
    OrderUndisputed,
    OrderUnknown,
)
from ledger.orders import Orders, evolve


def reservation_of(account: Account, order: bytes) -> Reservation:
    """The order's reservation. Raises OrderUnknown."""
    found = account.orders.find(order)
    if found is None:
        raise OrderUnknown(order)
    return found


def with_order(account: Account, order: bytes, reservation: Reservation) -> Account:
    """The account with an order as it is now; no counter moves."""
    return evolve(account, orders=account.orders.with_one(order, reservation))


def admit(account: Account, order: bytes, reservation: Reservation) -> Account:
    """Open an order. Raises OrderKnown, AboveReservation, AboveCapacity, AboveWindow."""
    if order in account.orders:
        raise OrderKnown(order)
    if reservation.drawn > reservation.amount:
        raise AboveReservation(order, reservation.amount, reservation.drawn)
    debt = account.owed + account.reserved + reservation.amount
    if max(debt, account.authorized) > account.capacity:
        raise AboveCapacity(reservation.amount, account.available)
    return _with_drawn(account, order, reservation, reservation.drawn)


def draw(account: Account, order: bytes, total: int) -> Account:
    """Let an order deliver up to `total`.

    Raises OrderUnknown, OrderClosed, DrawnFell, AboveReservation, AboveWindow.
    """
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
    reservation = reservation_of(account, order)
    if not reservation.open:
        raise OrderClosed(order)
    return reservation


def earn(account: Account, order: bytes, total: int) -> Account:
    """Count what an order has delivered. Raises OrderUnknown, OrderClosed, EarnedFell, AboveDrawn, AboveReservation."""
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


def with_claims_owed(account: Account) -> Account:
    """The account, if what was claimed is still owed. Raises BelowClaimed."""
    if account.claimed > account.owed:
        raise BelowClaimed(account.claimed, account.owed)
    return account


def expire(account: Account, before: int) -> Account:
    """Close the open orders that expired."""
    orders = {
        digest: evolve(order, open=False) if order.open and order.expires < before else order
        for digest, order in account.orders.items()
    }
    return evolve(account, orders=Orders(orders))


def acknowledge(account: Account, order: bytes, total: int) -> Account:
    """Count what both sides signed for. Raises OrderUnknown, AboveReservation."""
    reservation = reservation_of(account, order)
    earned, granted = max(total, reservation.earned), max(total, reservation.granted)
    if earned > reservation.amount:
        raise AboveReservation(order, reservation.amount, earned)
    return _with_counted(account, order, reservation, evolve(reservation, earned=earned, granted=granted))


def recover(account: Account, order: bytes, lost: Reservation, total: int) -> Account:
    """Know an order again that the journal had lost. Raises AboveReservation."""
    known = evolve(account.orders.get(order, lost), open=False)
    return _with_earned(with_order(account, order, known), order, known, max(total, known.earned))


def dispute(account: Account, order: bytes, asked: int, granted: int) -> Account:
    """Put in dispute what is asked and not granted. Raises OrderUnknown, OrderOpen, AboveAsked, AboveReservation."""
    reservation = reservation_of(account, order)
    if reservation.open:
        raise OrderOpen(order)
    if granted > asked:
        raise AboveAsked(asked, granted)
    if asked > reservation.amount:
        raise AboveReservation(order, reservation.amount, asked)
    moved = acknowledge(account, order, granted)
    return with_order(moved, order, evolve(moved.orders[order], asked=max(asked, reservation.asked or 0)))


def resolve(account: Account, order: bytes, total: int) -> Account:
    """Let go of what a disputed order asks above `total`. Raises OrderUnknown, OrderUndisputed, BelowClaimed."""
    reservation = reservation_of(account, order)
    if reservation.asked is None:
        raise OrderUndisputed(order)
    lowest = total if reservation.at_most is None else min(total, reservation.at_most)
    return with_claims_owed(_with_counted(account, order, reservation, evolve(reservation, at_most=lowest)))
