"""The rails that a node pays and is paid on, and which of them an order takes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import define

from ledger.account import Account, AccountKey
from ledger.changes import VoucherReceived
from ledger.identity import Identity
from ledger.money import Unit
from ledger.rails import credit
from ledger.rails.port import Rail, VoucherRefused
from ledger.records import Signed, Voucher
from node.market.candidates import Way

CREDIT: Final = credit.name
# What a rail counts in, where that is not the parties' choice.
_UNITS: Final[Mapping[str, Unit]] = {"stablecoin": "uusd", "lightning": "msat"}


@define
class NoSuchRail(VoucherRefused):
    """This node has no such rail."""

    rail: str

    def __str__(self) -> str:
        return f"this node neither pays nor is paid by {self.rail[:64]!r}: its configuration has no section for it"


def counts_in(rail: str, unit: Unit) -> bool:
    """Whether a rail can move money of a unit."""
    return _UNITS.get(rail, unit) == unit


class Rails:
    """Makes and checks vouchers by the rail of their account. They stand in the order in which they are preferred."""

    def __init__(self, rails: Iterable[Rail] = (credit,)) -> None:
        self._rails = {rail.name: rail for rail in rails}
        self._buying: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """As they stand in offers and orders."""
        return tuple(self._rails)

    @property
    def buying(self) -> tuple[str, ...]:
        """Those by which this node would pay, the preferred one first."""
        return self.names if self._buying is None else tuple(name for name in self._buying if name in self._rails)

    def prefer(self, names: Sequence[str]) -> None:
        """Pay by these alone, in this order."""
        self._buying = tuple(names)

    def add(self, rail: Rail) -> None:
        """One more, before those that are here: what stands behind its debts is more than trust."""
        self._rails = {rail.name: rail, **self._rails}

    def of(self, key: AccountKey) -> Rail:
        """The rail of an account. Raises NoSuchRail."""
        rail = self._rails.get(key.rail)
        if rail is None:
            raise NoSuchRail(key.rail)
        return rail

    def make_voucher(self, identity: Identity, account: Account, total: int) -> Signed[Voucher]:
        """The payer's promise of a growing total. Raises NoSuchRail, AccountError, and what the rail refuses."""
        return self.of(account.key).make_voucher(identity, account, total)

    def check_voucher(self, voucher: Signed[Voucher], account: Account) -> VoucherReceived:
        """The fact that a voucher is to the payee's account. Raises VoucherRefused."""
        return self.of(account.key).check_voucher(voucher, account)


def way_by(account: Account) -> Way:
    """What an account bears. What this node disputes still counts as owed at the seller."""
    disputed = account.disputed
    return Way(account.key.rail, max(account.available - disputed, 0), max(account.window_left - disputed, 0))


def ways_to_pay(accounts: Iterable[Account]) -> tuple[Way, ...]:
    """Those that could pay something, of the accounts with one seller, in their order; credit always could."""
    return tuple(way_by(account) for account in accounts if account.key.rail == CREDIT or account.backed)
