"""Calls in a model's text are found however the text comes, and what is no call stays text."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.tools import BEGIN, END, Call, CallReader, Function, depth_of

PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'


def read(pieces: Sequence[str]) -> list[str | Call]:
    """What comes of a text in these pieces, neighbouring texts as one."""
    reader = CallReader([Function(name="weather"), Function(name="clock")])
    found = [one for piece in pieces for one in reader.feed(piece)] + reader.finish()
    joined: list[str | Call] = []
    for one in found:
        if isinstance(one, str) and joined and isinstance(last := joined[-1], str):
            joined[-1] = last + one
        else:
            joined.append(one)
    return joined


def tagged(inner: str) -> str:
    return f"{BEGIN}{inner}{END}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no call", ["no call"]),
        (tagged(PARIS), [Call("weather", '{"city":"Paris"}')]),
        (tagged(f"\n{PARIS}\n"), [Call("weather", '{"city":"Paris"}')]),
        (tagged('{"arguments": {}, "name": "clock"}'), [Call("clock", "{}")]),
        (f"I look. {tagged(PARIS)}", ["I look. ", Call("weather", '{"city":"Paris"}')]),
        (f"{tagged(PARIS)}\n{tagged(PARIS)}\n", [Call("weather", '{"city":"Paris"}')] * 2),
        (f"{tagged(PARIS)} and more", [Call("weather", '{"city":"Paris"}'), " and more"]),
        (f"{BEGIN}{PARIS}", [Call("weather", '{"city":"Paris"}')]),
        (f"{BEGIN}{PARIS}{END[:-1]}", [Call("weather", '{"city":"Paris"}')]),
        (f"{BEGIN}so: {tagged(PARIS)}", [f"{BEGIN}so: ", Call("weather", '{"city":"Paris"}')]),
        (
            tagged(f'{{"name": "weather", "arguments": {{"city": "a{END}b{BEGIN}{END}"}}}}'),
            [Call("weather", f'{{"city":"a{END}b{BEGIN}{END}"}}')],
        ),
        (tagged('{"name": "weather", "arguments": {"city": "Zürich 🦊"}}'), [Call("weather", '{"city":"Zürich 🦊"}')]),
    ],
)
def test_calls_and_text_are_told_apart(text: str, found: list[str | Call]) -> None:
    assert read([text]) == found


@pytest.mark.parametrize(
    "text",
    [
        tagged("not JSON"),
        tagged('{"name": "weather"}'),
        tagged('{"name": "unknown", "arguments": {}}'),
        tagged('{"name": "weather", "arguments": "Paris"}'),
        tagged('{"name": "weather", "arguments": {"degrees": NaN}}'),
        tagged('{"name": "weather", "arguments": {"degrees": 1e999}}'),
        f'{BEGIN}{{"name": "weather", "arguments": {{"city": "{END * 100}',
        tagged("[" * 10_000),
        f'{BEGIN}{{"name": "weather", "argu',
        f"a < b {BEGIN[:-1]}",
        f"{END} before {BEGIN[:4]}",
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read([text]) == [text]


PARTS = st.sampled_from([tagged(PARIS), tagged("{}"), BEGIN, END, "<", "<tool", "\n", " ", "x", "é"])


@given(st.lists(PARTS, max_size=8).map("".join), st.lists(st.integers(0, 200), max_size=20))
def test_the_pieces_in_which_a_text_comes_do_not_matter(text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:stop] for start, stop in itertools.pairwise(places)]
    assert read(pieces) == read([text])
    assert read(list(text)) == read([text])


@pytest.mark.parametrize(
    ("value", "depth"), [(None, 0), ({}, 1), ({"a": 1, "b": [2, {"c": 3}]}, 3), ([[[[]]]], 4)], ids=str
)
def test_depth_counts_objects_and_lists_in_each_other(value: object, depth: int) -> None:
    assert depth_of(value) == depth


def test_a_strict_function_is_called_only_with_arguments_that_fit() -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "additionalProperties": False}
    for strict, arguments, called in (
        (True, '{"city":"Paris"}', True),
        (True, '{"city":"Rome"}', False),
        (True, '{"country":"France"}', False),
        (False, '{"city":"Rome"}', True),
    ):
        reader = CallReader([Function(name="weather", parameters=schema, strict=strict)])
        (found,) = reader.feed(tagged(f'{{"name": "weather", "arguments": {arguments}}}'))
        assert isinstance(found, Call) == called
