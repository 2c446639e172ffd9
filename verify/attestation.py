"""What a seller claims about its weights and environment, and which of it can be checked.

Checked now: that the promised weights computed the tokens, by replay, on condition that the margins of honest work are
known for the seller's engine against the checker's and this model (`verify.calibration`); this module tells whether
they are. Tokenizer and model names are digests and prove themselves. All else in an offer (jurisdiction, hardware,
retention, sandbox) is the seller's word.
"""

from ledger.records import Fingerprint, Sampling
from verify.calibration import COMPARED, TEMPERATURES, Calibration
from verify.cutoffs import MILLION
from verify.sampler import SAMPLER
from verify.steering import Steering

# The build of a server of which its owner does not say what it is.
UNDECLARED = "openai-compatible"
# Characters of a reason: the auditor puts some before it, and the reason of a Verdict has 256.
_LONGEST = 230


def abstention(
    seller: Fingerprint, checker: Fingerprint, calibration: Calibration | None, sampling: Sampling, steering: Steering
) -> str | None:
    """Why a replay by `checker` is no evidence about `seller`, in a sentence that fits a Verdict; None if it is.

    `calibration`: that of this pair and model, if there is one; `sampling`: the order's, as `steering`. Of
    another sampler only plain greedy choices are known: the likeliest tokens. Where different programs tell what a
    grammar allows, what one forbids is no fault of the other.
    """
    if seller.sampler != SAMPLER and (sampling.temperature or steering != Steering()):
        chooses = f"the seller's sampler is {_quoted(seller.sampler)}, not {SAMPLER!r}"
        return f"{chooses}: no replay tells its choices but at temperature 0, without penalties, bias and grammar"
    if seller.build == UNDECLARED:
        return "the seller does not say which server computes, so what is honest for it cannot be known"
    if steering.grammar and seller.grammar != checker.grammar:
        theirs, ours = _quoted(seller.grammar or "unknown"), _quoted(checker.grammar or "unknown")
        return f"the order's grammar is read by {theirs} there and by {ours} here, which may allow other tokens"
    if calibration is None or (calibration.seller, calibration.checker) != (seller, checker):
        return _uncalibrated(seller, checker)
    if sampling.temperature > max(TEMPERATURES):
        return f"honest margins are calibrated up to a temperature of {max(TEMPERATURES) / MILLION:g} only"
    if not calibration.covers(sampling):
        return f"only {calibration.tokens} tokens are calibrated: let `idlemesh calibrate MODEL` run to its end"
    if not calibration.tells(sampling):
        return "by the calibration honest work is far from these weights: seller and checker run different models"
    return None


def _uncalibrated(seller: Fingerprint, checker: Fingerprint) -> str:
    if seller.sampler != SAMPLER:
        return (
            "nobody calibrated the seller's server against this engine; `idlemesh calibrate MODEL --remote NAME` does, "
            f"for a server = {_quoted(seller.build)}"
        )
    pairs = {name: (getattr(seller, name), getattr(checker, name)) for name in COMPARED}
    different = ", ".join(
        f"{name} {_quoted(theirs)} not {_quoted(ours)}" for name, (theirs, ours) in pairs.items() if theirs != ours
    )
    if not different:
        return "nobody calibrated this model on this engine: run `idlemesh calibrate MODEL`"
    how = "run `idlemesh calibrate MODEL --record FILE` there and `--answers FILE` here"
    return f"no calibration of these two engines: {how}; {different}"[:_LONGEST]


def _quoted(name: str) -> str:
    # The reason goes into a Verdict, whose text is bounded, and the seller chose the name.
    return repr(name[:18])[:20]
