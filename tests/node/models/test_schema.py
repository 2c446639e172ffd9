"""JSON schemas into grammars: whatever a model writes under one is JSON that fits."""

import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.models.grammar import Grammar, Grammars
from node.models.schema import JSON_OBJECT, MAX_SCHEMA_BYTES, BadSchema, Effort, schema_grammar, tool_call_grammar
from node.models.vocab import Vocab, open_vocab

DEMO = Path(__file__).parents[3] / "node" / "models" / "demo" / "demo-Q8_0.gguf"


class Writer:
    """Writes texts of tokens drawn evenly from those that a grammar allows."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab, self._grammars = vocab, Grammars(vocab)
        # Ends of strings, lists and objects are rare among random tokens: prefer what closes, to come to an end.
        self._closing = np.array([re.fullmatch(rb'["\]}]+', vocab.piece(t)) is not None for t in range(vocab.size)])
        self._closing[list(vocab.eog)] = True

    def write(self, gbnf: str, seed: int, most: int = 1_500) -> str:
        random, matcher, ids = np.random.default_rng(seed), self._grammars.compile(gbnf).start(), list[int]()
        while len(ids) < most:
            allowed = matcher.mask()
            closing = allowed & self._closing
            few = closing if closing.any() and random.random() < min(1.0, len(ids) / 200) else allowed
            token = int(random.choice(np.flatnonzero(few)))
            matcher.take(token)
            if matcher.ended:
                return b"".join(map(self._vocab.piece, ids)).decode()
            ids.append(token)
        raise AssertionError("the text does not end")

    def grammar(self, gbnf: str) -> Grammar:
        return self._grammars.compile(gbnf)

    def allows(self, gbnf: str, text: str) -> bool:
        ids = {self._vocab.piece(token): token for token in range(self._vocab.size)}
        matcher = self._grammars.compile(gbnf).start()
        for byte in text.encode():
            token = ids[bytes([byte])]
            if not matcher.mask()[token]:
                return False
            matcher.take(token)
        return bool(matcher.mask()[list(self._vocab.eog)].all())


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    vocab = open_vocab(DEMO)
    yield Writer(vocab)
    vocab.close()


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}, "mail": {"type": "string"}},
    "required": ["name", "age"],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "anything": {},
    "a string": {"type": "string", "minLength": 2, "maxLength": 5},
    "an integer": {"type": "integer", "minimum": -17, "exclusiveMaximum": 120},
    "a number": {"type": "number", "minimum": 0, "maximum": 1},
    "a number with an open bound": {"type": "number", "exclusiveMinimum": 0},
    "null or a boolean": {"type": ["null", "boolean"]},
    "an enum": {"enum": ['a "b" \\ \n é 😀', 1.5, None, True, {"k": [1]}]},
    "an enum of one type": {"type": "string", "enum": ["a", 1]},
    "a const": {"const": [1, {"a": None}]},
    "a person": PERSON,
    "only optional properties": {"properties": {"a": {"type": "null"}, "b": {}, 'c"\\': {"const": 1}}},
    "a property that is not described": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["b", "a"]},
    "closed": {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False},
    "a map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "a list": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    "a long list": {"type": "array", "items": {"type": "boolean"}, "minItems": 3},
    "a tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
    "an empty list": {"type": "array", "maxItems": 0},
    "a tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "integer"}, "children": {"items": {"$ref": "#/$defs/node"}}},
                "required": ["value"],
            }
        },
        "$ref": "#/$defs/node",
    },
    "itself": {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
    "a choice": {"oneOf": [{"type": "object", "properties": {"k": {"const": n}}, "required": ["k"]} for n in "ab"]},
    "a choice with a common part": {**PERSON, "anyOf": [{"required": ["mail"]}, {"properties": {"x": {"const": 0}}}]},
    "all of two": {"allOf": [PERSON, {"type": "object", "properties": {"z": {"const": "z"}}, "required": ["z"]}]},
    "a reference with a note": {"$defs": {"p": PERSON}, "allOf": [{"$ref": "#/$defs/p"}], "description": "somebody"},
    "dates": {"type": "object", "properties": {"d": {"type": "string", "format": "date-time"}}, "required": ["d"]},
    "a uuid": {"type": "string", "format": "uuid"},
    "notes": {"title": "T", "type": "string", "description": "any", "examples": ["x"], "default": "d"},
}  # fmt: skip


def fits(value: Any, schema: Any, root: Any) -> bool:
    """A plain reading of JSON Schema, for the words above."""
    if schema is True or schema is False:
        return bool(schema)
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].split("/")[1:]:
            target = target[step]
        if not fits(value, target, root):
            return False
    types = schema.get("type", [])
    checks = [not types or any(is_of(value, one) for one in ([types] if isinstance(types, str) else types))]
    checks.append("const" not in schema or same(value, schema["const"]))
    checks.append("enum" not in schema or any(same(value, one) for one in schema["enum"]))
    checks += [fits(value, one, root) for one in schema.get("allOf", [])]
    for word in ("anyOf", "oneOf"):
        checks.append(word not in schema or any(fits(value, one, root) for one in schema[word]))
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        checks += [name in value for name in schema.get("required", [])]
        checks += [fits(part, properties.get(name, others), root) for name, part in value.items()]
    if isinstance(value, list):
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        checks += [fits(part, items if n >= len(prefix) else prefix[n], root) for n, part in enumerate(value)]
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
    if isinstance(value, str):
        checks.append(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)))
    if is_of(value, "number"):
        checks.append(schema.get("minimum", value) <= value <= schema.get("maximum", value))
        checks.append(schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf))
    return all(checks)


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def is_of(value: Any, kind: str) -> bool:
    classes = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if kind in classes:
        return isinstance(value, classes[kind])
    return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**32))
def test_what_is_written_under_a_schema_fits_it(writer: Writer, schema: dict[str, Any], seed: int) -> None:
    value = json.loads(writer.write(schema_grammar(schema), seed))
    assert fits(value, schema, schema)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_any_json_object_can_be_asked_for(writer: Writer, seed: int) -> None:
    assert isinstance(json.loads(writer.write(JSON_OBJECT, seed)), dict)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (PERSON, '{"name": "A", "age": 7}'),
        (PERSON, '{"name":"A","age":7,"mail":"a@b"}'),
        (PERSON, '{\n  "name": "A",\n  "age": -7\n}'),
        (SCHEMAS["only optional properties"], "{}"),
        (SCHEMAS["only optional properties"], '{"a": null, "c\\"\\\\": 1}'),
        (SCHEMAS["only optional properties"], '{"b": [1, {"x": "\\u00e9"}]}'),
        (SCHEMAS["an enum"], '"a \\"b\\" \\\\ \\n é 😀"'),
        (SCHEMAS["a number"], "0.25"),
        (SCHEMAS["a map"], '{"any": 1, "key": -2}'),
        ({"type": "object"}, '{"any": [true, null, 1e5]}'),
    ],
)
def test_usual_ways_to_write_a_value_are_allowed(writer: Writer, schema: dict[str, Any], text: str) -> None:
    json.loads(text)
    assert writer.allows(schema_grammar(schema), text)


@settings(deadline=None, max_examples=100)
@given(st.integers(-3_000, 3_000), st.integers(0, 3_000), st.data())
def test_bounds_of_integers_hold_exactly(writer: Writer, low: int, width: int, data: st.DataObject) -> None:
    high = low + width
    gbnf = schema_grammar({"type": "integer", "minimum": low, "maximum": high})
    inside = data.draw(st.integers(low, high))
    assert writer.allows(gbnf, str(inside))
    assert not writer.allows(gbnf, str(low - 1))
    assert not writer.allows(gbnf, str(high + 1))


@settings(deadline=None, max_examples=60)
@given(
    st.floats(-50, 50).map(lambda x: round(x, 1)) | st.integers(-5, 5),
    st.integers(2, 40),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_bounds_of_numbers_hold(writer: Writer, low: float, width: int, exclusive: bool, seed: int) -> None:
    words = ("exclusiveMinimum", "exclusiveMaximum") if exclusive else ("minimum", "maximum")
    schema = {"type": "number", words[0]: low, words[1]: low + width}
    assert fits(json.loads(writer.write(schema_grammar(schema), seed)), schema, schema)


REFUSED = {
    "false": {"type": "object", "properties": {"a": False}},
    "not a schema": {"type": "array", "items": 7},
    "an unknown type": {"type": "float"},
    "what a grammar cannot hold": {"type": "string", "pattern": "^a$"},
    "negation": {"not": {"type": "string"}},
    "a remote reference": {"$ref": "https://example.org/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "a reference to nothing": {"$ref": "#/$defs/none"},
    "a reference into text": {"$ref": "#/title/0", "title": "x"},
    "parts that cannot both fit": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "parts that refer to each other": {"$ref": "#", "minLength": 1},
    "an empty choice": {"anyOf": []},
    "an empty enum": {"enum": []},
    "an enum without its type": {"type": "integer", "enum": ["a"]},
    "required and forbidden": {"type": "object", "required": ["a"], "additionalProperties": False},
    "required that is no list": {"type": "object", "properties": {}, "required": "a"},
    "a bound that is no number": {"type": "integer", "minimum": "1"},
    "nothing between": {"type": "integer", "minimum": 2, "maximum": 1},
    "a negative length": {"type": "string", "minLength": -1},
    "a length beyond all": {"type": "string", "minLength": 10**9},
    "NaN": {"const": float("nan")},
    "too large": {"description": "x" * MAX_SCHEMA_BYTES},
    "too many rules": {"enum": ["\\" * 40_000]},
    "required without end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "long lists merged again and again": {
        "$defs": {"a": {"required": [f"r{n}" for n in range(3_000)]}},
        "allOf": [{"required": [f"q{n}" for n in range(2_000)]}] + [{"$ref": "#/$defs/a"}] * 500,
    },
    "doubling": {
        "$ref": "#/$defs/0",
        "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 9} for n in range(12)} | {"12": {}},
    },
}


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED.keys())
def test_a_schema_that_cannot_be_held_to_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(BadSchema):
        schema_grammar(schema)


def test_a_schema_that_nothing_fits_is_told_so() -> None:
    with pytest.raises(BadSchema, match="nothing fits"):
        schema_grammar({"$ref": "#"})


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_depth_is_bounded(writer: Writer) -> None:
    writer.grammar(schema_grammar(nested(30)))
    for depth in (33, 100_000):
        with pytest.raises(BadSchema, match="deeper"):
            schema_grammar(nested(depth))


def test_a_schema_as_large_as_allowed_compiles(writer: Writer) -> None:
    properties = {f"property {n}": {"type": ["string", "null"]} for n in range(250)}
    gbnf = schema_grammar({"type": "object", "properties": properties, "required": list(properties)[::2]})
    value = json.loads(writer.write(gbnf, 1, 50_000))
    assert set(value) >= set(list(properties)[::2])


def test_what_a_grammar_cannot_hold_is_passed_over_if_asked_so(writer: Writer) -> None:
    assert isinstance(
        json.loads(writer.write(schema_grammar({"type": "integer", "multipleOf": 5}, strict=False), 1)), int
    )


TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "d", "parameters": PERSON}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "bare"}},
    {
        "type": "function",
        "function": {
            "name": "ref",
            "parameters": {"$defs": {"p": PERSON}, "type": "array", "items": {"$ref": "#/$defs/p"}},
        },
    },
]


def calls(text: str) -> list[dict[str, Any]]:
    found = re.fullmatch(r"(<tool_call>.*?</tool_call>\s*)+", text, re.DOTALL)
    assert found
    return [
        json.loads(one) for one in re.findall(r"<tool_call>(.*?)</tool_call>(?=\s*(?:<tool_call>|$))", text, re.DOTALL)
    ]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["weather", "time", "bare", "ref"]))
def test_one_tool_that_is_named_is_called_once(writer: Writer, seed: int, name: str) -> None:
    (call,) = calls(writer.write(tool_call_grammar(TOOLS, name), seed))
    assert call["name"] == name
    parameters = next(tool["function"] for tool in TOOLS if tool["function"]["name"] == name).get("parameters", {})  # type: ignore[index, attr-defined]
    assert fits(call["arguments"], parameters, parameters)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_any_tools_are_called_where_a_call_is_required(writer: Writer, seed: int) -> None:
    found = calls(writer.write(tool_call_grammar(TOOLS[:3], None), seed))
    assert found
    assert all(set(call) == {"name", "arguments"} for call in found)
    assert {call["name"] for call in found} <= {"weather", "time", "bare"}


def test_a_tool_may_have_the_name_of_a_choice(writer: Writer) -> None:
    tools = [{"function": {"name": name}} for name in ("required", "other")]
    assert {
        call["name"] for seed in range(40) for call in calls(writer.write(tool_call_grammar(tools, None), seed))
    } == {
        "required",
        "other",
    }
    assert {calls(writer.write(tool_call_grammar(tools, "required"), seed))[0]["name"] for seed in range(8)} == {
        "required"
    }


def test_a_tool_says_whether_all_of_its_schema_must_be_held() -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 2}}}
    tool_call_grammar([{"function": {"name": "f", "parameters": parameters}}], "f")
    with pytest.raises(BadSchema, match="multipleOf"):
        tool_call_grammar([{"function": {"name": "f", "parameters": parameters, "strict": True}}], "f")


def test_schemas_of_one_request_are_bounded_together() -> None:
    # Each refers to the next twice: a few hundred bytes stand for two thousand parts.
    links = {f"d{n}": {"allOf": 2 * [{"$ref": f"#/$defs/d{n + 1}"}]} for n in range(10)} | {"d10": {"type": "string"}}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": links}
    schema_grammar(schema)
    effort = Effort()
    with pytest.raises(BadSchema, match="too many parts together"):
        list(map(partial(schema_grammar, effort=effort), 20 * [schema]))
    tools = [{"function": {"name": f"f{n}", "parameters": schema}} for n in range(20)]
    with pytest.raises(BadSchema, match="too many parts together"):
        tool_call_grammar(tools, None)


def test_a_choice_of_no_tool_is_refused() -> None:
    for tools, choice in ((TOOLS, "other"), ([], None), ([{"function": {}}], None)):
        with pytest.raises(BadSchema):
            tool_call_grammar(tools, choice)
