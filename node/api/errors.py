"""Errors in OpenAI's shape: one object that says what kind, which field, and what to do."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web


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

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        """The HTTP answer."""
        return web.json_response(self.body(), status=self.status, headers=self.headers)


def internal_error() -> ApiError:
    """What a client is told of a fault of ours: nothing that could hold a secret."""
    return ApiError(500, "the node failed at this request; its log says more", kind="server_error", code="internal")
