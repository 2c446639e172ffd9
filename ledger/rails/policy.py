"""When money is moved without anybody asking: by threshold, by age, and at once where collateral is leaving."""

from collections.abc import Set

from attrs import frozen

from ledger.account import Account
from ledger.effects import Kind, free_collateral
from ledger.money import MAX_AMOUNT


@frozen
class Policy:
    """Amounts in the account's unit (millionths of a dollar, or thousandths of a satoshi), times in seconds.

    Every movement costs a fee, so small sums wait until there is more of them (`move_at`) or until they are old
    (`move_after_s`). Collateral is topped up to `top_up_to` when less than `top_up_below` of it is free; 0: never.
    """

    move_at: int = 1_000_000
    move_after_s: float = 7 * 86_400
    top_up_below: int = 0
    top_up_to: int = 0


@frozen
class Wish:
    """What should move now; an urgent wish waits for no pause between tries."""

    kind: Kind
    amount: int
    urgent: bool = False


def wanted(account: Account, me: str, able: Set[Kind], policy: Policy, age_s: float, leaving: int) -> Wish | None:
    """What should move on an account now, if anything.

    `able` is what its rail can do, `age_s` for how long something has been unsettled, and `leaving` what of the
    collateral its payer has begun to take back. A payee claims what it can while it can.
    """
    kind: Kind = "pay" if account.key.payer == me else "claim"
    due = account.unsettled
    urgent = kind == "claim" and leaving > 0
    if due and kind in able and (urgent or due >= policy.move_at or age_s >= policy.move_after_s):
        return Wish(kind, due, urgent)
    free = free_collateral(account)
    if account.key.payer == me and "top_up" in able and free < min(policy.top_up_below, policy.top_up_to):
        return Wish("top_up", min(policy.top_up_to - free, MAX_AMOUNT - account.funded))
    return None
