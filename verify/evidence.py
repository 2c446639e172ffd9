"""Margins over many receipts, as evidence: a sequential test, and its verdict.

No single odd token condemns anyone. Each checked token falls into a bin by its margin and weighs e(bin), which averages
at most 1 as long as the seller is honest: `verify.calibration` says where e comes from. The e-detector of Shiryaev and
Roberts (Shin, Ramdas, Rinaldo 2023) then keeps

    M = (1 + M) * e         from M = 0, one step per token

and condemns at 10^9: honest sellers are flagged on average less than once in 10^9 checked tokens, however often one
looks. A long honest past never pays for a dishonest present: good tokens alone lead M to a level of at most 499 from
below or above, and never under what a start from nothing would have.

Some frauds show in one token of 50, others in one of 500, and no one e is good for both. So there are three detectors
with bets of different size, and M is their mean: what holds for each holds for the mean.

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
from verify.calibration import BETS, E_MAX, NotMargins, Odds, bins_of
from verify.noise import Reals

__all__ = ["Evidence", "NotMargins", "advance", "contexts", "fresh", "observe", "summarise"]

# A margin above this many logits is odd: verdicts count those.
ODD_LOGITS = 0.1
# The mean is taken of margins clipped here, in logits: a few wild tokens shall not hide what the many say.
CLIP_LOGITS = 0.5

LOG_CONDEMN = math.log(1e9)
# After any number of good tokens one odd one lifts M no higher: alone it is no doubt yet. The last term keeps
# rounding from deciding that.
LOG_DOUBT = math.log(E_MAX / min(BETS)) + 1e-9

MICROLOGITS = 1_000_000
CONTEXT_BYTES = 8


@frozen
class Evidence:
    """Where the test stands for one seller and model: fold with `observe`, never reset."""

    log_ms: tuple[float, ...] = (-math.inf,) * len(BETS)  # natural logarithm of each detector's M
    peak: float = -math.inf  # the largest log_m so far
    tokens: int = 0
    odd: int = 0

    @property
    def log_m(self) -> float:
        """Natural logarithm of M, the mean of the detectors."""
        return float(_log_mean(np.array(self.log_ms)))

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


def observe(evidence: Evidence, margins: Reals, odds: Odds) -> Evidence:
    """The evidence after these margins (N,), in logits and in the order checked. Raises NotMargins."""
    bins = bins_of(margins)
    log_ms, peak = np.array(evidence.log_ms), evidence.peak
    done = 0
    for place in np.flatnonzero(bins):
        log_ms = _good(log_ms, int(place) - done, odds)
        peak = max(peak, float(_log_mean(log_ms)))
        log_ms = _step(log_ms, odds.log_e[:, bins[place]])
        peak = max(peak, float(_log_mean(log_ms)))
        done = int(place) + 1
    log_ms = _good(log_ms, bins.size - done, odds)
    peak = max(peak, float(_log_mean(log_ms)))
    return evolve(
        evidence,
        log_ms=tuple(map(float, log_ms)),
        peak=peak,
        tokens=evidence.tokens + bins.size,
        odd=evidence.odd + int((margins > ODD_LOGITS).sum()),
    )


def advance(log_ms: Reals, good: NDArray[np.integer], bins: NDArray[np.integer], odds: Odds) -> Reals:
    """Many sellers at once: ln M (S, bets) after `good` (S,) tokens of bin 0 and then one of `bins` (S,)."""
    return _step(_good(log_ms, good[:, None], odds), odds.log_e[:, bins].T)


def _step(log_ms: Reals, log_e: Reals) -> Reals:
    return np.logaddexp(0.0, log_ms) + log_e


def _good(log_ms: Reals, count: int | NDArray[np.integer], odds: Odds) -> Reals:
    """ln M after `count` tokens of bin 0: M e^n + e + e^2 + ... + e^n, with e below 1."""
    log_e = odds.log_e[:, 0]
    fallen = count * log_e
    with np.errstate(divide="ignore"):  # no tokens add nothing: ln 0
        added = log_e + np.log(-np.expm1(fallen)) - np.log(-np.expm1(log_e))
    return np.logaddexp(log_ms + fallen, added)


def _log_mean(log_ms: Reals) -> Reals:
    summed: Reals = np.logaddexp.reduce(log_ms, axis=-1)
    return summed - math.log(len(BETS))


def summarise(margins: Reals) -> Margins:
    """The margins (N,) of one check as a Verdict carries them, in millionths of a logit. Raises NotMargins."""
    bins_of(margins)
    if not margins.size:
        return Margins(tokens=0, odd=0, mean=0, largest=0)
    return Margins(
        tokens=margins.size,
        odd=int((margins > ODD_LOGITS).sum()),
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
