"""Who may pass through which door of a node."""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import openai
import pytest

from node.home import Home
from node.listening import NeedsApiKey
from tests.node.api.running import MODEL, RunningNode, request, running_node, settings

NODE_PATHS = ["id", "peers", "offers", "receipts", "receipts/abcdef", "receipts/abcdef/export", "accounts"]


def status_of(node: RunningNode, *lines: bytes) -> int:
    """The status of a request for the list of models with these header lines, byte for byte."""
    head = b"\r\n".join([b"GET /v1/models HTTP/1.1", *lines, b"Connection: close", b"", b""])
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as connection:
        connection.sendall(head)
        answer = connection.makefile("rb").readline()
    return int(answer.split()[1])


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080"])
def test_pages_of_this_machine_may_ask(node: RunningNode, origin: str) -> None:
    assert request(node, "GET", "/v1/models", headers={"Origin": origin}).status == 200


@pytest.mark.parametrize(
    "origin", ["https://example.com", "null", "", "http://127.0.0.1.example.com", "http://[", "file://"]
)
def test_pages_of_others_are_turned_away(node: RunningNode, origin: str) -> None:
    response = request(node, "POST", "/v1/chat/completions", {}, {"Origin": origin})
    assert response.status == 403
    assert response.json()["error"]["code"] == "foreign_origin"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:80"])
def test_a_host_that_is_this_machine_may_be_named(node: RunningNode, host: str) -> None:
    assert status_of(node, b"Host: " + host.encode()) == 200


@pytest.mark.parametrize(
    "host",
    [b"example.com", b"127.0.0.1.example.com", b"idlemesh", b"[", b"[::1", b"\xff\xfe"],
    ids=["name", "disguise", "word", "bracket", "half", "bytes"],
)
def test_a_host_that_is_not_this_machine_is_turned_away(node: RunningNode, host: bytes) -> None:
    assert status_of(node, b"Host: " + host) in (400, 403)


def test_a_host_must_be_named(node: RunningNode) -> None:
    assert status_of(node) in (400, 403)


@pytest.mark.parametrize("path", NODE_PATHS)
def test_the_owners_commands_need_the_token(node: RunningNode, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": node.token[:-1]}):
        response = request(node, "GET", f"/node/v1/{path}", headers=headers)
        assert response.status == 401
        assert response.json()["error"]["code"] == "no_token"


def test_a_token_of_bytes_that_are_no_text_is_wrong(node: RunningNode) -> None:
    # http.client writes headers as Latin-1: these are the bytes ff fe.
    assert request(node, "GET", "/node/v1/id", headers={"Authorization": "Bearer \xff\xfe"}).status == 401


def test_with_the_token_the_owners_commands_are_answered(node: RunningNode) -> None:
    headers = {"Authorization": f"Bearer {node.token}"}
    assert request(node, "GET", "/node/v1/id", headers=headers).json() == {"did": node.did}
    accounts = request(node, "GET", "/node/v1/accounts", headers=headers).json()
    assert (accounts["chain"], accounts["balanced"]) == ("intact", True)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many", "1.5", "²"])
def test_a_list_is_asked_for_in_bounds(node: RunningNode, limit: str) -> None:
    headers = {"Authorization": f"Bearer {node.token}"}
    response = request(node, "GET", f"/node/v1/receipts?limit={quote(limit)}", headers=headers)
    assert response.status == 400
    assert response.json()["error"]["param"] == "limit"


@pytest.mark.parametrize(("name", "status"), [("abc", 400), ("abcdef", 404), ("ab" * 32, 404), ("zzzzzz", 404)])
def test_a_receipt_that_is_not_there_is_not_found(node: RunningNode, name: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {node.token}"}
    assert request(node, "GET", f"/node/v1/receipts/{name}", headers=headers).status == status


def test_a_node_does_not_listen_to_others_without_a_key(tmp_path: Path) -> None:
    with (
        pytest.raises(NeedsApiKey, match="idlemesh key api"),
        running_node(tmp_path, settings(node={"host": "0.0.0.0"})),
    ):
        pass


@pytest.fixture(scope="module")
def open_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, str]]:
    """A node that listens to everybody, and its key."""
    folder = tmp_path_factory.mktemp("open")
    key = Home(folder).make_api_key()
    with running_node(folder, settings(node={"host": "0.0.0.0"})) as node:
        yield node, key


def test_a_node_that_listens_to_others_asks_for_its_key(open_node: tuple[RunningNode, str]) -> None:
    node, key = open_node
    url = f"http://127.0.0.1:{node.port}/v1"
    for wrong in ("wrong", key + "x", key[:-1]):
        with (
            openai.OpenAI(base_url=url, api_key=wrong, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.models.list()
        assert caught.value.code == "invalid_api_key"
    assert request(node, "GET", "/v1/models").status == 401


def test_the_key_opens_a_node_that_listens_to_others(open_node: tuple[RunningNode, str]) -> None:
    node, key = open_node
    with openai.OpenAI(base_url=f"http://127.0.0.1:{node.port}/v1", api_key=key, max_retries=0) as client:
        answer = client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Hello"}], max_tokens=2
        )
    assert answer.model == MODEL


def test_the_key_does_not_open_the_owners_commands(open_node: tuple[RunningNode, str]) -> None:
    node, key = open_node
    response = request(node, "GET", "/node/v1/id", headers={"Authorization": f"Bearer {key}"})
    assert response.status == 401


def test_the_owners_token_opens_the_api_as_well(open_node: tuple[RunningNode, str]) -> None:
    node, _ = open_node
    headers = {"Authorization": f"Bearer {node.token}"}
    assert request(node, "GET", "/v1/models", headers=headers).status == 200
