"""Prompts that are no conversation: as text or token ids, one or many, streamed or whole."""

import contextlib
from typing import Any

import openai
import pytest

from node.models.vocab import open_vocab
from tests.node.api.running import MODEL
from tests.node.trading import DEMO

USER, ASSISTANT = 1, 2  # control tokens of the demo model
PROMPT = "Once there was"
ON = {"0": -100}  # the demo model never ends by itself


def texts(client: openai.OpenAI, prompt: Any, **fields: Any) -> list[str]:
    completion = client.completions.create(model="auto", prompt=prompt, **{"temperature": 0, **fields})
    assert completion.object == "text_completion"
    assert completion.model == MODEL
    assert [choice.index for choice in completion.choices] == list(range(len(completion.choices)))
    return [choice.text for choice in completion.choices]


def test_a_prompt_is_continued(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="auto", prompt=PROMPT, max_tokens=6, temperature=0, logit_bias=ON)
    assert completion.id.startswith("cmpl-")
    assert completion.choices[0].text
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 6


def test_without_a_limit_there_are_sixteen_tokens(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="auto", prompt=PROMPT, seed=1, logit_bias=ON)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16


def test_a_stream_brings_the_same_text(exact: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 9, "temperature": 0, "logit_bias": ON}
    with exact.completions.create(model="auto", stream=True, stream_options={"include_usage": True}, **asked) as stream:
        chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert ["".join(choice.text for choice in choices)] == texts(exact, **asked)
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9


def test_the_choices_of_a_prompt_differ(client: openai.OpenAI) -> None:
    several = texts(client, PROMPT, n=3, seed=5, temperature=1, logit_bias=ON)
    assert len(set(several)) == 3


def test_several_prompts_are_counted_together(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "What is", "A receipt"]
    completion = client.completions.create(model="auto", prompt=prompts, n=2, max_tokens=6, logit_bias=ON)
    assert len(completion.choices) == 6
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 36


def test_token_ids_are_taken_as_they_are(client: openai.OpenAI) -> None:
    # What the chat template makes of a question: with control tokens, which no text can hold.
    with contextlib.closing(open_vocab(DEMO)) as vocab:
        question = [USER, *vocab.tokenize("What is a receipt?", parse_special=False), ASSISTANT]
    (answer,) = texts(client, question, max_tokens=20)
    assert answer.startswith("A receipt is signed")
    assert texts(client, [question, question], max_tokens=20) == [answer, answer]
    as_text = "<|user|>What is a receipt?<|assistant|>"
    assert texts(client, as_text, max_tokens=20) != [answer]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1_024]}, "prompt"),
        ({"prompt": [[5], [2**30]]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 8}, "n"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"best_of": 3}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "."}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_done_is_refused_by_its_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "auto", "prompt": "a", "max_tokens": 1, **fields})
    assert str(caught.value.param).split(".")[0] == param


def test_fields_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"echo": False, "suffix": None, "best_of": 2, "n": 2, "logprobs": None}
    assert len(texts(client, PROMPT, max_tokens=1, **asked)) == 2


def test_a_prompt_longer_than_the_context_names_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"2051 tokens.*2048") as caught:
        client.completions.create(model="auto", prompt=[5] * 2_050, max_tokens=1)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_a_model_that_nobody_has_does_not_take_anothers_token_ids(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobodys-model-70b", prompt=[5, 6], max_tokens=1)
    assert client.completions.create(model="nobodys-model-70b", prompt="a", max_tokens=1).model == MODEL
