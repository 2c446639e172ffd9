"""`/v1/completions`: prompts without a conversation, taken as they are, and the shape of their answers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from node.api.answers import Asking, Json, Shape, spelled, spelled_top
from node.api.errors import ApiError
from node.api.requests import Asked, Wishes, wishes_of
from node.engine.port import Logprob
from node.gateway.answer import Answer, Ending, Part
from node.gateway.question import Question
from node.ports import Entropy
from node.wire.messages import MAX_PROMPT
from verify.sampler import derived_seed

MAX_PROMPTS: Final = 64
# As OpenAI's reference has it, where a request does not say.
DEFAULT_TOKENS: Final = 16
_SHAPE: Final = Shape("cmpl-", "text_completion", "text_completion", "prompt")

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT, fail_fast=True)]
Prompts = (
    str
    | Ids
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
)


class CompletionRequest(Asked):
    """The body of a request."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    # Known to OpenAI's clients, and accepted only where they ask for nothing.
    echo: Literal[False] | None = None
    suffix: None = None


def prompts_of(given: Prompts) -> list[str | tuple[int, ...]]:
    """Each prompt as text or ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [tuple(given)]
    return [one if isinstance(one, str) else tuple(one) for one in given]


def ask(asked: CompletionRequest, headers: Mapping[str, str], default: Wishes, entropy: Entropy) -> Asking:
    """The questions of a request. Raises ApiError that names the field."""
    wishes, steering = wishes_of(headers, None, default), asked.steering()
    prompts = prompts_of(asked.prompt)
    _check(asked, prompts)
    seed = asked.seed_bits()
    seed = int.from_bytes(entropy.bytes(8), "little") if seed is None else seed
    questions = [
        Question(
            messages=(),
            prompt=prompt,
            model=asked.model,
            sampling=asked.sampling(),
            max_tokens=asked.max_tokens or DEFAULT_TOKENS,
            privacy=wishes.privacy,
            route=wishes.route,
            stop=asked.stops(),
            seed=derived_seed(seed, choice),
            # Token ids mean something else to another model.
            may_degrade=wishes.may_degrade and not steering.bias and isinstance(prompt, str),
            streaming=bool(asked.stream),
            steering=steering,
            logprobs=asked.logprobs,
        )
        for prompt in prompts
        for choice in range(asked.choices)
    ]
    choices = [TextChoice(index, asked.logprobs is not None) for index in range(len(questions))]
    return Asking(_SHAPE, questions, choices, asked.choices, bool(asked.stream), asked.with_usage)


def _check(asked: CompletionRequest, prompts: Sequence[str | tuple[int, ...]]) -> None:
    if any(not prompt for prompt in prompts):
        raise _bad("prompt", "is empty: give a text or at least one token id")
    if len(prompts) * asked.choices > MAX_PROMPTS:
        raise _bad("n", f"times the number of prompts may be at most {MAX_PROMPTS}")
    if asked.best_of not in (None, asked.choices):
        raise _bad("best_of", "is supported only where it equals n: all answers are returned")


def _bad(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param} {why}", param=param, code="invalid_value")


class TextChoice:
    """A text in the making."""

    def __init__(self, index: int, with_logprobs: bool) -> None:
        self._index, self._with_logprobs = index, with_logprobs
        self._text: list[str] = []
        self._length = 0
        self._logprobs = _no_logprobs()
        self._untold = _no_logprobs()

    def opening(self) -> list[Json]:
        """See `Choice.opening`."""
        return []

    def feed(self, answer: Answer, part: Part) -> list[Json]:
        """See `Choice.feed`."""
        for one in part.logprobs:
            self._add(answer, one)
        self._text.append(part.text)
        return [self._event(part.text)] if part.text else []

    def closing(self, ending: Ending) -> list[Json]:
        """See `Choice.closing`."""
        return [self._event("", ending.finish)]

    def whole(self, ending: Ending) -> Json:
        """See `Choice.whole`."""
        logprobs = self._logprobs if self._with_logprobs else None
        return {
            "text": "".join(self._text),
            "index": self._index,
            "logprobs": logprobs,
            "finish_reason": ending.finish,
        }

    def _add(self, answer: Answer, one: Logprob) -> None:
        token = spelled(answer, one.token, one.logprob)
        top = {each.text: each.logprob for each in spelled_top(answer, one)}
        for kept in (self._logprobs, self._untold):
            kept["tokens"].append(token.text)
            kept["token_logprobs"].append(token.logprob)
            kept["top_logprobs"].append(top)
            kept["text_offset"].append(self._length)
        self._length += len(token.text)

    def _event(self, text: str, finish: str | None = None) -> Json:
        told, self._untold = self._untold, _no_logprobs()
        logprobs = told if told["tokens"] else None
        return {"text": text, "index": self._index, "logprobs": logprobs, "finish_reason": finish}


def _no_logprobs() -> Json:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
