"""Errors in OpenAI's shape: one object that says what kind, which field, and what to do."""

import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ledger.database import LedgerError
from node.engine.port import BadPrompt, EngineBusy, EngineClosed, EngineError, EngineFailed, PromptTooLong
from node.engine.stock import DoesNotFit, LoadFailed, ModelChanged
from node.gateway.question import BadBias, ContextExceeded, TooManyTokens, UnknownModel, Unservable
from node.gateway.sources import AnswerCut
from node.models.template import NotShown, TemplateError

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """An answer that says no. `param` names the request's field, if it is about one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})
        self.facts: dict[str, str] = {}  # what is known of it besides: the fields of an answer's `idlemesh`

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error} | ({"idlemesh": self.facts} if self.facts else {})

    def response(self) -> web.Response:
        """The HTTP answer."""
        headers = {f"x-idlemesh-{name}": value for name, value in self.facts.items()}
        return web.json_response(self.body(), status=self.status, headers=self.headers | headers)


def internal_error() -> ApiError:
    """What a client is told of a fault of ours: nothing that could hold a secret."""
    return ApiError(500, "the node failed at this request; its log says more", kind="server_error", code="internal")


def no_ledger(error: LedgerError) -> ApiError:
    """What the owner is told while the ledger cannot be read or written."""
    return ApiError(503, str(error), kind="server_error", code="ledger_unavailable")


def busy(message: str, retry_after: float) -> ApiError:
    """Too much at once; `retry_after` in seconds."""
    headers = {"Retry-After": str(max(1, round(retry_after)))}
    return ApiError(429, message, kind="rate_limit_error", code="busy", headers=headers)


# What can stop an answer, as a client is told of it.
Failure = UnknownModel | Unservable | ContextExceeded | TooManyTokens | TemplateError | EngineError | AnswerCut
FAILURES = (UnknownModel, Unservable, ContextExceeded, TooManyTokens, TemplateError, EngineError, AnswerCut)


def told(failure: Failure, param: str) -> ApiError:
    """A failure in OpenAI's shape; `param` is the field that holds the prompt."""
    match failure:
        case UnknownModel():
            return ApiError(404, str(failure), param="model", code="model_not_found")
        case Unservable():
            return ApiError(503, str(failure), kind="unservable_error", code="nobody_can_answer")
        case ContextExceeded() | PromptTooLong():
            return ApiError(400, str(failure), param=param, code="context_length_exceeded")
        case TooManyTokens():
            return ApiError(400, str(failure), param=param, code="max_tokens_per_request")
        case BadBias():
            return ApiError(400, str(failure), param="logit_bias", code="invalid_value")
        case NotShown():
            at = failure.what if failure.what == "tools" else param
            return ApiError(400, str(failure), param=at, code="unsupported_by_template")
        case TemplateError() | BadPrompt():
            return ApiError(400, str(failure), param=param, code=f"invalid_{param}")
        case EngineBusy():
            return busy(str(failure), failure.retry_after)
        case AnswerCut():
            return ApiError(502, str(failure), kind="server_error", code="answer_cut")
        case EngineClosed():
            return ApiError(503, "this node is being stopped", kind="server_error", code="stopping")
        case DoesNotFit() | LoadFailed() | ModelChanged():
            return ApiError(503, str(failure), kind="server_error", code="model_unavailable")
        case EngineFailed():
            _log.error("a request failed: %s", failure)
            return ApiError(500, str(failure), kind="server_error", code="engine_failed")
        case _:
            _log.error("a request failed: %s", failure)
            return internal_error()
