from itertools import product

import pytest

from ledger.records import PRIVACY_LEVELS, Privacy
from node.market.privacy import CEILINGS, Relation, may_see, stricter


@pytest.mark.parametrize(
    ("relation", "highest"),
    [
        ("self", "restricted"),
        ("attested", "confidential"),
        ("named", "internal"),
        ("anyone", "public"),
        ("remote", "public"),
    ],
)
def test_everybody_sees_prompts_up_to_their_ceiling_and_none_above(relation: Relation, highest: Privacy) -> None:
    seen = [level for level in PRIVACY_LEVELS if may_see(relation, level)]

    assert seen == list(PRIVACY_LEVELS[: PRIVACY_LEVELS.index(highest) + 1])
    assert CEILINGS[relation] == highest


def test_a_level_is_only_ever_raised() -> None:
    for one, other in product(PRIVACY_LEVELS, PRIVACY_LEVELS):
        chosen = stricter(one, other)
        assert chosen in (one, other)
        assert PRIVACY_LEVELS.index(chosen) == max(PRIVACY_LEVELS.index(one), PRIVACY_LEVELS.index(other))
