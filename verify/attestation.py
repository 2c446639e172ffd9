"""What a seller claims about its weights and environment, and which of it can be checked.

Checked now: that the promised weights computed the tokens, by replay, on condition that seller and checker
run the same engine; this module tells whether they do. Tokenizer and model names are digests and prove
themselves. All else in an offer (jurisdiction, hardware, retention, sandbox) is the seller's word.
"""

from attrs import fields_dict

from ledger.records import Fingerprint
from verify.sampler import SAMPLER


def same_engine(seller: Fingerprint, checker: Fingerprint) -> bool:
    """Whether the margins between these two engines are those of honest rounding alone."""
    return seller == checker


def abstention(seller: Fingerprint, checker: Fingerprint) -> str | None:
    """Why a replay by `checker` is no evidence about `seller`, in a sentence; None if it is.

    The honest bin frequencies are known for an engine against itself only; any other pair would need its
    own calibration.
    """
    if seller.sampler != SAMPLER:
        return f"the seller's sampler is {_quoted(seller.sampler)}, not {SAMPLER!r}: no replay tells its choices"
    if same_engine(seller, checker):
        return None
    pairs = {name: (getattr(seller, name), getattr(checker, name)) for name in fields_dict(Fingerprint)}
    different = ", ".join(
        f"{name} {_quoted(theirs)} not {_quoted(ours)}" for name, (theirs, ours) in pairs.items() if theirs != ours
    )
    return f"engines differ, uncalibrated: {different}"


def _quoted(name: str) -> str:
    # The reason goes into a Verdict, whose text is bounded, and the seller chose the name.
    return f"{name!r:.20}"
