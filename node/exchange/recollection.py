"""All that a node makes of its journal beside the accounts: experience, turnover, what checking cost, what waits.

Theory of operation. It follows the journal entry by entry, also of those that come after a restart. So that a restart
need not fold years, it is written down with each snapshot of the books and read back from there:

    deterministic CBOR of {"format": 8, "experience": ..., "turnover": [[day, role, counter, unit, amount], ...],
                           "checking": [[day, unit, cost], ...],
                           "unsettled": [[payer, payee, rail, unit, settled, since_ms], ...],
                           "promised": [[payer, payee, unit, total, digest], ...],
                           "trails": [[payee, rail, unit, total], ...],
                           "strangers": {"vouchers": [[did, config, total, signature], ...],
                                         "transfers": [[order, did, nonce, value, expires], ...],
                                         "deposits": [[did, until], ...],
                                         "own": [network, address]}, the last one only where there was a wallet,
                           "fees": {"told": [[network, wallet, first, last], ...], "days": [[day, network, wei], ...]},
                           "holders": [[order, process], ...]}, the last one only where there are some

Equal recollections have equal bytes, so `idlemesh ledger verify` can hold them against the chain.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import define

from ledger import codec, snapshot
from ledger.account import Account
from ledger.events import AccountChanged, Event, Observed
from ledger.journal import Accounts, StoredSnapshot
from ledger.money import Unit
from ledger.statement import DAY_MS, Turnover
from node.exchange.experience import Experience
from node.exchange.fees import Fees
from node.exchange.holding import Holders
from node.exchange.promised import Promised
from node.exchange.strangers import Strangers
from node.exchange.trails import Trails
from node.exchange.unsettled import Unsettled

# It is raised whenever the fold comes to say something else of the same entries.
_FORMAT: Final = 8
MAX_BYTES: Final = 128 * 2**20
_MAX_ITEMS: Final = 16 * 2**20
# Sums of so many days with trade are kept; only today's are asked for, and a clock may step back.
_DAYS: Final = 8


@define
class BadRecollection(ValueError):
    """Bytes that are no recollection of this version; the journal tells the same, only slower."""

    why: str

    def __str__(self) -> str:
        return f"not a usable recollection: {self.why}"


class Recollection:
    """What follows from the entries taken so far. A `ledger.journal.Follower`."""

    def __init__(self, me: str, experience: Experience | None = None, turnover: Turnover | None = None) -> None:
        """`me` is this node's did:key."""
        self.experience: Final = experience or Experience()
        self.turnover: Final = turnover or Turnover(me)
        # Spent on help in audits, by (day since 1970, unit).
        self._checking: dict[tuple[int, str], int] = {}
        self.unsettled = Unsettled()
        self.strangers = Strangers()
        self.promised = Promised()
        self.trails = Trails()
        self.holders = Holders()
        self.fees = Fees()

    def take(self, time_ms: int, events: Iterable[Event], accounts: Accounts) -> None:
        """Take the next entry's events, and the accounts after it."""
        events = tuple(events)
        self.experience.take(events)
        self.strangers.take(time_ms, events)
        self.promised.take(events)
        self.trails.take(events)
        self.holders.take(events, accounts)
        self.fees.take(time_ms, events)
        for event in events:
            match event:
                case Observed(what="checking", facts={"unit": str(unit), "cost": int(cost)}):
                    today = (time_ms // DAY_MS, unit)
                    # What comes back after midnight was of another day.
                    self._checking[today] = max(self._checking.get(today, 0) + cost, 0)
        for key in {event.key for event in events if isinstance(event, AccountChanged)}:
            account = accounts.account(key)
            self.turnover.see(time_ms, account)
            self.unsettled.see(time_ms, account)

    def spent_on_checking(self, day: int, unit: Unit) -> int:
        """What help in audits has cost on a day (since 1970), and what open orders for it may still cost."""
        return self._checking.get((day, unit), 0)

    def freeze(self) -> Callable[[], bytes]:
        """Hold on to all of it as it is now; what comes back writes that down, in any thread."""
        experience, turnover, checking = self.experience.copy(), self.turnover.sums, dict(self._checking)
        unsettled, strangers, promised = self.unsettled.copy(), self.strangers.copy(), self.promised.copy()
        trails, holders = self.trails.copy(), self.holders.copy()
        fees = self.fees.copy()

        def write() -> bytes:
            return codec.encode(
                {
                    **({"holders": rows} if (rows := holders.to_plain()) else {}),
                    "format": _FORMAT,
                    "experience": experience.to_plain(),
                    "turnover": _of_last_days(turnover),
                    "checking": _of_last_days(checking),
                    "unsettled": unsettled.to_plain(),
                    "strangers": strangers.to_plain(),
                    "promised": promised.to_plain(),
                    "trails": trails.to_plain(),
                    "fees": fees.to_plain(_DAYS),
                }
            )

        return write

    @classmethod
    def read(cls, raw: bytes, me: str, accounts: Iterable[Account]) -> "Recollection":
        """What `freeze` wrote down when the accounts were these. Raises BadRecollection, and nothing else."""
        try:
            body = codec.decode(raw, MAX_BYTES, _MAX_ITEMS)
            if body["format"] != _FORMAT:
                raise BadRecollection("it is of another version")
            turnover = Turnover.resumed(me, accounts, {tuple(cell): _int(n) for *cell, n in body["turnover"]})
            found = cls(me, Experience.from_plain(body["experience"]), turnover)
            found.unsettled = Unsettled.from_plain(body["unsettled"])
            found.strangers = Strangers.from_plain(body["strangers"])
            found.promised = Promised.from_plain(body["promised"])
            found.trails = Trails.from_plain(body["trails"])
            found.holders = Holders.from_plain(body.get("holders", []))
            found.fees = Fees.from_plain(body["fees"])
            found._checking = {(_int(day), str(unit)): _int(cost) for day, unit, cost in body["checking"]}
        except BadRecollection:
            raise
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise BadRecollection(str(error)) from None
        return found


def encode_snapshot(stored: StoredSnapshot | None) -> bytes:
    """A stored snapshot for the owner's commands."""
    found = stored or StoredSnapshot(0, b"")
    return codec.encode({"sequence": found.sequence, "books": found.books, "memory": found.memory})


def decode_snapshot(raw: bytes) -> StoredSnapshot | None:
    """What `encode_snapshot` made. Raises codec.Malformed."""
    match codec.decode(raw, MAX_BYTES + snapshot.MAX_BYTES + 1024):
        case {"sequence": int(sequence), "books": bytes(books), "memory": bytes() | None as memory}:
            return StoredSnapshot(sequence, books, memory) if sequence else None
    raise codec.Malformed("not a stored snapshot")


def _of_last_days(sums: dict[Any, int]) -> list[list[Any]]:
    """Rows of the latest days, which a cell's key begins with. What is dropped never comes in again by more entries."""
    days = sorted({cell[0] for cell in sums})[-_DAYS:]
    return [[*cell, amount] for cell, amount in sorted(sums.items()) if cell[0] in days]


def _int(value: object) -> int:
    if type(value) is not int:
        raise BadRecollection(f"{str(value)[:80]!r} is no number")
    return value
