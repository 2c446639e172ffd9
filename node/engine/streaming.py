"""What a remote backend streams, read within bounds: events of text, how the answer ends, and what was paid for it."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, Literal

import aiohttp
from attrs import field, frozen

from node.engine.paying import RESPONSE_LINE, Payment
from node.engine.port import EngineBusy, EngineError, EngineFailed

_MAX_LINE: Final = 256 * 1024
_MAX_SILENT: Final = 10_000  # events one after another that bring no text
_MAX_COUNT: Final = 2**24

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
class Said:
    """A part of an answer: text, how it ended if it did, and what the server says that it counted, if it does."""

    text: str = field(default="", repr=False)
    finish: Finish | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class Stream:
    """Reads one server's streams; `stall_s` is the longest without a byte, or without a word."""

    def __init__(self, name: str, stall_s: float) -> None:
        self._name, self._stall_s = name, stall_s

    async def said(self, response: aiohttp.ClientResponse, payment: Payment | None) -> AsyncGenerator[Said, None]:
        """What is said, as it comes; a `payment` hears what was taken. Raises RemoteFailed, and what aiohttp raises."""
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
                    raise RemoteFailed(self._name, "goes on after the end of its answer")
                silent = 0 if said.text else silent + 1
                if silent > _MAX_SILENT or loop.time() - since > self._stall_s:
                    raise RemoteFailed(self._name, "sends events without end, and no text")
                ended = ended or said.finish is not None
                yield said
                since = loop.time() if said.text else since
        if not ended:
            raise RemoteFailed(self._name, "ended before its answer did")

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """The data of each event, and what was paid; other comments and fields are passed over."""
        held = b""
        while chunk := await self._next(response):
            *lines, held = (held + chunk).split(b"\n")
            if len(held) > _MAX_LINE:
                raise RemoteFailed(self._name, f"sends a line of more than {_MAX_LINE} bytes")
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
            raise RemoteFailed(self._name, "sends an event that is not JSON") from None
        if not isinstance(event, dict) or event.get("error") is not None:
            raise RemoteFailed(self._name, "broke off with an error")
        choices, usage = event.get("choices"), event.get("usage")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content") if isinstance(delta, dict) else None
        if text is not None and not isinstance(text, str):
            raise RemoteFailed(self._name, "sends something else where text should be")
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
        raise RemoteFailed(self._name, "ended its answer for a reason of its own")


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_COUNT else None
