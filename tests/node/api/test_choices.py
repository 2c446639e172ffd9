"""Several answers to one question, each with a seed of its own."""

from collections import defaultdict
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessageParam

from verify.sampler import derived_seed

STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]


def stories(client: openai.OpenAI, n: int, seed: int) -> list[str | None]:
    completion = client.chat.completions.create(model="auto", messages=STORY, n=n, seed=seed, max_tokens=12)
    assert [choice.index for choice in completion.choices] == list(range(n))
    return [choice.message.content for choice in completion.choices]


def test_every_choice_has_the_answer_of_its_own_seed(exact: openai.OpenAI) -> None:
    alone = [stories(exact, 1, derived_seed(9, choice))[0] for choice in range(4)]
    assert stories(exact, 4, 9) == alone
    assert len(set(alone)) > 1


def test_the_choices_of_a_stream_are_told_apart_by_their_index(exact: openai.OpenAI) -> None:
    with exact.chat.completions.create(
        model="auto", messages=STORY, n=3, seed=9, max_tokens=12, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    texts: dict[int, str] = defaultdict(str)
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
    assert [texts[index] for index in range(3)] == stories(exact, 3, 9)
    ended = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(ended) == [0, 1, 2]
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_usage_of_all_choices_is_summed_and_the_prompt_counts_once(client: openai.OpenAI) -> None:
    one = client.chat.completions.create(model="auto", messages=STORY, max_tokens=5).usage
    three = client.chat.completions.create(model="auto", messages=STORY, max_tokens=5, n=3).usage
    assert one is not None
    assert three is not None
    assert (three.prompt_tokens, three.completion_tokens) == (one.prompt_tokens, 15)
    with client.chat.completions.create(
        model="auto", messages=STORY, n=3, max_tokens=5, stream=True, stream_options={"include_usage": True}
    ) as stream:
        last = list(stream)[-1]
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (one.prompt_tokens, 15)


def test_as_many_choices_as_may_be_are_all_answered(exact: openai.OpenAI) -> None:
    assert len(stories(exact, 16, 1)) == 16


def test_what_was_read_before_is_counted_as_cached(client: openai.OpenAI) -> None:
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me, please: " + "what is it? " * 60}]
    for _ in range(2):
        usage = client.chat.completions.create(model="auto", messages=long, max_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert 0 < (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens


def test_completions_have_the_same_choices_whole_and_streamed(exact: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": ["a", "b"], "n": 2, "seed": 4, "max_tokens": 8}
    whole = [choice.text for choice in exact.completions.create(model="auto", **asked).choices]
    texts: dict[int, str] = defaultdict(str)
    with exact.completions.create(model="auto", stream=True, **asked) as stream:
        for choice in (choice for chunk in stream for choice in chunk.choices):
            texts[choice.index] += choice.text
    assert [texts[index] for index in range(4)] == whole
    assert len(set(whole)) == 4
    first = exact.completions.create(model="auto", prompt="a", seed=4, max_tokens=8).choices[0].text
    assert first == whole[0]


def test_several_prompts_are_answered_in_their_order(exact: openai.OpenAI) -> None:
    prompts = ["Once", "upon", "a time"]
    asked: dict[str, Any] = {"model": "auto", "max_tokens": 6, "temperature": 0}
    alone = [exact.completions.create(prompt=prompt, **asked).choices[0].text for prompt in prompts]
    assert [choice.text for choice in exact.completions.create(prompt=prompts, **asked).choices] == alone
    twice = [choice.text for choice in exact.completions.create(prompt=prompts, n=2, **asked).choices]
    assert twice == [text for text in alone for _ in range(2)]
