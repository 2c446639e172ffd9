"""What every benchmark prints: rows that hold a measure against a named peer or limit of the same run."""

import json
import sys
from collections.abc import Sequence

from attrs import asdict, frozen


@frozen
class Row:
    """One measure. `ratio` is the value's to that of `against`; `goal` says in words what was to reach."""

    measure: str
    value: float
    unit: str
    against: str
    ratio: float
    goal: str
    met: bool


def report(benchmark: str, rows: Sequence[Row], as_json: bool) -> None:
    """Print the rows, and end with status 1 if a goal was missed."""
    met = all(row.met for row in rows)
    if as_json:
        print(json.dumps({"benchmark": benchmark, "rows": [asdict(row) for row in rows], "met": met}, indent=2))
    else:
        for row in rows:
            said = "met" if row.met else "MISSED"
            print(
                f"{row.measure:48} {row.value:9.2f} {row.unit:4} {row.ratio:7.2f} x {row.against:28} {row.goal}: {said}"
            )
    sys.exit(0 if met else 1)
