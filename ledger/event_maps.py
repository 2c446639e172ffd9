"""Events as plain maps, for CBOR: written, and read back with a look at each value."""

from collections.abc import Mapping
from typing import Any, cast

from attrs import fields_dict

from ledger.account import AccountKey
from ledger.changes import decode_change, encode_change
from ledger.effect_maps import decode_effect, encode_effect
from ledger.effects import EffectPlanned, EffectTold
from ledger.events import AccountChanged, Event, FeePaid, InvalidEvents, Observed, RecordKept
from ledger.money import Unit


def encode_event(event: Event) -> dict[str, Any]:
    """An event as a plain map with text keys: what it is under `event`, then its parts."""
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


def decode_event(plain: object) -> Event:
    """Read back what `encode_event` made. Raises InvalidEvents, InvalidChange."""
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
