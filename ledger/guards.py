"""The guards of an account, each as the error that a change raises which breaks it, with its values."""

from attrs import define


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
