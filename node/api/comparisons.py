"""What the comparison of accounts with each peer has shown, for the owner."""

import base64
from collections.abc import Mapping
from typing import Any

from ledger.identity import Did
from ledger.money import Amount
from ledger.reconcile import Difference
from node.exchange.heads import Cut, Met


def comparison_rows(met: Mapping[Did, Met], cut: Cut | None) -> dict[str, Any]:
    """With whom accounts were compared, what differs and by which signatures; and whether this ledger was cut."""
    rows = [_row(peer, one) for peer, one in sorted(met.items())]
    return {"comparisons": rows, "cut": None if cut is None else _cut(cut)}


def _row(peer: Did, met: Met) -> dict[str, Any]:
    theirs, differences = met.theirs, met.differences
    row = {
        "peer": peer,
        "entries": theirs.record.sequence,
        "head": theirs.record.head.hex(),
        "said_ms": theirs.record.issued_ms,
        "differences": [_difference(difference) for difference in differences],
    }
    if differences and met.ours is not None:
        row["evidence"] = {"ours": _text(met.ours.raw), "theirs": _text(theirs.raw)}
    return row


def _difference(difference: Difference) -> dict[str, Any]:
    key = difference.key
    return {
        "payer": key.payer,
        "payee": key.payee,
        "rail": key.rail,
        "what": difference.what,
        "ours": str(Amount(difference.ours, key.unit)),
        "theirs": str(Amount(difference.theirs, key.unit)),
    }


def _cut(cut: Cut) -> dict[str, Any]:
    return {"shown_by": cut.peer, "signed": cut.sequence, "left": cut.entries, "found_ms": cut.found_ms}


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
