"""Margins over many receipts, as evidence: a sequential test, and its verdict.

No single odd token condemns anyone. Each checked token falls into one of two bins, by its margin, and
weighs e = q(bin) / u(bin): u bounds the frequency of the bin for honest sellers from above, q is what the
test bets on for dishonest ones (and adds up to 1), so e averages at most 1 as long as the seller is honest.
The e-detector of Shiryaev and Roberts (Shin, Ramdas, Rinaldo 2023) then keeps

    M = (1 + M) * e         from M = 0, one step per token

and condemns at 10^9: honest sellers are flagged on average less than once in 10^9 checked tokens, however
often one looks. A long honest past never pays for a dishonest present: good tokens alone lead M to 49 from
below or above, and never under what a start from nothing would have.

The same context seen twice is not two pieces of evidence: `contexts` and `fresh` count each once.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from ledger.money import MAX_AMOUNT
from ledger.records import Margins, Outcome
from verify.noise import Reals

# A margin above this many logits is odd.
ODD_LOGITS = 0.1
# The mean is taken of margins clipped here, in logits: a few wild tokens shall not hide what the many say.
CLIP_LOGITS = 0.5
# Odd tokens, and the rest. Honest engines measured at most 47 odd ones in 100,000 (u allows 100); the bet of
# 2% lies between one quantization step down (1.7%) and two (5%).
U_ODD, U_REST = 1e-3, 1.0
Q_ODD, Q_REST = 0.02, 0.98
WEIGHT_ODD, WEIGHT_REST = math.log(Q_ODD / U_ODD), math.log(Q_REST / U_REST)

LOG_CONDEMN = math.log(1e9)
# One odd token after any number of good ones lifts M to (1 + 49) * 20 = 1000 and no higher: alone it is no
# doubt yet. The last term keeps rounding from deciding that.
LOG_DOUBT = math.log(1e3) + 1e-9

MICROLOGITS = 1_000_000
CONTEXT_BYTES = 8


class NotMargins(ValueError):
    """A margin is negative or no number, so it says nothing about honesty."""

    def __init__(self, index: int, margin: float) -> None:
        super().__init__(f"margin {index} is {margin}: pass what verify.replay.margins returned")
        self.index = index
        self.margin = margin


@frozen
class Evidence:
    """Where the test stands for one seller and pair of fingerprints: fold with `observe`, never reset."""

    log_m: float = -math.inf  # natural logarithm of M
    peak: float = -math.inf  # the largest log_m so far
    tokens: int = 0
    odd: int = 0

    @property
    def condemned(self) -> bool:
        """Whether M has ever reached 10^9: later good conduct does not undo it."""
        return self.peak >= LOG_CONDEMN

    @property
    def outcome(self) -> Outcome:
        """The verdict as of now; also "honest" where nothing odd was seen because little was checked."""
        if self.condemned:
            return "dishonest"
        return "undecided" if self.log_m > LOG_DOUBT else "honest"

    @property
    def thousandths(self) -> int:
        """ln M in thousandths, as a Verdict carries it; before the first token the least it can carry."""
        return round(1000 * self.log_m) if self.tokens else -MAX_AMOUNT


def observe(evidence: Evidence, margins: Reals) -> Evidence:
    """The evidence after these margins (N,), in logits and in the order checked. Raises NotMargins."""
    log_m, peak = evidence.log_m, evidence.peak
    odd = _odd(margins)
    for is_odd in odd.tolist():
        log_m = _log_one_plus(log_m) + (WEIGHT_ODD if is_odd else WEIGHT_REST)
        peak = max(peak, log_m)
    return evolve(
        evidence, log_m=log_m, peak=peak, tokens=evidence.tokens + odd.size, odd=evidence.odd + int(odd.sum())
    )


def summarise(margins: Reals) -> Margins:
    """The margins (N,) of one check as a Verdict carries them: integers, in millionths of a logit."""
    odd = _odd(margins)
    if not odd.size:
        return Margins(tokens=0, odd=0, mean=0, largest=0)
    return Margins(
        tokens=odd.size,
        odd=int(odd.sum()),
        mean=round(float(np.minimum(margins, CLIP_LOGITS).mean()) * MICROLOGITS),
        largest=round(float(margins.max()) * MICROLOGITS),
    )


def contexts(prompt_ids: Iterable[int], answer_ids: Iterable[int]) -> list[bytes]:
    """What stood before each answer token, as one 8-byte digest per token; ids below 2**32.

    One pass: the hash state is copied for each token, not started again.
    """
    state = blake2b(digest_size=CONTEXT_BYTES)
    state.update(b"".join(token.to_bytes(4, "little") for token in prompt_ids))
    found = []
    for token in answer_ids:
        found.append(state.copy().digest())
        state.update(token.to_bytes(4, "little"))
    return found


def fresh(contexts: Sequence[bytes], seen: Collection[bytes]) -> NDArray[np.bool_]:
    """Which contexts (N,) count: those neither seen before nor earlier in this list. `seen`: best a set."""
    here: set[bytes] = set()
    mask = np.zeros(len(contexts), np.bool_)
    for index, context in enumerate(contexts):
        mask[index] = context not in seen and context not in here
        here.add(context)
    return mask


def _odd(margins: Reals) -> NDArray[np.bool_]:
    wrong = np.flatnonzero(~(np.isfinite(margins) & (margins >= 0)))
    if wrong.size:
        raise NotMargins(int(wrong[0]), float(margins[wrong[0]]))
    return np.greater(margins, ODD_LOGITS)


def _log_one_plus(log_m: float) -> float:
    """ln(1 + M) from ln M, at any size of M."""
    return max(log_m, 0.0) + math.log1p(math.exp(-abs(log_m)))
