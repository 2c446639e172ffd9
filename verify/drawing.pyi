"""The sampler of `verify.sampler` in C++, for as long as it is sure of the outcome."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

NOTHING: Final[int]
"""Nothing can be drawn: no logit is finite, or one is NaN or plus infinity."""

UNSURE: Final[int]
"""It is too close to tell with quick arithmetic: draw as it is defined."""

def draw(
    logits: NDArray[np.float32],
    row: int,
    temperature: int,
    top_p: int,
    min_p: int,
    top_k: int,
    seed: int,
    position: int,
) -> int:
    """The token to put at `position`, NOTHING or UNSURE, given a row of logits (R, V) and what a record's `Sampling`
    says. Raises OverflowError for a seed or position that is not unsigned and of 64 bits, ValueError, MemoryError.
    """
