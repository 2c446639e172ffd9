"""What a client wants, the owner's rules for it, and the ways in which it cannot be had."""

from collections.abc import Sequence
from typing import Any

from attrs import field, frozen

from ledger.records import Privacy, Sampling
from node.engine.port import BadPrompt, EngineError
from node.gateway.sources import Paper
from node.market.candidates import Limits, Route, Weights
from node.models.tokenizer import Tokenizer
from node.models.vocab import UnknownToken
from verify.steering import Steering


@frozen
class Question:
    """What a client wants; `seed` None draws one, `model` is a name, `family:tier` or `auto`.

    Either `messages`, put into the form of a model's chat template, or `prompt`, taken as it is.
    """

    messages: Sequence[dict[str, Any]] = field(repr=False)
    model: str
    sampling: Sampling
    max_tokens: int | None  # None takes the owner's default, or what the context has left
    privacy: Privacy
    route: Route
    stop: tuple[str, ...] = ()
    seed: int | None = None
    may_degrade: bool = True
    streaming: bool = True
    steering: Steering = field(factory=Steering, repr=False)
    tools: Sequence[dict[str, Any]] | None = field(default=None, repr=False)
    logprobs: int | None = None  # how many of the likeliest tokens to tell for each; peers cannot, this machine can
    prompt: str | tuple[int, ...] | None = field(default=None, repr=False)  # text, or the ids of one vocabulary

    @property
    def names_ids(self) -> bool:
        """Whether it holds token ids, which mean something in the vocabulary of one model alone."""
        return isinstance(self.prompt, tuple) or bool(self.steering.bias)


async def ids_of(question: Question, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The prompt that a model with this tokenizer is given. Raises TemplateError, BadPrompt, BadBias, BadModelFile."""
    try:
        tokenizer.check([token for token, _ in question.steering.bias])
    except UnknownToken as error:
        raise BadBias(str(error)) from None
    match question.prompt:
        case None:
            return await tokenizer.encode(question.messages, question.tools)
        case str(text):
            return await tokenizer.plain(text)
        case ids:
            return checked_ids(ids, tokenizer)


def checked_ids(ids: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that a client gave, all in the vocabulary. Raises BadPrompt."""
    try:
        tokenizer.check(ids)
    except UnknownToken as error:
        raise BadPrompt(str(error)) from None
    return ids


@frozen
class Policy:
    """The owner's rules for where requests go."""

    limits: Limits = field(factory=Limits)
    weights: Weights = field(factory=Weights)
    busy_wait_s: float = 2.0
    max_tokens: int = 512  # for requests that do not say


class UnknownModel(Exception):
    """Nobody has a model of this name, and the client wants no other."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no model is called {name!r}: /v1/models lists what can be had, and 'auto' takes the best")
        self.name = name


class Unservable(Exception):
    """Nobody may or can answer now; `reasons` says why, candidate by candidate.

    `lost` are the papers of answers that broke off before anybody saw them.
    """

    def __init__(self, summary: str, reasons: Sequence[str], lost: Sequence[Paper] = ()) -> None:
        super().__init__("; ".join([summary, *reasons]))
        self.reasons, self.lost = tuple(reasons), tuple(lost)


class BadBias(EngineError):
    """A bias for a token id that the model does not have."""


class TooManyTokens(Exception):
    """The inputs of one request have more tokens together than one request may have."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the inputs have more than {most} tokens together: send them in several requests")
        self.most = most


class ContextExceeded(Exception):
    """Prompt and answer do not fit the context of the model that would answer."""

    def __init__(self, needed: int, context: int) -> None:
        super().__init__(f"this request needs {needed} tokens, and the model's context has {context}")
        self.needed, self.context = needed, context
