"""What an entry of the journal says, and the books that follow from it."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from attrs import define, field, fields_dict, frozen

from ledger import codec, quick
from ledger.account import Account, AccountKey, apply
from ledger.changes import Change, InvalidChange, decode_change, encode_change
from ledger.effect_maps import decode_effect, encode_effect
from ledger.effects import EffectPlanned, EffectTold, Tracked, follow
from ledger.money import Unit
from ledger.orders import unchecked
from ledger.records import DIGEST_BYTES

# Far above what one append holds; it bounds what a damaged row can make us decode.
MAX_PAYLOAD_BYTES: Final = 1_048_576
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
# What happens to one account or to its effect.
Move = Change | EffectPlanned | EffectTold
_EFFECTS: Final = (EffectPlanned, EffectTold)


def encode_events(events: Iterable[Event]) -> bytes:
    """An entry's payload. Raises InvalidEvents when it would be larger than an entry may be."""
    spelled = [_spelled(event) for event in events]
    payload = quick.spell_head(4, len(spelled)) + b"".join(spelled)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidEvents(f"{len(payload)} bytes in one entry, of at most {MAX_PAYLOAD_BYTES}: append in parts")
    return payload


def _spelled(event: Event) -> bytes:
    match event:
        case AccountChanged(key, change):
            spelled = quick.spell_change(change)
            if spelled is not None:
                return _ACCOUNT_1 + quick.spell_account_key(key) + _ACCOUNT_2 + spelled
        case RecordKept(kind, digest, order):
            of_order = b"X\x20" + order if order is not None else b"\xf6"
            return _RECORD_1 + quick.spell_text(kind) + _RECORD_2 + of_order + _RECORD_3 + digest
    return codec.encode(_to_map(event))


def decode_events(payload: bytes) -> tuple[Event, ...]:
    """Read an entry's payload. Raises InvalidEvents."""
    try:
        events = _read_quickly(payload)
    except (ValueError, IndexError):
        events = None
    return _decode(payload) if events is None else events


def _decode(payload: bytes) -> tuple[Event, ...]:
    try:
        plain = codec.decode(payload, MAX_PAYLOAD_BYTES)
        if not isinstance(plain, list):
            raise InvalidEvents(f"a list is needed, not {type(plain).__name__}")
        return tuple(_from_map(event) for event in plain)
    except (codec.Malformed, InvalidChange) as error:
        raise InvalidEvents(str(error)) from error


def _to_map(event: Event) -> dict[str, Any]:
    match event:
        case AccountChanged(AccountKey(payer, payee, rail, unit), change):
            return {"event": "account", "key": [payer, payee, rail, unit], "change": encode_change(change)}
        case RecordKept(kind, digest, order):
            return {"event": "record", "kind": kind, "digest": digest, "order": order}
        case Observed(subject, what, facts):
            return {"event": "observed", "subject": subject, "what": what, "facts": dict(facts)}
        case EffectPlanned() | EffectTold():
            return encode_effect(event)
        case FeePaid():
            return {"event": "fee"} | {name: getattr(event, name) for name in fields_dict(FeePaid)}


def _from_map(plain: object) -> Event:
    match plain:
        case {
            "event": "account",
            "key": [str(payer), str(payee), str(rail), str(unit)],
            "change": dict(change),
            **rest,
        } if not rest:
            key = AccountKey(payer, payee, rail, cast(Unit, unit))  # checked by AccountKey
            return AccountChanged(key, decode_change(change))
        case {"event": "record", "kind": str(kind), "digest": digest, "order": order, **rest} if not rest:
            return RecordKept(kind, digest, order)
        case {"event": "observed", "subject": str(subject), "what": str(what), "facts": dict(facts), **rest}:
            if not rest:
                return Observed(subject, what, facts)
        case {
            "event": "fee",
            "rail": str(rail),
            "network": str(network),
            "payer": str(payer),
            "nonce": nonce,
            "transaction": transaction,
            "amount": amount,
            **rest,
        } if not rest:
            return FeePaid(rail, network, payer, nonce, transaction, amount)
        case {"event": "effect" | "fate"}:
            return decode_effect(cast(Mapping[str, Any], plain))
    raise InvalidEvents(f"{str(plain)[:200]} is no event known here")


# What stands around the values of an event, in deterministic CBOR.
_ACCOUNT_1: Final = b"\xa3ckey"
_ACCOUNT_2: Final = b"eeventgaccountfchange"
_RECORD_1: Final = b"\xa4dkind"
_RECORD_2: Final = b"eeventfrecordeorder"
_RECORD_3: Final = b"fdigestX\x20"
_OBSERVED_1: Final = b"\xa4dwhat"
_OBSERVED_2: Final = b"eeventhobservedefacts"
_OBSERVED_3: Final = b"gsubject"
_RECORD: Final = re.compile(
    re.escape(_RECORD_1)
    + rb"(.{1,%d}?)" % quick.MAX_WORDS_BYTES
    + re.escape(_RECORD_2)
    + rb"(?:\xf6|X\x20(.{%d}))" % DIGEST_BYTES
    + re.escape(_RECORD_3)
    + rb"(.{%d})" % DIGEST_BYTES,
    re.DOTALL,
)


def _read_quickly(payload: bytes) -> tuple[Event, ...] | None:
    """The events of a payload in their usual spelling, else None. Raises ValueError, IndexError at other bytes."""
    head = quick.array(payload)
    if head is None or len(payload) > MAX_PAYLOAD_BYTES:
        return None
    count, at = head
    events: list[Event] = []
    for _ in range(count):
        # Years are made of these two, so nothing is called for them that need not be.
        if payload.startswith(_ACCOUNT_1, at):
            middle = payload.index(_ACCOUNT_2, at, at + quick.MAX_WORDS_BYTES)
            key = quick.account_key(payload[at + len(_ACCOUNT_1) : middle])
            found = quick.change(payload, middle + len(_ACCOUNT_2))
            if key is None or found is None:
                return None
            change, at = found
            events.append(unchecked(AccountChanged, {"key": key, "change": change}))
        elif record := _RECORD.match(payload, at):
            spelled, order, digest = record.groups()
            kind = quick.word(spelled)
            if kind is None:
                return None
            events.append(unchecked(RecordKept, {"kind": kind, "digest": digest, "order": order}))
            at = record.end()
        elif observed := _read_observed(payload, at):
            event, at = observed
            events.append(event)
        else:
            return None
    return tuple(events) if at == len(payload) else None


def _read_observed(raw: bytes, at: int) -> tuple[Observed, int] | None:
    if not raw.startswith(_OBSERVED_1, at):
        return None
    middle = raw.index(_OBSERVED_2, at, at + quick.MAX_WORDS_BYTES)
    what = quick.word(raw[at + len(_OBSERVED_1) : middle])
    found = quick.scalars(raw, middle + len(_OBSERVED_2))
    if what is None or found is None:
        return None
    facts, at = found
    subject = quick.text(raw, at + len(_OBSERVED_3))
    if subject is None or raw[at : at + len(_OBSERVED_3)] != _OBSERVED_3:
        return None
    return Observed(subject[0], what, facts), subject[1]


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
    accounts: dict[AccountKey, Account], effects: dict[AccountKey, Tracked], key: AccountKey, moves: Iterable[Move]
) -> None:
    """Move one account and its effect in place. Raises AccountError; then nothing of it has moved."""
    account, tracked = accounts.get(key), effects.get(key)
    for move in moves:
        if isinstance(move, _EFFECTS):
            tracked = follow(tracked, move, account or Account(key))
        else:
            account = apply(account or Account(key), move)
    if account is not None:
        accounts[key] = account
    if tracked is None:
        effects.pop(key, None)
    else:
        effects[key] = tracked
