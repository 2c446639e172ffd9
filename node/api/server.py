"""The one HTTP server of a node: its doors, who may pass through which, and errors that keep their shape.

`/mesh/v1` is open to all: records carry their own signatures. `/v1` is open on loopback, to local programs but not to
web pages (a page's request carries an Origin, or a Host that is not this machine), nor to whom a trusted proxy brings
from elsewhere; on other addresses it asks for the API key.
`/node/v1`, the owner's commands, always asks for the token that lies in the home folder.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from attrs import field, frozen

from ledger.database import LedgerError
from node.api.callers import Proxies, caller_of
from node.api.errors import ApiError, internal_error, no_ledger
from node.api.mesh import MeshDoor, refusal_response
from node.api.openai import OpenAiDoor
from node.api.owner import OwnerDoor
from node.exchange.book import NO_LEDGER
from node.exchange.rates import Rates
from node.ports import Clock
from node.wire.messages import MAX_ENVELOPE, Refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY: Final = max(8 * 2**20, MAX_ENVELOPE)
# Each remote address (of IPv6, each network of 64 bits) may make so many mesh requests a second, after a first burst.
MESH_RATE: Final = 200.0
MESH_BURST: Final = 400.0
_REMEMBERED: Final = 10_000

_log = logging.getLogger(__name__)


@frozen
class Keys:
    """What opens the owner's doors. `api` None leaves `/v1` open, which only loopback may do."""

    token: str = field(repr=False)
    api: str | None = field(repr=False, default=None)


def _names_this_machine(url: str) -> bool:
    """Whether a URL's host is this machine's own; one that cannot be read is not."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether an address stands for all of this machine's addresses."""
    try:
        return ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


class Encoded(Exception):
    """A body with a Content-Encoding, which nothing here decodes."""


def build_app(
    openai: OpenAiDoor,
    mesh: MeshDoor,
    owner: OwnerDoor,
    keys: Keys,
    clock: Clock,
    proxies: Proxies,
    catch_up: Callable[[], Awaitable[None]] | None = None,
) -> web.Application:
    """Put the doors together; of `proxies` it is believed for whom they ask.

    `catch_up` has the books be as of now, before peers and the owner's commands see them.
    """
    rates = Rates(clock.now, MESH_RATE, MESH_BURST, _REMEMBERED)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/mesh/"):
            if not rates.admits(caller_of(request).share):
                raise Refused("too_many_requests", "too many requests from your address: slow down", 1)
        else:
            _check_owner(request, keys)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Encoded
        # Answers of this node's own do not wait for its ledger.
        if catch_up is not None and not request.path.startswith("/v1/"):
            await catch_up()
        return await handler(request)

    app = web.Application(middlewares=[errors, proxies.middleware, guard], client_max_size=MAX_BODY)
    app.add_routes(openai.routes() + mesh.routes() + owner.routes())
    return app


def _check_owner(request: web.Request, keys: Keys) -> None:
    # Headers are bytes; those that are not UTF-8 come as surrogates.
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    offered = (credentials if scheme.lower() == "bearer" else "").encode("utf-8", "surrogateescape")
    has_token = hmac.compare_digest(offered, keys.token.encode())
    if request.path.startswith("/node/"):
        if not has_token:
            raise ApiError(401, "this needs the token in the node's home folder", code="no_token")
        return
    if keys.api is not None:
        if not has_token and not hmac.compare_digest(offered, keys.api.encode()):
            raise ApiError(401, "this needs the API key: `idlemesh key api` shows it", code="invalid_api_key")
        return
    caller = caller_of(request)
    if caller.is_hidden or (caller.is_forwarded and not is_loopback(caller.address)):
        why = "this is for programs on the node's own machine: others reach it with an API key, on another [node] host"
        raise ApiError(403, why, code="foreign_host")
    origin = request.headers.get("Origin")
    if origin is not None and not _names_this_machine(origin):
        raise ApiError(403, "web pages of other sites may not use this node", code="foreign_origin")
    if not _names_this_machine(f"//{request.host}"):
        raise ApiError(403, "the Host header must name this machine: use 127.0.0.1 or localhost", code="foreign_host")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refusal:
        return refusal_response(refusal)
    except ApiError as error:
        return error.response()
    except web.HTTPRequestEntityTooLarge:
        return ApiError(413, f"the body is larger than {MAX_BODY} bytes", code="too_large").response()
    except Encoded:
        return _malformed(request, "a body with a Content-Encoding is not read here: send it as it is")
    except web.RequestPayloadError:
        return _malformed(request, "the body is not encoded as its headers say")
    except web.HTTPNotFound:
        return ApiError(404, f"there is nothing at {request.path[:128]}", code="not_found").response()
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        said = f"{request.path[:128]} takes {allowed}"
        return ApiError(405, said, code="method_not_allowed", headers={"Allow": allowed}).response()
    except web.HTTPException:
        raise
    except LedgerError as error:
        _log.warning("a request to %s failed: %s", request.path[:128], error)
        if request.path.startswith("/mesh/"):
            return refusal_response(Refused("not_selling", NO_LEDGER))
        return no_ledger(error).response()
    except Exception:  # noqa: BLE001 - whatever it was, this request alone fails
        # The traceback names no bodies; what the client hears names nothing at all.
        _log.exception("a request to %s failed", request.path[:128])
        if request.path.startswith("/mesh/"):
            return refusal_response(Refused("failed", "the node failed at this request"))
        return internal_error().response()


def _malformed(request: web.Request, why: str) -> web.Response:
    if request.path.startswith("/mesh/"):
        return refusal_response(Refused("malformed", why))
    return ApiError(400, why, code="invalid_encoding").response()
