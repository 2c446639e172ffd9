"""One bound on what all unproven payers owe together, so that making up fresh identities wins nothing."""

from collections.abc import Collection, Iterable

from attrs import define

from ledger.account import Account


@define
class AboveExposure(Exception):
    """The order would take what unproven payers owe together above its bound; amounts in the account's unit."""

    amount: int
    left: int

    def __str__(self) -> str:
        return f"{self.amount} is more than the {self.left} that unproven payers may owe here together by now"


def is_proven(account: Account, named: Collection[str]) -> bool:
    """Whether the owner named the payer, or it has paid or worked for something.

    Mere promises prove nothing, nor do deposits: both can be had back.
    """
    return account.settled + account.netted > 0 or account.key.payer in named


def exposure(account: Account) -> int:
    """What a payer may leave unpaid if it goes away now, without what stands behind it.

    On credit that is all that is owed or reserved. A deposit is behind what has vouchers alone; the rest of it can be
    had back, and no more than the window is ever without.
    """
    if account.on_deposit:
        return min(max(account.owed + account.reserved - account.authorized, 0), account.window)
    return max(account.owed + account.reserved - account.backed, 0)


def added_exposure(account: Account, amount: int) -> int:
    """By how much an order of `amount` may raise an account's exposure."""
    return min(amount, max(account.window - exposure(account), 0)) if account.on_deposit else amount


def unproven_exposure(accounts: Iterable[Account], like: Account, named: Collection[str]) -> int:
    """The exposure to all unproven payers of `like`'s payee, in its unit, on any rail."""
    return sum(
        exposure(account)
        for account in accounts
        if (account.key.payee, account.key.unit) == (like.key.payee, like.key.unit) and not is_proven(account, named)
    )


def check_exposure(
    accounts: Iterable[Account], account: Account, amount: int, bound: int, named: Collection[str]
) -> None:
    """Check that an order of `amount` on `account` keeps the unproven payers within `bound`. Raises AboveExposure.

    `accounts` are all of the payee's, `account` among them if anything ever happened to it.
    """
    if is_proven(account, named):
        return
    amount = added_exposure(account, amount)
    left = max(bound - unproven_exposure(accounts, account, named), 0)
    if amount > left:
        raise AboveExposure(amount, left)
