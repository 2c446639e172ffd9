"""How much of each trail of acknowledgements was dropped as old: what comes back of that was never lost.

Theory of operation. The acknowledgements that a payer gives on one account promise a growing total, and they are
dropped from the oldest on, while a later one promises more. So of all that its journal once held those were dropped
that promise no more than a mark does; and what a cut journal has lost promises more, as it came later. Without the mark
a payee could hand back dropped ones as if they had been lost, and fill with their orders, paid long ago, what it has
forgiven. The entry that names what is dropped brings the mark.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import define, field

from ledger.account import AccountKey
from ledger.events import Event, Observed

_WHAT: Final = "trail dropped"

_Trail = tuple[str, str, str]  # payee, rail, unit


def trails_dropped(me: str, marks: Mapping[AccountKey, int]) -> list[Observed]:
    """The events that say up to which total the acknowledgements of `me` go."""
    return [
        Observed(key.payee, _WHAT, {"rail": key.rail, "unit": key.unit, "total": total})
        for key, total in marks.items()
        if key.payer == me
    ]


@define
class Trails:
    """The marks of all accounts that this node pays."""

    marks: dict[_Trail, int] = field(factory=dict)

    def take(self, events: Iterable[Event]) -> None:
        """Take an entry's events."""
        for event in events:
            match event:
                case Observed(payee, what, {"rail": str(rail), "unit": str(unit), "total": int(total)}) if (
                    what == _WHAT
                ):
                    trail = payee, rail, unit
                    self.marks[trail] = max(total, self.marks.get(trail, 0))

    def was_dropped(self, key: AccountKey, total: int) -> bool:
        """Whether an acknowledgement of ours that promises `total`, and is not here, was dropped."""
        mark = self.marks.get((key.payee, key.rail, key.unit))
        return mark is not None and total <= mark

    def copy(self) -> "Trails":
        """One that stays as it is."""
        return Trails(dict(self.marks))

    def to_plain(self) -> list[list[Any]]:
        """All of it as plain rows, in one order."""
        return sorted([*trail, mark] for trail, mark in self.marks.items())

    @classmethod
    def from_plain(cls, rows: list[list[Any]]) -> "Trails":
        """What `to_plain` gave. Raises ValueError, TypeError."""
        found = cls()
        for *trail, mark in rows:
            payee, rail, unit = trail
            if not all(type(name) is str for name in trail) or type(mark) is not int or mark < 0:
                raise TypeError("a mark is [payee, rail, unit, total]")
            found.marks[payee, rail, unit] = mark
        return found
