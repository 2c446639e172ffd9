"""Whether a JSON value fits a schema: what a grammar would have held it to, checked afterwards.

Knows the words that `node.models.schema` takes when it is strict; others are for the request's check to refuse.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

Schema = Any

# Schemas looked at for one value: references and alternatives can stand for very many.
_MAX_VISITS: Final = 20_000
_VALUES: Final = 32  # values and names that are compared in the time of one visit


class _TooMuch(Exception):
    """The schema asks for more than is looked at."""


def fits(value: Any, schema: Schema) -> bool:
    """Whether a value fits; nothing fits a schema that makes no sense or takes too long."""
    try:
        return _Check(schema).fits(value, schema)
    except (_TooMuch, RecursionError, LookupError, TypeError, ValueError, AttributeError):
        return False


class _Check:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._visits = 0

    def fits(self, value: Any, schema: Schema) -> bool:
        self._visit(1)
        if not isinstance(schema, Mapping):
            return schema is True
        return all(rule(self, value, schema) for word, rule in _RULES.items() if word in schema)

    def _visit(self, count: int) -> None:
        self._visits += count
        if self._visits > _MAX_VISITS:
            raise _TooMuch

    def enum(self, value: Any, schema: Schema) -> bool:
        self._visit(len(schema["enum"]) // _VALUES)
        return any(_same(value, one) for one in schema["enum"])

    def required(self, value: Any, schema: Schema) -> bool:
        if not isinstance(value, dict):
            return True
        self._visit(len(schema["required"]) // _VALUES)
        return all(name in value for name in schema["required"])

    def reference(self, value: Any, schema: Schema) -> bool:
        target = self._root
        for step in str(schema["$ref"]).split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            target = target[int(key)] if isinstance(target, list) else target[key]
        return self.fits(value, target)

    def every(self, value: Any, schema: Schema) -> bool:
        return all(self.fits(value, one) for one in schema["allOf"])

    def some(self, value: Any, schema: Schema) -> bool:
        ways = [schema[word] for word in ("anyOf", "oneOf") if word in schema]
        return all(any(self.fits(value, one) for one in way) for way in ways)

    def properties(self, value: Any, schema: Schema) -> bool:
        if not isinstance(value, dict):
            return True
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all(self.fits(inner, known.get(name, others)) for name, inner in value.items())

    def items(self, value: Any, schema: Schema) -> bool:
        if not isinstance(value, list):
            return True
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(rest, list):  # as before 2020
            first, rest = rest, True
        heads = [*first[: len(value)], *([rest] * (len(value) - len(first)))]
        return all(self.fits(inner, one) for inner, one in zip(value, heads, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == value // 1,
}


def _typed(_check: _Check, value: Any, schema: Schema) -> bool:
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(_TYPES[one](value) for one in types)


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON: true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _bound(word: str, measure: Callable[[Any], Any], holds: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    """A rule for values that can be measured; `measure` gives None for others."""

    def rule(_check: _Check, value: Any, schema: Schema) -> bool:
        measured = measure(value)
        return measured is None or isinstance(schema[word], bool) or holds(measured, schema[word])

    return rule


def _number(value: Any) -> Any:
    return value if _is_number(value) else None


def _length_of(kind: type[str] | type[list[Any]]) -> Callable[[Any], int | None]:
    return lambda value: len(value) if isinstance(value, kind) else None


def _at_least(one: Any, bound: Any) -> bool:
    return bool(one >= bound)


def _at_most(one: Any, bound: Any) -> bool:
    return bool(one <= bound)


_RULES: Final[dict[str, Callable[[_Check, Any, Schema], bool]]] = {
    "$ref": _Check.reference,
    "allOf": _Check.every,
    "anyOf": _Check.some,
    "oneOf": _Check.some,
    "type": _typed,
    "const": lambda _, value, schema: _same(value, schema["const"]),
    "enum": _Check.enum,
    "properties": _Check.properties,
    "additionalProperties": _Check.properties,
    "required": _Check.required,
    "items": _Check.items,
    "prefixItems": _Check.items,
    "minItems": _bound("minItems", _length_of(list), _at_least),
    "maxItems": _bound("maxItems", _length_of(list), _at_most),
    "minLength": _bound("minLength", _length_of(str), _at_least),
    "maxLength": _bound("maxLength", _length_of(str), _at_most),
    "minimum": _bound("minimum", _number, _at_least),
    "maximum": _bound("maximum", _number, _at_most),
    "exclusiveMinimum": _bound("exclusiveMinimum", _number, lambda one, bound: one > bound),
    "exclusiveMaximum": _bound("exclusiveMaximum", _number, lambda one, bound: one < bound),
}
