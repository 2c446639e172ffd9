"""The functions that a model may call: their definitions as requests give them, and the calls in what it answers.

Definitions go to the model's chat template. A call is text of the model's, in the form that most open models are
trained on, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; what is no call of a function that was given
stays text.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from attrs import frozen
from pydantic import Field

from node.api.errors import ApiError
from node.api.fitting import fits
from node.api.requests import Body

MAX_TOOLS: Final = 128
MAX_DEPTH: Final = 32
MAX_DEFINITION: Final = 65_536  # bytes of JSON
BEGIN, END = "<tool_call>", "</tool_call>"
# End tags that are looked at as part of one string in a call's arguments; each costs a reading of the whole.
_QUOTED_ENDS: Final = 64

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Body):
    """What may be called."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function, as a request gives it."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """The tool as chat templates expect it: with a schema of its parameters, also where it has none."""
        said = self.function
        parameters: dict[str, Any] = {"type": "object", "properties": {}} | (said.parameters or {})
        described = {} if said.description is None else {"description": said.description}
        return {"type": "function", "function": {"name": said.name, **described, "parameters": parameters}}


class NamedFunction(Body):
    """The name of a function that must be called."""

    name: FunctionName


class NamedTool(Body):
    """A choice of one function."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises ApiError for definitions that are too large, too deep or named alike."""
    names = [tool.function.name for tool in tools]
    for index, tool in enumerate(tools):
        param = f"tools.{index}.function"
        if depth_of(tool.function.parameters) > MAX_DEPTH:
            raise _bad(f"{param}.parameters", f"nests deeper than {MAX_DEPTH}")
        if len(tool.model_dump_json()) > MAX_DEFINITION:
            raise _bad(param, f"is larger than {MAX_DEFINITION} bytes")
        if tool.function.name in names[:index]:
            raise _bad(f"{param}.name", "names a function that another tool names as well")


def _bad(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param} {why}", param=param, code="invalid_value")


def depth_of(value: Any) -> int:
    """How deep objects and lists lie in each other; 0 for anything else."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


@frozen
class Call:
    """A call that a model made; `arguments` is a JSON object as text."""

    name: str
    arguments: str


class CallReader:
    """Fed an answer's text, gives text that is no call, and calls: of the functions that were given, with arguments
    that fit where these are strict.
    """

    def __init__(self, functions: Sequence[Function]) -> None:
        self._functions = {one.name: one for one in functions}
        self._held = ""
        self._inside = False
        self._searched = 0  # how far the end of a call was looked for in vain
        self._quoted = 0  # end tags in a string of the arguments
        self._after_call = False  # nothing but blanks came since

    def feed(self, text: str) -> list[str | Call]:
        """What this text completes."""
        self._held += text
        found: list[str | Call] = []
        while (one := self._next()) is not None:
            found.append(one)
        return [one for one in found if one != ""]

    def finish(self) -> list[str | Call]:
        """What was held back until now; a call may lack its end tag there."""
        held, self._held = self._held, ""
        if self._inside:
            inner = held[len(BEGIN) : len(held) - _overlap(held, END)]
            if (call := self._call(inner)) is not None:
                return [call]
        return [held] if held and not self._is_gap(held) else []

    def _next(self) -> str | Call | None:
        """The next text or call, None if more is needed to tell."""
        if self._inside:
            return self._inner()
        start = self._held.find(BEGIN)
        if start >= 0:
            text, self._held = self._held[:start], self._held[start:]
            self._inside, self._searched = True, len(BEGIN)
            return "" if self._is_gap(text) else self._passed(text)
        split = len(self._held) - _overlap(self._held, BEGIN)
        text = self._held[:split]
        if not text or self._is_gap(text):
            return None
        self._held = self._held[split:]
        return self._passed(text)

    def _inner(self) -> str | Call | None:
        end = self._held.find(END, self._searched)
        if end < 0:
            self._searched = max(self._searched, len(self._held) - len(END) + 1)
            return None
        inner, after = self._held[len(BEGIN) : end], end + len(END)
        call = self._call(inner)
        if call is None and self._quoted < _QUOTED_ENDS and _ends_in_string(inner):
            self._quoted, self._searched = self._quoted + 1, after
            return ""
        self._quoted = 0
        again = self._held.rfind(BEGIN, len(BEGIN), end) if call is None else -1
        if again > 0:  # what the model began anew
            text, self._held, self._searched = self._held[:again], self._held[again:], len(BEGIN)
            return self._passed(text)
        text, self._held, self._inside = self._held[:after], self._held[after:], False
        return self._passed(text) if call is None else call

    def _passed(self, text: str) -> str:
        self._after_call = self._after_call and not text
        return text

    def _is_gap(self, text: str) -> bool:
        """Whether it is the blank between one call and the next."""
        return self._after_call and not text.strip()

    def _call(self, inner: str) -> Call | None:
        try:
            said = json.loads(inner)
            match said:
                case {"name": str(name), "arguments": dict(arguments)} if self._takes(name, arguments):
                    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
                    self._after_call = True
                    return Call(name, text)
        except (ValueError, RecursionError):
            pass
        return None

    def _takes(self, name: str, arguments: dict[str, Any]) -> bool:
        function = self._functions.get(name)
        return function is not None and (not function.strict or fits(arguments, function.parameters or {}))


def _ends_in_string(text: str) -> bool:
    """Whether this begins a JSON object, and breaks off within a string."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return text.lstrip().startswith("{") and error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        pass
    return False


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins a tag."""
    lengths = range(min(len(text), len(tag) - 1), 0, -1)
    return next((length for length in lengths if tag.startswith(text[-length:])), 0)
