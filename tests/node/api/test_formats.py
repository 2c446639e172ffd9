"""What moves a model's choice of tokens: penalties, bias, and the form that an answer must have."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from pydantic import BaseModel

STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]
RECEIPT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a receipt?"}]


def told(client: openai.OpenAI, messages: list[ChatCompletionMessageParam], **fields: Any) -> str:
    fields = {"temperature": 0, "max_tokens": 60, **fields}
    completion: ChatCompletion = client.chat.completions.create(model="auto", messages=messages, **fields)
    return completion.choices[0].message.content or ""


def streamed(client: openai.OpenAI, messages: list[ChatCompletionMessageParam], **fields: Any) -> str:
    fields = {"temperature": 0, "max_tokens": 60, **fields}
    with client.chat.completions.create(model="auto", messages=messages, stream=True, **fields) as stream:
        return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


def letter_a(client: openai.OpenAI) -> str:
    """The id of the token "A", as a bias that forces each token in turn shows it."""
    for token in range(5, 120):
        text = (
            client.completions.create(
                model="auto", prompt="What is", max_tokens=1, temperature=0, logit_bias={str(token): 100}
            )
            .choices[0]
            .text
        )
        if text == "A":
            return str(token)
    raise LookupError


def test_bias_forbids_a_token_or_forces_it(client: openai.OpenAI) -> None:
    letter = letter_a(client)
    assert told(client, RECEIPT).startswith("A")
    assert not told(client, RECEIPT, logit_bias={letter: -100}).startswith("A")
    assert told(client, RECEIPT, logit_bias={letter: 100}, max_tokens=5) == "AAAAA"


def test_a_frequency_penalty_grows_with_every_repetition(client: openai.OpenAI) -> None:
    bias = {letter_a(client): 40}
    assert told(client, RECEIPT, logit_bias=bias) == 60 * "A"
    repeated = told(client, RECEIPT, logit_bias=bias, frequency_penalty=2).count("A")
    assert 1 < repeated < 40
    assert repeated < told(client, RECEIPT, logit_bias=bias, frequency_penalty=1).count("A") < 60


def test_a_presence_penalty_counts_once(client: openai.OpenAI) -> None:
    bias = {letter_a(client): 40}
    assert told(client, RECEIPT, logit_bias=bias, presence_penalty=2) == 60 * "A"
    hot = [{"temperature": 1, "seed": seed} for seed in range(3)]
    assert [told(client, STORY, presence_penalty=2, **one) for one in hot] != [
        told(client, STORY, **one) for one in hot
    ]


def test_a_bias_for_a_token_that_does_not_exist_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="token id 999999999 is outside") as caught:
        told(client, RECEIPT, logit_bias={"999999999": 100})
    assert caught.value.param == "logit_bias"


def test_json_is_json_as_far_as_it_comes(client: openai.OpenAI) -> None:
    text = told(client, STORY, response_format={"type": "json_object"}, temperature=1, seed=2, max_tokens=40)
    assert text.lstrip().startswith("{")


SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 1, "maximum": 9}, "kind": {"enum": ["fox", "owl"]}},
    "required": ["count", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("strict", [True, False, None])
@pytest.mark.parametrize("seed", range(3))
def test_json_of_a_schema_fits_it(client: openai.OpenAI, strict: bool | None, seed: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "animals", "strict": strict, "schema": SCHEMA}}
    made = json.loads(told(client, STORY, response_format=wanted, temperature=1, seed=seed))
    assert set(made) == {"count", "kind"}
    assert made["count"] in range(1, 10)
    assert made["kind"] in ("fox", "owl")


def test_a_stream_is_held_to_its_schema_too(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "animals", "schema": SCHEMA}}
    assert set(json.loads(streamed(client, STORY, response_format=wanted))) == {"count", "kind"}


class Animals(BaseModel):
    """How many of which."""

    count: int
    wild: bool


def test_the_clients_own_classes_can_be_asked_for(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="auto", messages=STORY, response_format=Animals, temperature=0, max_tokens=100
    )
    assert isinstance(parsed.choices[0].message.parsed, Animals)


def test_what_a_grammar_cannot_hold_is_refused_if_it_must_be_held(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "number", "multipleOf": 3}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="multipleOf") as caught:
        told(client, STORY, response_format=wanted)
    assert (caught.value.code, caught.value.param) == ("invalid_schema", "response_format.json_schema.schema")
