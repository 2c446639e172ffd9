"""When money is moved without anybody asking: by threshold and age, where the fee is a small share of it.

Theory of operation. What a rail charges for moving one account is much for a small sum, and most of it is charged once
for all that move together. So what each account would have moved is a `Wish`, and `together` chooses among the wishes
of one rail: an account goes along if it is worth what it costs by itself, and they go if the whole is worth the whole.
A claim whose collateral its payer is taking back does not wait for that; it goes unless it costs more than it brings.
"""

from collections.abc import Mapping, Set
from typing import Final, TypeVar

from attrs import frozen

from ledger.account import Account
from ledger.effects import Kind, claimable, free_collateral
from ledger.money import MAX_AMOUNT

_WHOLE: Final = 1_000_000  # parts of a million

K = TypeVar("K")


@frozen
class Policy:
    """Amounts in the account's unit (millionths of a dollar, or thousandths of a satoshi), times in seconds.

    Small sums wait until there is more of them (`move_at`) or until they are old (`move_after_s`), and in any case
    until the fee is at most `max_fee_ppm` millionths of what moves. Collateral is topped up to `top_up_to` when less
    than `top_up_below` of it is free; 0: never.
    """

    move_at: int = 1_000_000
    move_after_s: float = 86_400
    top_up_below: int = 0
    top_up_to: int = 0
    max_fee_ppm: int = 20_000


@frozen
class Wish:
    """What an account would have moved; `ripe`: it is time, by threshold or age; `urgent`: it cannot wait."""

    kind: Kind
    amount: int
    urgent: bool = False
    ripe: bool = True


@frozen
class Fees:
    """What moving costs, in the rail's unit: `once` for all that move together, `each` for every account of them."""

    once: int = 0
    each: int = 0

    @classmethod
    def between(cls, one: int, many: int, accounts: int) -> "Fees":
        """From what one costs, and what so many cost together."""
        each = max(-(-(many - one) // (accounts - 1)), 0) if accounts > 1 else 0
        return cls(max(one - each, 0), min(each, one))

    def of(self, accounts: int) -> int:
        """What so many cost together."""
        return self.once + self.each * accounts


def wanted(account: Account, me: str, able: Set[Kind], policy: Policy, age_s: float, leaving: int) -> Wish | None:
    """What should move on an account, if anything; a payee's small sums are a wish that is not ripe.

    `able` is what its rail can do, `age_s` for how long something has been unsettled, and `leaving` what of the
    collateral its payer has begun to take back. A payee claims what it can while it can, and no more than lies there.
    """
    kind: Kind = "pay" if account.key.payer == me else "claim"
    due = claimable(account, leaving) if kind == "claim" else account.unsettled
    urgent = kind == "claim" and leaving > 0
    ripe = urgent or due >= policy.move_at or age_s >= policy.move_after_s
    if due and kind in able and (ripe or kind == "claim"):
        return Wish(kind, due, urgent, ripe)
    if account.key.payer == me and "top_up" in able:
        return _top_up(account, policy)
    return None


def _top_up(account: Account, policy: Policy) -> Wish | None:
    free = free_collateral(account)
    # What was taken back is put in again by its owner alone, not by a rule. Who is no node (a wallet, paid by x402) is
    # paid within limits of its own.
    if account.withdrawn or account.key.payee.startswith("did:pkh:"):
        return None
    if free >= min(policy.top_up_below, policy.top_up_to):
        return None
    return Wish("top_up", min(policy.top_up_to - free, MAX_AMOUNT - account.funded))


def together(wishes: Mapping[K, Wish], fees: Fees | None, max_fee_ppm: int, most: int) -> list[K]:
    """Which of the wishes of one kind go now, together: the largest first, `most` at the most.

    `fees` are what that costs; None: nobody knows, and only what is urgent goes.
    """
    urgent = [key for key, wish in wishes.items() if wish.urgent and (fees is None or wish.amount > fees.each)]
    if fees is None:
        return _largest(wishes, urgent)[:most]
    calm = [key for key, wish in wishes.items() if key not in urgent and _worth(fees.each, wish.amount, max_fee_ppm)]
    chosen = (_largest(wishes, urgent) + _largest(wishes, calm))[:most]
    amount, fee = sum(wishes[key].amount for key in chosen), fees.of(len(chosen))
    if urgent and fee < amount:
        return chosen
    is_time = any(wishes[key].ripe for key in chosen)
    return chosen if is_time and _worth(fee, amount, max_fee_ppm) else []


def _largest(wishes: Mapping[K, Wish], keys: list[K]) -> list[K]:
    return sorted(keys, key=lambda key: -wishes[key].amount)


def _worth(fee: int, amount: int, max_fee_ppm: int) -> bool:
    return fee * _WHOLE <= amount * max_fee_ppm
