"""Two nodes compare what they know of each other, and give each other back what one of them has lost.

Theory of operation. On each connection both sign an `AccountState`: the totals of their accounts, the last
acknowledgement up to which they have all, and the head of their journal. Whoever is behind is handed the records that
it lacks, and believes nobody but signatures: its own, which are facts however its journal was lost, and those of two
parties under one agreement. What then still differs stands in two signed states, one of each side: the evidence.

A state by itself moves no money. The totals in it decide what is handed over and what is shown, nothing else.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from attrs import define, frozen

from ledger.account import Account, AccountKey
from ledger.changes import Acknowledged, Change, Disputed, Recovered, VoucherReceived
from ledger.codec import Malformed
from ledger.journal import Entry
from ledger.money import MAX_AMOUNT
from ledger.records import (
    MAX_ACCOUNTS,
    AccountState,
    Acknowledgement,
    Checkpoint,
    Offer,
    Order,
    Receipt,
    Signed,
    Totals,
    Voucher,
    open_record,
)

What = Literal["settled", "netted", "authorized", "owed"]
Claim = Signed[Receipt] | Signed[Checkpoint]

_COUNTED: Final = ("authorized", "earned", "waived", "forgiven", "settled", "netted", "reserved", "disputed")


@define
class NotOurs(ValueError):
    """Records that came back, and do not prove what they should; the message says in what."""

    why: str

    def __str__(self) -> str:
        return f"these records prove nothing here: {self.why}"


@frozen
class Difference:
    """What the two parties of an account count differently, each by its own signed state."""

    key: AccountKey
    what: What
    ours: int
    theirs: int


def totals_of(account: Account, acknowledged: bytes) -> Totals:
    """What is said of an account; `acknowledged` as in `Totals`."""
    key = account.key
    counted = {name: min(getattr(account, name), MAX_AMOUNT) for name in _COUNTED}
    return Totals(key.payer, key.payee, key.rail, key.unit, **counted, acknowledged=acknowledged)


def key_of(totals: Totals) -> AccountKey:
    """The account that is spoken of."""
    return AccountKey(totals.payer, totals.payee, totals.rail, totals.unit)


def accounts_between(accounts: Iterable[Account], me: str, peer: str) -> list[Account]:
    """Those of one pair, in both directions, in a fixed order."""
    both = [account for account in accounts if {account.key.payer, account.key.payee} == {me, peer}]
    return sorted(both, key=lambda account: (account.key.payer, account.key.rail, account.key.unit))[:MAX_ACCOUNTS]


def by_key(state: Signed[AccountState]) -> Mapping[AccountKey, Totals]:
    """The accounts of a state that are between its signer and whom it speaks to; each the first time it is named."""
    parties = {state.signer, state.record.peer}
    found: dict[AccountKey, Totals] = {}
    for totals in state.record.accounts:
        if {totals.payer, totals.payee} == parties:
            found.setdefault(key_of(totals), totals)
    return found


def differences(ours: Signed[AccountState], theirs: Signed[AccountState]) -> list[Difference]:
    """What two states of one moment say differently.

    While orders are under way on either side, each counts at its own time, and promises and debts are not compared.
    """
    mine, other = by_key(ours), by_key(theirs)
    return [
        Difference(key, what, here, there)
        for key in sorted(mine.keys() | other.keys(), key=_order_of_keys)
        for what, here, there in _compared(mine.get(key) or _nothing(key), other.get(key) or _nothing(key), ours.signer)
        if here != there
    ]


def _order_of_keys(key: AccountKey) -> tuple[str, ...]:
    return key.payer, key.payee, key.rail, key.unit


def _nothing(key: AccountKey) -> Totals:
    return totals_of(Account(key), b"")


def _compared(here: Totals, there: Totals, me: str) -> Iterable[tuple[What, int, int]]:
    yield "settled", here.settled, there.settled
    yield "netted", here.netted, there.netted
    if here.reserved or there.reserved:
        return
    yield "authorized", here.authorized, there.authorized
    yield "owed", _owed(here, me == here.payee), _owed(there, me != here.payee)


def _owed(said: Totals, by_payee: bool) -> int:
    """What is owed and not in dispute: the payee counts what is in dispute among its earnings, the payer does not."""
    owed = said.earned - said.waived - said.forgiven - (said.disputed if by_payee else 0)
    return max(owed, 0)


def follows(state: Signed[AccountState], entry: Entry) -> bool:
    """Whether a state names this very entry as the head of its signer's journal."""
    return (state.record.sequence, state.record.head) == (entry.sequence, entry.hash)


@frozen
class Proof:
    """The records of one acknowledged order as they came from the other side; each may be missing."""

    acknowledgement: Signed[Acknowledgement]
    order: Signed[Order] | None
    offer: Signed[Offer] | None
    claim: Claim | None


def opened_voucher(acknowledgement: Signed[Acknowledgement]) -> Signed[Voucher]:
    """The voucher in an acknowledgement, by the same signer. Raises NotOurs."""
    try:
        voucher = open_record(acknowledgement.record.voucher, Voucher)
    except Malformed as error:
        raise NotOurs(str(error)) from None
    if not voucher.signer == voucher.record.payer == acknowledgement.signer:
        raise NotOurs("an acknowledgement carries the voucher of its own signer")
    return voucher


def account_of(voucher: Signed[Voucher]) -> AccountKey:
    """The account that a voucher pays."""
    said = voucher.record
    return AccountKey(said.payer, said.payee, said.rail, said.unit)


def recovered_by_payer(proof: Proof, account: Account) -> list[Change]:
    """What follows from an acknowledgement of ours that our journal has lost; `account` is what we owe by now.

    The promise counts in any case. The order counts as far as what is owed stays within what we ever promised, so that
    whoever hands our acknowledgements back one by one cannot make us owe more than we have signed. Raises NotOurs.
    """
    said, order, key = proof.acknowledgement.record, proof.order, account.key
    voucher = opened_voucher(proof.acknowledgement)
    if account_of(voucher) != key or proof.acknowledgement.signer != key.payer:
        raise NotOurs("the acknowledgement pays another account")
    promised = VoucherReceived(voucher.record.total)
    if order is None or not _fits(order, said.order, key):
        return [promised]
    record = order.record
    known = account.orders.get(order.digest)
    earned = known.earned if known else 0
    room = max(account.authorized, voucher.record.total) - account.owed
    total = min(said.amount, record.max_cost, earned + max(room, 0))
    changes: list[Change] = [
        Recovered(order.digest, record.max_cost, record.expires, max(total, earned)),
        Acknowledged(order.digest, max(total, earned)),
    ]
    asked = _asked(proof.claim, order, key) or 0
    if not said.accepted and total == said.amount < asked <= record.max_cost:
        changes.append(Disputed(order.digest, asked, total))
    return [*changes, promised]


def recovered_by_payee(proof: Proof, account: Account, at_most: int) -> list[Change]:
    """What follows from a receipt or checkpoint of ours that our journal has lost.

    `at_most` is all that the payer says we have earned: what it does not say cannot have been lost. Raises NotOurs.
    """
    order, offer, key = proof.order, proof.offer, account.key
    if order is None or not _fits(order, proof.acknowledgement.record.order, key):
        raise NotOurs("the order is not there, or is another one's")
    if offer is None or (offer.signer, offer.digest) != (key.payee, order.record.offer):
        raise NotOurs("the offer is not there, or is not ours")
    if offer.record.price.unit != key.unit:
        raise NotOurs("the offer is in another unit")
    cost = _asked(proof.claim, order, key)
    if cost is None or cost > order.record.max_cost:
        raise NotOurs("there is no receipt or checkpoint of ours for what it asks")
    known = account.orders.get(order.digest)
    earned = known.earned if known else 0
    total = min(cost, earned + max(at_most - account.earned, 0))
    return [Recovered(order.digest, order.record.max_cost, order.record.expires, max(total, earned))]


def _fits(order: Signed[Order], digest: bytes, key: AccountKey) -> bool:
    said = (order.digest, order.signer, order.record.seller, order.record.rail)
    return said == (digest, key.payer, key.payee, key.rail)


def _asked(claim: Claim | None, order: Signed[Order], key: AccountKey) -> int | None:
    """What the payee has signed for an order; None where nothing of it is here."""
    if claim is None or claim.signer != key.payee or claim.record.order != order.digest:
        return None
    if isinstance(claim.record, Receipt) and claim.record.unit != key.unit:
        return None
    return claim.record.cost
