"""Answers bring text, the likelihoods of the tokens in it, and how they ended."""

from collections.abc import Sequence
from typing import Any

import pytest

from node.engine.memory import MemoryEngine
from node.engine.port import BadPrompt, Job
from node.gateway.answer import Answer, Part
from node.gateway.embedding import Embedded
from node.gateway.question import ContextExceeded, UnknownModel, Unservable
from node.gateway.sources import LocalSource
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from tests.node.gateway.conftest import Move
from tests.node.gateway.household import LARGE, SMALL
from tests.node.trading import HOT, Line, Store, engine_of, model

PROMPT = (5, 6, 7)


def small(tokenizer: Tokenizer) -> MemoryEngine:
    return engine_of(tokenizer, 7, manifest=model(tokenizer, 7, quantization="Q4_K_M"))


def answer_of(tokenizer: Tokenizer, stops: Sequence[str] = (), tokens: int = 40) -> Answer:
    job = Job(PROMPT, HOT, 3, tokens, logprobs=2)
    source = LocalSource(small(tokenizer), job)
    stream = tokenizer.stream(stops)
    return Answer(source, stream, tokenizer.eog, model="m", prompt_tokens=len(PROMPT), spell=tokenizer.spell)


async def parts_of(answer: Answer) -> list[Part]:
    assert await answer.begin()
    return [part async for part in answer.parts()]


def bytes_of(answer: Answer, parts: Sequence[Part]) -> bytes:
    return b"".join(answer.spell(one.token) for part in parts for one in part.logprobs)


async def test_every_shown_token_is_told_once_and_not_before_its_text(speaking: Tokenizer) -> None:
    answer = answer_of(speaking)
    shown, told = "", b""
    for part in await parts_of(answer):
        shown += part.text
        told += bytes_of(answer, [part])
        # A character whose first bytes are there alone shows nothing yet, and its tokens are not told.
        assert len(told.decode("utf-8", "replace")) <= len(shown)
    assert told.decode("utf-8", "replace") == shown


async def test_tokens_from_a_stop_string_on_are_not_told(speaking: Tokenizer) -> None:
    whole = await answer_of(speaking).collect()
    stop = whole[len(whole) // 2 :][:3]
    answer = answer_of(speaking, [stop])
    parts = await parts_of(answer)
    shown = "".join(part.text for part in parts)
    assert shown == whole[: whole.index(stop)]
    assert shown.startswith(bytes_of(answer, parts).decode("utf-8", "replace"))
    assert answer.ending is not None
    assert answer.ending.finish == "stop"


async def test_without_asking_nothing_is_told(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({SMALL: small(speaking)})
    answer = await household.ask(model=SMALL)
    assert [part.logprobs for part in [part async for part in answer.parts()] if part.logprobs] == []


async def test_what_was_read_before_is_told_as_cached(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({SMALL: small(speaking)})
    first, _ = await household.told(model=SMALL)
    again, _ = await household.told(model=SMALL)
    assert (first.cached, again.cached) == (0, again.prompt_tokens - 1)


# What only this machine can do.


async def test_peers_are_not_asked_for_logprobs(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    line = Line((await Store.open(speaking, clock)).seller)
    household = await move_in({SMALL: small(speaking)}, line)
    with pytest.raises(Unservable, match="logprobs are computed on this machine only"):
        await household.ask(model=LARGE, logprobs=0, may_degrade=False)
    answer, _ = await household.told(model="auto", logprobs=0)
    assert answer.route == "local"
    assert line.ordered == []


async def test_token_ids_go_to_peers_only_under_the_name_of_a_model(
    speaking: Tokenizer, clock: ManualClock, move_in: Move
) -> None:
    line = Line((await Store.open(speaking, clock)).seller)
    household = await move_in(None, line)
    asked: dict[str, Any] = {"messages": (), "prompt": PROMPT, "may_degrade": False}
    with pytest.raises(Unservable, match="token ids belong to one vocabulary"):
        await household.ask(model="auto", **asked)
    answer, text = await household.told(model=LARGE, **asked)
    assert text
    assert answer.prompt_tokens == len(PROMPT)


async def test_a_text_is_bought_as_it_is(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    household = await move_in(None, Line((await Store.open(speaking, clock)).seller))
    answer, _ = await household.told(messages=(), prompt="Once there was")
    assert answer.prompt_tokens == len(await speaking.plain("Once there was"))


async def test_ids_outside_the_vocabulary_are_refused(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({SMALL: small(speaking)})
    with pytest.raises(BadPrompt):
        await household.ask(model=SMALL, messages=(), prompt=(speaking.size,))


async def test_a_prompt_too_long_for_the_only_model_says_so_where_no_other_may_answer(
    speaking: Tokenizer, move_in: Move
) -> None:
    household = await move_in({SMALL: small(speaking)})
    with pytest.raises(ContextExceeded) as caught:
        await household.ask(model=SMALL, messages=(), prompt=(5,) * 3_000, may_degrade=False)
    assert (caught.value.needed, caught.value.context) == (3_012, 2_048)


# Vectors


async def test_a_model_that_is_here_embeds_texts_and_ids(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({SMALL: small(speaking)})
    embedded = await household.gateway.embed(SMALL, ["a fox", PROMPT])
    assert isinstance(embedded, Embedded)
    assert embedded.model == SMALL
    assert len(embedded.rows) == 2
    assert embedded.tokens == len(await speaking.plain("a fox")) + len(PROMPT)


async def test_what_is_not_here_embeds_nothing(speaking: Tokenizer, clock: ManualClock, move_in: Move) -> None:
    household = await move_in({SMALL: small(speaking)}, Line((await Store.open(speaking, clock)).seller))
    with pytest.raises(Unservable):
        await household.gateway.embed(LARGE, ["a"])
    with pytest.raises(UnknownModel):
        await household.gateway.embed("nothing", ["a"])


async def test_what_is_longer_than_the_context_is_not_embedded(speaking: Tokenizer, move_in: Move) -> None:
    household = await move_in({SMALL: small(speaking)})
    with pytest.raises(ContextExceeded):
        await household.gateway.embed("auto", [PROMPT, (5,) * 2_049])
