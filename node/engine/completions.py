"""A client of any OpenAI-compatible server: completions that stream text, within bounds, as typed errors otherwise.

Whoever answers is a stranger: lines, waits and counts are bounded, redirects are not followed (the key would go along),
and nothing that the server says, nor prompt or key, gets into an error.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final, Literal

import aiohttp
from attrs import field, frozen

from node.engine.paying import REQUIRED, RESPONSE, RESPONSE_LINE, Demand, Payer, Payment
from node.engine.port import EngineBusy, EngineError, EngineFailed

CONNECT_S: Final = 10.0
# Without a byte for so long, or without a word: a prompt of 100,000 tokens takes some minutes on slow machines.
STALL_S: Final = 120.0
_MAX_LINE: Final = 256 * 1024
_MAX_SILENT: Final = 10_000  # events one after another that bring no text
_MAX_RETRY_S: Final = 3_600.0
_RETRY_S: Final = 5.0
_BUSY: Final = frozenset({429, 503, 529})
_MAX_COUNT: Final = 2**24
# Where only the server can count: few tokens have less than three bytes.
_TOKEN_BYTES: Final = 3
_MESSAGE_TOKENS: Final = 8
# What comes between the end of an answer and the end of its stream: counts, and what was paid.
_MAX_TAIL: Final = 16

Finish = Literal["stop", "length"]


class RemoteFailed(EngineFailed):
    """A remote backend does not do what it should; the message names it and what to look at."""

    def __init__(self, name: str, what: str) -> None:
        EngineError.__init__(self, f"the remote {name!r} {what}")
        self.reason = what


class RemoteBusy(EngineBusy):
    """A remote backend takes no more requests now. `retry_after` in seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        EngineError.__init__(self, f"the remote {name!r} is busy; try again in {retry_after:.0f} s")
        self.waiting, self.retry_after = 0, retry_after


@frozen
class Endpoint:
    """Where a server is: `url` as OpenAI's `base_url`, with `/v1` at its end."""

    name: str
    url: str
    model: str
    key: str | None = field(default=None, repr=False)


@frozen
class Said:
    """A part of an answer: text, how it ended if it did, and what the server says that it counted, if it does."""

    text: str = field(default="", repr=False)
    finish: Finish | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class CompletionsClient:
    """Asks one server; the session is the caller's, and so is the `payer` where requests are paid one by one."""

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, stall_s: float = STALL_S, payer: Payer | None = None
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._stall_s = stall_s
        self._payer = payer

    @property
    def name(self) -> str:
        """The owner's word for the server."""
        return self._endpoint.name

    @property
    def pays(self) -> bool:
        """Whether each request is paid for: then the end of the stream says how much."""
        return self._payer is not None

    def complete(
        self, prompt: str | list[int], settings: Mapping[str, Any], prompt_tokens: int = 0
    ) -> AsyncGenerator[Said, None]:
        """Continue a text, or ids if the server takes them. Ends after a `finish`. Raises RemoteFailed, RemoteBusy.

        `prompt_tokens` is what the prompt has, to know what it may cost.
        """
        return self._ask("/completions", {"prompt": prompt, **settings}, prompt_tokens)

    def chat(self, messages: list[dict[str, Any]], settings: Mapping[str, Any]) -> AsyncGenerator[Said, None]:
        """Answer a conversation. Ends after a `finish`, with the counts. Raises RemoteFailed, RemoteBusy."""
        return self._ask("/chat/completions", {"messages": messages, **settings}, estimated_tokens(messages))

    async def _ask(self, path: str, body: Mapping[str, Any], prompt_tokens: int) -> AsyncGenerator[Said, None]:
        sent = {"model": self._endpoint.model, "stream": True, "stream_options": {"include_usage": True}, **body}
        try:
            async with self._posted(path, sent, {}) as response:
                required = self._wants_pay(response)
                if required is None:
                    async with aclosing(self._said(response)) as said:
                        async for part in said:
                            yield part
                    return
            assert self._payer is not None
            demand = Demand(prompt_tokens, int(body["max_tokens"]))
            async with (
                self._payer.paying(required, demand) as payment,
                aclosing(self._ask_paying(path, sent, payment)) as said,
            ):
                async for part in said:
                    yield part
        except TimeoutError:
            raise RemoteFailed(self.name, "does not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RemoteFailed(
                self.name, f"cannot be reached ({type(error).__name__}): is it running? look at its url"
            ) from None

    async def _ask_paying(self, path: str, sent: Mapping[str, Any], payment: Payment) -> AsyncGenerator[Said, None]:
        while True:
            async with self._posted(path, sent, payment.headers) as response:
                again = self._wants_pay(response)
                if again is None:
                    told = response.headers.get(RESPONSE)
                    if told is not None and response.status == 200:
                        await payment.taken(told)
                    async with aclosing(self._said(response, payment)) as said:
                        async for part in said:
                            yield part
                    return
            await payment.refused(again)

    def _posted(
        self, path: str, sent: Mapping[str, Any], more: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        endpoint = self._endpoint
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", **more}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=self._stall_s)
        return self._session.post(
            endpoint.url + path, json=sent, headers=headers, timeout=timeout, allow_redirects=False
        )

    def _wants_pay(self, response: aiohttp.ClientResponse) -> str | None:
        """What a server wants to be paid, in its words; None if it does not ask. Raises RemoteFailed."""
        if response.status != 402:
            return None
        required = response.headers.get(REQUIRED)
        if self._payer is None:
            raise RemoteFailed(self.name, 'wants each request to be paid: write pay = "x402" in [[remotes]]')
        if required is None:
            raise RemoteFailed(self.name, "wants to be paid, and does not say how: it does not speak x402 version 2")
        return required

    async def _said(
        self, response: aiohttp.ClientResponse, payment: Payment | None = None
    ) -> AsyncGenerator[Said, None]:
        """What is in an answer; of a paid one the end is told once the rest of the stream has said what was paid."""
        self._check(response)
        held: list[Said] = []
        async with aclosing(self._heard(response, payment)) as heard:
            async for said in heard:
                if payment is not None and (held or said.finish is not None):
                    held.append(said)
                    if len(held) > _MAX_TAIL:
                        raise RemoteFailed(self.name, "goes on after the end of its answer")
                else:
                    yield said
        for said in held:
            yield said

    def _check(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status in _BUSY:
            raise RemoteBusy(self.name, _retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            raise RemoteFailed(
                self.name, f"refuses its key (HTTP {status}): look at key_env or key_file in [[remotes]]"
            )
        if status in (400, 404, 413, 422):
            raise RemoteFailed(self.name, f"refuses the request (HTTP {status}): look at its url, model and context")
        if status != 200:
            raise RemoteFailed(self.name, f"answers HTTP {status}")
        if response.content_type != "text/event-stream":
            raise RemoteFailed(self.name, "does not stream: it is no OpenAI-compatible server, or an old one")

    async def _heard(self, response: aiohttp.ClientResponse, payment: Payment | None) -> AsyncGenerator[Said, None]:
        loop = asyncio.get_running_loop()
        silent, since, ended = 0, loop.time(), False
        async with aclosing(self._lines(response)) as lines:
            async for line in lines:
                if line == b"[DONE]":
                    break
                if line.startswith(RESPONSE_LINE):
                    if payment is not None:
                        await payment.taken(line.removeprefix(RESPONSE_LINE).decode("ascii", "replace").strip())
                    continue
                said = self._read(line)
                if said.text and ended:
                    raise RemoteFailed(self.name, "goes on after the end of its answer")
                silent = 0 if said.text else silent + 1
                if silent > _MAX_SILENT or loop.time() - since > self._stall_s:
                    raise RemoteFailed(self.name, "sends events without end, and no text")
                ended = ended or said.finish is not None
                yield said
                since = loop.time() if said.text else since
        if not ended:
            raise RemoteFailed(self.name, "ended before its answer did")

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """The data of each event, and what was paid; other comments and fields are passed over."""
        held = b""
        while chunk := await self._next(response):
            *lines, held = (held + chunk).split(b"\n")
            if len(held) > _MAX_LINE:
                raise RemoteFailed(self.name, f"sends a line of more than {_MAX_LINE} bytes")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line.removeprefix(b"data:").strip()
                elif line.startswith(RESPONSE_LINE):
                    yield line

    async def _next(self, response: aiohttp.ClientResponse) -> bytes:
        # aiohttp's own clock stops for good when a body breaks HTTP's framing, and then nothing would ever come.
        async with asyncio.timeout(self._stall_s):
            return await response.content.readany()

    def _read(self, line: bytes) -> Said:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            raise RemoteFailed(self.name, "sends an event that is not JSON") from None
        if not isinstance(event, dict) or event.get("error") is not None:
            raise RemoteFailed(self.name, "broke off with an error")
        choices, usage = event.get("choices"), event.get("usage")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content") if isinstance(delta, dict) else None
        if text is not None and not isinstance(text, str):
            raise RemoteFailed(self.name, "sends something else where text should be")
        counts = usage if isinstance(usage, dict) else {}
        return Said(
            # A lone surrogate is no character, and nobody could be sent it.
            (text or "").encode("utf-8", "replace").decode(),
            self._finish(choice.get("finish_reason")),
            _count(counts.get("prompt_tokens")),
            _count(counts.get("completion_tokens")),
        )

    def _finish(self, reason: object) -> Finish | None:
        match reason:
            case None | "":
                return None
            case "stop" | "length":
                return reason
        raise RemoteFailed(self.name, "ended its answer for a reason of its own")


def estimated_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """About how many tokens a conversation has; rather too many."""
    return sum(_MESSAGE_TOKENS + _bytes(message) // _TOKEN_BYTES for message in messages)


def _bytes(message: Mapping[str, Any]) -> int:
    return sum(len(str(value).encode("utf-8", "replace")) for value in message.values())


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_COUNT else None


def _retry_after(header: str | None) -> float:
    """Seconds, within reason; dates are not read."""
    if header is None or not header.isascii() or not header.isdigit() or len(header) > 9:
        return _RETRY_S
    return min(max(float(header), 1.0), _MAX_RETRY_S)
