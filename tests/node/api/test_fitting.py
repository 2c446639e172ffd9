"""Values that fit a schema, and values that do not."""

from typing import Any

import pytest

from node.api.fitting import fits

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"], "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {"children": {"items": {"$ref": "#/$defs/node"}}}}},
    "$ref": "#/$defs/node",
}
ENDLESS = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    ("schema", "fitting", "others"),
    [
        (PERSON, [{"name": "Ada"}, {"name": "", "age": 5}, {"name": "a", "age": None}], [[], {}, {"name": 5}]),
        (PERSON, [], [{"name": "a", "age": -1}, {"name": "a", "age": 1.5}, {"name": "a", "x": 1}]),
        (TREE, [{}, {"children": [{"children": []}]}], [5, {"children": [{"children": [5]}]}]),
        ({"enum": [1, "a", None]}, [1, "a", None], [True, 2, "b"]),
        ({"const": False}, [False], [0, None]),
        ({"type": "integer"}, [0, -3, 2.0], [True, 0.5, "1"]),
        ({"type": "number"}, [0.5], [False, None]),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}, [["a"]], [[], ["a"] * 3, [1]]),
        ({"prefixItems": [{"type": "string"}], "items": False}, [["a"], []], [["a", 1], [1]]),
        ({"items": [{"type": "string"}]}, [["a", 1]], [[1]]),
        ({"type": "string", "minLength": 1, "maxLength": 2}, ["a", "ab"], ["", "abc"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, "text"], [0, 1]),
        ({"minimum": 0, "maximum": 1}, [0, 1], [-1, 2]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, [None, "a"], [1]),
        ({"oneOf": [{"type": "null"}, {"type": "string"}], "maxLength": 1}, [None, "a"], ["ab"]),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1, 2], [0, 3]),
        (True, [None, {}], []),
        (False, [], [None, {}]),
        ({"additionalProperties": {"type": "null"}}, [{}, {"a": None}], [{"a": 1}]),
        (ENDLESS, [], [1]),
        ({"type": "thing"}, [], [1]),
        ({"required": 5}, [1], [{}]),
        ({"$ref": "#/nowhere"}, [], [1]),
        ({"minimum": "1"}, ["a"], [1]),
    ],
)
def test_values_fit_or_do_not(schema: Any, fitting: list[Any], others: list[Any]) -> None:
    assert [value for value in fitting if not fits(value, schema)] == []
    assert [value for value in others if fits(value, schema)] == []


def test_a_long_enum_is_not_searched_without_end() -> None:
    schema = {"items": {"enum": list(range(9_000))}}
    assert fits([8_999] * 50, schema)
    assert not fits([8_999] * 20_000, schema)  # half a minute's work


def test_a_schema_that_stands_for_very_many_takes_no_time() -> None:
    definitions: dict[str, Any] = {"s0": {"const": 1}}
    for level in range(1, 60):
        definitions[f"s{level}"] = {"anyOf": [{"$ref": f"#/$defs/s{level - 1}"}] * 2}
    assert not fits(2, {"$defs": definitions, "$ref": "#/$defs/s59"})
