"""The messages of a conversation as requests give them, and as chat templates expect them."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from node.api.errors import ApiError
from node.api.requests import Body
from node.api.tools import MAX_DEPTH, FunctionName, depth_of


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """What an earlier answer called; `arguments` is a JSON object as text, and what a client has made of it is not
    looked at.
    """

    name: FunctionName
    arguments: str
    parsed_arguments: Any = None


class ToolCall(Body):
    """A call in an earlier answer."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None


class Message(Body):
    """One turn of the conversation.

    The fields that must be null are there so that an answer can be sent back; so is what clients have `parsed` of it.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None

    @property
    def text(self) -> str:
        """The content, its parts as one."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or ())


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The turns as chat templates expect them: text content, `system` for its newer name, a call's arguments as an
    object, and a tool's answer with the name of the tool. Raises ApiError.
    """
    called: dict[str, str] = {}
    turns = []
    for index, message in enumerate(messages):
        turns.append(_turn(message, f"messages.{index}", called))
        called |= {call.id: call.function.name for call in message.tool_calls or ()}
    return turns


def _turn(message: Message, param: str, called: dict[str, str]) -> dict[str, Any]:
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise _bad(f"{param}.content", "is missing")
    if message.tool_calls is not None and message.role != "assistant":
        raise _bad(f"{param}.tool_calls", "belongs to the role assistant")
    if (message.tool_call_id is None) == (message.role == "tool"):
        raise _bad(f"{param}.tool_call_id", "belongs to the role tool, which needs it")
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": message.text}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls is not None:
        turn["tool_calls"] = _calls(message.tool_calls, f"{param}.tool_calls")
    if message.tool_call_id is not None:
        if message.tool_call_id not in called:
            raise _bad(f"{param}.tool_call_id", "answers no call of an earlier message")
        turn |= {"tool_call_id": message.tool_call_id, "name": called[message.tool_call_id]}
    return turn


def _calls(calls: Sequence[ToolCall], param: str) -> list[dict[str, Any]]:
    if not calls:
        raise _bad(param, "is empty: leave it out")
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.function.name,
                "arguments": _arguments(call.function.arguments, f"{param}.{index}.function.arguments"),
            },
        }
        for index, call in enumerate(calls)
    ]


def _arguments(text: str, param: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise _bad(param, "is not JSON") from None
    if not isinstance(arguments, dict):
        raise _bad(param, "is not a JSON object")
    if depth_of(arguments) > MAX_DEPTH:
        raise _bad(param, f"nests deeper than {MAX_DEPTH}")
    return arguments


def _bad(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param} {why}", param=param, code="invalid_value")
