"""Which receipts to check.

Honesty must be the only sensible strategy: with audit probability p, detection power d, colluding share r
of checkers, reward R and stake at risk S, cheating that gains C does not pay while

    p * d * (1 - r) * (R + S) > C

A new seller has nothing at stake but unpaid work, so its first receipts are all checked, before they are
paid. The choice falls after delivery, with entropy that the seller cannot know.

The owner's rate p is meant for sellers without a bond: it takes R + S to be C / (p d (1 - r)). A bond B that this
node counts adds to S, so the same deterrence needs only

    p' = C / (d (1 - r) (R + S + B)) = p C / (C + p d (1 - r) B)

A bond is lost once, for however many receipts, so C is all that cheating could have gained so far.
"""

from typing import Final

from attrs import frozen

ENTROPY_BYTES = 8
_WAYS = 2 ** (8 * ENTROPY_BYTES)
# One audit is an eighth of what it takes to condemn: frauds worth the while show after about 1,000 checked tokens.
DETECTION: Final = 1 / 8
# However large a bond, so much of the owner's rate stays: an evil that is never looked for is never found.
LEAST_SHARE: Final = 0.1


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


class NotAStake(ValueError):
    """Numbers that the deterrence of a stake cannot be reckoned with."""

    def __init__(self, why: str) -> None:
        super().__init__(f"a stake that is reckoned with needs {why}")


def rate_with_stake(rate: float, gain: int, stake: int, power: float = DETECTION, colluding: float = 0.0) -> float:
    """The rate that deters as well as `rate` does without a stake; at least `LEAST_SHARE` of it, and never above it.

    `gain` is what cheating can have brought in all, `stake` what is lost by it besides, in one unit; `power` is the
    chance that an audit of a cheat condemns it, `colluding` the share of checkers on its side, both 0 to 1.
    Raises NotARate, NotAStake.
    """
    if not 0 <= rate <= 1:
        raise NotARate(rate)
    if gain < 0 or stake < 0:
        raise NotAStake("amounts that are not negative")
    if not (0 <= power <= 1 and 0 <= colluding <= 1):
        raise NotAStake("a power of detection and a share of colluders from 0 to 1")
    lost = rate * power * (1 - colluding) * stake
    if lost == 0:
        return rate
    return min(rate, max(rate * (gain / (gain + lost)), LEAST_SHARE * rate))


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
