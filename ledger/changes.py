"""What can happen to an account: acts of ours and facts from outside, applied by `ledger.account`.

Amounts and growing totals are integers in the account's unit, orders are named by the digest of the signed
Order, and times are seconds since 1970.
"""

from collections.abc import Mapping
from typing import Any, Final, get_args

from attrs import Attribute, define, field, fields_dict, frozen

from ledger.money import MAX_AMOUNT, UNITS

ORDER_DIGEST_BYTES: Final = 32


class InvalidChange(ValueError):
    """A value that no change can carry; each subclass is one broken rule."""


@define
class InvalidAmount(InvalidChange):
    """An amount, time or sequence that is not an integer from 0 to MAX_AMOUNT."""

    name: str
    value: object

    def __str__(self) -> str:
        return f"{self.name} must be an integer from 0 to {MAX_AMOUNT}, not {self.value!r}"


@define
class InvalidOrderDigest(InvalidChange):
    """An order named by something else than the 32 bytes of its digest."""

    value: object

    def __str__(self) -> str:
        return f"an order is named by {ORDER_DIGEST_BYTES} bytes, not by {self.value!r}"


@define
class InvalidUnit(InvalidChange):
    """An account is kept in a unit that is none of `money.UNITS`."""

    value: object

    def __str__(self) -> str:
        return f"an account is kept in one of {', '.join(UNITS)}, not in {self.value!r}"


@define
class UnknownChange(InvalidChange):
    """A stored change of a kind that this version does not know."""

    kind: object

    def __str__(self) -> str:
        return f"{self.kind!r} is no kind of change known here: a newer version may have written it"


@define
class InvalidChangeFields(InvalidChange):
    """A stored change that lacks fields, or has some that its kind does not have."""

    kind: str
    missing: frozenset[str]
    unexpected: frozenset[str]

    def __str__(self) -> str:
        return f"change {self.kind!r} lacks {sorted(self.missing)} and must not have {sorted(self.unexpected)}"


def _is_amount(_: object, attribute: "Attribute[int]", value: object) -> None:
    # type(...) and not isinstance: True is not an amount.
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT:
        raise InvalidAmount(attribute.name, value)


def _is_order(_: object, __: "Attribute[bytes]", value: object) -> None:
    if type(value) is not bytes or len(value) != ORDER_DIGEST_BYTES:
        raise InvalidOrderDigest(value)


def _amount() -> int:
    return field(validator=_is_amount)


def _order() -> bytes:
    return field(validator=_is_order)


@frozen(slots=False)
class Reserved:
    """Act: admit an order that may cost up to `amount`, and draw all of it; `expires` is the order's own."""

    order: bytes = _order()
    amount: int = _amount()
    expires: int = _amount()


@frozen(slots=False)
class Admitted:
    """Act: admit an order that may cost up to `amount`, and draw `first` for what is delivered before any pay."""

    order: bytes = _order()
    amount: int = _amount()
    first: int = _amount()
    expires: int = _amount()


@frozen(slots=False)
class Drawn:
    """Act: this order may deliver up to `total` by now. What is drawn and not paid is bounded by the window."""

    order: bytes = _order()
    total: int = _amount()


@frozen(slots=False)
class Earned:
    """Act: `total` is what this order has delivered so far, by our own count."""

    order: bytes = _order()
    total: int = _amount()


@frozen(slots=False)
class Released:
    """Act: the order is over; what it reserved and did not earn is free. On a closed order: no effect."""

    order: bytes = _order()


@frozen(slots=False)
class Expired:
    """Act: release every open order that expired before `before`; what is still being answered must be younger."""

    before: int = _amount()


@frozen(slots=False)
class Forgotten:
    """Act: drop orders that expired before `before` and bind nobody: they can no longer be replayed."""

    before: int = _amount()


@frozen(slots=False)
class Authorized:
    """Act of the payer: we sign a voucher for this growing total."""

    total: int = _amount()


@frozen(slots=False)
class Forgiven:
    """Act of the payee: so much of the unpaid debt is let go, for instance that of a payer who never came back."""

    amount: int = _amount()


@frozen(slots=False)
class Claimed:
    """Act of the payee: we ask the rail for this growing total."""

    total: int = _amount()


@frozen(slots=False)
class Granted:
    """Fact: the payee's grant of credit. Sequences start at 1; one not above the last seen is ignored."""

    limit: int = _amount()
    window: int = _amount()
    sequence: int = _amount()


@frozen(slots=False)
class Acknowledged:
    """Fact: both sides signed that this order has cost `total`; it may come after the order was closed."""

    order: bytes = _order()
    total: int = _amount()


@frozen(slots=False)
class Funded:
    """Fact: collateral of this much has arrived in all.

    `sequence` is the rail's own count of what it saw, from 1: a later sight may show less (a reorganised chain), and
    one that is not above the last seen is ignored.
    """

    total: int = _amount()
    sequence: int = _amount()


@frozen(slots=False)
class Withdrawn:
    """Fact: of the collateral, this much in all has gone back to the payer, or is on its way. Sequence as in Funded."""

    total: int = _amount()
    sequence: int = _amount()


@frozen(slots=False)
class Disputed:
    """Fact: the payee asks `asked` for an order in all, and the payer grants `granted` of it, which it pays."""

    order: bytes = _order()
    asked: int = _amount()
    granted: int = _amount()


@frozen(slots=False)
class Resolved:
    """The payee asks no more than `total` for a disputed order: its act, and a fact to the payer.

    Where the payer gives way instead, that is an `Acknowledged` of more. If both do, the payee's word counts.
    """

    order: bytes = _order()
    total: int = _amount()


@frozen(slots=False)
class Recovered:
    """Fact: a signature of ours that our journal has lost says that this order was taken, and has cost `total`.

    It came back from the other side, after our journal was cut or restored from an older copy.
    """

    order: bytes = _order()
    amount: int = _amount()
    expires: int = _amount()
    total: int = _amount()


@frozen(slots=False)
class VoucherReceived:
    """Fact: the payer signed a voucher for this total; at the payer itself one that its journal had lost."""

    total: int = _amount()


@frozen(slots=False)
class ForgivenessReceived:
    """Fact at the payer: the payee has forgiven this growing total, `Forgiven` by `Forgiven`."""

    total: int = _amount()


@frozen(slots=False)
class Settled:
    """Fact: this growing total was paid for good, by the rail or by other means."""

    total: int = _amount()


@frozen(slots=False)
class Netted:
    """Fact: this growing total was set off against debts the other way. Both directions of a pair have the same."""

    total: int = _amount()


Act = Reserved | Admitted | Drawn | Earned | Released | Expired | Forgotten | Authorized | Forgiven | Claimed
Fact = (
    Granted
    | Funded
    | Withdrawn
    | Acknowledged
    | Disputed
    | Resolved
    | Recovered
    | VoucherReceived
    | ForgivenessReceived
    | Settled
    | Netted
)
Change = Act | Fact


# How changes are named where they are stored; a name, once written, is never given another meaning.
_KINDS: Final[dict[str, type[Change]]] = {kind.__name__: kind for kind in get_args(Change)}


def encode_change(change: Change) -> dict[str, Any]:
    """A change as a plain map with text keys, ready for CBOR: its kind under `change`, then its fields."""
    kind = type(change).__name__
    return {"change": kind, **{name: getattr(change, name) for name in fields_dict(type(change))}}


def decode_change(stored: Mapping[str, object]) -> Change:
    """Read back what `encode_change` made. Raises InvalidChange, one subclass for each broken rule."""
    kind = stored.get("change")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnknownChange(kind)
    fields = {name: value for name, value in stored.items() if name != "change"}
    expected = fields_dict(_KINDS[kind]).keys()
    if fields.keys() != expected:
        raise InvalidChangeFields(kind, frozenset(expected - fields.keys()), frozenset(fields.keys() - expected))
    return _KINDS[kind](**fields)  # type: ignore[arg-type]
