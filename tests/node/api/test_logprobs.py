"""How likely each token was, and which others were."""

import math
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionTokenLogprob

RECEIPT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a receipt?"}]
STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]


def told(client: openai.OpenAI, **fields: Any) -> tuple[str, list[ChatCompletionTokenLogprob]]:
    asked = {"messages": STORY, "seed": 3, "max_tokens": 24, "logprobs": True, **fields}
    choice = client.chat.completions.create(model="auto", **asked).choices[0]
    assert choice.logprobs is not None
    return choice.message.content or "", choice.logprobs.content or []


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[str, list[ChatCompletionTokenLogprob]]:
    asked = {"messages": STORY, "seed": 3, "max_tokens": 24, "logprobs": True, **fields}
    text, logprobs = "", list[ChatCompletionTokenLogprob]()
    with client.chat.completions.create(model="auto", stream=True, **asked) as stream:
        for choice in (choice for chunk in stream for choice in chunk.choices):
            text += choice.delta.content or ""
            logprobs += (choice.logprobs.content or []) if choice.logprobs else []
    return text, logprobs


def test_the_tokens_make_up_the_text(client: openai.OpenAI) -> None:
    text, logprobs = told(client)
    assert "".join(one.token for one in logprobs) == text
    assert b"".join(bytes(one.bytes or ()) for one in logprobs).decode() == text
    assert all(one.logprob <= 0 and one.top_logprobs == [] for one in logprobs)


def test_the_likeliest_tokens_come_in_their_order(client: openai.OpenAI) -> None:
    _, logprobs = told(client, top_logprobs=5)
    for one in logprobs:
        likely = [top.logprob for top in one.top_logprobs]
        assert likely == sorted(likely, reverse=True)
        assert len(likely) == 5
        assert sum(map(math.exp, likely)) <= 1 + 1e-6


def test_the_greedy_token_is_the_likeliest(client: openai.OpenAI) -> None:
    _, logprobs = told(client, temperature=0, top_logprobs=1)
    assert all(one.top_logprobs[0].token == one.token for one in logprobs)


@pytest.mark.parametrize(
    "fields", [{}, {"top_logprobs": 2}, {"stop": " a"}, {"stop": "e"}, {"max_tokens": 200}], ids=str
)
def test_a_stream_tells_the_same(exact: openai.OpenAI, fields: dict[str, Any]) -> None:
    text, logprobs = told(exact, **fields)
    assert logprobs
    assert streamed(exact, **fields) == (text, logprobs)


def test_tokens_that_a_stop_string_cuts_are_not_told(client: openai.OpenAI) -> None:
    whole, _ = told(client, messages=RECEIPT, temperature=0)
    assert whole.startswith("A receipt is signed by")
    text, logprobs = told(client, messages=RECEIPT, temperature=0, stop="igned by")
    assert text == "A receipt is s"
    assert "".join(one.token for one in logprobs) == "A receipt is"


def test_the_end_of_the_answer_is_not_told_as_a_token_but_can_be_a_likely_one(client: openai.OpenAI) -> None:
    text, logprobs = told(client, messages=RECEIPT, temperature=0, max_tokens=200, top_logprobs=20)
    assert "".join(one.token for one in logprobs) == text
    assert any(top.token == "<|end|>" for one in logprobs for top in one.top_logprobs)


def test_choices_have_their_own(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="auto", messages=STORY, n=3, seed=1, max_tokens=8, logprobs=True)
    for choice in completion.choices:
        assert choice.logprobs is not None
        assert "".join(one.token for one in choice.logprobs.content or []) == choice.message.content


def test_completions_tell_them_as_they_always_did(client: openai.OpenAI) -> None:
    choice = client.completions.create(model="auto", prompt="Once there was", max_tokens=6, logprobs=2, seed=1).choices[
        0
    ]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ()) == choice.text
    assert len(logprobs.token_logprobs or ()) == len(logprobs.tokens or ())
    assert all(len(top) == 2 for top in logprobs.top_logprobs or ())
    offsets = logprobs.text_offset or []
    assert [
        choice.text[offset:].startswith(token) for offset, token in zip(offsets, logprobs.tokens or (), strict=True)
    ]
    with client.completions.create(
        model="auto", prompt="Once there was", max_tokens=6, logprobs=2, seed=1, stream=True
    ) as stream:
        parts = [choice.logprobs for chunk in stream for choice in chunk.choices if choice.logprobs]
    assert [token for part in parts for token in part.tokens or ()] == logprobs.tokens
    assert [offset for part in parts for offset in part.text_offset or ()] == offsets
