"""Which receipts to check.

Honesty must be the only sensible strategy: with audit probability p, detection power d, colluding share r
of checkers, reward R and stake at risk S, cheating that gains C does not pay while

    p * d * (1 - r) * (R + S) > C

A new seller has nothing at stake but unpaid work, so its first receipts are all checked, before they are
paid. The choice falls after delivery, with entropy that the seller cannot know.
"""

from attrs import frozen

ENTROPY_BYTES = 8
_WAYS = 2 ** (8 * ENTROPY_BYTES)


class NotARate(ValueError):
    """A share of receipts to audit that is no share."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"the audit rate is {rate}: give a number from 0 to 1, such as 0.05 for 5%")
        self.rate = rate


class TooLittleEntropy(ValueError):
    """Fewer random bytes than a fair choice needs; a seller might guess it."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes of entropy: draw at least {ENTROPY_BYTES} after the delivery")
        self.size = size


@frozen
class AuditPlan:
    """What to do with one receipt."""

    audit: bool
    before_payment: bool  # hold the voucher back until the verdict is known; only ever with an audit


def plan(rate: float, earlier_receipts: int, first: int, entropy: bytes) -> AuditPlan:
    """Whether to audit a seller's receipt that follows `earlier_receipts` others.

    The `first` ones are audited and paid afterwards; a later one is audited with probability `rate`, 0 to 1,
    decided by the first 8 bytes of `entropy`. Raises NotARate, TooLittleEntropy.
    """
    if not 0 <= rate <= 1:
        raise NotARate(rate)
    if len(entropy) < ENTROPY_BYTES:
        raise TooLittleEntropy(len(entropy))
    if earlier_receipts < first:
        return AuditPlan(audit=True, before_payment=True)
    drawn = int.from_bytes(entropy[:ENTROPY_BYTES], "big")
    return AuditPlan(audit=drawn < rate * _WAYS, before_payment=False)
