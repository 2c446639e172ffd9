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

from collections.abc import Callable, Iterable
from typing import Final

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
    Netted,
    Recovered,
    Released,
    Reserved,
    Resolved,
    Settled,
    VoucherReceived,
    Withdrawn,
)
from ledger.debt import Account, AccountKey, Reservation
from ledger.guards import (
    AboveAsked,
    AboveCapacity,
    AboveDrawn,
    AboveDue,
    AboveOwed,
    AboveReservation,
    AboveWindow,
    AccountError,
    AuthorizedFell,
    BelowClaimed,
    ClaimedFell,
    DrawnFell,
    EarnedFell,
    ForgivenAboveUnpaid,
    OrderClosed,
    OrderKnown,
    OrderOpen,
    OrderUndisputed,
    OrderUnknown,
)
from ledger.order_moves import (
    acknowledge,
    admit,
    dispute,
    draw,
    earn,
    expire,
    recover,
    reservation_of,
    resolve,
    with_claims_owed,
    with_order,
)
from ledger.orders import Orders, evolve

# This is the one door to accounts: what is moved, what moves it, and the guards.
__all__ = [
    "AboveAsked",
    "AboveCapacity",
    "AboveDrawn",
    "AboveDue",
    "AboveOwed",
    "AboveReservation",
    "AboveWindow",
    "Account",
    "AccountError",
    "AccountKey",
    "AuthorizedFell",
    "BelowClaimed",
    "ClaimedFell",
    "DrawnFell",
    "EarnedFell",
    "ForgivenAboveUnpaid",
    "OrderClosed",
    "OrderKnown",
    "OrderOpen",
    "OrderUndisputed",
    "OrderUnknown",
    "Reservation",
    "apply",
    "apply_plain",
]


def apply(account: Account, change: Change) -> Account:
    """The account after a change. Raises AccountError, one subclass for each broken guard."""
    return _MOVES[type(change)](account, **change.__dict__)


def apply_plain(account: Account, kind: type[Change], values: Iterable[int | bytes]) -> Account:
    """The same for a change of this kind, with the values of its fields in order, that are known to be right."""
    return _MOVES[kind](account, *values)


def _reserve(account: Account, order: bytes, amount: int, expires: int) -> Account:
    return admit(account, order, Reservation(amount, expires, drawn=amount))


def _admit(account: Account, order: bytes, amount: int, first: int, expires: int) -> Account:
    return admit(account, order, Reservation(amount, expires, drawn=first))


def _release(account: Account, order: bytes) -> Account:
    return with_order(account, order, evolve(reservation_of(account, order), open=False))


def _forget(account: Account, before: int) -> Account:
    kept = {digest: order for digest, order in account.orders.items() if order.binds or order.expires >= before}
    return evolve(account, orders=Orders(kept))


def _authorize(account: Account, total: int) -> Account:
    if total < account.authorized:
        raise AuthorizedFell(account.authorized, total)
    if total > max(account.owed, account.authorized):
        raise AboveOwed(account.owed, total)
    return evolve(account, authorized=total)


def _receive_voucher(account: Account, total: int) -> Account:
    return evolve(account, authorized=max(account.authorized, total))


def _forgive(account: Account, amount: int) -> Account:
    if amount > account.forgivable:
        raise ForgivenAboveUnpaid(account.forgivable, amount)
    return evolve(account, forgiven=account.forgiven + amount)


def _receive_forgiveness(account: Account, total: int) -> Account:
    return with_claims_owed(evolve(account, forgiven=max(account.forgiven, total)))


def _claim(account: Account, total: int) -> Account:
    if total < account.claimed:
        raise ClaimedFell(account.claimed, total)
    if total > account.due:
        raise AboveDue(account.due, total)
    return evolve(account, claimed=total)


def _grant(account: Account, limit: int, window: int, sequence: int) -> Account:
    if sequence <= account.grant_sequence:
        return account
    return evolve(account, limit=limit, window=window, grant_sequence=sequence)


def _fund(account: Account, total: int, sequence: int) -> Account:
    if sequence <= account.funded_sequence:
        return account
    return evolve(account, funded=total, funded_sequence=sequence)


def _withdraw(account: Account, total: int, sequence: int) -> Account:
    if sequence <= account.withdrawn_sequence:
        return account
    return evolve(account, withdrawn=total, withdrawn_sequence=sequence)


def _recover(account: Account, order: bytes, amount: int, expires: int, total: int) -> Account:
    return recover(account, order, Reservation(amount, expires, open=False), total)


def _settle(account: Account, total: int) -> Account:
    return evolve(account, settled=max(account.settled, total))


def _net(account: Account, total: int) -> Account:
    return evolve(account, netted=max(account.netted, total))


# Each takes the account and the fields of its change, by name or in order.
_MOVES: Final[dict[type[Change], Callable[..., Account]]] = {
    Admitted: _admit,
    Reserved: _reserve,
    Drawn: draw,
    Earned: earn,
    Released: _release,
    Expired: expire,
    Forgotten: _forget,
    Authorized: _authorize,
    Forgiven: _forgive,
    Claimed: _claim,
    Granted: _grant,
    Funded: _fund,
    Withdrawn: _withdraw,
    Acknowledged: acknowledge,
    Disputed: dispute,
    Resolved: resolve,
    Recovered: _recover,
    VoucherReceived: _receive_voucher,
    ForgivenessReceived: _receive_forgiveness,
    Settled: _settle,
    Netted: _net,
}
