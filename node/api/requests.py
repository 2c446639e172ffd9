"""What the requests of `/v1` have in common: fields checked one by one, headers, and errors that name the field.

Follows OpenAI's reference. Fields that this node cannot honour are refused by name unless they ask for nothing; a field
ignored in silence would be a lie. Only those that say who asks (`user` and what takes its place) are taken and have no
effect here, as they have none on OpenAI's answers.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from attrs import frozen
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ledger.records import Privacy, Sampling
from node.api.errors import ApiError
from node.market.candidates import Route
from node.wire.messages import MAX_STOP_CHARS, MAX_STOPS
from verify.steering import MAX_BIASED, BadSteering, Steering

MILLION: Final = 1_000_000
MAX_CHOICES: Final = 16
_MAX_ID_DIGITS: Final = 9
_MOST_ERRORS: Final = 1_000
# Fields of OpenAI's that are none of ours.
_ELSEWHERE: Final = (
    "audio", "function_call", "functions", "modalities", "prediction", "prompt_cache_retention",
    "reasoning_effort", "service_tier", "verbosity", "web_search_options",
)  # fmt: skip

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Body(BaseModel):
    """An object of a request: nothing else in it than what is declared, and no type taken for another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(Body):
    """What else comes in a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Asked(Body):
    """The fields of a request for text, whether as a conversation or as a prompt."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**24)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASED)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**24)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    # Who asks, to OpenAI: nothing is done with it here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        # Clients that write down all that they know leave out nothing: null asks for nothing.
        if isinstance(body, dict) and any(body.get(name, "") is None for name in _ELSEWHERE):
            return {name: value for name, value in body.items() if value is not None or name not in _ELSEWHERE}
        return body

    @field_validator("stop")
    @classmethod
    def _bounded_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if not all(0 < len(s) <= MAX_STOP_CHARS for s in stops):
            raise ValueError(f"at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_CHARS} characters")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        ids = list(bias or ())
        if not all(token.isascii() and token.isdigit() and len(token) <= _MAX_ID_DIGITS for token in ids):
            raise ValueError("each key is a token id, written as a number")
        if len({int(token) for token in ids}) < len(ids):
            raise ValueError("each token id may stand there once")
        return bias

    @property
    def choices(self) -> int:
        """How many answers to each prompt."""
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        """Whether the last event of a stream tells the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

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

    def steering(self, grammar: str = "", param: str | None = None) -> Steering:
        """Penalties and bias, with a grammar that `param` asked for. Raises ApiError."""
        bias = {int(token): _millionths(value) for token, value in (self.logit_bias or {}).items()}
        try:
            return Steering(
                frequency=_millionths(self.frequency_penalty or 0.0),
                presence=_millionths(self.presence_penalty or 0.0),
                bias=tuple(sorted(bias.items())),
                grammar=grammar,
            )
        except BadSteering as error:
            raise ApiError(400, str(error), param=param, code="invalid_value") from None

    def seed_bits(self) -> int | None:
        """The seed as 64 unsigned bits."""
        return None if self.seed is None else self.seed % 2**64


def _millionths(value: float) -> int:
    return math.floor(value * MILLION + 0.5)


Kind = TypeVar("Kind", bound=BaseModel)


def parse(kind: type[Kind], raw: bytes) -> Kind:
    """Read a request's body. Raises ApiError that names the field."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _named(error) from None


def _named(error: ValidationError) -> ApiError:
    if error.error_count() > _MOST_ERRORS:  # to tell of each takes long
        return ApiError(400, f"more than {_MOST_ERRORS} fields of the body are wrong", code="invalid_value")
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Where a field may have several forms there is an error for each. What is too long had the right form; else the
    # deepest is about the form that was meant.
    first = max(errors, key=lambda one: (one["type"] == "too_long", len(_path(one["loc"]))))
    path = ".".join(_path(first["loc"])) or "the body"
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"the field {path!r} is not supported here: leave it out", param=path, code="unsupported")
    return ApiError(400, f"{path}: {first['msg']}", param=path if first["loc"] else None, code="invalid_value")


def _path(place: tuple[int | str, ...]) -> list[str]:
    """The fields' names without those of the forms that a field may have ("str", "list[str]", "NamedTool")."""
    if place[:1] == ("response_format",):
        place = place[:1] + place[2:]  # its forms go by their types, and one is called as a field of its own
    forms = ("str", "constrained-str", "NamedTool")
    return [str(part) for part in place if not (part in forms or str(part).startswith(("list[", "literal[")))]


@frozen
class Wishes:
    """What the owner's program says beside the body: how far the prompt may go, which way, and whether a lesser model
    may answer.
    """

    privacy: Privacy
    route: Route
    may_degrade: bool


def wishes_of(headers: Mapping[str, str], metadata: Mapping[str, str] | None, default: Wishes) -> Wishes:
    """The wishes in a request's headers and metadata, else the owner's. Raises ApiError."""
    return Wishes(
        privacy_of(headers.get("X-IdleMesh-Privacy"), metadata, default.privacy),
        _route_of(headers.get("X-IdleMesh-Route"), default.route),
        _may_degrade(headers.get("X-IdleMesh-Degrade"), default.may_degrade),
    )


def privacy_of(header: str | None, metadata: Mapping[str, str] | None, default: Privacy) -> Privacy:
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


def _route_of(said: str | None, default: Route) -> Route:
    if said is None:
        return default
    for route in get_args(Route):
        if said == route:
            return route  # type: ignore[no-any-return]
    raise ApiError(400, "X-IdleMesh-Route: one of auto, local, peers, remotes", param="X-IdleMesh-Route")


def _may_degrade(said: str | None, default: bool) -> bool:
    if said not in (None, "never", "allow"):
        raise ApiError(400, "X-IdleMesh-Degrade: never or allow", param="X-IdleMesh-Degrade")
    return default if said is None else said == "allow"
