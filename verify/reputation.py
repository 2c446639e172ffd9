"""History of deliveries and verdicts, as a score that ranks sellers.

The score is the mean of a beta distribution (Josang, Ismail 2002): good and bad conduct, weighted, on top of
a prior that stands for a stranger. It says how a seller behaved to us; evidence of dishonesty is another
matter (`verify.evidence`) and ends in `condemned`.
"""

from typing import Literal, assert_never

from attrs import evolve, field, frozen
from attrs.validators import ge

Event = Literal["delivered", "failed", "refused", "honest", "dishonest", "contradicted"]

# A stranger scores 1 / (1 + 2): below anyone who has delivered, above those who let us down.
PRIOR_GOOD, PRIOR_BAD = 1.0, 2.0
# In deliveries. A failure costs the user an answer; an audit passed says more than the delivery it was about;
# a refusal costs only a detour, and honest ones (a full queue) are to be expected. Two others that answer alike and
# otherwise may be right by rounding alone.
WEIGHT_FAILED, WEIGHT_HONEST, WEIGHT_REFUSED, WEIGHT_CONTRADICTED = 4.0, 2.0, 0.1, 1.0


@frozen
class History:
    """What one seller did for us, counted since the first time. A value: fold with `observe`."""

    delivered: int = field(default=0, validator=ge(0))  # answers complete, with a receipt that matched
    failed: int = field(default=0, validator=ge(0))  # cut, stalled, or with a receipt that did not match
    refused: int = field(default=0, validator=ge(0))  # orders turned down
    tokens: int = field(default=0, validator=ge(0))  # of the delivered answers: how much it all rests on
    honest: int = field(default=0, validator=ge(0))  # audits passed
    contradicted: int = field(default=0, validator=ge(0))  # answers that two others gave alike and otherwise
    condemned: bool = False  # an audit ended "dishonest"; final


def observe(history: History, event: Event, tokens: int = 0) -> History:
    """The history after one more event; `tokens` are those of a delivered answer."""
    match event:
        case "delivered":
            return evolve(history, delivered=history.delivered + 1, tokens=history.tokens + tokens)
        case "failed":
            return evolve(history, failed=history.failed + 1)
        case "refused":
            return evolve(history, refused=history.refused + 1)
        case "honest":
            return evolve(history, honest=history.honest + 1)
        case "contradicted":
            return evolve(history, contradicted=history.contradicted + 1)
        case "dishonest":
            return evolve(history, condemned=True)
        case _:
            assert_never(event)


def score(history: History) -> float:
    """From 0 (condemned) towards 1 (has always delivered); a stranger has a third."""
    if history.condemned:
        return 0.0
    good = PRIOR_GOOD + history.delivered + WEIGHT_HONEST * history.honest
    bad = PRIOR_BAD + WEIGHT_FAILED * history.failed + WEIGHT_REFUSED * history.refused
    bad += WEIGHT_CONTRADICTED * history.contradicted
    return good / (good + bad)
