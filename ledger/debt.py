"""One debt as it stands: whose to whom, the counters, the orders under way, and what follows from them.

Nothing here moves: what may happen to an account is in `ledger.account`.
"""

from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from ledger.changes import InvalidUnit
from ledger.money import UNITS, Unit
from ledger.orders import Orders

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
