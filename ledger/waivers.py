"""What a payee lets go of, as signed records that its payer may rely on: resolutions of disputes, and forgiveness.

Theory of operation. Both only take away from what their signer asks, so one signature is enough. A `Resolution` is of
one order. `Forgiveness` is of an account, where the two sides need not count alike: a payee may have delivered what its
payer never saw (a line that broke), and forgives just that. Were the payer to take the whole of it, that part, which it
never owed by its own count, would be let go twice. So the payer says what it counts, and is told what is left of the
forgiveness beyond the difference: it owes what its payee asks then, and never less.
"""

from typing import Final

from attrs import define, frozen

from ledger.account import Account, AccountKey, Reservation, apply
from ledger.changes import ForgivenessReceived, Resolved
from ledger.events import AccountChanged
from ledger.records import Forgiveness, Order, Resolution, Signed


class WaiverRefused(Exception):
    """Nothing is let go; each subclass is one broken rule, with its values."""


@define
class NotDisputed(WaiverRefused):
    """Only what is in dispute is resolved."""

    order: bytes

    def __str__(self) -> str:
        return f"order {self.order.hex()[:16]} is not in dispute: `idlemesh disputes` shows those that are"


@define
class OutsideDispute(WaiverRefused):
    """A resolution lies between what is granted and what is asked."""

    granted: int
    asked: int
    total: int

    def __str__(self) -> str:
        return f"{self.granted} is granted of {self.asked} asked: {self.total} is not between the two"


@define
class LetGoBefore(WaiverRefused):
    """What the dispute is about was forgiven earlier; a resolution would let go of it twice."""

    amount: int

    def __str__(self) -> str:
        return f"{self.amount} of it was forgiven before, and this would let go of as much once more"


@define
class NotFitting(WaiverRefused):
    """A record of somebody else, or about something else."""

    why: str

    def __str__(self) -> str:
        return self.why


@frozen
class Dispute:
    """An order of which more is asked than granted, in its account's unit."""

    key: AccountKey
    order: bytes
    asked: int
    granted: int


# What an order that is not in dispute has: nothing of it is asked and not granted.
_QUIET: Final = Reservation(0, 0)


def disputes(account: Account) -> list[Dispute]:
    """The orders of an account that are in dispute."""
    return [
        Dispute(account.key, digest, order.granted + order.disputed, order.granted)
        for digest, order in account.orders.items()
        if order.disputed
    ]


def check_resolution(account: Account, order: bytes, total: int) -> None:
    """Check that `total` lies within the dispute of an order. Raises NotDisputed, OutsideDispute."""
    reservation = account.orders.get(order, _QUIET)
    if not reservation.disputed:
        raise NotDisputed(order)
    asked = reservation.granted + reservation.disputed
    if not reservation.granted <= total <= asked:
        raise OutsideDispute(reservation.granted, asked, total)


def let_go_before(account: Account, order: bytes, total: int) -> int:
    """How much a payee that resolves an order to `total` would let go that it has forgiven earlier."""
    after = apply(account, Resolved(order, total))
    return max(account.authorized - after.owed, 0) - max(account.authorized - account.owed, 0)


def resolve(account: Account, order: bytes, total: int, *, twice: bool = False) -> AccountChanged:
    """The payee's act. `twice` lets it go also where that was done before.

    Raises NotDisputed, OutsideDispute, LetGoBefore, AccountError.
    """
    check_resolution(account, order, total)
    before = let_go_before(account, order, total)
    if before and not twice:
        raise LetGoBefore(before)
    return AccountChanged(account.key, Resolved(order, total))


def take_resolution(signed: Signed[Resolution], order: Signed[Order], key: AccountKey) -> AccountChanged:
    """The fact that a resolution is to its payer, of an order of its own. Raises NotFitting."""
    if signed.signer != order.record.seller or signed.signer != key.payee or order.signer != key.payer:
        raise NotFitting("the resolution is not signed by the seller of the order")
    if signed.record.order != order.digest:
        raise NotFitting("the resolution is about another order")
    return AccountChanged(key, Resolved(order.digest, signed.record.total))


def counted(account: Account) -> int:
    """What one side counts: what orders have brought, without what was let go of them."""
    return account.earned - account.waived


def ask_forgiveness(account: Account, now: int) -> Forgiveness:
    """What a payer signs to hear what it was forgiven; `now` in seconds since 1970."""
    key, count = account.key, counted(account)
    return Forgiveness(
        key.payer, key.payee, key.rail, key.unit, counted=count, total=min(account.forgiven, count), issued=now
    )


def answer_forgiveness(asked: Forgiveness, account: Account, now: int) -> Forgiveness:
    """What its payee signs: what it has forgiven, but for what the payer does not count at all."""
    beyond = max(counted(account) - asked.counted, 0)
    total = min(max(account.forgiven - beyond, 0), asked.counted)
    return Forgiveness(asked.payer, asked.payee, asked.rail, asked.unit, asked.counted, total, now)


def forgiveness_key(said: Forgiveness) -> AccountKey:
    """The account that a forgiveness is about."""
    return AccountKey(said.payer, said.payee, said.rail, said.unit)


def take_forgiveness(signed: Signed[Forgiveness], account: Account) -> AccountChanged:
    """The fact that its payee's answer is to a payer. Raises NotFitting."""
    said = signed.record
    if forgiveness_key(said) != account.key or signed.signer != account.key.payee:
        raise NotFitting("the forgiveness is not signed by the payee of this account")
    if said.counted != counted(account):
        raise NotFitting("more was delivered or let go meanwhile: ask again")
    return AccountChanged(account.key, ForgivenessReceived(said.total))
