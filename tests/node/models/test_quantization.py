"""Tiers are one order over llama.cpp's file types."""

import pytest

from node.models.quantization import FILE_TYPES, TIERS, UnknownTier, at_least, rank


def test_every_file_type_stands_in_one_tier() -> None:
    names = [name for row in TIERS for name in row]
    assert sorted(names) == sorted(FILE_TYPES.values())


@pytest.mark.parametrize(
    ("offered", "wished", "enough"),
    [
        ("Q8_0", "Q5", True),
        ("Q5_K_M", "Q5", True),
        ("Q5_0", "Q5", True),
        ("Q4_K_M", "Q5", False),
        ("F16", "BF16", True),
        ("BF16", "F16", True),
        ("Q2_K", "Q8_0", False),
        ("F32", "F16", True),
        ("q8_0", "q5", True),
        ("Q4_K_M", "q4_k_m", True),
        ("Q3_K_S", "q4", False),
    ],
)
def test_a_wish_means_that_tier_or_better(offered: str, wished: str, enough: bool) -> None:
    assert at_least(offered, wished) is enough


@pytest.mark.parametrize("name", ["", "Q9", "best", "Q"])
def test_an_unknown_tier_is_an_error(name: str) -> None:
    with pytest.raises(UnknownTier):
        rank(name)
