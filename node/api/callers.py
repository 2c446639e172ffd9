"""Who asks: the address of a request, as far as it can be believed, and the share of addresses that it counts for.

Theory of operation. A connection's address is that of whoever opened it. A reverse proxy opens connections for others,
and says for whom in X-Forwarded-For: each proxy adds at the right whom it heard, and what stands further left was
written by anybody. So the list is read from the right, past the proxies that the owner trusts: the first that is none
of them has asked. Of any other address the header is not read at all.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from attrs import evolve, field, frozen

Network = IPv4Network | IPv6Network

_HEADER: Final = "X-Forwarded-For"
# What proxies put into requests, whatever it says.
_SIGNS: Final = (_HEADER, "X-Real-IP", "Forwarded", "Via")
# Longer chains of proxies are nobody's: what is left of them is not looked at.
_MOST_HOPS: Final = 16
# The half of an IPv6 address that says where it is: whoever has one such network has all addresses in it.
_HOST_BITS: Final = 64


@frozen
class Caller:
    """Who asks. `address` is empty where there is none; `is_forwarded`: a trusted proxy brought it; `is_hidden`:
    somebody brought it, and whom for is not known.
    """

    address: str
    is_forwarded: bool = False
    is_hidden: bool = False

    @property
    def share(self) -> str:
        """Under what its requests are counted: its address, and of IPv6 the network of 64 bits."""
        found = _parsed(self.address)
        if isinstance(found, IPv6Address):
            return str(IPv6Network((int(found) >> _HOST_BITS << _HOST_BITS, _HOST_BITS)))
        return self.address if found is None else str(found)


_CALLER: Final = web.RequestKey("caller", Caller)


@frozen
class Proxies:
    """The reverse proxies that are believed; none, unless the owner names some."""

    trusted: Sequence[Network] = field(default=())

    def __contains__(self, address: str) -> bool:
        found = _parsed(address)
        return found is not None and any(found in network for network in self.trusted)

    def caller(self, request: web.Request) -> Caller:
        """Who sent a request. What a proxy says that is no address is the proxy's own request."""
        remote = request.remote or ""
        caller = Caller(str(_parsed(remote) or remote))
        said = ",".join(request.headers.getall(_HEADER, ())).rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]
        for each in reversed(said):
            found = _parsed(each) if caller.address in self else None
            if found is None:
                break
            caller = Caller(str(found), is_forwarded=True)
        # Not to be believed is no reason to overlook it: it can only take from what a request may do.
        return (
            caller if caller.is_forwarded else evolve(caller, is_hidden=any(sign in request.headers for sign in _SIGNS))
        )

    @property
    def middleware(self) -> Middleware:
        """Notes who asks: see `caller_of`."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            request[_CALLER] = self.caller(request)
            return await handler(request)

        return note


def caller_of(request: web.Request) -> Caller:
    """Who sent a request, in an application with `Proxies.middleware`."""
    return request[_CALLER]


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address, also as proxies write it with a port; an IPv4 address in IPv6's form is one of IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found
