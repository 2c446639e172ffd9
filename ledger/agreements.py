"""What counts only with both signatures: settlements and nettings, of debts on the rail of trust.

Each party signs a record with the same fields. Of the two signatures either may come first; together they are facts
for both books, as growing totals: the same pair again changes nothing. `before` says what a total builds on, so that
of two requests that were made at once, only one is counted, and a party that missed an answer finds out.

A netting needs no owner, so whoever gets one to sign may keep it: it is signed for a while only. And it counts, however
late the pair comes, once it sets off what both owe: else debts that were settled meanwhile would be paid in advance.
"""

from typing import Final

from attrs import define

from ledger.account import Account, AccountKey
from ledger.changes import Netted, Settled
from ledger.events import AccountChanged
from ledger.money import Unit
from ledger.records import CLOCK_SKEW_S, Netting, Settlement, Signed

RAIL: Final = "credit"
# A netting is answered at once; what is left is for a line that stalls and clocks that differ.
PROPOSAL_LIFETIME_S: Final = 300


class AgreementRefused(Exception):
    """A settlement or netting that does not count; each subclass is one broken rule, with its values."""


@define
class NotSignedByBoth(AgreementRefused):
    """One signature of each party is needed."""

    parties: tuple[str, str]
    signers: tuple[str, str]

    def __str__(self) -> str:
        return f"signed by {' and '.join(self.signers)}: it takes {' and '.join(self.parties)}, one each"


@define
class NotTheSame(AgreementRefused):
    """The two signatures stand for different things."""

    def __str__(self) -> str:
        return "the two parties have not signed the same fields: sign what the other one has signed"


@define
class OutOfDate(AgreementRefused):
    """It builds on another total than the account has."""

    expected: int
    found: int

    def __str__(self) -> str:
        return f"it builds on {self.found}, and the account stands at {self.expected}: ask again from there"


@define
class AboveMutual(AgreementRefused):
    """Only what both owe can be set off."""

    mutual: int
    amount: int

    def __str__(self) -> str:
        return f"{self.mutual} is what both owe each other: {self.amount} is more than there is to set off"


@define
class NotOfNow(AgreementRefused):
    """Only a netting that was asked for just now is signed."""

    issued: int
    now: int

    def __str__(self) -> str:
        return f"it was issued at {self.issued}, and it is {self.now}: ask again, and look at the clocks"


def settlement_key(said: Settlement) -> AccountKey:
    """The account that a settlement is about."""
    return AccountKey(said.payer, said.payee, RAIL, said.unit)


def netting_keys(said: Netting) -> tuple[AccountKey, AccountKey]:
    """The two accounts that a netting is about: what the first owes, and what the second owes."""
    return AccountKey(said.first, said.second, RAIL, said.unit), AccountKey(said.second, said.first, RAIL, said.unit)


def propose_settlement(account: Account, amount: int, now: int) -> Settlement:
    """What the payer signs to have `amount` (above 0) counted as paid; `now` in seconds since 1970."""
    key, before = account.key, account.settled
    return Settlement(key.payer, key.payee, key.unit, before, before + amount, now)


def check_settlement(said: Settlement, account: Account) -> None:
    """Check, before its payee signs, that a settlement builds on the account as it is. Raises OutOfDate."""
    if said.before != account.settled:
        raise OutOfDate(account.settled, said.before)


def settle(one: Signed[Settlement], other: Signed[Settlement]) -> AccountChanged:
    """The event that both signatures (checked when they were opened) make. Raises NotSignedByBoth, NotTheSame."""
    said = one.record
    _check_both((said.payer, said.payee), one, other)
    return AccountChanged(settlement_key(said), Settled(said.total))


def mutual_debt(one: Account, other: Account) -> int:
    """What can be set off between the two directions of a pair: due on both sides, and not paid for good."""
    return min(one.unsettled, other.unsettled)


def propose_netting(me: str, peer: str, unit: Unit, accounts: tuple[Account, Account], now: int) -> Netting:
    """What one of the two signs to set off all that both owe. Raises AboveMutual where that is nothing."""
    amount, before = mutual_debt(*accounts), accounts[0].netted
    if amount == 0:
        raise AboveMutual(0, 1)
    first, second = sorted((me, peer))
    return Netting(first, second, unit, before, before + amount, now)


def check_netting(said: Netting, accounts: tuple[Account, Account], now: int) -> None:
    """Check, before the other party signs, that its own books bear a netting; `now` in seconds since 1970.

    Raises OutOfDate, NotOfNow, AboveMutual.
    """
    netted = accounts[0].netted
    if said.before != netted:
        raise OutOfDate(netted, said.before)
    if not -CLOCK_SKEW_S <= now - said.issued <= PROPOSAL_LIFETIME_S:
        raise NotOfNow(said.issued, now)
    check_borne(said, accounts)


def check_borne(said: Netting, accounts: tuple[Account, Account]) -> None:
    """Check, before it counts, that both still owe what a netting sets off. Raises AboveMutual."""
    mutual, amount = mutual_debt(*accounts), said.total - accounts[0].netted
    if amount > mutual:
        raise AboveMutual(mutual, amount)


def net(one: Signed[Netting], other: Signed[Netting]) -> tuple[AccountChanged, AccountChanged]:
    """The events, for one entry, that both signatures make. Raises NotSignedByBoth, NotTheSame."""
    said = one.record
    _check_both((said.first, said.second), one, other)
    there, back = netting_keys(said)
    return AccountChanged(there, Netted(said.total)), AccountChanged(back, Netted(said.total))


def _check_both(
    parties: tuple[str, str], one: Signed[Settlement] | Signed[Netting], other: Signed[Settlement] | Signed[Netting]
) -> None:
    if {one.signer, other.signer} != set(parties):
        raise NotSignedByBoth(parties, (one.signer, other.signer))
    if one.record != other.record:
        raise NotTheSame
