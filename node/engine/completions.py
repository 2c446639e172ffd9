"""A client of any OpenAI-compatible server: completions that stream text, within bounds, as typed errors otherwise.

Whoever answers is a stranger: lines, waits and counts are bounded, redirects are not followed (the key would go along),
and neither prompt nor key gets into an error, nor what the server says but for why it takes no payment.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final

import aiohttp
from attrs import field, frozen

from node.engine.paying import MAX_REFUSAL, REQUIRED, RESPONSE, Demand, Payer, Payment, reason_in
from node.engine.streaming import RemoteBusy, RemoteFailed, Said, Stream

CONNECT_S: Final = 10.0
# Without a byte for so long, or without a word: a prompt of 100,000 tokens takes some minutes on slow machines.
STALL_S: Final = 120.0
_MAX_RETRY_S: Final = 3_600.0
_RETRY_S: Final = 5.0
_BUSY: Final = frozenset({429, 503, 529})
# Where only the server can count: few tokens have less than three bytes.
_TOKEN_BYTES: Final = 3
_MESSAGE_TOKENS: Final = 8
# What a server that wants to be paid may say in a header: it lists all ways, and what else it offers.
_MAX_TERMS: Final = 64 * 1024
# What comes between the end of an answer and the end of its stream: counts, and what was paid.
_MAX_TAIL: Final = 16


@frozen
class Endpoint:
    """Where a server is: `url` as OpenAI's `base_url`, with `/v1` at its end."""

    name: str
    url: str
    model: str
    key: str | None = field(default=None, repr=False)


class CompletionsClient:
    """Asks one server; the session is the caller's, and so is the `payer` where requests are paid one by one."""

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, stall_s: float = STALL_S, payer: Payer | None = None
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._stall_s = stall_s
        self._payer = payer
        self._stream = Stream(endpoint.name, stall_s)

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
                why, _ = reason_in(await response.content.read(MAX_REFUSAL))
            await payment.refused(again, why)

    def _posted(
        self, path: str, sent: Mapping[str, Any], more: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        endpoint = self._endpoint
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", **more}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=self._stall_s)
        return self._session.post(
            endpoint.url + path,
            json=sent,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            max_field_size=_MAX_TERMS if self.pays else None,
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
        async with aclosing(self._stream.said(response, payment)) as heard:
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


def estimated_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """About how many tokens a conversation has; rather too many."""
    return sum(_MESSAGE_TOKENS + _bytes(message) // _TOKEN_BYTES for message in messages)


def _bytes(message: Mapping[str, Any]) -> int:
    return sum(len(str(value).encode("utf-8", "replace")) for value in message.values())


def _retry_after(header: str | None) -> float:
    """Seconds, within reason; dates are not read."""
    if header is None or not header.isascii() or not header.isdigit() or len(header) > 9:
        return _RETRY_S
    return min(max(float(header), 1.0), _MAX_RETRY_S)
