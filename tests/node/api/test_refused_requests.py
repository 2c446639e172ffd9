"""What a node cannot do is refused in OpenAI's shape, by the name of the field; and the node still serves."""

import gzip
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ValidationError

from node.api.chat import ChatRequest
from node.api.completions import CompletionRequest
from node.api.embeddings import EmbeddingRequest
from node.wire.messages import MAX_PROMPT
from tests.node.api.running import MODEL, Reply, RunningNode, request

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "look"}}


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", "parameters": parameters}}


def call(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": arguments}}


def schema(content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": content}}


def deep(levels: int) -> dict[str, Any]:
    """A schema of objects in each other."""
    nested: dict[str, Any] = {"type": "string"}
    for _ in range((levels - 1) // 2):
        nested = {"type": "object", "properties": {"x": nested}}
    return nested


def refusal(node: RunningNode, body: object, status: int = 400) -> dict[str, Any]:
    """The error that a body brings, its shape checked; the node answers the next request."""
    response = request(node, "POST", CHAT, body)
    return checked(node, response, status)


def checked(node: RunningNode, response: Reply, status: int) -> dict[str, Any]:
    assert response.status == status, response.body
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert request(node, "GET", "/v1/models").json()["data"][0]["id"] == MODEL
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", []),
        ("function_call", "none"),
        ("modalities", ["text"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "low"),
        ("service_tier", "auto"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("repetition_penalty", 1.1),
        ("nonsense", None),
    ],
)
def test_a_field_that_is_not_supported_is_refused_by_its_name(node: RunningNode, field: str, value: object) -> None:
    error = refusal(node, {"model": "auto", "messages": HELLO, field: value})
    assert error["param"] == field
    assert error["code"] == "unsupported"
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", 3),
        ("model", None),
        ("model", "x" * 257),
        ("messages", []),
        ("messages", "Hello"),
        ("messages", None),
        ("stream", "yes"),
        ("stream", 1),
        ("seed", 1.5),
        ("seed", "1"),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("top_p", -0.5),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 0.5),
        ("min_p", 2),
        ("max_tokens", 0),
        ("max_tokens", "4"),
        ("max_completion_tokens", -1),
        ("stop", ""),
        ("stop", 5),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 17),
        ("stop", "x" * 257),
        ("n", 0),
        ("n", 17),
        ("n", 1.5),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", "1"),
        ("presence_penalty", -2.1),
        ("logit_bias", {"7": -101}),
        ("logit_bias", {"7": "1"}),
        ("logit_bias", {"seven": 1}),
        ("logit_bias", {"-7": 1}),
        ("logit_bias", {"7": 1, "07": 2}),
        ("logit_bias", {"1234567890": 1}),
        ("logit_bias", {str(token): 1 for token in range(1_025)}),
        ("logprobs", 1),
        ("top_logprobs", 3),
        ("top_logprobs", 21),
        ("tools", []),
        ("tools", [TOOL] * 129),
        ("tools", "look"),
        ("tool_choice", "auto"),
        ("tool_choice", "sometimes"),
        ("parallel_tool_calls", True),
        ("response_format", "json"),
        ("store", True),
        ("metadata", {"privacy": 1}),
        ("user", 7),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_value_out_of_range_is_refused_by_its_fields_name(node: RunningNode, field: str, value: object) -> None:
    error = refusal(node, {"model": "auto", "messages": HELLO, field: value})
    assert str(error["param"]).split(".")[0] == field
    assert error["code"] == "invalid_value"
    assert field in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("response_format", {"type": "xml"}, "response_format"),
        ("response_format", {"type": "json_object", "schema": {}}, "response_format.schema"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
        ("response_format", schema({"type": "nothing"}), "response_format.json_schema.schema"),
        ("response_format", schema({"not": {}}), "response_format.json_schema.schema"),
        ("response_format", schema(deep(40)), "response_format.json_schema.schema"),
        ("tools", [{"type": "function"}], "tools.0.function"),
        ("tools", [{"type": "search", "function": {"name": "look"}}], "tools.0.type"),
        ("tools", [TOOL, {"type": "function", "function": {"name": "no spaces"}}], "tools.1.function.name"),
        ("tools", [TOOL, TOOL], "tools.1.function.name"),
        ("tools", [tool(deep(33))], "tools.0.function.parameters"),
        ("tools", [tool({"description": "x" * 65_536})], "tools.0.function"),
        ("stream_options", {"include_usage": "yes"}, "stream_options.include_usage"),
        ("stream_options", {"more": True}, "stream_options.more"),
        ("messages", [{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages.0.tool_call_id"),
        ("messages", [{"role": "tool", "content": "x"}], "messages.0.tool_call_id"),
        ("messages", [{"role": "user", "content": "x", "tool_call_id": "1"}], "messages.0.tool_call_id"),
        ("messages", [{"role": "user", "content": "x", "tool_calls": [call("{}")]}], "messages.0.tool_calls"),
        ("messages", [{"role": "assistant", "content": None}], "messages.0.content"),
        (
            "messages",
            [{"role": "assistant", "tool_calls": [call("{")]}],
            "messages.0.tool_calls.0.function.arguments",
        ),
        (
            "messages",
            [{"role": "assistant", "tool_calls": [call("[1]")]}],
            "messages.0.tool_calls.0.function.arguments",
        ),
        (
            "messages",
            [{"role": "assistant", "tool_calls": [call("[" * 99_999)]}],
            "messages.0.tool_calls.0.function.arguments",
        ),
        ("messages", [{"role": "user"}], "messages.0.content"),
        ("messages", [{"content": "x"}], "messages.0.role"),
        ("messages", [*HELLO, {"role": "user", "content": None}], "messages.1.content"),
        ("messages", [{"role": "assistant", "content": "x", "tool_calls": []}], "messages.0.tool_calls"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
            "messages.0.content.0.type",
        ),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_part_of_a_field_is_refused_by_its_place(node: RunningNode, field: str, value: object, named: str) -> None:
    error = refusal(node, {"model": "auto", "messages": HELLO, field: value})
    assert error["param"] == named


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(node: RunningNode, missing: str) -> None:
    body = {"model": "auto", "messages": HELLO}
    del body[missing]
    assert refusal(node, body)["param"] == missing


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b'{"model": "auto", "messages": [', b"not json", b"[" * 100_000],
    ids=["empty", "cut", "not UTF-8", "half", "text", "deep"],
)
def test_a_body_that_is_not_json_is_refused(node: RunningNode, body: bytes) -> None:
    error = checked(node, request(node, "POST", CHAT, body), 400)
    assert error["code"] == "invalid_json"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/models", "/nowhere"])
@pytest.mark.parametrize("body", [b"plain", b"plain" * 100_000, gzip.compress(b"{}")], ids=["short", "long", "gzip"])
def test_an_encoded_body_is_refused_whether_or_not_it_is_what_it_says_and_nothing_is_logged(
    node: RunningNode, path: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    error = checked(node, request(node, "POST", path, body, {"Content-Encoding": "gzip"}), 400)
    assert error["code"] == "invalid_encoding"
    assert caplog.records == []


def test_a_body_may_say_that_it_is_not_encoded(node: RunningNode) -> None:
    body = {"model": "auto", "messages": HELLO, "max_tokens": 1}
    assert request(node, "POST", CHAT, body, {"Content-Encoding": "identity"}).status == 200


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ChatRequest, {"messages": [{"role": "user", "content": [0] * 1_000}]}),
        (ChatRequest, {"messages": HELLO, "stop": [0] * 1_000}),
        (CompletionRequest, {"prompt": [[None] * 1_000] * 10}),
        (EmbeddingRequest, {"input": [[None] * 1_000] * 10}),
    ],
)
def test_of_many_faults_few_are_looked_at(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": "auto"} | fields))
    assert caught.value.error_count() < 10


def test_too_many_ids_are_told_as_such(node: RunningNode) -> None:
    body = {"model": "auto", "prompt": [1] * (MAX_PROMPT + 1)}
    error = checked(node, request(node, "POST", "/v1/completions", body), 400)
    assert error["param"] == "prompt"
    assert str(MAX_PROMPT) in error["message"]


@pytest.mark.parametrize("body", [None, [], "text", 5])
def test_a_body_that_is_no_object_is_refused(node: RunningNode, body: object) -> None:
    assert "object" in refusal(node, body)["message"].lower()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused_by_its_fields_name(node: RunningNode, number: str) -> None:
    body = json.dumps({"model": "auto", "messages": HELLO, "temperature": 0}).replace("0}", number + "}")
    error = checked(node, request(node, "POST", CHAT, body.encode()), 400)
    assert error["param"] == "temperature"


def test_a_prompt_longer_than_the_context_is_refused(node: RunningNode, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "long " * 4000}], max_tokens=10
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "2048" in caught.value.message


def test_an_answer_longer_than_the_context_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hello"}], max_tokens=2048)
    assert caught.value.code == "context_length_exceeded"


def test_a_body_of_more_than_eight_mebibytes_is_refused(node: RunningNode) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x" * (8 * 2**20)}]}
    assert refusal(node, body, status=413)["code"] == "too_large"


def test_a_path_that_is_not_there_is_not_found(node: RunningNode) -> None:
    error = checked(node, request(node, "POST", "/v1/images", {}), 404)
    assert "/v1/images" in error["message"]


def test_a_method_that_a_path_does_not_take_is_refused(node: RunningNode) -> None:
    reply = request(node, "GET", CHAT)
    error = checked(node, reply, 405)
    assert "POST" in error["message"]
    assert reply.headers["Allow"] == "POST"


def test_what_openai_has_and_this_node_has_not_may_be_null(node: RunningNode) -> None:
    names = ("audio", "functions", "function_call", "modalities", "prediction", "reasoning_effort", "service_tier")
    body = {"model": "auto", "messages": HELLO, "max_tokens": 1, "safety_identifier": "me", **dict.fromkeys(names)}
    assert request(node, "POST", CHAT, body).status == 200
    assert refusal(node, body | {"another": None})["param"] == "another"


def test_of_very_many_unknown_fields_one_error_tells(node: RunningNode) -> None:
    error = refusal(node, {"model": "auto", "messages": HELLO} | {str(n): 1 for n in range(1_001)})
    assert "more than 1000 fields" in error["message"]
