"""Who asks: of trusted proxies alone it is believed for whom they do."""

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from node.api.callers import Caller, Proxies, caller_of
from node.api.connections import Bounds, serving
from node.api.server import MESH_BURST
from tests.node.api.running import RunningNode, request, running_node, settings

PROXY = "127.0.0.1/32"


@contextlib.asynccontextmanager
async def telling(*trusted: str, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """A server that tells who asks it; gives its URL."""

    async def tell(asked: web.Request) -> web.Response:
        caller = caller_of(asked)
        return web.json_response([caller.address, caller.share, caller.is_forwarded])

    app = web.Application(middlewares=[Proxies([ip_network(each) for each in trusted]).middleware])
    app.add_routes([web.get("/", tell)])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as listener:
        async with serving(app, listener, Bounds()):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


async def told(url: str, *said: str) -> list[object]:
    """Address, share and whether it was forwarded, as the server has it."""
    headers = [("X-Forwarded-For", each) for each in said]
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        found: list[object] = await response.json()
        return found


@pytest.mark.parametrize(
    ("said", "address", "share"),
    [
        (["203.0.113.5"], "203.0.113.5", "203.0.113.5"),
        (["198.51.100.1, 203.0.113.5"], "203.0.113.5", "203.0.113.5"),
        (["198.51.100.1", "203.0.113.5"], "203.0.113.5", "203.0.113.5"),
        (["198.51.100.1, 203.0.113.5, 10.1.2.3"], "203.0.113.5", "203.0.113.5"),
        (["127.0.0.1, 203.0.113.5"], "203.0.113.5", "203.0.113.5"),
        (["203.0.113.5:4711"], "203.0.113.5", "203.0.113.5"),
        (["::ffff:203.0.113.5"], "203.0.113.5", "203.0.113.5"),
        (["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (["[2001:db8:1:2::9]:443"], "2001:db8:1:2::9", "2001:db8:1:2::/64"),
        (["10.1.2.3"], "10.1.2.3", "10.1.2.3"),
        ([", ".join(["203.0.113.5"] + ["10.0.0.1"] * 99)], "10.0.0.1", "10.0.0.1"),
    ],
    ids=str,
)
async def test_a_trusted_proxy_says_who_asks_and_is_read_from_the_right(
    said: list[str], address: str, share: str
) -> None:
    async with telling(PROXY, "10.0.0.0/8") as url:
        assert await told(url, *said) == [address, share, True]


@pytest.mark.parametrize("said", [[], [""], ["unknown"], ["203.0.113.5, _hidden"], ["999.0.0.1"], ["203.0.113.5,"]])
async def test_where_a_proxy_names_nobody_it_asks_itself(said: list[str]) -> None:
    async with telling(PROXY) as url:
        assert await told(url, *said) == ["127.0.0.1", "127.0.0.1", False]


async def test_nobody_is_believed_by_default() -> None:
    async with telling() as url:
        assert await told(url, "203.0.113.5") == ["127.0.0.1", "127.0.0.1", False]
    async with telling("192.0.2.0/24") as url:
        assert await told(url, "192.0.2.1") == ["127.0.0.1", "127.0.0.1", False]


async def test_an_address_of_ipv4_is_one_also_where_ipv6_is_spoken() -> None:
    async with telling(PROXY, host="::") as url:
        assert await told(url) == ["127.0.0.1", "127.0.0.1", False]
        assert await told(url, "203.0.113.5") == ["203.0.113.5", "203.0.113.5", True]


def test_what_is_no_address_counts_for_itself() -> None:
    assert Caller("").share == ""
    assert Caller("fe80::1%eth0").share == "fe80::/64"


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path, settings(node={"trusted_proxies": ["127.0.0.1"]})) as node:
        yield node


def test_behind_a_proxy_each_address_has_a_rate_of_its_own(proxied: RunningNode) -> None:
    def status(address: str) -> int:
        return request(proxied, "GET", "/mesh/v1/offers", headers={"X-Forwarded-For": address}).status

    assert any(status(f"2001:db8::{number:x}") == 429 for number in range(20 * int(MESH_BURST)))
    assert status("2001:db8:0:1::1") == 503  # it sells nothing, and says so


def test_whoever_a_proxy_brings_is_not_on_this_machine(proxied: RunningNode) -> None:
    brought = request(proxied, "GET", "/v1/models", headers={"X-Forwarded-For": "203.0.113.5"})
    assert (brought.status, brought.json()["error"]["code"]) == (403, "foreign_host")
    assert request(proxied, "GET", "/v1/models").status == 200
    assert request(proxied, "GET", "/v1/models", headers={"X-Forwarded-For": "127.0.0.1"}).status == 200


@pytest.mark.parametrize("sign", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"])
def test_what_a_proxy_brings_that_nobody_named_is_not_from_this_machine(sign: str, node: RunningNode) -> None:
    assert request(node, "GET", "/v1/models").status == 200
    refused = request(node, "GET", "/v1/models", headers={sign: "127.0.0.1"})
    assert (refused.status, refused.json()["error"]["code"]) == (403, "foreign_host")
