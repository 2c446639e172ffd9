"""Texts and token ids as vectors of length one."""

import base64
import math
from typing import Any

import numpy as np
import openai
import pytest

from node.gateway.embedding import MAX_TOKENS
from tests.node.api.running import MODEL, OUT_OF_REACH, RunningNode, request


def vectors(client: openai.OpenAI, given: Any, **fields: Any) -> list[list[float]]:
    created = client.embeddings.create(model="auto", input=given, **fields)
    assert [one.index for one in created.data] == list(range(len(created.data)))
    assert created.model == MODEL
    return [one.embedding for one in created.data]


def test_a_text_is_a_vector_of_length_one(client: openai.OpenAI) -> None:
    ((*vector,),) = vectors(client, "A fox in the woods", encoding_format="float")
    assert len(vector) == 256
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)


def test_several_texts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    fox, rain = vectors(client, ["a fox", "rain"])
    assert vectors(client, "rain")[0] == pytest.approx(rain, abs=1e-3)
    assert vectors(client, "a fox")[0] == pytest.approx(fox, abs=1e-3)
    assert fox != rain


def test_tokens_are_counted(client: openai.OpenAI) -> None:
    usage = client.embeddings.create(model="auto", input=[[5, 6, 7], [8]]).usage
    assert (usage.prompt_tokens, usage.total_tokens) == (4, 4)


def test_both_encodings_hold_the_same_numbers(node: RunningNode, client: openai.OpenAI) -> None:
    plain = request(node, "POST", "/v1/embeddings", {"model": MODEL, "input": "a fox"}).json()
    asked = {"model": MODEL, "input": "a fox", "encoding_format": "base64"}
    packed = request(node, "POST", "/v1/embeddings", asked).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4").tolist() == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)
    assert vectors(client, "a fox")[0] == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)


def test_only_the_models_own_width_can_be_asked_for(client: openai.OpenAI) -> None:
    assert len(vectors(client, "a", dimensions=256)[0]) == 256
    with pytest.raises(openai.BadRequestError, match="have 256") as caught:
        vectors(client, "a", dimensions=64)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [1_024]}, "input"),
        ({"input": [[1], []]}, "input"),
        ({"input": ["a"] * 2_049}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"model": ""}, "model"),
        ({"metadata": {}}, "metadata"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_done_is_refused_by_its_name(node: RunningNode, fields: dict[str, Any], param: str) -> None:
    reply = request(node, "POST", "/v1/embeddings", {"model": MODEL, "input": "a", **fields})
    assert reply.status == 400
    assert reply.json()["error"]["param"].split(".")[0] == param


def test_an_input_longer_than_the_context_names_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"2100 tokens.*2048") as caught:
        vectors(client, [[5], [5] * 2_100])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


def test_more_tokens_than_one_request_may_have_are_refused(node: RunningNode) -> None:
    body = {"model": MODEL, "input": [[5] * 2_000] * (MAX_TOKENS // 2_000 + 1)}
    reply = request(node, "POST", "/v1/embeddings", body)
    error = reply.json()["error"]
    assert (reply.status, error["param"], error["code"]) == (400, "input", "max_tokens_per_request")
    assert str(MAX_TOKENS) in error["message"]


def test_models_that_are_not_here_embed_nothing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="nobodys-model-70b", input="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError, match="on this machine only"):
        client.embeddings.create(model=OUT_OF_REACH, input="a")
