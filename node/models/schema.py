"""JSON schemas, as clients send them, into GBNF: what a grammar lets a model write then fits the schema.

The grammar may allow less than the schema: properties come in the schema's order, none beyond those it names (where it
names any), space is one blank or a new line with an indent, integers have at most 15 digits, and strings and lists
with an upper bound at most MAX_REPEATS parts. What a grammar cannot hold (`not`, `pattern`, `multipleOf`, ...) is
refused when `strict`, else passed over. `oneOf` counts as `anyOf`; `format` as an annotation, but for dates, times
and uuid.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Final
from urllib.parse import unquote

from attrs import define, field

from node.models.gbnf import MAX_REPEATS, BadGrammar, EmptyGrammar, lark_of

MAX_SCHEMA_BYTES: Final = 65_536
MAX_SCHEMA_DEPTH: Final = 32
# Schemas and references that are looked at; a few references can stand for many.
_MAX_VISITS: Final = 4_096
_MAX_EFFORT: Final = 16_384  # of all schemas of a request
_NAMES: Final = 64  # names and values that are merged in the time of one visit
_LONG: Final = (Mapping, list)
_MAX_DEPTH: Final = 80  # with references followed; the reader is recursive
_MAX_DIGITS: Final = 15  # so that every integer is exact as a 64-bit float, too

_Schema = Mapping[str, Any]

# Words that say nothing about which values fit.
_NOTES: Final = frozenset(
    {
        "$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default",
        "definitions", "deprecated", "description", "discriminator", "example", "examples", "format", "nullable",
        "readOnly", "strict", "title", "writeOnly",
    }
)  # fmt: skip
_OF_TYPE: Final = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_SHAPES: Final = frozenset({"$ref", "allOf", "anyOf", "const", "enum", "oneOf", "type"}).union(*_OF_TYPE.values())

_COMMON: Final = {
    "ws": r'(" " | "\n" " "{0,16})?',
    "hex": "[0-9a-fA-F]",
    # No half of a surrogate pair: a character outside the first plane is written as itself.
    "escape": r'"\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2}))',
    "char": r'[^"\\\x00-\x1F\x7F] | escape',
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": 'integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (string ws ":" ws value ws ("," ws string ws ":" ws value ws)*)? "}"',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}
_FORMATS: Final = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


class BadSchema(ValueError):
    """A JSON schema that cannot be held to; the message says why and what to do."""


@define
class Effort:
    """How many parts of schemas were looked at, references followed: of all that one request brings, together."""

    parts: int = 0

    def spend(self, parts: int) -> None:
        """Raises BadSchema when it was too much."""
        self.parts += parts
        if self.parts > _MAX_EFFORT:
            raise BadSchema("the schemas of this request have too many parts together: give fewer, or simpler ones")


def schema_grammar(schema: _Schema, *, strict: bool = True, effort: Effort | None = None) -> str:
    """GBNF whose texts are JSON that fits the schema; schemas of one request share their `effort`. Raises BadSchema."""
    return _grammar([(schema, strict)], lambda rules: rules[0], effort)


def tool_call_grammar(tools: Sequence[_Schema], choice: str | None) -> str:
    """GBNF for calls of tools as chat requests define them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

    `choice` is the name of the one tool to call, once; None stands for one call or several of any. What a grammar
    cannot hold of the parameters is passed over, but where a tool says `strict`. Raises BadSchema.
    """
    functions = [tool.get("function", tool) for tool in tools]
    if not all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in functions):
        raise BadSchema("each tool needs a function with a name")
    named = [one for one in functions if choice in (None, one["name"])]
    if not named:
        raise BadSchema("tool_choice names no tool of this request: name one of them")

    def calls(rules: list[str]) -> str:
        ways = [
            rf'{_literal(json.dumps(one["name"], ensure_ascii=False))} ws "," ws "\"arguments\"" ws ":" ws {rule}'
            for one, rule in zip(named, rules, strict=True)
        ]
        call = rf'"<tool_call>" ws "{{" ws "\"name\"" ws ":" ws ({" | ".join(ways)}) ws "}}" ws "</tool_call>"'
        return f"{call} (ws {call})*" if choice is None else call

    wanted = [
        (one.get("parameters") or {"type": "object", "properties": {}}, one.get("strict") is True) for one in named
    ]
    return _grammar(wanted, calls)


def _grammar(
    schemas: Sequence[tuple[_Schema, bool]], root: Callable[[list[str]], str], effort: Effort | None = None
) -> str:
    _check_size([schema for schema, _ in schemas])
    rules: dict[str, str] = {}
    effort = effort or Effort()
    found = [_Writer(schema, strict, rules, effort).rule(schema) for schema, strict in schemas]
    text = "\n".join(f"{name} ::= {body}" for name, body in {"root": root(found), **rules, **_COMMON}.items()) + "\n"
    try:
        lark_of(text)
    except EmptyGrammar:
        raise BadSchema("nothing fits the schema: a part of it requires itself without end") from None
    except BadGrammar:
        raise BadSchema("the schema makes too large a grammar: give fewer properties, or less deep ones") from None
    return text


def _check_size(schemas: Sequence[Any]) -> None:
    level: list[Any] = list(schemas)
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        level = [part for whole in level for part in _parts(whole)]
    if level:
        raise BadSchema(f"the schema nests deeper than {MAX_SCHEMA_DEPTH}: move parts of it to $defs")
    if not all(isinstance(schema, Mapping) for schema in schemas):
        raise BadSchema("a schema is a JSON object")
    try:
        size = len(json.dumps(schemas, allow_nan=False))
    except (TypeError, ValueError):
        raise BadSchema("the schema holds something that is no JSON") from None
    if size > MAX_SCHEMA_BYTES:
        raise BadSchema(f"the schema has {size} bytes: give at most {MAX_SCHEMA_BYTES}")


def _parts(whole: Any) -> Iterator[Any]:
    # Empty containers count as a level; what they hold does not exist.
    return iter(whole.values() if isinstance(whole, Mapping) else whole if isinstance(whole, list) else ())


@define
class _Writer:
    """Rules for the parts of one schema, each under a name of its own."""

    _root: _Schema
    _strict: bool
    _rules: dict[str, str]
    _effort: Effort
    _references: dict[str, str] = field(factory=dict)
    _visits: int = 0
    _depth: int = 0

    def rule(self, schema: Any) -> str:
        """The name of a rule for this schema."""
        with self._within():
            return self._rule(schema)

    def _rule(self, schema: Any) -> str:
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise BadSchema("nothing fits a schema that is false" if schema is False else "a schema is a JSON object")
        match schema:
            case {"$ref": str(reference)} if not _says(schema, "$ref"):
                return self._referred(reference)
        self._check_words(schema)
        return self._new(self._body(schema))

    def _new(self, body: str) -> str:
        name = self._name()
        self._rules[name] = body
        return name

    def _name(self) -> str:
        return f"s{len(self._rules)}"

    @contextmanager
    def _within(self) -> Iterator[None]:
        self._depth += 1
        self._visit(1)
        yield
        self._depth -= 1

    def _visit(self, count: int) -> None:
        self._effort.spend(count)
        self._visits += count
        if self._visits > _MAX_VISITS or self._depth > _MAX_DEPTH:
            raise BadSchema("the schema has too many parts, or refers to itself without end: simplify it")

    def _check_words(self, schema: _Schema) -> None:
        unknown = sorted(set(schema) - _NOTES - _SHAPES)
        if unknown and self._strict:
            raise BadSchema(
                f"a grammar cannot hold {unknown[0][:64]!r}: leave it out, and check the answer for it yourself"
            )

    def _body(self, schema: _Schema) -> str:
        match schema:
            case {"$ref": _} | {"allOf": _}:
                return self._body(self._merged(schema))
            case {"anyOf": ways} | {"oneOf": ways}:
                return self._union(schema, ways)
            case {"const": value}:
                return self._values(schema, [value])
            case {"enum": list(values)}:
                return self._values(schema, values)
            case {"type": list(types)} if types:
                return " | ".join(self.rule({**schema, "type": one}) for one in types)
            case {"type": str(kind)} if kind in _OF_TYPE:
                return self._typed(kind, schema)
            case {"type": _}:
                raise BadSchema(f"a type is one of {', '.join(_OF_TYPE)}")
        for kind in ("object", "array", "string", "number"):
            if not _OF_TYPE[kind].isdisjoint(schema):
                return self._typed(kind, schema)
        return "value"

    def _typed(self, kind: str, schema: _Schema) -> str:
        match kind:
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(kind, schema)
        return kind

    # -- combinations

    def _referred(self, reference: str) -> str:
        if reference not in self._references:
            name = self._references[reference] = self._name()
            self._rules[name] = ""  # taken, while what it stands for may refer back to it
            self._rules[name] = self.rule(self._target(reference))
        return self._references[reference]

    def _target(self, reference: str) -> Any:
        if reference != "#" and not reference.startswith("#/"):
            raise BadSchema("a $ref can only point into the schema itself: begin it with #/")
        target: Any = self._root
        for step in reference.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isascii() and key.isdigit() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, Mapping) and key in target:
                target = target[key]
            else:
                raise BadSchema("a $ref points to nothing: define what it names")
        return target

    def _merged(self, schema: _Schema) -> _Schema:
        """The schema with its $ref and allOf worked in."""
        whole: _Schema = {name: value for name, value in schema.items() if name not in {"$ref", "allOf"}}
        parts = schema.get("allOf", [])
        if not isinstance(parts, list):
            raise BadSchema("allOf is a list of schemas")
        if "$ref" in schema:
            parts = [{"$ref": schema["$ref"]}, *parts]
        for part in map(self._plain, parts):
            if part is not True:
                whole = self._both(whole, part)
        return whole

    def _plain(self, schema: Any) -> Any:
        if not isinstance(schema, Mapping) or ("$ref" not in schema and "allOf" not in schema):
            return schema
        with self._within():
            alone = set(schema) == {"$ref"}
            return self._plain(self._target(str(schema["$ref"]))) if alone else self._merged(schema)

    def _both(self, one: _Schema, other: Any) -> _Schema:
        if not isinstance(other, Mapping):
            raise BadSchema("allOf and $ref need schemas that are JSON objects")
        self._check_words(other)
        self._visit(sum(len(said) for said in (*one.values(), *other.values()) if isinstance(said, _LONG)) // _NAMES)
        both = dict(one)
        for name, value in other.items():
            if name in _NOTES or name not in both or both[name] == value:
                both.setdefault(name, value)
            elif name == "required" and _are_names(value) and _are_names(both[name]):
                both[name] = list(dict.fromkeys([*both[name], *value]))
            elif name == "properties" and isinstance(value, Mapping) and isinstance(both[name], Mapping):
                shared = [key for key in value if key in both[name] and both[name][key] != value[key]]
                both[name] = {
                    **both[name],
                    **value,
                    **{key: {"allOf": [both[name][key], value[key]]} for key in shared},
                }
            else:
                raise BadSchema(f"two schemas that must both fit differ in {name[:64]!r}: make one schema of them")
        return both

    def _union(self, schema: _Schema, ways: Any) -> str:
        if not isinstance(ways, list) or not ways:
            raise BadSchema("anyOf and oneOf are lists of schemas that are not empty")
        rest = {name: value for name, value in schema.items() if name not in {"anyOf", "oneOf"}}
        if "anyOf" in schema and "oneOf" in schema:
            rest["oneOf"] = schema["oneOf"]
        if not _says(rest):
            return " | ".join(map(self.rule, ways))
        return " | ".join(self.rule({**rest, "allOf": [*rest.get("allOf", []), way]}) for way in ways)

    def _values(self, schema: _Schema, values: Sequence[Any]) -> str:
        types = schema.get("type", list(_OF_TYPE))
        types = types if isinstance(types, list) else [types]
        fitting = [value for value in values if any(_is_of(value, one) for one in types)]
        if "const" in schema and isinstance(schema.get("enum"), list):
            fitting = [value for value in fitting if value in schema["enum"]]
        if not fitting:
            raise BadSchema("no value of an enum or const has its type: check them")
        return " | ".join(_literal(json.dumps(value, ensure_ascii=False)) for value in fitting)

    # -- types

    def _object(self, schema: _Schema) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if not isinstance(properties, Mapping) or not _are_names(required):
            raise BadSchema("properties are an object, and required is a list of names")
        missing = [name for name in required if name not in properties]
        if missing and others is False:
            raise BadSchema("an object requires a property that it does not allow: define it in properties")
        properties = {**properties, **dict.fromkeys(missing, others)}
        if not properties:
            return '"{" ws "}"' if others is False else self._map(others)
        return self._listed(properties, set(required))

    def _map(self, values: Any) -> str:
        pair = self._new(f'string ws ":" ws {self.rule(values)} ws')
        return f'"{{" ws ({pair} ("," ws {pair})*)? "}}"'

    def _listed(self, properties: _Schema, required: set[str]) -> str:
        """Two chains, from the last property to the first: the rest behind a property that was written, and before."""
        behind, before = "", ""
        for name, schema in reversed(list(properties.items())):
            pair = self._new(f'{_literal(json.dumps(name, ensure_ascii=False))} ws ":" ws {self.rule(schema)} ws')
            first = f"{pair} {behind}".rstrip()
            if name in required:
                before, next_behind = first, f'"," ws {pair} {behind}'.rstrip()
            else:
                before = f"{first} | {before}" if before else f"({first})?"
                next_behind = f'("," ws {pair})? {behind}'.rstrip()
            behind, before = self._new(next_behind), self._new(before)
        return f'"{{" ws {before} "}}"'

    def _array(self, schema: _Schema) -> str:
        items, prefix = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):  # as before 2020
            items, prefix = True, items
        if not isinstance(prefix, list):
            raise BadSchema("prefixItems is a list of schemas")
        least, most = self._bounds(schema, "minItems", "maxItems")
        if not prefix:
            return self._items(items, least, most)
        if not least <= len(prefix) <= (MAX_REPEATS if most is None else most):
            raise BadSchema("a list with prefixItems has as many items as these: leave out minItems and maxItems")
        return '"[" ws ' + ' "," ws '.join(f"{self.rule(item)} ws" for item in prefix) + ' "]"'

    def _items(self, items: Any, least: int, most: int | None) -> str:
        if items is False or most == 0:
            if least:
                raise BadSchema("a list that allows no items requires some")
            return '"[" ws "]"'
        item = self._new(f"{self.rule(items)} ws")
        more = f'("," ws {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return f'"[" ws {item} {more} "]"' if least else f'"[" ws ({item} {more})? "]"'

    def _string(self, schema: _Schema) -> str:
        known = _FORMATS.get(str(schema.get("format")))
        if known is not None:
            return rf'"\"" {known} "\""'
        least, most = self._bounds(schema, "minLength", "maxLength")
        if not least and most is None:
            return "string"
        return rf'"\"" char{{{least},{"" if most is None else most}}} "\""'

    def _bounds(self, schema: _Schema, low: str, high: str) -> tuple[int, int | None]:
        least, most = schema.get(low, 0), schema.get(high)
        for value in (least, 0 if most is None else most):
            if type(value) is not int or value < 0:
                raise BadSchema(f"{low} and {high} are integers from 0")
        if least > MAX_REPEATS or (most is not None and most < least):
            raise BadSchema(f"{low} is at most {MAX_REPEATS}, and {high} is not below it")
        return least, None if most is None else min(most, MAX_REPEATS)

    # -- numbers

    def _number(self, kind: str, schema: _Schema) -> str:
        low, above = _limit(schema, "minimum", "exclusiveMinimum", max)
        high, below = _limit(schema, "maximum", "exclusiveMaximum", min)
        if low is None and high is None:
            return kind
        if kind == "integer":
            low = None if low is None else Fraction(math.floor(low) + 1 if above else math.ceil(low))
            high = None if high is None else Fraction(math.ceil(high) - 1 if below else math.floor(high))
            above = below = False
        ways = list(_below_zero(kind, low, above, high, below)) + list(_from_zero(kind, low, above, high, below))
        if not ways:
            if kind == "number" and not self._strict:
                return kind
            raise BadSchema("a grammar cannot hold these bounds of a number: put whole numbers between them")
        return " | ".join(ways)


def _limit(schema: _Schema, name: str, exclusive: str, narrower: Callable[..., Any]) -> tuple[Fraction | None, bool]:
    """The bound, and whether it is itself outside."""
    found = []
    for key, outside in ((name, False), (exclusive, True)):
        value = schema.get(key)
        if value is None or (key == exclusive and isinstance(value, bool)):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadSchema(f"{key} is a number")
        found.append((Fraction(value), outside))
    if schema.get(exclusive) is True and found:  # as before 2019
        found = [(found[0][0], True)]
    if not found:
        return None, False
    bound = narrower(value for value, _ in found)
    return bound, any(outside for value, outside in found if value == bound)


def _below_zero(kind: str, low: Fraction | None, above: bool, high: Fraction | None, below: bool) -> Iterator[str]:
    if low is not None and low >= 0:
        return
    mirrored = None if low is None else -low
    start, outside = (Fraction(1), False) if high is None or high > -1 else (-high, below)
    for way in _from_zero(kind, start, outside, mirrored, above):
        yield f'"-" ({way})'


def _from_zero(kind: str, low: Fraction | None, above: bool, high: Fraction | None, below: bool) -> Iterator[str]:
    """Ways to write the numbers from `low` to `high` that are not negative, by their whole part."""
    if high is not None and high < 0:
        return
    first, above = (low, above) if low is not None and low >= 0 else (Fraction(0), False)
    largest = 10**_MAX_DIGITS - 1
    last = Fraction(largest) if high is None else min(high, Fraction(largest))
    begin, end = math.ceil(first), math.floor(last)
    if kind == "integer":
        yield from _ranges(begin, end)
        return
    if above and begin == first:  # the bound itself, in all its spellings, is outside
        if begin < end:
            yield f'"{begin}." [0-9]{{0,14}} [1-9]'
        begin += 1
    whole = end - 1  # with any fraction these stay below `end`
    if begin <= whole:
        yield f'({" | ".join(_ranges(begin, whole))}) ("." [0-9]{{1,15}})?'
    if begin <= end and not (below and end == last):
        yield f'"{end}" ("." "0"{{1,15}})?'


def _ranges(low: int, high: int) -> Iterator[str]:
    """The integers from `low` to `high`, not negative, by their number of digits."""
    for digits in range(len(str(low)), len(str(high)) + 1):
        start, stop = max(low, 10 ** (digits - 1) if digits > 1 else 0), min(high, 10**digits - 1)
        if start <= stop:
            yield from _same_length(str(start), str(stop), "")


def _same_length(low: str, high: str, head: str) -> Iterator[str]:
    prefix = f'"{head}" ' if head else ""
    if not low:
        yield f'"{head}"'
    elif set(low) == {"0"} and set(high) == {"9"}:
        yield f"{prefix}[0-9]{{{len(low)}}}"
    elif low[0] == high[0]:
        yield from _same_length(low[1:], high[1:], head + low[0])
    else:
        rest = len(low) - 1
        first, last = int(low[0]), int(high[0])
        if rest and set(low[1:]) != {"0"}:
            yield from _same_length(low[1:], "9" * rest, head + low[0])
            first += 1
        if rest and set(high[1:]) != {"9"}:
            yield from _same_length("0" * rest, high[1:], head + high[0])
            last -= 1
        if first <= last:
            yield f"{prefix}[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else "")


def _says(schema: _Schema, *but: str) -> bool:
    """Whether a schema says anything about values, besides these words."""
    return not set(schema) <= _NOTES.union(but)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_of(value: Any, kind: Any) -> bool:
    match kind:
        case "object":
            return isinstance(value, Mapping)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
    return False


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


JSON_OBJECT: Final = "".join(f"{name} ::= {body}\n" for name, body in {"root": "object", **_COMMON}.items())
