"""Chat templates, rendered where they can do no harm: in a worker process with limits, killed when it
overstays.

The worker is started at first use, kept, and replaced when it dies. Callers take turns.
"""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

_WORKER: Final = Path(__file__).with_name("template_worker.py")
_START_TIMEOUT: Final = 30.0  # seconds; Python and Jinja take 0.2, a machine under load much more
_MAX_REQUEST: Final = 8 * 2**20  # bytes
# Six bytes for a character at worst, as JSON escapes it, and something around it.
_MAX_ANSWER: Final = 12 * 2**20

Message = Mapping[str, Any]


class TemplateError(Exception):
    """The conversation could not be put into the form that the model expects."""


class TemplateRefused(TemplateError):
    """The template does not take this conversation, and says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model's chat template refuses these messages: {reason}")
        self.reason = reason


class TemplateBroken(TemplateError):
    """The template is wrong, or did what no template may."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model's chat template does not work: {reason}; use another file of this model")
        self.reason = reason


class TemplateTooSlow(TemplateError):
    """The template did not end in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the model's chat template did not end in {seconds:g} s; use another file of this model")
        self.seconds = seconds


class RendererFailed(TemplateError):
    """The worker process does not start."""

    def __init__(self) -> None:
        super().__init__("the process that renders chat templates does not start; is the installation complete?")


class TextTooLong(TemplateError):
    """The conversation, or what the template makes of it, is too long."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the conversation is too long ({size} where {limit} is the limit); leave older messages out")
        self.size, self.limit = size, limit


class TemplateRenderer:
    """Renders templates, one at a time. `timeout` in seconds; `now` is the clock that templates may show."""

    def __init__(self, timeout: float = 2.0, now: Callable[[], datetime] = datetime.now) -> None:
        self._timeout, self._now = timeout, now
        self._turn = asyncio.Lock()
        self._worker: Process | None = None

    async def start(self) -> None:
        """Start the worker now, so that the first conversation does not wait for it."""
        async with self._turn:
            await self._ready()

    async def render(
        self,
        template: str,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        **variables: str,
    ) -> str:
        """The prompt's text. `variables` are given to the template too (bos_token, eos_token). Raises
        TemplateError.
        """
        given = {"messages": messages, "tools": tools or None, "add_generation_prompt": add_generation_prompt}
        request = {"template": template, "variables": given | variables, "now": self._now().isoformat()}
        raw = json.dumps(request).encode()
        if len(raw) > _MAX_REQUEST:
            raise TextTooLong(len(raw), _MAX_REQUEST)
        async with self._turn:
            return _text_of(await self._ask(raw))

    async def _ask(self, raw: bytes) -> dict[str, Any]:
        worker = await self._ready()
        try:
            async with asyncio.timeout(self._timeout):
                return await _exchange(worker, raw)
        except TimeoutError:
            await self._kill()
            raise TemplateTooSlow(self._timeout) from None
        except (EOFError, OSError):
            await self._kill()
            raise TemplateBroken("it ended its process") from None
        except BaseException:  # cancelled in between: the answer to come would be taken for the next one's
            await self._kill()
            raise

    async def _ready(self) -> Process:
        if self._worker is not None and self._worker.returncode is None:
            return self._worker
        await self._kill()
        # -I: neither the working folder nor the environment decides what the worker imports. A session of its
        # own: Ctrl-C is for the node, and the worker ends when its stdin does.
        command = (sys.executable, "-I", str(_WORKER))
        self._worker = worker = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                await _read(worker)
        except (OSError, EOFError):
            await self._kill()
            raise RendererFailed from None
        except BaseException:
            await self._kill()
            raise
        return worker

    async def _kill(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.returncode is None:
            worker.kill()
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.close()
        await worker.stdout.read()  # to the end, so that no open pipe is left behind
        await worker.wait()

    async def close(self) -> None:
        """End the worker; again does nothing."""
        async with self._turn:
            await self._kill()


async def _exchange(worker: Process, raw: bytes) -> dict[str, Any]:
    assert worker.stdin is not None
    worker.stdin.write(len(raw).to_bytes(4, "big") + raw)
    await worker.stdin.drain()
    return await _read(worker)


async def _read(worker: Process) -> dict[str, Any]:
    assert worker.stdout is not None
    length = int.from_bytes(await worker.stdout.readexactly(4), "big")
    if length > _MAX_ANSWER:
        raise EOFError(f"an answer of {length} bytes")
    answer = json.loads(await worker.stdout.readexactly(length))
    if not isinstance(answer, dict):
        raise EOFError("an answer of another kind")
    return answer


def _text_of(answer: dict[str, Any]) -> str:
    match answer:
        case {"text": str(text)}:
            return text
        case {"refused": reason}:
            raise TemplateRefused(str(reason))
        case {"too_long": int(limit)}:
            raise TextTooLong(limit + 1, limit)
        case _:
            raise TemplateBroken(str(answer.get("broken", "its answer makes no sense")))
