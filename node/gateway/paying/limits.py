"""The owner's limits on what a remote backend may be promised, and the refusals that they lead to."""

from typing import Final, Literal

from attrs import field, frozen

from ledger.money import Amount, Price, cost
from node.engine.paying import Demand
from node.engine.streaming import RemoteFailed

Scheme = Literal["exact", "batch-settlement"]
# So many requests' worth is put into a channel, where the owner sets no limit.
DEPOSIT_REQUESTS: Final = 10


class PaymentRefused(RemoteFailed):
    """The owner's side does not pay; nothing was signed. Each subclass is one broken rule."""


class Unreadable(PaymentRefused):
    """What the server wants cannot be read."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "wants to be paid in a form that cannot be read: it speaks no x402 version 2")


class OtherMoney(PaymentRefused):
    """The server takes nothing that this node has."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(name, f"cannot be paid: {what}")


class OtherPayee(PaymentRefused):
    """The money is to go to another address than before, or than the owner named."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        super().__init__(
            name, f"wants the money sent to {found}, and {expected} is its address: name the new one as pay_to if it is"
        )
        self.expected, self.found = expected, found


class OtherChannel(PaymentRefused):
    """The terms are for another channel than the one that has the money."""

    def __init__(self, name: str) -> None:
        super().__init__(
            name,
            "wants another channel than the one that holds its money (its receiverAuthorizer or withdrawDelay has "
            "changed, or this node's wallet): take that back first, by `idlemesh wallet withdraw`",
        )


class AsksTooMuch(PaymentRefused):
    """A request, or a deposit for it, is more than the owner allows."""

    def __init__(self, name: str, asked: Amount, most: Amount, limit: str, what: str = "this request") -> None:
        super().__init__(name, f"asks {asked} for {what}, and {most} is the most by {limit}")
        self.asked, self.most = asked, most


class DayIsSpent(PaymentRefused):
    """The owner's limit for a day would be passed."""

    def __init__(self, name: str, asked: Amount, left: Amount) -> None:
        super().__init__(name, f"asks {asked}, and {left} is left of its max_per_day in [[remotes]]")
        self.asked, self.left = asked, left


class PaymentPending(PaymentRefused):
    """An earlier payment may still be taken; until that is known nothing else is signed."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(name, f"has an earlier payment of which nothing was heard: {what}")


class CannotSign(PaymentRefused):
    """The wallet or the chain does not do its part."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, f"cannot be paid now: {why}")


class TooPoor(CannotSign):
    """The wallet has less than is to leave it: what is signed would be refused, and wait for its end."""

    def __init__(self, name: str, has: int, needed: int) -> None:
        super().__init__(name, f"the wallet has {_dollars(has)}, and {_dollars(needed)} is to leave it")


class TurnedDown(RemoteFailed):
    """The server does not take a payment. `error` is its code for why, and `reason` its words, if it gave plain ones.

    `leaving` is what is known of money that its owner takes back from the channel, where that may be why.
    """

    def __init__(self, name: str, error: str, reason: str = "", leaving: str | None = None) -> None:
        said = " - ".join(part for part in (error, reason) if part)
        why = f": {said}" if said else ""
        if leaving is not None:
            why += f"; you are taking money back from its channel, so try again after that ({leaving or 'just begun'})"
        super().__init__(name, f"does not take the payment{why}")
        self.error = error


class Charged(RemoteFailed):
    """The server took something else than what it was promised, or said so."""


@frozen
class PayLimits:
    """What the owner allows for one remote. Amounts are in uusd; `pay_to` an address, 0x and 40 digits."""

    name: str
    price: Price
    schemes: tuple[Scheme, ...] = ("batch-settlement", "exact")
    max_payment: Amount | None = None
    max_per_day: Amount | None = None
    max_deposit: Amount | None = None
    pay_to: str | None = field(default=None)

    def check(self, asked: int, demand: Demand, spent: int) -> None:
        """Whether so much may be promised for a request. Raises AsksTooMuch, DayIsSpent."""
        most = self.most(demand)
        if asked > most:
            limit = "its price and tokens: raise price or max_payment" if self.max_payment is None else "max_payment"
            raise AsksTooMuch(self.name, _dollars(asked), _dollars(most), limit)
        if self.max_per_day is not None and spent + asked > self.max_per_day.value:
            left = max(self.max_per_day.value - spent, 0)
            raise DayIsSpent(self.name, _dollars(asked), _dollars(left))

    def most(self, demand: Demand) -> int:
        """The most that a request may be promised."""
        if self.max_payment is not None:
            return self.max_payment.value
        return cost(self.price, demand.prompt_tokens, demand.max_tokens)

    def deposit(self, needed: int, asked: int, wished: int | None, demand: Demand) -> int:
        """How much to put into a channel that lacks `needed` for a request of `asked`. Raises AsksTooMuch.

        `wished` is the least that the server wants to see, if it says so.
        """
        most = DEPOSIT_REQUESTS * self.most(demand) if self.max_deposit is None else self.max_deposit.value
        least = max(needed, wished or 0)
        if least > most:
            limit = "what ten requests may cost: set max_deposit" if self.max_deposit is None else "max_deposit"
            raise AsksTooMuch(self.name, _dollars(least), _dollars(most), limit, "a deposit into its channel")
        return min(max(least, DEPOSIT_REQUESTS * asked), most)


def _dollars(value: int) -> Amount:
    return Amount(value, "uusd")
