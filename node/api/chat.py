"""`/v1/chat/completions`: the request's own fields, and the shape of its answers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from node.api.answers import Asking, Json, Shape, Spelled, spelled, spelled_top
from node.api.errors import ApiError
from node.api.messages import Message, conversation
from node.api.requests import Asked, Body, Wishes, wishes_of
from node.api.tools import (
    END,
    MAX_TOOLS,
    Call,
    CallReader,
    Function,
    FunctionName,
    NamedTool,
    Tool,
    ToolChoice,
    check_tools,
)
from node.engine.port import Logprob
from node.gateway.answer import Answer, Ending, Part
from node.gateway.question import Question
from node.models.gbnf import BadGrammar, lark_of
from node.models.schema import JSON_OBJECT, BadSchema, Effort, schema_grammar, tool_call_grammar
from node.ports import Entropy
from node.wire.messages import MAX_STOPS
from verify.sampler import derived_seed

MAX_MESSAGES: Final = 4_096
_SHAPE: Final = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", "messages")


class TextFormat(Body):
    """Text as the model likes."""

    type: Literal["text"]


class JsonFormat(Body):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema; `strict` or not, the answer is held to it."""

    name: FunctionName
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class ChatRequest(Asked):
    """The body of a request."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**24)] | None = None
    metadata: dict[str, str] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # Known to OpenAI's clients, and accepted only where it asks for nothing.
    store: Literal[False] | None = None

    @property
    def has_schemas(self) -> bool:
        """Whether there is a schema to read."""
        return self.tools is not None or self.response_format is not None

    def told_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told for each; None tells nothing. Raises ApiError."""
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs is not None:
            raise _bad("top_logprobs", "needs logprobs to be true")
        return None


def ask(asked: ChatRequest, headers: Mapping[str, str], default: Wishes, entropy: Entropy) -> Asking:
    """The questions of a request. Raises ApiError that names the field."""
    wishes = wishes_of(headers, asked.metadata, default)
    tools = _tools(asked)
    grammar, param = _grammar(asked)
    steering = asked.steering(grammar, param)
    seed = asked.seed_bits()
    seed = int.from_bytes(entropy.bytes(8), "little") if seed is None else seed
    turns, stops, logprobs = conversation(asked.messages), _stops(asked, tools), asked.told_logprobs()
    questions = [
        Question(
            messages=turns,
            model=asked.model,
            sampling=asked.sampling(),
            max_tokens=asked.max_completion_tokens or asked.max_tokens,
            privacy=wishes.privacy,
            route=wishes.route,
            stop=stops,
            seed=derived_seed(seed, choice),
            # Token ids mean something else to another model.
            may_degrade=wishes.may_degrade and not steering.bias,
            streaming=bool(asked.stream),
            steering=steering,
            tools=[tool.plain() for tool in tools] or None,
            logprobs=logprobs,
        )
        for choice in range(asked.choices)
    ]
    functions = [tool.function for tool in tools]
    choices = [ChatChoice(index, functions, logprobs is not None, entropy) for index in range(asked.choices)]
    return Asking(_SHAPE, questions, choices, asked.choices, bool(asked.stream), asked.with_usage)


def _tools(asked: ChatRequest) -> Sequence[Tool]:
    """The tools that the model is told of. Raises ApiError."""
    tools, choice = asked.tools or [], asked.tool_choice
    if not tools:
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(asked, name) not in (None, "none"):
                raise _bad(name, "needs tools")
        return []
    check_tools(tools)
    if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in tools}:
        raise _bad("tool_choice.function.name", "names none of the tools")
    if choice == "none":
        return []
    effort = Effort()
    for index, tool in enumerate(tools):
        if tool.function.strict:
            schema = tool.function.parameters or {}
            _made(f"tools.{index}.function.parameters", partial(schema_grammar, schema, effort=effort))
    return tools


def _stops(asked: ChatRequest, tools: Sequence[Tool]) -> tuple[str, ...]:
    """The stop strings; where only one call is wanted, its end is one."""
    stops = asked.stops()
    if not tools or asked.parallel_tool_calls is not False:
        return stops
    if len(stops) == MAX_STOPS:
        raise _bad("stop", f"may hold {MAX_STOPS - 1} strings where parallel_tool_calls is false")
    return (*stops, END)


def _grammar(asked: ChatRequest) -> tuple[str, str | None]:
    """The grammar that the answer is held to, "" for none, and the field that asks for it. Raises ApiError."""

    tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
    wanted = asked.response_format
    if tools and asked.tool_choice != "none":
        if wanted is not None and wanted.type != "text":
            raise _bad("response_format", "cannot be kept where the model may call tools: ask with tool_choice none")
        match asked.tool_choice:
            case NamedTool(function=function):
                return _made("tools", lambda: tool_call_grammar(tools, function.name)), "tools"
            case "required":
                return _made("tools", lambda: tool_call_grammar(tools, None)), "tools"
            case _:
                return "", None
    match wanted:
        case JsonFormat():
            return JSON_OBJECT, "response_format"
        case SchemaFormat(json_schema=said):
            param = "response_format.json_schema.schema"
            return _made(param, lambda: schema_grammar(said.json_schema or {}, strict=said.strict is True)), param
        case _:
            return "", None


def _bad(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param} {why}", param=param, code="invalid_value")


def _made(param: str, make: Callable[[], str]) -> str:
    """A grammar that engines take, too."""
    try:
        lark_of(text := make())
        return text
    except (BadSchema, BadGrammar) as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_schema") from None


class ChatChoice:
    """A message in the making: text, and calls of these functions."""

    def __init__(self, index: int, functions: Sequence[Function], with_logprobs: bool, entropy: Entropy) -> None:
        self._index, self._with_logprobs, self._entropy = index, with_logprobs, entropy
        self._reader = CallReader(functions) if functions else None
        self._text: list[str] = []
        self._calls: list[Json] = []
        self._logprobs: list[Json] = []
        self._untold = 0  # the first of the logprobs that no event has told yet

    def opening(self) -> list[Json]:
        """See `Choice.opening`."""
        return [self._event({"role": "assistant", "content": ""})]

    def feed(self, answer: Answer, part: Part) -> list[Json]:
        """See `Choice.feed`."""
        self._logprobs += [_logprob(answer, one) for one in part.logprobs]
        return self._told([part.text] if self._reader is None else self._reader.feed(part.text))

    def closing(self, ending: Ending) -> list[Json]:
        """See `Choice.closing`."""
        rest = [] if self._reader is None else self._told(self._reader.finish())
        return [*rest, self._event({}, self._finish(ending))]

    def whole(self, ending: Ending) -> Json:
        """See `Choice.whole`."""
        text = "".join(self._text)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message |= {"content": text if text.strip() else None, "tool_calls": self._calls}
        told = {"content": self._logprobs, "refusal": None} if self._with_logprobs else None
        return {"index": self._index, "message": message, "logprobs": told, "finish_reason": self._finish(ending)}

    def _finish(self, ending: Ending) -> str:
        return "tool_calls" if self._calls and ending.finish == "stop" else ending.finish

    def _told(self, found: Sequence[str | Call]) -> list[Json]:
        events = []
        for one in found:
            if isinstance(one, Call):
                events += [self._event({"tool_calls": [call]}) for call in self._add(one)]
            elif one:
                self._text.append(one)
                events.append(self._event({"content": one}))
        return events

    def _add(self, call: Call) -> list[Json]:
        """Keep a call, and tell it as a stream does: first its name, then its arguments."""
        index, identifier = len(self._calls), "call_" + self._entropy.bytes(12).hex()
        whole = {"id": identifier, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        self._calls.append(whole)
        named = {"index": index, **whole, "function": {"name": call.name, "arguments": ""}}
        return [named, {"index": index, "function": {"arguments": call.arguments}}]

    def _event(self, delta: Json, finish: str | None = None) -> Json:
        told = self._logprobs[self._untold :] if "role" not in delta else []
        self._untold += len(told)
        logprobs = {"content": told, "refusal": None} if told else None
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _logprob(answer: Answer, one: Logprob) -> Json:
    top = [_token(each) for each in spelled_top(answer, one)]
    return _token(spelled(answer, one.token, one.logprob)) | {"top_logprobs": top}


def _token(token: Spelled) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}
