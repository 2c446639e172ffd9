"""A remote OpenAI-compatible server as an engine; what it answers is text, and may be anything."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from aiohttp import web

from ledger.records import Fingerprint, Sampling
from node.engine.memory import memory_manifest
from node.engine.port import BadPrompt, EngineClosed, EngineError, EngineFailed, Job, PromptTooLong
from node.engine.remote import RemoteChat, RemoteEngine, settings_of
from node.engine.streaming import RemoteBusy, RemoteFailed
from node.models.spelling import Spelling
from node.models.tokenizer import Tokenizer
from tests.node.remotes import DONE, KEY, SECRET, Handler, Server, client_of, event, refuses, says, sends, serving
from tests.node.trading import COLD, HOT
from verify.steering import Steering

PROMPT = (11, 12, 13)


def job(prompt: tuple[int, ...] = PROMPT, most: int = 20, sampling: Sampling = COLD, **changes: object) -> Job:
    return Job(prompt, sampling, 2**63 + 5, most, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def engine_at(
    handler: Handler, tokenizer: Tokenizer, slots: int = 2, stall_s: float = 5.0
) -> AsyncIterator[tuple[RemoteEngine, Server]]:
    async with serving(handler) as server, client_of(server, stall_s) as client:
        spelling = Spelling(tokenizer.words)
        yield RemoteEngine(client, spelling, memory_manifest(), context=64, slots=slots), server


async def ids_of(engine: RemoteEngine, wanted: Job) -> list[int]:
    return [i async for piece in engine.generate(wanted) for i in piece.ids]


async def test_the_text_that_comes_is_given_as_ids_that_spell_it(tokenizer: Tokenizer) -> None:
    async with engine_at(says(["A", " receipt", " is", " signed."]), tokenizer) as (engine, _):
        ids = await ids_of(engine, job())

    assert tokenizer.text(ids) == "A receipt is signed."
    assert ids[-1] in tokenizer.eog


async def test_the_request_holds_the_prompt_s_text_and_the_settings(tokenizer: Tokenizer) -> None:
    async with engine_at(says(["A"]), tokenizer) as (engine, server):
        await ids_of(engine, job(sampling=HOT, steering=Steering(500_000, 0, ((5, -1_000_000),))))

    (asked,) = server.asked
    assert asked["prompt"] == tokenizer.text(PROMPT)
    assert (asked["model"], asked["temperature"], asked["top_p"], asked["max_tokens"]) == ("big-model", 1.0, 1.0, 20)
    assert (asked["frequency_penalty"], asked["logit_bias"]) == (0.5, {"5": -1.0})
    assert 0 <= asked["seed"] < 2**31
    assert not {"top_k", "min_p", "presence_penalty"} & asked.keys()
    assert server.keys == [f"Bearer {KEY}"]


async def test_a_server_that_takes_ids_is_sent_them_as_they_are(tokenizer: Tokenizer) -> None:
    async with serving(says(["A"])) as server, client_of(server) as client:
        spelling = Spelling(tokenizer.words)
        engine = RemoteEngine(client, spelling, memory_manifest(), context=64, slots=1, sends_ids=True)
        await ids_of(engine, job())

    assert server.asked[0]["prompt"] == list(PROMPT)


async def test_an_answer_is_cut_at_the_most_tokens_whatever_comes(tokenizer: Tokenizer) -> None:
    async with engine_at(says(["word "] * 50, "length"), tokenizer) as (engine, _):
        assert len(await ids_of(engine, job(most=7))) == 7


async def test_where_the_server_counts_fewer_tokens_it_is_asked_to_go_on(tokenizer: Tokenizer) -> None:
    async with engine_at(says(["A"], "length"), tokenizer) as (engine, server):
        ids = await ids_of(engine, job(most=3))

    assert tokenizer.text(ids) == "AAA"
    assert [asked["max_tokens"] for asked in server.asked] == [3, 2, 1]
    assert server.asked[2]["prompt"] == tokenizer.text(PROMPT) + "AA"


async def test_the_context_bounds_the_answer(tokenizer: Tokenizer) -> None:
    async with engine_at(says(["A"] * 99, "length"), tokenizer) as (engine, _):
        assert len(await ids_of(engine, job(prompt=tuple(range(20, 80)), most=50))) == 4


async def test_its_fingerprint_says_that_the_sampler_is_the_server_s_own(tokenizer: Tokenizer) -> None:
    async with engine_at(says(["A"]), tokenizer) as (engine, _):
        assert engine.fingerprint == Fingerprint("openai-compatible", "remote", "unknown", "own")


@pytest.mark.parametrize("wrong", [job(prompt=()), job(prompt=tuple(range(20, 84)))])
async def test_a_prompt_that_cannot_be_sent_is_refused_at_once(tokenizer: Tokenizer, wrong: Job) -> None:
    async with engine_at(says(["A"]), tokenizer) as (engine, server):
        with pytest.raises((BadPrompt, PromptTooLong)):
            engine.generate(wrong)
        assert not server.asked


async def test_what_no_such_server_can_do_is_refused_by_name(tokenizer: Tokenizer) -> None:
    async with engine_at(says(["A"]), tokenizer) as (engine, server):
        with pytest.raises(EngineFailed, match="grammars"):
            engine.generate(job(steering=Steering(grammar='root ::= "a"')))
        with pytest.raises(EngineFailed, match="logprobs"):
            engine.generate(job(logprobs=1))
        with pytest.raises(EngineFailed, match="no logits"):
            engine.score(PROMPT, PROMPT)
        with pytest.raises(EngineFailed, match="embeddings"):
            await engine.embed([PROMPT])
        assert not server.asked


async def test_a_message_that_would_be_read_as_a_control_token_goes_nowhere(tokenizer: Tokenizer) -> None:
    words = tokenizer.words
    spelled = await words.ids([(words.text(min(words.control)), False)])
    assert not words.control & set(spelled)

    async with engine_at(says(["A"]), tokenizer) as (engine, server):
        with pytest.raises(BadPrompt, match="control token"):
            await ids_of(engine, job(prompt=tuple(spelled)))
        assert not server.asked


async def test_its_slots_are_taken_and_come_free(tokenizer: Tokenizer) -> None:
    async with engine_at(says(["A", "B"]), tokenizer, slots=1) as (engine, _):
        async with aclosing(engine.generate(job())) as first:
            await anext(first)
            assert engine.free_slots() == 0
            with pytest.raises(RemoteBusy):
                engine.generate(job())
        assert engine.free_slots() == 1


async def test_closing_the_answer_ends_the_request(tokenizer: Tokenizer) -> None:
    gone = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(event("A"))
                await asyncio.sleep(0.001)
        finally:
            gone.set()

    async with engine_at(endless, tokenizer) as (engine, _):
        async with aclosing(engine.generate(job(most=40))) as pieces:
            await anext(pieces)
        await asyncio.wait_for(gone.wait(), 5)


async def test_closing_the_engine_ends_its_jobs(tokenizer: Tokenizer) -> None:
    async with engine_at(sends(event("A"), end=False), tokenizer) as (engine, _):
        pieces = engine.generate(job())
        await anext(pieces)
        await engine.close()
        with pytest.raises(EngineClosed):
            await anext(pieces)
        with pytest.raises(EngineClosed):
            engine.generate(job())


# What a server may do wrong: each is an error of its own kind, in bounded time and memory, and tells no secret.

GARBAGE = b"data: {" + b"[" * 100_000 + b"\n\n"
ERROR = b'data: {"error": {"message": "' + SECRET.encode() + b'"}}\n\n'


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (refuses(401, SECRET), "refuses its key"),
        (refuses(400, SECRET), "refuses the request"),
        (refuses(500, SECRET), "answers HTTP 500"),
        (refuses(302, headers={"Location": "http://127.0.0.1:1/v1"}), "answers HTTP 302"),
        (refuses(200, '{"choices": []}'), "does not stream"),
        (sends(GARBAGE), "not JSON"),
        (sends(b'data: {"choices": [{"text": 5}]}\n\n'), "something else"),
        (sends(b"data: 17\n\n"), "an error"),
        (sends(event("A"), ERROR), "an error"),
        (sends(event("A")), "ended before"),
        (sends(DONE), "ended before"),
        (sends(event("", "length"), DONE), "without a word"),
        (sends(event("A", "content_filter"), DONE), "a reason of its own"),
        (sends(event("A", "stop"), event("B")), None),
        (sends(b"data: " + b"x" * 2**20), "a line of more than"),
        (sends(b"x" * 2**20), "a line of more than"),
        (sends(*[event("")] * 10_001), "without end"),
        (sends(end=False), "in time"),
        (sends(event("A"), end=False), "in time"),
    ],
)
async def test_a_server_that_does_wrong(tokenizer: Tokenizer, handler: Handler, said: str | None) -> None:
    async with engine_at(handler, tokenizer, stall_s=0.3 if said == "in time" else 30.0) as (engine, _):
        if said is None:
            assert tokenizer.text(await ids_of(engine, job())) == "A"
            return
        with pytest.raises(RemoteFailed, match=said) as error:
            await ids_of(engine, job())
        assert engine.free_slots() == 2

    assert "cloud" in str(error.value)
    assert not any(secret in repr(error.value) for secret in (SECRET, KEY))
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 5), ("7", 7), ("0", 1), ("99999999", 3_600), ("soon", 5), ("1e9", 5)]
)
async def test_a_busy_server_is_believed_within_reason(
    tokenizer: Tokenizer, header: str | None, seconds: float
) -> None:
    headers = {} if header is None else {"Retry-After": header}
    async with engine_at(refuses(429, headers=headers), tokenizer) as (engine, _):
        with pytest.raises(RemoteBusy) as error:
            await ids_of(engine, job())
    assert error.value.retry_after == seconds


async def test_a_server_that_is_not_there(tokenizer: Tokenizer) -> None:
    async with serving(says([])) as server:
        pass
    async with client_of(server) as client:
        engine = RemoteEngine(client, Spelling(tokenizer.words), memory_manifest(), context=64, slots=1)
        with pytest.raises(EngineError, match="cannot be reached"):
            await ids_of(engine, job())


async def test_half_a_character_is_no_reason_to_fail(tokenizer: Tokenizer) -> None:
    lone = b'data: {"choices": [{"text": "\\ud83d", "finish_reason": null}]}\n\n'
    async with engine_at(sends(lone, event("", "stop")), tokenizer) as (engine, _):
        assert tokenizer.text(await ids_of(engine, job())) == "?"


async def test_a_conversation_goes_as_it_is_where_the_tokenizer_is_not_here() -> None:
    async with serving(says(["A", " receipt."])) as server, client_of(server) as client:
        chat = RemoteChat(client, slots=1)
        messages = [{"role": "user", "content": "What is it? <|end|>"}]
        said = [part async for part in chat.answer(messages, COLD, Steering(), 1, 9)]

    assert "".join(part.text for part in said) == "A receipt."
    assert [part.finish for part in said if part.finish] == ["stop"]
    assert [(p.prompt_tokens, p.output_tokens) for p in said if p.prompt_tokens is not None] == [(7, 2)]
    assert server.asked[0]["messages"] == messages
    assert chat.free_slots() == 1


async def test_counts_that_make_no_sense_are_no_counts() -> None:
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": 2**60}}).encode()
    handler = sends(event("A", "stop", chat=True), b"data: " + usage + b"\n\n", DONE)
    async with serving(handler) as server, client_of(server) as client:
        said = [part async for part in RemoteChat(client, 1).answer([], COLD, Steering(), 1, 9)]

    assert all(part.prompt_tokens is None and part.output_tokens is None for part in said)


def test_settings_are_in_openai_s_words() -> None:
    sampling = Sampling(temperature=700_000, top_p=900_000, min_p=50_000, top_k=40)
    settings = settings_of(sampling, Steering(presence=250_000), 3, 11)
    assert settings == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 11,
        "seed": 3,
        "top_k": 40,
        "min_p": 0.05,
        "presence_penalty": 0.25,
    }
