"""What the chain's network has taken for this node's transactions, as the journal has it."""

from collections.abc import Iterable
from typing import Any

from ledger.events import Event, FeePaid
from ledger.statement import DAY_MS


class Fees:
    """What follows from the journal about fees: which were told, and what each day has cost."""

    def __init__(self) -> None:
        # By network and wallet: the numbers that were told, as pairs of the first and last without a gap.
        self._told: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._days: dict[tuple[int, str], int] = {}

    def knows(self, network: str, payer: str, nonce: int) -> bool:
        """Whether the fee of a wallet's transaction was told."""
        return any(first <= nonce <= last for first, last in self._told.get((network, payer), ()))

    def on(self, day: int) -> dict[str, int]:
        """What a day (since 1970) has cost, in wei of each network's coin."""
        return {network: amount for (each, network), amount in sorted(self._days.items()) if each == day}

    def take(self, time_ms: int, events: Iterable[Event]) -> None:
        """Take the next entry's events."""
        for event in events:
            if isinstance(event, FeePaid):
                key = event.network, event.payer
                self._told[key] = _with(self._told.get(key, []), event.nonce)
                day = time_ms // DAY_MS, event.network
                self._days[day] = self._days.get(day, 0) + event.amount

    def copy(self) -> "Fees":
        """One that stays as it is."""
        copied = Fees()
        copied._told = {key: list(told) for key, told in self._told.items()}
        copied._days = dict(self._days)
        return copied

    def to_plain(self, days: int) -> dict[str, Any]:
        """It as plain values, in one order, with the sums of the latest days."""
        latest = sorted({day for day, _ in self._days})[-days:]
        return {
            "told": [[*key, *span] for key, told in sorted(self._told.items()) for span in told],
            # A day's sum may need more than 64 bits.
            "days": [[*key, str(amount)] for key, amount in sorted(self._days.items()) if key[0] in latest],
        }

    @classmethod
    def from_plain(cls, written: dict[str, Any]) -> "Fees":
        """What `to_plain` wrote. Raises ValueError, TypeError or KeyError."""
        found = cls()
        for network, payer, first, last in written["told"]:
            if [type(value) for value in (network, payer, first, last)] != [str, str, int, int]:
                raise TypeError("no fees that were told")
            found._told.setdefault((network, payer), []).append((first, last))
        for day, network, amount in written["days"]:
            if [type(value) for value in (day, network, amount)] != [int, str, str]:
                raise TypeError("no sum of fees")
            found._days[day, network] = int(amount)
        return found


def _with(spans: list[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    """Spans with one number more, in order and joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted([*spans, (number, number)]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return joined
