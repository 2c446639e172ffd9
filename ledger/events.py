"""What an entry of the journal says, and the books that follow from it."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from attrs import define, field, frozen

from ledger.account import Account, AccountKey, apply, apply_plain
from ledger.changes import Change
from ledger.effects import EffectPlanned, EffectTold, Tracked, follow
from ledger.records import DIGEST_BYTES

# In wei; nine of the coin, and what 64 bits hold.
MAX_FEE: Final = 2**63 - 1

Fact = int | str | bytes


@define
class InvalidEvents(ValueError):
    """An entry's payload that is no list of events known to this version."""

    why: str

    def __str__(self) -> str:
        return f"not the events of a journal entry: {self.why}"


def _is_digest(_: object, __: object, value: bytes) -> None:
    if type(value) is not bytes or len(value) != DIGEST_BYTES:
        raise InvalidEvents(f"a digest has {DIGEST_BYTES} bytes, unlike {value!r}")


def _is_digest_or_none(_: object, __: object, value: bytes | None) -> None:
    if value is not None:
        _is_digest(_, __, value)


def _are_facts(_: object, __: object, facts: Mapping[str, Fact]) -> None:
    for name, fact in facts.items():
        # type(...) and not isinstance: True is not a number here.
        if type(name) is not str or type(fact) not in (int, str, bytes):
            raise InvalidEvents(f"fact {name!r} must be a number, text or bytes, not {fact!r}")
        if isinstance(fact, int) and not -(2**63) <= fact < 2**63:
            raise InvalidEvents(f"fact {name!r} must fit 64 bits, unlike {fact}")


@frozen(slots=False)
class AccountChanged:
    """One account moved by one change."""

    key: AccountKey
    change: Change


@frozen(slots=False)
class RecordKept:
    """A signed record was kept, under its digest; `order` is the digest of the order it belongs to, if any.

    A journal's `append` writes it by itself for each record that it is given.
    """

    kind: str
    digest: bytes = field(validator=_is_digest)
    order: bytes | None = field(default=None, validator=_is_digest_or_none)


@frozen
class Observed:
    """Something worth remembering about a node: evidence, which reputation and audits know how to read."""

    subject: str
    what: str
    facts: Mapping[str, Fact] = field(factory=dict, validator=_are_facts)


def _is_fee(_: object, __: object, value: int) -> None:
    if type(value) is not int or not 0 <= value <= MAX_FEE:
        raise InvalidEvents(f"a fee and its transaction's number lie between 0 and {MAX_FEE}, unlike {value!r}")


@frozen
class FeePaid:
    """A transaction of this node's wallet is final, and its network has taken `amount` for it.

    In wei of the coin of `network` (CAIP-2), whether or not it did what it should. `rail` is what it was sent for,
    `payer` the wallet; `nonce` is the transaction's number there, which no other final one has.
    """

    rail: str
    network: str
    payer: str
    nonce: int = field(validator=_is_fee)
    transaction: bytes = field(validator=_is_digest)
    amount: int = field(validator=_is_fee)


Event = AccountChanged | RecordKept | Observed | EffectPlanned | EffectTold | FeePaid
# A change's kind, and the values of its fields in order.
PlainChange = tuple[type[Change], Sequence[Any]]
# What happens to one account or to its effect.
PlainMove = PlainChange | EffectPlanned | EffectTold
_EFFECTS: Final = (EffectPlanned, EffectTold)


def _sealed(accounts: Mapping[AccountKey, Account]) -> Mapping[AccountKey, Account]:
    return MappingProxyType(dict(accounts))


def _sealed_effects(effects: Mapping[AccountKey, Tracked]) -> Mapping[AccountKey, Tracked]:
    return MappingProxyType(dict(effects))


@frozen(hash=False)
class Books:
    """Every account, as it is after some entry, and the effects that are under way or bear watching, by account."""

    accounts: Mapping[AccountKey, Account] = field(factory=dict, converter=_sealed)
    effects: Mapping[AccountKey, Tracked] = field(factory=dict, converter=_sealed_effects)

    def account(self, key: AccountKey) -> Account:
        """An account; one that nothing has happened to yet is empty."""
        return self.accounts.get(key) or Account(key)

    @property
    def orders(self) -> int:
        """How many orders all accounts know."""
        return sum(len(account.orders) for account in self.accounts.values())

    def apply(self, events: Iterable[Event]) -> "Books":
        """The books after these events: all of them, or none. Raises AccountError."""
        accounts, effects = dict(self.accounts), dict(self.effects)
        advance(accounts, effects, events)
        return Books(accounts, effects)


def advance(accounts: dict[AccountKey, Account], effects: dict[AccountKey, Tracked], events: Iterable[Event]) -> None:
    """Move accounts and effects in place, event by event. Raises AccountError; what came before it stays moved."""
    for event in events:
        if isinstance(event, AccountChanged):
            accounts[event.key] = apply(accounts.get(event.key) or Account(event.key), event.change)
        elif isinstance(event, _EFFECTS):
            advance_account(accounts, effects, account_of(event), (event,))


def account_of(event: EffectPlanned | EffectTold) -> AccountKey:
    """The account whose effect an event tells of."""
    return event.effect.account if isinstance(event, EffectPlanned) else event.account


def advance_account(
    accounts: dict[AccountKey, Account], effects: dict[AccountKey, Tracked], key: AccountKey, moves: Iterable[PlainMove]
) -> None:
    """Move one account and its effect in place. Raises AccountError; then nothing of it has moved."""
    account, tracked = accounts.get(key), effects.get(key)
    for move in moves:
        if isinstance(move, tuple):
            account = apply_plain(account or Account(key), *move)
        else:
            tracked = follow(tracked, move, account or Account(key))
    if account is not None:
        accounts[key] = account
    if tracked is None:
        effects.pop(key, None)
    else:
        effects[key] = tracked
