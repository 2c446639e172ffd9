"""A node with two models: both answer under their names, `auto` takes what is loaded, and the owner sees which are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from node.config import Config
from node.models.llama import quantize
from tests.node.api.running import MODEL, RunningNode, request, running_node
from tests.node.trading import DEMO

QUESTION: Any = [{"role": "user", "content": "What is a receipt?"}]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with the demo model and a smaller copy of it, and memory for one of them."""
    folder = tmp_path_factory.mktemp("two")
    quantize(DEMO, folder / "small.gguf", "Q4_K_M", threads=1)
    config = Config.model_validate(
        {
            "node": {"port": 0, "threads": 1, "context": 512, "memory": "85MiB"},
            "models": [{"path": DEMO}, {"path": folder / "small.gguf", "price": "1usd:2usd"}],
            "idle": {"enabled": False},
        }
    )
    with running_node(folder / "home", config) as node:
        yield node


@pytest.fixture
def client(two: RunningNode) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=two.base_url, api_key="local", max_retries=0, timeout=60) as client:
        yield client


def asked(client: openai.OpenAI, model: str) -> tuple[str, str | None]:
    """Who answered, and what."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=8)
    return answer.model, answer.choices[0].message.content


def status(node: RunningNode) -> Any:
    reply = request(node, "GET", "/node/v1/status", headers={"Authorization": f"Bearer {node.token}"})
    assert reply.status == 200
    return reply.json()


def states(node: RunningNode) -> dict[str, str]:
    return {one["model"]: one["state"] for one in status(node)["models"]}


def test_both_are_listed_whether_loaded_or_not(two: RunningNode, client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {MODEL, "small"}


def test_each_answers_under_its_name_and_auto_takes_the_one_that_is_loaded(
    two: RunningNode, client: openai.OpenAI
) -> None:
    for name, other in (("small", MODEL), (MODEL, "small")):
        who, text = asked(client, name)
        assert who == name
        assert text
        assert states(two) == {name: "loaded", other: "on disk"}
        assert asked(client, "auto")[0] == name
        assert asked(client, "idlemesh-demo:q8_0")[0] == MODEL
        asked(client, name)


def test_the_owner_sees_memory_and_price(two: RunningNode) -> None:
    body = status(two)
    assert 0 < body["memory"]["taken"] <= body["memory"]["allowed"] == 85 * 2**20
    assert [(one["model"], one["price"], one["for_sale"]) for one in body["models"]] == [
        (MODEL, None, False),
        ("small", "1.000000usd:2.000000usd", True),
    ]


def test_only_the_model_with_a_price_is_offered_also_while_it_is_not_loaded(
    two: RunningNode, client: openai.OpenAI
) -> None:
    asked(client, MODEL)
    reply = request(two, "GET", "/node/v1/offers", headers={"Authorization": f"Bearer {two.token}"})
    assert [(offer["model"], offer["own"]) for offer in reply.json()["offers"]] == [("small", True)]


def test_another_model_stands_in_for_one_whose_file_was_written_to_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    quantize(DEMO, path, "Q4_K_M", threads=1)
    config = Config.model_validate(
        {"node": {"port": 0, "threads": 1, "context": 512}, "models": [{"path": DEMO}, {"path": path}]}
    )
    with running_node(tmp_path / "home", config) as node:
        path.touch()
        assert [model["for_sale"] for model in status(node)["models"]] == [False, False]
        reply = request(node, "POST", "/v1/chat/completions", {"model": "small", "messages": QUESTION, "max_tokens": 4})
        assert reply.status == 200
        assert reply.json()["model"] == MODEL
        assert "start the node again" in reply.headers["X-IdleMesh-Degraded"]


def test_a_model_whose_file_is_written_to_answers_its_owner_and_is_said_to_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "only.gguf"
    quantize(DEMO, path, "Q4_K_M", threads=1)
    config = Config.model_validate({"node": {"port": 0, "threads": 1, "context": 512}, "models": [{"path": path}]})
    with running_node(tmp_path / "home", config) as node:
        path.touch()
        reply = request(node, "POST", "/v1/chat/completions", {"model": "only", "messages": QUESTION, "max_tokens": 4})
        assert reply.status == 200
        (model,) = status(node)["models"]
        assert (model["state"], model["trouble"]) == ("loaded", "its file was changed; start the node again")
