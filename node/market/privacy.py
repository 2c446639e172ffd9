"""How far a prompt may go: levels, ceilings, and which of two levels is stricter."""

from typing import Final, Literal

from ledger.records import PRIVACY_LEVELS, Privacy

Relation = Literal["self", "attested", "named", "anyone", "remote"]

# The highest level that somebody in this relation to the owner may be shown.
CEILINGS: Final[dict[Relation, Privacy]] = {
    "self": "restricted",
    "attested": "confidential",
    "named": "internal",
    "anyone": "public",
    "remote": "public",  # unless the owner raises it for that one
}


def may_see(relation: Relation, level: Privacy) -> bool:
    """Whether somebody in this relation may be shown a prompt of this level."""
    return within(CEILINGS[relation], level)


def within(ceiling: Privacy, level: Privacy) -> bool:
    """Whether a prompt of this level may go where prompts up to the ceiling may."""
    return PRIVACY_LEVELS.index(level) <= PRIVACY_LEVELS.index(ceiling)


def stricter(one: Privacy, other: Privacy) -> Privacy:
    """The stricter of two levels: a request may raise the owner's level, and so may a classifier."""
    return max(one, other, key=PRIVACY_LEVELS.index)
