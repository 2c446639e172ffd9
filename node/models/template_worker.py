"""Renders chat templates of strangers in a process of its own; run by `node.models.template`, not by people.

A template is a program: it may loop for ever, build strings of gigabytes or look for a way out. So it runs in
Jinja's immutable sandbox, in this process, which holds no secrets, has a limit of memory and time, and is
killed when it does not answer. It imports nothing of the node, so that it starts quickly and `python -I` can
run it by its path.

Frames on stdin and stdout: 4 bytes of length, big-endian, then JSON. One `{}` says that the worker is ready.
Requests: `{"template", "variables", "now"}`; answers: `{"text"}`, `{"refused"}` (the template raised on
purpose), `{"broken"}` or `{"too_long"}`.
"""

import json
import math
import sys
import time
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, Final

from jinja2 import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY: Final = 512 * 2**20  # bytes of address space; an honest template needs some tens of MiB
MAX_CPU: Final = 10  # seconds for one template; ends a worker whose node was killed before it could kill it
MAX_TEXT: Final = 2**20  # characters
MAX_FRAME: Final = 32 * 2**20  # bytes
_MAX_REASON: Final = 300  # characters


class Refused(Exception):
    """The template called `raise_exception`."""


class TooLong(Exception):
    """The text grew over MAX_TEXT."""


class GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model wrote, for training: here just its
    content.
    """

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it so)

    def parse(self, parser: Parser) -> list[Node]:
        """Keep the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def answer(request: dict[str, Any]) -> dict[str, object]:
    """Render one template; whatever it does in Python's reach comes back as an answer."""
    try:
        return {"text": _render(request)}
    except Refused as error:
        return {"refused": str(error)[:_MAX_REASON]}
    except TooLong:
        return {"too_long": MAX_TEXT}
    except MemoryError:
        return {"broken": "it needs too much memory"}
    except RecursionError:
        return {"broken": "it nests too deeply"}
    except Exception as error:  # noqa: BLE001  (a template can provoke any error; none may end the worker)
        return {"broken": f"{type(error).__name__}: {error}"[:_MAX_REASON]}


def _render(request: dict[str, Any]) -> str:
    template = _compiled(request["template"])
    now = datetime.fromisoformat(request["now"])
    pieces, length = [], 0
    for piece in template.generate(**request["variables"], strftime_now=now.strftime):
        length += len(piece)
        if length > MAX_TEXT:
            raise TooLong
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """The dialect that models are published with: that of Hugging Face's `apply_chat_template`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise Refused(str(message))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows: there the node's own time limit has to do
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = MAX_MEMORY if most == resource.RLIM_INFINITY else min(MAX_MEMORY, most)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))
    except (ValueError, OSError):  # macOS knows the limit but does not take it
        return


def limit_time(seconds: int) -> None:
    """So many more seconds of the processor's time, then this process ends."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = math.ceil(time.process_time()) + seconds
    if most == resource.RLIM_INFINITY or wanted < most:
        resource.setrlimit(resource.RLIMIT_CPU, (wanted, most))


def read_frame(stream: BinaryIO) -> Any:
    """The next frame's content; None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4 or int.from_bytes(head, "big") > MAX_FRAME:
        return None
    return json.loads(stream.read(int.from_bytes(head, "big")))


def write_frame(stream: BinaryIO, content: object) -> None:
    """Send one frame."""
    raw = json.dumps(content).encode()
    stream.write(len(raw).to_bytes(4, "big") + raw)
    stream.flush()


def main() -> None:
    """Answer requests until stdin ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _environment()
    _limit_memory()
    write_frame(answers, {})
    while (request := read_frame(requests)) is not None:
        limit_time(MAX_CPU)
        write_frame(answers, answer(request))


if __name__ == "__main__":
    main()
