"""The request of `/v1/chat/completions`, checked field by field, and the bodies of its answers.

Follows OpenAI's reference for chat completions. Fields that this node cannot honour are refused by name unless they
ask for nothing (`n: 1`, a penalty of 0); a field ignored in silence would be a lie.
"""

import json
import math
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ledger.records import Privacy, Sampling
from node.api.errors import ApiError
from node.gateway.answer import Answer, Ending
from node.wire.messages import MAX_STOP_CHARS, MAX_STOPS

MILLION: Final = 1_000_000
MAX_MESSAGES: Final = 4_096


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of the conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    def plain(self) -> dict[str, Any]:
        """The turn as chat templates expect it: text content, and `system` for its newer name."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """What else comes in a stream."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(BaseModel):
    """Only plain text for now."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["text"]


class ChatRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**24)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**24)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**24)] | None = None
    stop: str | list[str] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    # Known to OpenAI's clients, and accepted only where they ask for nothing.
    n: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None

    @field_validator("stop")
    @classmethod
    def _bounded_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS or not all(0 < len(s) <= MAX_STOP_CHARS for s in stops):
            raise ValueError(f"at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_CHARS} characters")
        return stop

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self) -> Sampling:
        """The sampling parameters in millionths; the same defaults as OpenAI's."""
        return Sampling(
            temperature=_millionths(1.0 if self.temperature is None else self.temperature),
            top_p=max(_millionths(1.0 if self.top_p is None else self.top_p), 1),
            min_p=_millionths(self.min_p or 0.0),
            top_k=self.top_k or 0,
        )

    def seed_bits(self) -> int | None:
        """The seed as 64 unsigned bits."""
        return None if self.seed is None else self.seed % 2**64

    def most_tokens(self) -> int | None:
        """The most output tokens, if the request says; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens


def _millionths(value: float) -> int:
    return math.floor(value * MILLION + 0.5)


def parse_request(raw: bytes) -> ChatRequest:
    """Read a request's body. Raises ApiError that names the field."""
    try:
        return ChatRequest.model_validate_json(raw)
    except ValidationError as error:
        raise _named(error) from None


def _named(error: ValidationError) -> ApiError:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Where a field may have several forms there is an error for each; the deepest is about the form that was meant.
    first = max(errors, key=lambda one: len(one["loc"]))
    path = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[str]", "list[TextPart]"))
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"the field {path!r} is not supported here: leave it out", param=path, code="unsupported")
    return ApiError(400, f"{path}: {first['msg']}", param=path or None, code="invalid_value")


def privacy_of(header: str | None, metadata: dict[str, str] | None, default: Privacy) -> Privacy:
    """The request's privacy level, from its header, else its metadata, else the owner's default. Raises ApiError."""
    said, param = (
        (header, "X-IdleMesh-Privacy") if header is not None else ((metadata or {}).get("privacy"), "metadata.privacy")
    )
    if said is None:
        return default
    for level in get_args(Privacy):
        if said == level:
            return level  # type: ignore[no-any-return]
    raise ApiError(400, f"{param}: one of {', '.join(get_args(Privacy))}, not {said[:32]!r}", param=param)


# Answers


def usage(answer: Answer, ending: Ending) -> dict[str, int]:
    """The token counts."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": ending.tokens,
        "total_tokens": answer.prompt_tokens + ending.tokens,
    }


def facts(answer: Answer) -> dict[str, str]:
    """What happened, as far as it is known: the `x-idlemesh-*` headers and the `idlemesh` field without the prefix."""
    known = {"route": answer.route}
    if answer.degraded:
        known["degraded"] = answer.degraded
    if answer.ending is not None and answer.ending.receipt is not None:
        known["receipt"] = answer.ending.receipt.hex()
    if answer.ending is not None and answer.ending.cost is not None:
        known["cost"] = str(answer.ending.cost)
    return known


def completion(identifier: str, created: int, answer: Answer, text: str, ending: Ending) -> dict[str, Any]:
    """The whole answer."""
    return {
        "id": identifier,
        "object": "chat.completion",
        "created": created,
        "model": answer.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": ending.finish,
            }
        ],
        "usage": usage(answer, ending),
        "idlemesh": facts(answer),
    }


def chunk(
    identifier: str, created: int, answer: Answer, delta: dict[str, str], finish: str | None = None
) -> dict[str, Any]:
    """One event of a stream."""
    return {
        "id": identifier,
        "object": "chat.completion.chunk",
        "created": created,
        "model": answer.model,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }


def text_chunks(identifier: str, created: int, answer: Answer) -> Callable[[str], str]:
    """The event for a piece of text, as JSON; the events of a stream differ in their text alone."""
    marker = "\0text\0"  # no name has a NUL
    one = json.dumps(chunk(identifier, created, answer, {"content": marker}), separators=(",", ":"))
    head, tail = one.split(json.dumps(marker))
    return lambda text: head + json.dumps(text) + tail
