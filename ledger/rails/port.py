"""What every rail can do, and the rules that every rail's voucher keeps.

Theory of operation. A rail moves money outside of this program, so its word is the only way to know what has moved, and
no word is no knowledge. It is asked in two ways. `perform` asks it to carry an `Effect` out: whatever number of times
one key is asked for, its money moves once at most. `fate` asks what has become of a key, and moves nothing. A rail that
does not answer in time, or raises, has said nothing: the effect is unknown until `fate` tells. `absent` is a promise
that the key has not moved money yet, not that a request under way never will: asking again takes the same key.
"""

from collections.abc import Set
from typing import Final, Literal, Protocol, get_args

from attrs import define, field, frozen, validators

from ledger.account import Account
from ledger.changes import VoucherReceived
from ledger.effects import Effect, Kind
from ledger.identity import Identity
from ledger.money import MAX_AMOUNT
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


Fate = Literal["settled", "failed", "absent", "unknown"]

_count: Final = [validators.instance_of(int), validators.ge(0), validators.le(MAX_AMOUNT)]


@frozen
class Sight:
    """The collateral of one account, as the rail sees it now, in the account's unit.

    `withdrawn` is what in all has gone back or is on its way, `leaving` that part of it which can still be claimed.
    `paid` is what the payee has taken of it in all and for good, where no effect of the payer's tells the payer so.
    `sequence` is the rail's own count of what it saw, from 1: a later sight has a higher one.
    """

    funded: int = field(validator=_count)
    withdrawn: int = field(validator=_count)
    sequence: int = field(validator=_count)
    leaving: int = field(default=0, validator=_count)
    paid: int = field(default=0, validator=_count)


@frozen
class Answer:
    """What a rail says of an effect: `moved` is how much of its amount has moved by it, `why` is for people.

    `settled` is for good, as far as the rail can tell; `failed` moved nothing; `absent` was never heard of here, or is
    still on its way; `unknown` cannot be told now.
    """

    fate: Fate = field(validator=validators.in_(get_args(Fate)))
    moved: int = field(default=0, validator=_count)
    why: str = field(default="", validator=validators.instance_of(str))


class Rail(Protocol):
    """One way to pay: a module or object with these.

    The four that talk to a network may take any time and raise anything: whoever asks them bounds the wait, and
    cancels them when it is over.
    """

    @property
    def name(self) -> str:
        """As it stands in offers, orders, vouchers and account keys."""

    @property
    def effects(self) -> Set[Kind]:
        """What it can be asked to move; a rail of trust alone has none, and is never asked."""

    def capacity(self, account: Account) -> int:
        """What stands behind a debt on this rail by the account's own counters, in its unit."""

    def make_voucher(self, identity: Identity, account: Account, total: int) -> Signed[Voucher]:
        """The payer's promise of a growing total. Raises AccountError (a guard), WrongSigner."""

    def check_voucher(self, voucher: Signed[Voucher], account: Account, at_least: int = 0) -> VoucherReceived:
        """The fact that a voucher is to the payee's account. Raises VoucherRefused."""

    async def collateral(self, account: Account) -> Sight | None:
        """What collateral stands behind an account, asked of the network; None: there is none on this rail."""

    async def fee(self, kind: Kind, accounts: int) -> int | None:
        """What it costs now, in all and in the rail's unit, to move so many accounts by effects of one kind at once.

        An estimate, rounded up; 0: nothing. None: cannot be told now, and what is not urgent waits.
        """

    async def perform(self, effect: Effect) -> Answer:
        """Carry an effect out, once for each key; of one that was carried out before, say so again."""

    async def fate(self, effect: Effect) -> Answer:
        """What has become of an effect. Moves nothing."""
