"""Quantizations as data: llama.cpp's file types and tensor types, and the order of their quality."""

from typing import Final

from attrs import frozen

# `enum llama_ftype` of llama.h, without the values that were removed; what `general.file_type` holds.
FILE_TYPES: Final[dict[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}


@frozen
class TensorType:
    """How a tensor's elements are stored: `block` elements of a row together take `size` bytes."""

    name: str
    block: int
    size: int


# `enum ggml_type` of ggml.h; block and size as in ggml's type traits.
TENSOR_TYPES: Final[dict[int, TensorType]] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
}

# Raise the version when a row moves: two owners who compare tiers must mean the same order.
TIERS_VERSION: Final = 1

# Best first; names in one row count as equal. By llama.cpp's published perplexities of its own quantizations.
TIERS: Final[tuple[tuple[str, ...], ...]] = (
    ("F32",),
    ("F16", "BF16"),
    ("Q8_0",),
    ("Q6_K",),
    ("Q5_K_M",),
    ("Q5_K_S", "Q5_1"),
    ("Q5_0",),
    ("Q4_K_M",),
    ("Q4_K_S", "IQ4_NL", "IQ4_XS", "NVFP4", "MXFP4_MOE"),
    ("Q4_1",),
    ("Q4_0",),
    ("Q3_K_L", "IQ3_M"),
    ("Q3_K_M", "IQ3_S"),
    ("IQ3_XS", "Q3_K_S", "IQ3_XXS"),
    ("IQ2_M", "Q2_K"),
    ("IQ2_S", "Q2_K_S", "IQ2_XS"),
    ("IQ2_XXS", "TQ2_0", "TQ1_0", "Q2_0"),
    ("IQ1_M", "IQ1_S", "Q1_0"),
)
_RANKS: Final = {name: rank for rank, row in enumerate(TIERS) for name in row}


class UnknownTier(ValueError):
    """A quantization that stands in no tier, so that nobody can say whether it is good enough."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is no known quantization; name one such as Q4_K_M, or a family such as Q5")
        self.name = name


def file_type_number(name: str) -> int:
    """The number of llama.cpp's file type of this name. Raises UnknownTier."""
    for number, known in FILE_TYPES.items():
        if known == name:
            return number
    raise UnknownTier(name)


def rank(tier: str) -> int:
    """Place of a tier in `TIERS`, 0 the best; "q4_k_m" is "Q4_K_M". A family such as "Q5" means its least member.

    Raises UnknownTier.
    """
    called = tier.upper()
    if called in _RANKS:
        return _RANKS[called]
    family = [place for name, place in _RANKS.items() if name.startswith(f"{called}_")]
    if not family:
        raise UnknownTier(tier)
    return max(family)


def at_least(offered: str, wished: str) -> bool:
    """Whether `offered` is as good as `wished` or better, so that "Q5" means "Q5 or better". Raises
    UnknownTier.
    """
    return rank(offered) <= rank(wished)
