"""A whole node as the OpenAI-compatible server of others: it answers their owner, and is sold on."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from attrs import frozen

from node.config import DEMO_MODEL
from node.demo.processes import NodeProcess
from tests.integration.network import STORY, client_of, idlemesh, sellers_are_known, starting, until, way_to

TOKENS = 24
SERVER = "idlemesh 0.1"
PUBLIC = {"X-IdleMesh-Privacy": "public"}


@frozen
class Nodes:
    """A plain server; a seller that has its answers computed there; an owner who may ask both."""

    server: NodeProcess
    seller: NodeProcess
    owner: NodeProcess


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("remote")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(starting(folder / "server", {}))
        sold = remote(
            server,
            tokenizer=str(DEMO_MODEL),
            prompts="ids",
            jurisdiction="CH",
            retention="none",
            sell=True,
            server=SERVER,
        )
        own = {"path": str(DEMO_MODEL), "sell": False}
        selling = {"sell": {"price": "1usd:2usd", "open_credit": "0.1usd"}, "models": [own], "remotes": [sold]}
        seller = stack.enter_context(starting(folder / "seller", selling))
        known = remote(server, tokenizer=str(DEMO_MODEL), prompts="ids", server=SERVER) | {"name": "known"}
        asking = {"audit": {"rate": 1, "first": 8}, "remotes": [remote(server), known]}
        owner = stack.enter_context(starting(folder / "owner", asking, [way_to(seller)]))
        yield Nodes(server, seller, owner)


def remote(node: NodeProcess, **more: Any) -> dict[str, Any]:
    return {"name": "server", "url": f"{node.running.url}/v1", "model": "auto"} | more


async def told(node: NodeProcess, model: str, **headers: str) -> tuple[str, str]:
    """What a node answers at temperature 0, and by which route."""
    async with client_of(node) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=model, messages=STORY, temperature=0, max_tokens=TOKENS, extra_headers=headers
        )
        answer = raw.parse()
        return answer.choices[0].message.content or "", raw.headers["x-idlemesh-route"]


async def test_a_node_asks_a_remote_by_its_name_and_says_so(nodes: Nodes) -> None:
    text, route = await told(nodes.owner, "server", **PUBLIC)

    assert route == "remote server"
    assert text == (await told(nodes.server, "auto"))[0]


async def test_the_status_shows_the_remotes(nodes: Nodes) -> None:
    shown = json.loads((await idlemesh("status", "--home", nodes.owner.home.folder, "--json")).out)["remotes"]

    assert [(one["remote"], one["privacy"], one["trouble"]) for one in shown] == [
        ("remote server", "public", None),
        ("remote known", "public", None),
    ]
    assert "remote known" in (await idlemesh("status", "--home", nodes.owner.home.folder)).out


async def test_a_prompt_that_is_not_public_stays_here(nodes: Nodes) -> None:
    assert (await told(nodes.owner, "server"))[1] == "local"
    with pytest.raises(openai.InternalServerError, match="may see prompts up to public"):
        await told(nodes.owner, "server", **{"X-IdleMesh-Degrade": "never"})


async def test_a_sold_remote_s_offer_says_whose_law_and_memory_it_is_under(nodes: Nodes) -> None:
    await sellers_are_known(nodes.owner)

    (offer,) = json.loads((await idlemesh("offers", "--home", nodes.owner.home.folder, "--json")).out)["offers"]

    assert (offer["backend"], offer["jurisdiction"], offer["retention"]) == ("remote", "CH", "none")
    assert offer["build"] == SERVER, "whoever calibrates must know what to name it"


async def test_what_a_seller_has_computed_elsewhere_is_delivered_and_audits_abstain(nodes: Nodes) -> None:
    await sellers_are_known(nodes.owner)

    text, route = await told(nodes.owner, "auto", **PUBLIC, **{"X-IdleMesh-Route": "peers"})

    assert route == nodes.seller.running.did
    assert text == (await told(nodes.server, "auto"))[0]

    async def audited() -> bool:
        listed = await idlemesh("receipts", "--home", nodes.owner.home.folder, "--json")
        return any(row["verdicts"] for row in json.loads(listed.out)["receipts"])

    await until(audited)
    (row,) = json.loads((await idlemesh("receipts", "--home", nodes.owner.home.folder, "--json")).out)["receipts"]
    assert row["accepted"]
    assert row["verdicts"][-1]["tokens"] == 0
    assert "abstains" in row["verdicts"][-1]["reason"]


async def test_once_the_server_is_calibrated_its_greedy_answers_are_audited(nodes: Nodes) -> None:
    home = nodes.owner.home.folder
    calibrated = await idlemesh(
        "calibrate", DEMO_MODEL, "--home", home, "--remote", "known", "--tokens", 6_000, "--json"
    )
    assert calibrated.status == 0, calibrated.err
    assert [(pair["seller"], pair["complete"]) for pair in json.loads(calibrated.out)["pairs"]] == [(SERVER, True)] * 2

    await told(nodes.owner, "auto", **PUBLIC, **{"X-IdleMesh-Route": "peers"})

    async def audited() -> bool:
        return any(verdict["tokens"] for verdict in await verdicts(home))

    await until(audited)
    (verdict,) = [one for one in await verdicts(home) if one["tokens"]]
    assert verdict["outcome"] == "honest"


async def verdicts(home: Path) -> list[dict[str, Any]]:
    """All that the node's audits came to."""
    rows = json.loads((await idlemesh("receipts", "--home", home, "--json")).out)["receipts"]
    return [verdict for row in rows for verdict in row["verdicts"]]
