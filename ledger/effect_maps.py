"""Effects as plain maps with text keys, for the journal's entries and for snapshots."""

from collections.abc import Mapping
from typing import Any, cast

from attrs import fields_dict

from ledger.account import AccountKey
from ledger.effects import Effect, EffectEvent, EffectPlanned, EffectTold, InvalidEffect, Tracked


def encode_effect(event: EffectEvent) -> dict[str, Any]:
    """An event as a plain map with text keys."""
    match event:
        case EffectPlanned(effect, time):
            return {"event": "effect", **_effect_map(effect), "time": time}
        case EffectTold(account):
            told = {name: getattr(event, name) for name in fields_dict(EffectTold)}
            return told | {"event": "fate", "account": _key_list(account)}


def decode_effect(plain: Mapping[str, Any]) -> EffectEvent:
    """Read back what `encode_effect` made. Raises InvalidChange."""
    given = {name: value for name, value in plain.items() if name != "event"}
    if plain.get("event") == "effect":
        time = given.pop("time", None)
        return EffectPlanned(_effect(given), cast(int, time))
    return EffectTold(**_named(given, EffectTold))


def encode_tracked(tracked: Tracked) -> dict[str, Any]:
    """A tracked effect as a plain map with text keys."""
    known = {name: getattr(tracked, name) for name in fields_dict(Tracked) if name != "effect"}
    return _effect_map(tracked.effect) | known


def decode_tracked(plain: Mapping[str, Any]) -> Tracked:
    """Read back what `encode_tracked` made. Raises InvalidChange."""
    own = fields_dict(Effect).keys()
    known = {name: value for name, value in plain.items() if name not in own}
    if known.keys() != fields_dict(Tracked).keys() - {"effect"}:
        raise InvalidEffect(f"it has the fields {', '.join(map(str, known))[:80]}")
    return Tracked(_effect({name: value for name, value in plain.items() if name in own}), **known)


def _effect_map(effect: Effect) -> dict[str, Any]:
    return {name: getattr(effect, name) for name in fields_dict(Effect)} | {"account": _key_list(effect.account)}


def _effect(plain: Mapping[str, Any]) -> Effect:
    return Effect(**_named(plain, Effect))


def _named(plain: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The fields of an effect or event, all of them and no others, its account read."""
    if plain.keys() != fields_dict(kind).keys():
        raise InvalidEffect(f"it has the fields {', '.join(map(str, plain))[:80]}")
    match plain["account"]:
        case [str(payer), str(payee), str(rail), str(unit)]:
            key = AccountKey(payer, payee, rail, unit)  # type: ignore[arg-type] # checked by AccountKey
            return {**plain, "account": key}
    raise InvalidEffect("its account is not named by payer, payee, rail and unit")


def _key_list(key: AccountKey) -> list[str]:
    return [key.payer, key.payee, key.rail, key.unit]
