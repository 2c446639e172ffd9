"""Which acknowledgement holds the best voucher of each channel, so that a claim finds it whenever it is made.

Theory of operation. A voucher above what was promised before is in one entry with an event that names the
acknowledgement which brought it; on credit nothing is ever claimed, so there is none.
"""

from collections.abc import Iterable
from typing import Any, Final

from attrs import define, field

from ledger.account import Account, AccountKey
from ledger.events import Event, Fact, Observed
from ledger.money import UNITS, Unit
from ledger.records import DIGEST_BYTES, Acknowledgement, Signed
from node.exchange.strangers import CHANNEL_RAIL

_WHAT: Final = "promised"


def promised(acknowledgement: Signed[Acknowledgement], account: Account, total: int) -> list[Event]:
    """The event that an acknowledgement promises `total` on an account that was promised less, if one is needed."""
    if account.key.rail != CHANNEL_RAIL or total <= account.authorized:
        return []
    key = account.key
    facts: dict[str, Fact] = {
        "acknowledgement": acknowledgement.digest,
        "payee": key.payee,
        "unit": key.unit,
        "total": total,
    }
    return [Observed(key.payer, _WHAT, facts)]


@define
class Promised:
    """By account: the highest total of a voucher, and the digest of the acknowledgement that brought it."""

    best: dict[AccountKey, tuple[int, bytes]] = field(factory=dict)

    def take(self, events: Iterable[Event]) -> None:
        """Take an entry's events."""
        for event in events:
            match event:
                case Observed(
                    payer,
                    what,
                    {"acknowledgement": bytes(digest), "payee": str(payee), "unit": str(unit), "total": int(total)},
                ) if what == _WHAT:
                    key = AccountKey(payer, payee, CHANNEL_RAIL, _unit(unit))
                    if total > self.best.get(key, (0, b""))[0]:
                        self.best[key] = total, digest

    def copy(self) -> "Promised":
        """One that stays as it is."""
        return Promised(dict(self.best))

    def to_plain(self) -> list[list[Any]]:
        """All of it as plain rows, in one order."""
        rows: list[list[Any]] = [[*_names(key), *best] for key, best in self.best.items()]
        return sorted(rows)

    @classmethod
    def from_plain(cls, rows: list[list[Any]]) -> "Promised":
        """What `to_plain` gave. Raises ValueError, TypeError."""
        found = cls()
        for payer, payee, unit, total, digest in rows:
            if type(payer) is not str or type(payee) is not str or type(total) is not int or type(digest) is not bytes:
                raise TypeError("a promise is [payer, payee, unit, total, digest]")
            if total < 0 or len(digest) != DIGEST_BYTES:
                raise ValueError("a promise has a total and the digest of its acknowledgement")
            found.best[AccountKey(payer, payee, CHANNEL_RAIL, _unit(unit))] = total, digest
        return found


def _unit(name: str) -> Unit:
    """Raises ValueError."""
    for unit in UNITS:
        if unit == name:
            return unit
    raise ValueError(f"{str(name)[:80]!r} is no unit")


def _names(key: AccountKey) -> tuple[str, str, str]:
    return key.payer, key.payee, key.unit
