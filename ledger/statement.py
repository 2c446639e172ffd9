"""Earnings and spending as double-entry postings: the one place where money is added up.

Theory of operation. Whatever a change does to an account, it shows in counters. Each of those that are about money is
worth two postings for as much as it has grown: one to the debit of one book account, one to the credit of another.
Debits are positive, credits negative, so the postings of one counterparty, rail and unit sum to zero after every
change, whatever kind of change it was. What is posted depends on which side this node is:

    counter     this node is owed (payee)         this node owes (payer)
                debit           credit            debit            credit
    ----------  --------------  ----------------  ---------------  ----------------
    earned      receivable      income            expense          payable
    waived      let go          receivable        payable          let go
    forgiven    let go          receivable        payable          let go
    authorized  vouchers held   receivable        payable          vouchers given
    settled     money           vouchers held     vouchers given   money
    netted      set off         vouchers held     vouchers given   set off
    funded      -               -                 collateral       money
    withdrawn   -               -                 money            collateral

On rails with deposits a payer settles from its collateral instead of `money`; the payer's deposit is none of the
payee's money until it is settled. What is `prepaid` to a payee lies with it from the beginning: it is money, which it
owes until it is settled or has gone back. `set off` of both directions of a pair sums to zero. Where a later sight
shows less collateral, the same postings turn round. What was settled and never promised by a voucher stands in
`vouchers held` below zero, as an advance. Limits, windows, reservations and claims are promises and questions, and move
no money.

What networks take for this node's transactions stands by itself, by network: `network fees` to `money`, in wei of the
network's coin.

An account between two others is none of this node's business and posts nothing. Amounts are integers in the account's
unit, times milliseconds since 1970, days whole days since 1970 in UTC.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Self, get_args

from attrs import evolve, frozen

from ledger.account import Account, AccountKey, apply
from ledger.changes import Change
from ledger.events import AccountChanged, Event, FeePaid
from ledger.money import UNITS, Amount, Unit

Role = Literal["payee", "payer"]
Counter = Literal["earned", "waived", "forgiven", "authorized", "settled", "netted", "funded", "withdrawn"]
BookAccount = Literal[
    "receivable",
    "payable",
    "income",
    "expense",
    "let go",
    "vouchers held",
    "vouchers given",
    "money",
    "set off",
    "collateral",
    "prepaid",
    "network fees",
]
# What book accounts are kept in: the units of debts, and wei of a network's coin.
BookUnit = Unit | Literal["wei"]

DAY_MS: Final = 86_400_000
LATEST_MS: Final = 2**63 - 1

_RULES: Final[dict[tuple[Role, Counter], tuple[BookAccount, BookAccount]]] = {
    ("payee", "earned"): ("receivable", "income"),
    ("payee", "waived"): ("let go", "receivable"),
    ("payee", "forgiven"): ("let go", "receivable"),
    ("payee", "authorized"): ("vouchers held", "receivable"),
    ("payee", "settled"): ("money", "vouchers held"),
    ("payee", "netted"): ("set off", "vouchers held"),
    ("payer", "earned"): ("expense", "payable"),
    ("payer", "waived"): ("payable", "let go"),
    ("payer", "forgiven"): ("payable", "let go"),
    ("payer", "authorized"): ("payable", "vouchers given"),
    ("payer", "settled"): ("vouchers given", "money"),
    ("payer", "netted"): ("vouchers given", "set off"),
    ("payer", "funded"): ("collateral", "money"),
    ("payer", "withdrawn"): ("money", "collateral"),
}
_WITHOUT_DEPOSITS: Final = "credit"
PREPAID: Final = "prepaid"
_PREPAID_RULES: Final[dict[tuple[Role, Counter], tuple[BookAccount, BookAccount]]] = {
    ("payee", "funded"): ("money", "prepaid"),
    ("payee", "withdrawn"): ("prepaid", "money"),
    ("payee", "settled"): ("prepaid", "vouchers held"),
}
COUNTERS: Final[tuple[Counter, ...]] = get_args(Counter)
# What a person is told of one account.
_FIGURES: Final = (
    "limit",
    "window",
    "earned",
    "waived",
    "forgiven",
    "authorized",
    "settled",
    "netted",
    "reserved",
    "disputed",
    "unpaid",
    "unsettled",
    "available",
)


@frozen
class Movement:
    """One counter of one account grew by `amount`, or fell where that is negative. `order` is the change's, if any."""

    key: AccountKey
    role: Role
    counter: Counter
    amount: int
    order: bytes | None = None

    @property
    def counterparty(self) -> str:
        """The other side."""
        return self.key.payer if self.role == "payee" else self.key.payee

    @property
    def rail(self) -> str:
        """The account's."""
        return self.key.rail

    @property
    def unit(self) -> BookUnit:
        """The account's."""
        return self.key.unit


@frozen
class Fee:
    """What a network took for a transaction."""

    paid: FeePaid

    @property
    def counterparty(self) -> str:
        """The network."""
        return self.paid.network

    @property
    def rail(self) -> str:
        """What it was sent for."""
        return self.paid.rail

    @property
    def unit(self) -> BookUnit:
        """Its coin's."""
        return "wei"


@frozen
class Posting:
    """One side of a movement: `amount` is positive on the debit and negative on the credit side of the account."""

    sequence: int
    time_ms: int
    account: BookAccount
    amount: int
    movement: Movement | Fee


@frozen
class LineKey:
    """The book accounts are kept for each counterparty, rail and unit apart."""

    counterparty: str
    rail: str
    unit: BookUnit
    account: BookAccount


@frozen
class Line:
    """One book account over a period: what stood in it, what came to its debit and credit (both >= 0)."""

    opening: int = 0
    debit: int = 0
    credit: int = 0

    @property
    def closing(self) -> int:
        """What stands in it at the end."""
        return self.opening + self.debit - self.credit


def movements(me: str, before: Account, after: Account, change: Change | None = None) -> list[Movement]:
    """By how much each counter of an account of ours has grown, and by what change if it was a single one."""
    grown: list[tuple[Counter, int]] = []
    for counter in COUNTERS:
        amount = getattr(after, counter) - getattr(before, counter)
        if amount:
            grown.append((counter, amount))
    if not grown:
        return []
    roles: list[Role] = [role for role in ("payee", "payer") if getattr(after.key, role) == me]
    order = getattr(change, "order", None)
    return [Movement(after.key, role, counter, amount, order) for role in roles for counter, amount in grown]


def post(movement: Movement, sequence: int, time_ms: int) -> tuple[Posting, ...]:
    """The two postings of a movement, of the entry `sequence`; none where it moves no money of ours."""
    counted = movement.role, movement.counter
    prepaid = _PREPAID_RULES.get(counted) if movement.key.rail == PREPAID else None
    rule = prepaid or _RULES.get(counted)
    if rule is None:
        return ()
    debit, credit = rule
    if credit == "money" and movement.counter == "settled" and movement.key.rail != _WITHOUT_DEPOSITS:
        credit = "collateral"
    return (
        Posting(sequence, time_ms, debit, movement.amount, movement),
        Posting(sequence, time_ms, credit, -movement.amount, movement),
    )


def post_fee(paid: FeePaid, sequence: int, time_ms: int) -> tuple[Posting, ...]:
    """The two postings of a network's fee, of the entry `sequence`."""
    fee = Fee(paid)
    return (
        Posting(sequence, time_ms, "network fees", paid.amount, fee),
        Posting(sequence, time_ms, "money", -paid.amount, fee),
    )


class Bookkeeper:
    """Follows a journal's events and tells by how much they moved this node's money."""

    def __init__(self, me: str) -> None:
        """`me` is this node's did:key."""
        self._me = me
        self._accounts: dict[AccountKey, Account] = {}

    def take(self, events: Iterable[Event]) -> list[Movement]:
        """What the events of the next entry moved. Raises AccountError, as replaying them does."""
        moved: list[Movement] = []
        for event in events:
            if isinstance(event, AccountChanged):
                before = self._accounts.get(event.key) or Account(event.key)
                moved += self.see(apply(before, event.change), event.change)
        return moved

    def see(self, account: Account, change: Change | None = None) -> list[Movement]:
        """By how much an account has moved since it was taken or seen last, whatever has happened to it since."""
        before = self._accounts.get(account.key) or Account(account.key)
        self._accounts[account.key] = account
        return movements(self._me, before, account, change)


class Statement:
    """The book accounts over a period, from all entries of a journal given one after another.

    An entry belongs to the period if its own time does: `since_ms` <= time < `until_ms`. A clock that stepped back
    moves an entry into another period, but never into two or none: periods that follow each other join exactly.
    """

    def __init__(self, me: str, since_ms: int = 0, until_ms: int = LATEST_MS) -> None:
        self.since_ms: Final = since_ms
        self.until_ms: Final = until_ms
        self._bookkeeper = Bookkeeper(me)
        self._lines: dict[LineKey, Line] = {}

    def add(self, sequence: int, time_ms: int, events: Iterable[Event]) -> tuple[Posting, ...]:
        """Take the next entry; returns its postings if it is of the period. Raises AccountError."""
        events = tuple(events)
        moved = self._bookkeeper.take(events)
        postings = tuple(posting for movement in moved for posting in post(movement, sequence, time_ms))
        for event in events:
            if isinstance(event, FeePaid):
                postings += post_fee(event, sequence, time_ms)
        if time_ms >= self.until_ms:
            return ()
        for posting in postings:
            self._book(posting)
        return postings if time_ms >= self.since_ms else ()

    def _book(self, posting: Posting) -> None:
        moved = posting.movement
        key = LineKey(moved.counterparty, moved.rail, moved.unit, posting.account)
        line = self._lines.get(key, Line())
        if posting.time_ms < self.since_ms:
            line = evolve(line, opening=line.opening + posting.amount)
        elif posting.amount > 0:
            line = evolve(line, debit=line.debit + posting.amount)
        else:
            line = evolve(line, credit=line.credit - posting.amount)
        self._lines[key] = line

    @property
    def lines(self) -> Mapping[LineKey, Line]:
        """The book accounts, ordered by counterparty, rail, unit and name."""
        ordered = sorted(self._lines, key=lambda key: (key.counterparty, key.rail, key.unit, key.account))
        return {key: self._lines[key] for key in ordered}

    @property
    def balanced(self) -> bool:
        """Whether debits equal credits, and what stands in the accounts sums to zero, in each counterparty's unit."""
        sums: dict[tuple[str, str, BookUnit], list[int]] = {}
        for key, line in self._lines.items():
            found = sums.setdefault((key.counterparty, key.rail, key.unit), [0, 0, 0])
            for i, amount in enumerate((line.opening, line.debit - line.credit, line.closing)):
                found[i] += amount
        return all(not any(found) for found in sums.values())


class Turnover:
    """How much each counter moved on each day, over all counterparties."""

    def __init__(self, me: str) -> None:
        self._bookkeeper = Bookkeeper(me)
        self._sums: dict[tuple[int, Role, Counter, Unit], int] = {}

    @classmethod
    def resumed(cls, me: str, accounts: Iterable[Account], sums: Mapping[Any, int]) -> Self:
        """One that goes on from earlier `sums` and the accounts as they were then. Raises ValueError at odd cells."""
        turnover = cls(me)
        for account in accounts:
            turnover._bookkeeper.see(account)
        for day, role, counter, unit in sums:
            if type(day) is not int or role not in get_args(Role) or counter not in COUNTERS or unit not in UNITS:
                raise ValueError(f"{str((day, role, counter, unit))[:80]} is nothing that a sum is kept of")
        turnover._sums.update(sums)
        return turnover

    @property
    def sums(self) -> dict[tuple[int, Role, Counter, Unit], int]:
        """A copy of what it has counted: amounts by day since 1970, role, counter and unit."""
        return dict(self._sums)

    def take(self, time_ms: int, events: Iterable[Event]) -> None:
        """Take the events of the next entry. Raises AccountError."""
        self._count(time_ms, self._bookkeeper.take(events))

    def see(self, time_ms: int, account: Account) -> None:
        """Take an account as it is now: what moved since it was seen last, in whatever entries, counts for now."""
        self._count(time_ms, self._bookkeeper.see(account))

    def _count(self, time_ms: int, movements: Iterable[Movement]) -> None:
        for moved in movements:
            cell = time_ms // DAY_MS, moved.role, moved.counter, moved.key.unit
            self._sums[cell] = self._sums.get(cell, 0) + moved.amount

    def on(self, day: int, role: Role, counter: Counter) -> dict[Unit, int]:
        """What a counter grew by on a day, by unit, with this node as `role`; units without any are left out."""
        return {cell[3]: amount for cell, amount in self._sums.items() if cell[:3] == (day, role, counter)}


def figures(account: Account) -> dict[str, Amount]:
    """What a person is told of one account: its counters, and what follows from them."""
    return {name: Amount(getattr(account, name), account.key.unit) for name in _FIGURES}


def posting_row(posting: Posting) -> dict[str, Any]:
    """A posting as one flat row, for a table: `amount` is an integer in `unit`."""
    moved = posting.movement
    return {
        "sequence": posting.sequence,
        "time_ms": posting.time_ms,
        "counterparty": moved.counterparty,
        "rail": moved.rail,
        "unit": moved.unit,
        "account": posting.account,
        "amount": posting.amount,
        **_cause(moved),
    }


def _cause(moved: Movement | Fee) -> dict[str, str]:
    if isinstance(moved, Fee):
        return {"counter": "fee", "order": "", "transaction": f"0x{moved.paid.transaction.hex()}"}
    return {"counter": moved.counter, "order": moved.order.hex() if moved.order else "", "transaction": ""}


def line_rows(lines: Mapping[LineKey, Line]) -> Sequence[dict[str, Any]]:
    """The book accounts as flat rows: amounts are integers in `unit`."""
    return [
        {
            "counterparty": key.counterparty,
            "rail": key.rail,
            "unit": key.unit,
            "account": key.account,
            "opening": line.opening,
            "debit": line.debit,
            "credit": line.credit,
            "closing": line.closing,
        }
        for key, line in lines.items()
    ]
