"""OpenAI's official client works against a node as it is."""

import asyncio
from collections.abc import AsyncIterable, Iterable
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from tests.node.api.running import MODEL

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a receipt?"}]
STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]
RECEIPT_ANSWER = "A receipt is signed by both sides of a trade."


def text_of(completion: ChatCompletion) -> str:
    text = completion.choices[0].message.content
    assert text is not None
    return text


def text_in(chunks: Iterable[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def gathered(stream: AsyncIterable[ChatCompletionChunk]) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in stream]


def test_a_question_is_answered(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="auto", messages=QUESTION, temperature=0)
    assert text_of(completion).startswith(RECEIPT_ANSWER)
    assert completion.object == "chat.completion"
    assert completion.model == MODEL
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.role == "assistant"


def test_tokens_are_counted(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(model="auto", messages=QUESTION, max_tokens=5).usage
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert (usage.completion_tokens, usage.total_tokens) == (5, usage.prompt_tokens + 5)


def test_the_headers_say_that_this_machine_answered_for_nothing(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=QUESTION, max_tokens=1)
    assert raw.headers["x-idlemesh-route"] == "local"
    assert raw.headers["x-idlemesh-cost"] == "0"
    assert "x-idlemesh-receipt" not in raw.headers
    assert "x-idlemesh-degraded" not in raw.headers


async def test_the_async_client_is_answered_too(async_client: openai.AsyncOpenAI) -> None:
    completion = await async_client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert text_of(completion).startswith(RECEIPT_ANSWER)


async def test_questions_asked_at_once_are_all_answered(async_client: openai.AsyncOpenAI) -> None:
    asked = [
        async_client.chat.completions.create(model="auto", messages=STORY, seed=seed, max_tokens=8) for seed in range(4)
    ]
    answers = [text_of(completion) for completion in await asyncio.gather(*asked)]
    assert all(answers)


def test_a_stream_brings_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="auto", messages=STORY, seed=7)
    with client.chat.completions.create(model="auto", messages=STORY, seed=7, stream=True) as stream:
        chunks = list(stream)
    assert text_in(chunks) == text_of(whole)
    assert len(chunks) > 10
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {MODEL}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    assert all(chunk.usage is None for chunk in chunks)


def test_the_last_chunk_of_a_stream_says_what_happened(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="auto", messages=STORY, max_tokens=3, stream=True) as stream:
        chunks = list(stream)
    assert (chunks[-1].model_extra or {})["idlemesh"] == {"route": "local"}


async def test_the_async_client_can_stream(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(model="auto", messages=QUESTION, temperature=0, stream=True)
    async with stream:
        assert text_in(await gathered(stream)).startswith(RECEIPT_ANSWER)


def test_include_usage_adds_a_chunk_without_choices(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="auto", messages=STORY, max_tokens=6, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_same_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    def story(seed: int) -> str:
        return text_of(client.chat.completions.create(model="auto", messages=STORY, seed=seed, max_tokens=24))

    assert story(11) == story(11)
    assert len({story(seed) for seed in range(5)}) > 1


def test_a_negative_seed_is_taken(client: openai.OpenAI) -> None:
    assert text_of(client.chat.completions.create(model="auto", messages=STORY, seed=-3, max_tokens=4))


def test_without_a_seed_answers_vary(client: openai.OpenAI) -> None:
    answers = {text_of(client.chat.completions.create(model="auto", messages=STORY, max_tokens=24)) for _ in range(6)}
    assert len(answers) > 1


@pytest.mark.parametrize(
    "narrowing",
    [
        {"temperature": 0},
        {"top_p": 0.000001},
        {"top_p": 0},
        {"extra_body": {"top_k": 1}},
        {"extra_body": {"min_p": 1.0}},
    ],
    ids=str,
)
def test_cutoffs_that_leave_one_token_give_the_greedy_answer(client: openai.OpenAI, narrowing: dict[str, Any]) -> None:
    greedy = client.chat.completions.create(model="auto", messages=STORY, temperature=0, max_tokens=24)
    narrow = client.chat.completions.create(model="auto", messages=STORY, seed=5, max_tokens=24, **narrowing)
    assert text_of(narrow) == text_of(greedy)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_its_most_tokens(client: openai.OpenAI, name: str) -> None:
    limit: dict[str, Any] = {name: 4}
    completion = client.chat.completions.create(model="auto", messages=STORY, **limit)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 4
    assert completion.choices[0].finish_reason == "length"


def test_of_both_limits_the_newer_name_counts(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="auto", messages=STORY, max_tokens=20, max_completion_tokens=3, temperature=0
    )
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3


@pytest.mark.parametrize("stop", [" signed", ["nowhere in it", " signed"]], ids=["one", "several"])
def test_an_answer_ends_before_a_stop_string(client: openai.OpenAI, stop: str | list[str]) -> None:
    completion = client.chat.completions.create(model="auto", messages=QUESTION, temperature=0, stop=stop)
    assert text_of(completion) == "A receipt is"
    assert completion.choices[0].finish_reason == "stop"


def test_a_stream_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="auto", messages=QUESTION, temperature=0, stop=" signed by", stream=True
    ) as stream:
        chunks = list(stream)
    assert text_in(chunks) == "A receipt is"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_fields_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="auto",
        messages=STORY,
        max_tokens=2,
        n=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        logit_bias={},
        response_format={"type": "text"},
        store=False,
        user="somebody",
        metadata={"purpose": "test"},
    )
    assert len(completion.choices) == 1


def test_content_may_come_in_parts(client: openai.OpenAI) -> None:
    parts: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a receipt?"}]}
    ]
    whole = client.chat.completions.create(model="auto", messages=QUESTION, temperature=0, max_tokens=8)
    assert (
        client.chat.completions.create(model="auto", messages=parts, temperature=0, max_tokens=8).usage == whole.usage
    )


def test_a_conversation_may_have_several_turns(client: openai.OpenAI) -> None:
    turns: list[ChatCompletionMessageParam] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is a receipt?"},
    ]
    assert text_of(client.chat.completions.create(model="auto", messages=turns, max_tokens=8))


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [MODEL]
    assert listed[0].owned_by == "local"
    assert client.models.retrieve(MODEL) == listed[0]


def test_a_model_that_is_not_there_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody/has-this")
    assert caught.value.code == "model_not_found"
