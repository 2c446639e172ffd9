"""Which process of this node holds which open order, where several share its ledger.

Theory of operation. Open orders are answered, or bought, by one process: the one that admitted them. Where others write
to the same ledger, the entry that admits an order also names its process, and this is folded until the order is closed.
So a process ends what is its own, also what it left when it was last ended: its home has its name. What one left that
is gone is ended by the process that leads, once it has been gone for a while: whoever merely lost its connection has it
back before. Nobody ends what another one is at work on.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final

from ledger.account import AccountKey
from ledger.changes import Admitted, Expired, Forgotten, Released, Reserved
from ledger.events import AccountChanged, Event, Observed
from ledger.journal import Accounts, Journal
from ledger.records import DIGEST_BYTES

_WHAT: Final = "held"
# A process that was not there at two looks, so many seconds apart, does not come back.
GONE_S: Final = 10.0


def held(me: str, process: bytes, events: Iterable[Event]) -> list[Event]:
    """The events that name this process, one for each order that these open; none where there are no others."""
    if not process:
        return []
    changes = [event.change for event in events if isinstance(event, AccountChanged)]
    opened = [change.order for change in changes if isinstance(change, Admitted | Reserved)]
    return [Observed(me, _WHAT, {"order": order, "process": process}) for order in opened]


class Holders:
    """The processes of open orders, by order; `take` every entry's events in order."""

    def __init__(self) -> None:
        self._of: dict[bytes, bytes] = {}

    def take(self, events: Iterable[Event], accounts: Accounts) -> None:
        """Take an entry's events, and the accounts after it."""
        for event in events:
            match event:
                case Observed(what=what, facts={"order": bytes(order), "process": bytes(process)}) if what == _WHAT:
                    self._of[order] = process
                case AccountChanged(change=Released(order)):
                    self._of.pop(order, None)
                case AccountChanged(key, Expired() | Forgotten()) if self._of:
                    self._drop_closed(accounts, key)

    def _drop_closed(self, accounts: Accounts, key: AccountKey) -> None:
        for order, reservation in accounts.account(key).orders.items():
            if not reservation.open:
                self._of.pop(order, None)

    def of(self, order: bytes) -> bytes:
        """Who holds an open order; empty where nobody was named."""
        return self._of.get(order, b"")

    @property
    def processes(self) -> set[bytes]:
        """All that hold something."""
        return set(self._of.values())

    def copy(self) -> "Holders":
        """One that stays as it is."""
        copy = Holders()
        copy._of = dict(self._of)
        return copy

    def to_plain(self) -> list[list[Any]]:
        """All of it as plain rows, in one order."""
        return sorted([order, process] for order, process in self._of.items())

    @classmethod
    def from_plain(cls, rows: list[list[Any]]) -> "Holders":
        """What `to_plain` gave. Raises ValueError, TypeError."""
        found = cls()
        for order, process in rows:
            if type(order) is not bytes or len(order) != DIGEST_BYTES or type(process) is not bytes:
                raise TypeError("a holder is [order, process]")
            found._of[order] = process
        return found


class Watch:
    """Looks which processes are gone for good."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._missed: dict[bytes, tuple[float, float]] = {}  # since when, and when last

    async def gone(self, processes: Collection[bytes], now: float) -> Collection[bytes]:
        """Those of these processes that are gone, and were so a while ago; `now` in seconds. Raises LedgerError."""
        missing = await self._journal.gone(processes)
        # One that was missed long ago may have come and gone meanwhile: nobody looks while it holds nothing.
        lately = {one: at for one, at in self._missed.items() if now < at[1] + 2 * GONE_S}
        found = {one: (lately.get(one, (now, now))[0], now) for one in missing}
        self._missed = {one: at for one, at in lately.items() if one not in processes} | found
        return {one for one, (since, _) in found.items() if not self._journal.name or not now < since + GONE_S}
