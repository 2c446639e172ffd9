"""What every rail can do, and the rules that every rail's voucher keeps."""

from typing import Protocol

from attrs import define

from ledger.account import Account
from ledger.changes import VoucherReceived
from ledger.identity import Identity
from ledger.records import Signed, Voucher


class VoucherRefused(Exception):
    """A voucher that does not pay this account; each subclass is one broken rule, with its values."""


@define
class WrongSigner(VoucherRefused):
    """Only the payer's own signature is a promise to pay."""

    expected: str
    found: str

    def __str__(self) -> str:
        return f"the voucher is signed by {self.found}: it takes the payer's signature, {self.expected}"


@define
class WrongParties(VoucherRefused):
    """The voucher pays somebody else, or somebody else's debt."""

    expected: tuple[str, str]
    found: tuple[str, str]

    def __str__(self) -> str:
        return f"the voucher is from {self.found[0]} to {self.found[1]}, not {' to '.join(self.expected)}"


@define
class WrongRail(VoucherRefused):
    """The voucher is for another rail."""

    expected: str
    found: str

    def __str__(self) -> str:
        return f"the voucher is for the rail {self.found!r}: this account is paid by {self.expected!r}"


@define
class WrongNetwork(VoucherRefused):
    """The voucher is for another network or another account (channel) on it."""

    expected: tuple[str, str]
    found: tuple[str, str]

    def __str__(self) -> str:
        return f"the voucher is for network and account {self.found}, not {self.expected}"


@define
class WrongUnit(VoucherRefused):
    """The voucher counts in another unit."""

    expected: str
    found: str

    def __str__(self) -> str:
        return f"the voucher counts in {self.found}: this account is kept in {self.expected}"


@define
class TotalTooLow(VoucherRefused):
    """The voucher's total is less than what has been promised, or than what it comes to pay."""

    expected: int
    found: int

    def __str__(self) -> str:
        return f"the voucher's total is {self.found}: at least {self.expected} is needed"


class Rail(Protocol):
    """One way to pay: a module or object with these. Effects come with the rails that have any."""

    @property
    def name(self) -> str:
        """As it stands in offers, orders, vouchers and account keys."""

    def capacity(self, account: Account) -> int:
        """The collateral that stands behind a debt on this rail, in the account's unit."""

    def make_voucher(self, identity: Identity, account: Account, total: int) -> Signed[Voucher]:
        """The payer's promise of a growing total. Raises AccountError (a guard), WrongSigner."""

    def check_voucher(self, voucher: Signed[Voucher], account: Account, at_least: int = 0) -> VoucherReceived:
        """The fact that a voucher is to the payee's account. Raises VoucherRefused."""
