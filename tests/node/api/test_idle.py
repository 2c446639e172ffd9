"""A whole node outside its owner's hours: it offers nothing, takes no order, answers its owner, and says why."""

import time
from collections.abc import Iterator

import cbor2
import pytest

from tests.node.api.running import RunningNode, request, running_node, settings

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    another_day = DAYS[(time.localtime().tm_wday + 3) % 7]
    idle = {"enabled": True, "schedule": another_day, "max_cpu": 1.0, "max_gpu": 1.0, "on_battery": True}
    config = settings(sell={"price": "1usd:2usd"}, idle=idle)
    with running_node(tmp_path_factory.mktemp("idle"), config) as running:
        yield running


def owners(node: RunningNode) -> dict[str, str]:
    return {"Authorization": f"Bearer {node.token}"}


def test_it_offers_nothing(node: RunningNode) -> None:
    reply = request(node, "GET", "/mesh/v1/offers")

    said = cbor2.loads(reply.body)
    assert (reply.status, said["code"], reply.headers["Retry-After"]) == (503, "not_selling", str(said["retry_after"]))


def test_its_owner_is_told_why(node: RunningNode) -> None:
    selling = request(node, "GET", "/node/v1/status", headers=owners(node)).json()["selling"]

    assert selling["state"] == "paused"
    assert selling["words"] == "paused: it is outside the owner's hours, resumes by itself"
    assert request(node, "GET", "/node/v1/offers", headers=owners(node)).json()["selling"] == selling


def test_its_owner_is_answered_all_the_same(node: RunningNode) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "What is a receipt?"}], "max_tokens": 2}

    assert request(node, "POST", "/v1/chat/completions", body).status == 200
