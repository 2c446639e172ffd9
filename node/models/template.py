"""Chat templates, rendered where they can do no harm: in a worker process with limits, killed when it
overstays.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from node.models.worker import NotStarted, Worker, WorkerFailed

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


class NotShown(TemplateError):
    """The template has no place for a part of the conversation, so the model would never see it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the model's chat template does not show {what}: leave that out, or ask another model")
        self.what = what


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
        # -I: neither the working folder nor the environment decides what the worker imports.
        self._worker = Worker((sys.executable, "-I", str(_WORKER)), _START_TIMEOUT, _MAX_ANSWER)

    async def start(self) -> None:
        """Start the worker now, so that the first conversation does not wait for it. Raises RendererFailed."""
        try:
            await self._worker.start()
        except NotStarted:
            raise RendererFailed from None

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
        try:
            return _text_of(await self._worker.ask(raw, self._timeout))
        except TimeoutError:
            raise TemplateTooSlow(self._timeout) from None
        except NotStarted:
            raise RendererFailed from None
        except WorkerFailed as error:
            raise TemplateBroken(str(error)) from None

    async def close(self) -> None:
        """End the worker; again does nothing."""
        await self._worker.close()


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
