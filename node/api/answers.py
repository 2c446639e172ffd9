"""How answers leave: whole or as a stream of events, what they cost, and to whom they may not cling.

A client that takes nothing for `write_s` is gone: its connection is broken off and its work stops.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from aiohttp import web
from attrs import frozen

from node.api.choices import Answerer, Choices
from node.api.errors import FAILURES, ApiError, Failure, internal_error, told
from node.engine.port import Logprob
from node.gateway.answer import Answer, Ending, Part
from node.gateway.question import Question, Unservable
from node.gateway.sources import Paper, costs_of, records_of
from node.ports import Clock, Entropy

# A header's value may not be longer in most clients and proxies.
_MAX_HEADER: Final = 2_048
_to_json = json.JSONEncoder(separators=(",", ":")).encode

Json = dict[str, Any]


class Choice(Protocol):
    """One choice of an answer in the making, in the shape of its kind of request. Fed every part of its text."""

    def opening(self) -> list[Json]:
        """The stream's choices before any text."""
        ...

    def feed(self, answer: Answer, part: Part) -> list[Json]:
        """The stream's choices that this text brings."""
        ...

    def closing(self, ending: Ending) -> list[Json]:
        """The stream's last choices, the finish reason in the very last."""
        ...

    def whole(self, ending: Ending) -> Json:
        """The choice of an answer in one piece, after `closing`."""
        ...


@frozen
class Shape:
    """What tells the answers of one kind of request from those of another."""

    prefix: str  # of the identifier
    whole: str  # the object's name
    chunk: str  # and that of a stream's events
    param: str  # the request's field with the prompt


@frozen
class Asking:
    """A checked request: `choices` are one for each question, `per_prompt` of them in a row for each prompt."""

    shape: Shape
    questions: Sequence[Question]
    choices: Sequence[Choice]
    per_prompt: int
    streaming: bool
    with_usage: bool


async def _nothing_to_say() -> Mapping[str, str]:
    return {}


class Responder:
    """Has the gateway answer, and sends what comes."""

    def __init__(
        self,
        gateway: Answerer,
        clock: Clock,
        entropy: Entropy,
        write_s: float,
        begun: Mapping[str, str] | None = None,
        ended: Callable[[], Awaitable[Mapping[str, str]]] = _nothing_to_say,
    ) -> None:
        """`begun` are headers of a stream; `ended` is asked once when all answers are there, and gives further headers.

        A stream has sent its headers by then: they come as comments of the stream, before its last event.
        """
        self._gateway, self._clock, self._entropy, self._write_s = gateway, clock, entropy, write_s
        self._begun, self._ended = dict(begun or {}), ended

    async def respond(self, request: web.Request, asking: Asking) -> web.StreamResponse:
        """Answer a request. Raises ApiError as long as nothing was sent."""
        head = {
            "id": asking.shape.prefix + self._entropy.bytes(12).hex(),
            "object": asking.shape.chunk if asking.streaming else asking.shape.whole,
            "created": int(self._clock.now()),
        }
        async with Choices(self._gateway, asking.questions) as choices:
            if not asking.streaming:
                return await self._whole(request, asking, head, choices)
            try:
                await choices.begin()
            except FAILURES as error:
                raise _told(error, asking, choices) from None
            return await self._stream(request, asking, head, choices)

    async def _whole(self, request: web.Request, asking: Asking, head: Json, choices: Choices) -> web.Response:
        try:
            async for index, part in choices.events():
                if part is not None:
                    asking.choices[index].feed(_answer(choices, index), part)
        except FAILURES as error:
            raise _told(error, asking, choices) from None
        answers = choices.begun
        made = []
        for choice, answer in zip(asking.choices, answers, strict=True):
            choice.closing(_ending(answer))
            made.append(choice.whole(_ending(answer)))
        known = {"usage": usage(answers, asking.per_prompt), "idlemesh": facts(answers)}
        body = head | {"model": answers[0].model, "choices": made} | known
        known_now = headers(answers) | dict(await self._ended())
        return await self.send(request, web.json_response(body, headers=known_now))

    async def send(self, request: web.Request, response: web.Response) -> web.Response:
        """Send a whole response to a client that takes it."""
        with _connected(request):
            async with asyncio.timeout(self._write_s):
                await response.prepare(request)
                await response.write_eof()
        return response

    async def _stream(self, request: web.Request, asking: Asking, head: Json, choices: Choices) -> web.StreamResponse:
        kind = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=kind | headers(choices.begun) | self._begun)
        with _connected(request):
            await response.prepare(request)
            async for event in self._events(asking, head, choices):
                await self._write(response, f"data: {event}")
            for name, value in (await self._ended()).items():
                await self._write(response, f": {name}: {value}")
            await self._write(response, "data: [DONE]")
            async with asyncio.timeout(self._write_s):
                await response.write_eof()
        return response

    async def _write(self, response: web.StreamResponse, event: str) -> None:
        async with asyncio.timeout(self._write_s):
            await response.write(f"{event}\n\n".encode())

    async def _events(self, asking: Asking, head: Json, choices: Choices) -> AsyncIterator[str]:
        try:
            async for one in self._chunks(asking, head, choices):
                yield _to_json(one)
        except FAILURES as error:
            yield _to_json(_told(error, asking, choices).body())

    async def _chunks(self, asking: Asking, head: Json, choices: Choices) -> AsyncIterator[Json]:
        opened: set[int] = set()
        if asking.with_usage:
            head = head | {"usage": None}  # until the last event, which tells it
        async for index, part in choices.events():
            answer, choice = _answer(choices, index), asking.choices[index]
            made = [] if index in opened else choice.opening()
            opened.add(index)
            made += choice.closing(_ending(answer)) if part is None else choice.feed(answer, part)
            for one in made:
                last = part is None and one is made[-1]
                yield head | {"model": answer.model, "choices": [one]} | ({"idlemesh": facts([answer])} if last else {})
        if asking.with_usage:
            answers = choices.begun
            counted = {"usage": usage(answers, asking.per_prompt), "idlemesh": facts(answers)}
            yield head | {"model": answers[0].model, "choices": []} | counted


def _told(failure: Failure, asking: Asking, choices: Choices) -> ApiError:
    """A failure as the client is told of it, with what was bought for nothing, or only in part."""
    error = told(failure, asking.shape.param)
    if error.code == "answer_cut":
        error.message = f"the answer broke off: {error.message}"
    lost = [paper for answer in choices.begun for paper in answer.lost]
    lost += failure.lost if isinstance(failure, Unservable) else ()
    facts = {"order": _listed(paper.order for paper in lost)} | _paper_facts(lost)
    error.facts = {name: value for name, value in facts.items() if value}
    if any(paper.cost is not None and paper.cost.value for paper in lost):
        shown = f"; `idlemesh export {facts['receipt'][:12]}` shows it" if "receipt" in facts else ""
        error.message += f"; what came before that costs {facts['cost']}{shown}"
    return error


def _paper_facts(papers: Sequence[Paper]) -> dict[str, str]:
    known = {"receipt": _listed(records_of(papers)), "cost": ", ".join(map(str, costs_of(papers)))}
    return {name: value for name, value in known.items() if value}


def _listed(digests: Iterable[bytes | None]) -> str:
    return ", ".join(digest.hex() for digest in digests if digest is not None)


def _answer(choices: Choices, index: int) -> Answer:
    answer = choices.answers[index]
    assert answer is not None  # it has brought an event
    return answer


def _ending(answer: Answer) -> Ending:
    if answer.ending is None:
        raise internal_error()
    return answer.ending


@contextmanager
def _connected(request: web.Request) -> Iterator[None]:
    """Where sending fails or takes too long, the client is gone, and its connection goes too."""
    try:
        yield
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()


def usage(answers: Sequence[Answer], per_prompt: int) -> Json:
    """The token counts of all choices together; each prompt counts once, as in OpenAI's."""
    prompts = [answers[start : start + per_prompt] for start in range(0, len(answers), per_prompt)]
    prompt = sum(group[0].prompt_tokens for group in prompts)
    cached = sum(min(answer.cached for answer in group) for group in prompts)
    completion = sum(_ending(answer).tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def facts(answers: Sequence[Answer]) -> dict[str, str]:
    """What happened, as far as it is known: the `x-idlemesh-*` headers and the `idlemesh` field without the prefix.

    Of several answers, what differs is listed in their order.
    """
    known: dict[str, list[str]] = {"route": [], "degraded": [], "receipt": [], "cost": []}
    for answer in answers:
        for name, value in _facts(answer).items():
            known[name] += [value] if name in ("receipt", "cost") or value not in known[name] else []
    return {name: ", ".join(values) for name, values in known.items() if values}


def _facts(answer: Answer) -> dict[str, str]:
    known = {"route": answer.route}
    if answer.degraded:
        known["degraded"] = answer.degraded
    if answer.ending is not None:
        known |= _paper_facts([*answer.lost, *answer.ending.papers])
    return known


def headers(answers: Sequence[Answer]) -> dict[str, str]:
    """The facts as headers."""
    free = {"cost": "0"} if all(answer.route == "local" for answer in answers) else {}
    return {f"x-idlemesh-{name}": _plain(value) for name, value in (facts(answers) | free).items()}


def _plain(value: str) -> str:
    """Text as a header may carry it: it can hold words of a peer, and those can hold anything."""
    return "".join(c if " " <= c <= "~" else "?" for c in value[:_MAX_HEADER])


@frozen
class Spelled:
    """A token as logprobs show it."""

    text: str
    raw: bytes
    logprob: float


def spelled(answer: Answer, token: int, logprob: float) -> Spelled:
    """A token of an answer's logprobs; a part of a character is shown by U+FFFD, and its bytes tell which."""
    raw = answer.spell(token)
    return Spelled(raw.decode("utf-8", "replace"), raw, max(logprob, -9999.0))


def spelled_top(answer: Answer, one: Logprob) -> list[Spelled]:
    """The likeliest tokens of a place."""
    return [spelled(answer, token, value) for token, value in one.top]
