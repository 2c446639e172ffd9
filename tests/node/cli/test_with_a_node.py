"""Commands against a running node."""

import json
import re
import time
from pathlib import Path

import pytest

from ledger.money import parse_amount
from tests.node.cli.conftest import Idlemesh, Nodes, Said

MODEL = "idlemesh-demo-q8_0"
QUESTION = "What is a receipt?"


def home(nodes: Nodes) -> tuple[str, Path]:
    return "--home", nodes.owner.home.folder


def ask(idlemesh: Idlemesh, nodes: Nodes, *options: object) -> Said:
    """Ask over peers as soon as there is one."""
    peer_is_known(idlemesh, nodes)
    return idlemesh("ask", QUESTION, "--route", "peers", "--temperature", 0, *options, *home(nodes))


def peer_is_known(idlemesh: Idlemesh, nodes: Nodes) -> None:
    deadline = time.monotonic() + 30
    while len(idlemesh("offers", *home(nodes), "--json").json()["offers"]) < 2:
        assert time.monotonic() < deadline, "the seller's offer did not arrive"
        time.sleep(0.02)


def bought(idlemesh: Idlemesh, nodes: Nodes) -> str:
    """The id of a receipt that is acknowledged."""
    receipt: str = ask(idlemesh, nodes, "--json").json()["receipt"]
    deadline = time.monotonic() + 30
    while not idlemesh("receipts", receipt, *home(nodes), "--json").json()["acknowledged"]:
        assert time.monotonic() < deadline, "the receipt was not acknowledged"
        time.sleep(0.02)
    return receipt


def test_the_node_is_known_by_its_id(idlemesh: Idlemesh, nodes: Nodes) -> None:
    assert idlemesh("id", *home(nodes)).out.strip() == nodes.owner.running.did


def test_the_status_says_whether_it_sells(idlemesh: Idlemesh, nodes: Nodes) -> None:
    assert "selling, at any time" in idlemesh("status", *home(nodes)).out
    assert idlemesh("status", *home(nodes), "--json").json()["selling"]["state"] == "selling"


def test_a_question_is_answered_and_the_last_line_says_by_whom(idlemesh: Idlemesh, nodes: Nodes) -> None:
    said = idlemesh("ask", QUESTION, "--temperature", 0, *home(nodes))
    assert said.status == 0
    text, last = said.out.strip().split("\n")
    assert text.startswith("A receipt is signed by both sides")
    assert last.startswith(f"{MODEL} by this machine · ")
    assert last.endswith(" tokens · free")


def test_a_bought_answer_names_seller_tokens_cost_and_receipt(idlemesh: Idlemesh, nodes: Nodes) -> None:
    last = ask(idlemesh, nodes).out.strip().split("\n")[-1]
    who, tokens, cost, receipt = last.split(" · ")
    assert who == f"{MODEL} by {nodes.seller.running.did}"
    assert tokens.endswith(" tokens")
    assert parse_amount(cost).value > 0
    assert idlemesh("receipts", receipt.removeprefix("receipt "), *home(nodes)).status == 0


def test_ask_can_print_json(idlemesh: Idlemesh, nodes: Nodes) -> None:
    result = ask(idlemesh, nodes, "--max-tokens", 4, "--json").json()
    assert result["route"] == nodes.seller.running.did
    assert (result["model"], result["finish"]) == (MODEL, "length")
    assert result["usage"]["completion_tokens"] == 4
    assert {"text", "receipt", "cost"} <= result.keys()


def test_the_same_seed_gives_the_same_answer(idlemesh: Idlemesh, nodes: Nodes) -> None:
    said = [idlemesh("ask", "Tell me a story.", "--seed", 3, *home(nodes), "--json").json()["text"] for _ in range(2)]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--privacy", "secret"], "public, internal, confidential, restricted"),
        (["--route", "cloud"], "auto, local, peers"),
        (["--temperature", "9"], "temperature"),
        (["--max-tokens", "9999"], "context"),
    ],
)
def test_a_question_that_cannot_be_asked_so_says_why(
    options: list[str], complaint: str, idlemesh: Idlemesh, nodes: Nodes
) -> None:
    said = idlemesh("ask", QUESTION, *options, *home(nodes))
    assert said.status == 1
    assert complaint in said.err


def test_a_restricted_question_stays_here_and_says_so(idlemesh: Idlemesh, nodes: Nodes) -> None:
    last = ask(idlemesh, nodes, "--privacy", "restricted").out.strip().split("\n")[-1]
    assert "by this machine" in last
    assert "degraded: " in last


def test_the_status_tells_what_was_earned_and_paid_today(idlemesh: Idlemesh, nodes: Nodes) -> None:
    assert "Since midnight UTC it has earned nothing and promised to pay " in idlemesh("status", *home(nodes)).out
    assert idlemesh("status", *home(nodes), "--json").json()["today"]["earned"] == []


def test_the_status_shows_models_and_memory(idlemesh: Idlemesh, nodes: Nodes) -> None:
    said = idlemesh("status", *home(nodes)).out
    assert re.search(rf"{MODEL} .* loaded .* yes ", said)
    assert re.search(r"Models take \d+ MiB of [\d.]+ GiB", said)
    (model,) = idlemesh("status", *home(nodes), "--json").json()["models"]
    assert (model["model"], model["state"], model["for_sale"]) == (MODEL, "loaded", True)


def test_peers_are_listed(idlemesh: Idlemesh, nodes: Nodes) -> None:
    assert nodes.seller.running.did in idlemesh("peers", *home(nodes)).out
    (peer,) = idlemesh("peers", *home(nodes), "--json").json()["peers"]
    assert peer["did"] == nodes.seller.running.did
    assert peer["condemned"] is False


def test_a_node_without_peers_says_how_to_name_one(idlemesh: Idlemesh, nodes: Nodes) -> None:
    assert "--peer DID@URL" in idlemesh("peers", "--home", nodes.seller.home.folder).out


def test_offers_are_listed_own_and_others(idlemesh: Idlemesh, nodes: Nodes) -> None:
    peer_is_known(idlemesh, nodes)
    offers = idlemesh("offers", *home(nodes), "--json").json()["offers"]
    assert [(o["own"], o["seller"], o["output"]) for o in offers] == [
        (True, nodes.owner.running.did, "4.000000usd"),
        (False, nodes.seller.running.did, "2.000000usd"),
    ]
    table = idlemesh("offers", *home(nodes)).out
    assert "this node" in table
    assert "2.000000usd" in table


def test_receipts_are_listed_and_shown(idlemesh: Idlemesh, nodes: Nodes) -> None:
    receipt = bought(idlemesh, nodes)
    (line,) = [line for line in idlemesh("receipts", *home(nodes)).out.splitlines() if receipt[:12] in line]
    assert re.search(r" 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d ", line)
    assert nodes.seller.running.did in line
    shown = idlemesh("receipts", receipt[:8], *home(nodes)).out
    assert receipt in shown
    assert nodes.seller.running.did in shown
    row = idlemesh("receipts", receipt, *home(nodes), "--json").json()
    assert (row["id"], row["role"], row["accepted"], row["paid"]) == (receipt, "bought", True, row["cost"])
    listed = idlemesh("receipts", *home(nodes), "--json").json()["receipts"]
    assert row in listed


def test_the_seller_lists_the_same_receipt_as_sold(idlemesh: Idlemesh, nodes: Nodes) -> None:
    receipt = bought(idlemesh, nodes)
    row = idlemesh("receipts", receipt, "--home", nodes.seller.home.folder, "--json").json()
    assert (row["role"], row["buyer"]) == ("sold", nodes.owner.running.did)


@pytest.mark.parametrize("command", ["receipts", "audit", "export"])
@pytest.mark.parametrize(
    ("name", "complaint"),
    [("0" * 64, "no receipt here"), ("abc", "at least 6 digits"), ("../../x", "no receipt id"), ("", "no receipt id")],
)
def test_a_receipt_that_is_not_there_is_not_found(
    command: str, name: str, complaint: str, idlemesh: Idlemesh, nodes: Nodes
) -> None:
    said = idlemesh(command, name, *home(nodes))
    assert said.status == 1
    assert complaint in said.err


def test_accounts_add_up_and_their_chain_is_whole(idlemesh: Idlemesh, nodes: Nodes) -> None:
    bought(idlemesh, nodes)
    said = idlemesh("accounts", *home(nodes))
    assert said.status == 0
    assert "The journal is whole" in said.out
    body = idlemesh("accounts", *home(nodes), "--json").json()
    assert (body["chain"], body["balanced"]) == ("intact", True)
    (account,) = body["accounts"]
    assert (account["peer"], account["direction"]) == (nodes.seller.running.did, "we pay")
    assert parse_amount(account["earned"]).value > 0


def test_an_audit_says_whether_the_seller_was_honest(idlemesh: Idlemesh, nodes: Nodes) -> None:
    receipt = bought(idlemesh, nodes)
    assert idlemesh("audit", receipt, *home(nodes)).out.startswith("audit: ")
    body = idlemesh("audit", receipt, *home(nodes), "--json").json()
    assert body["abstained"] is False
    assert body["outcome"] != "dishonest"
    assert body["tokens"] > 0


def test_what_was_sold_is_not_audited(idlemesh: Idlemesh, nodes: Nodes) -> None:
    receipt = bought(idlemesh, nodes)
    said = idlemesh("audit", receipt, "--home", nodes.seller.home.folder)
    assert said.status == 1
    assert "only what was bought is audited" in said.err


def test_an_exported_receipt_is_verified_offline(idlemesh: Idlemesh, nodes: Nodes, tmp_path: Path) -> None:
    receipt, file = bought(idlemesh, nodes), tmp_path / "receipt.json"
    said = idlemesh("export", receipt, "--ids", "--out", file, *home(nodes))
    assert f"idlemesh verify {file}" in said.out
    checked = idlemesh("verify", file)
    assert checked.status == 0
    assert "The receipt is valid." in checked.out
    assert f"Receipt {receipt} of 20" in checked.out
    assert f"sold by   {nodes.seller.running.did}\nbought by {nodes.owner.running.did}" in checked.out
    assert "uusd" not in checked.out
    body = idlemesh("verify", file, "--json").json()
    assert body["valid"] is True
    row = idlemesh("receipts", receipt, *home(nodes), "--json").json()
    assert (body["receipt"], body["cost"], body["finished_ms"]) == (receipt, row["cost"], row["finished_ms"])
    assert f"tokens cost {row['cost']}" in checked.out
    assert all(one["passed"] for one in body["checks"])


def test_token_ids_are_exported_only_on_request(idlemesh: Idlemesh, nodes: Nodes, tmp_path: Path) -> None:
    receipt = bought(idlemesh, nodes)
    plain = idlemesh("export", receipt, *home(nodes)).json()
    assert not {"salt", "prompt", "answer"} & plain.keys()
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(plain))
    passed = {one["name"]: one["passed"] for one in idlemesh("verify", file, "--json").json()["checks"]}
    assert passed.pop("prompt commitment") is None
    assert passed.pop("answer commitment") is None
    assert set(passed.values()) == {True}


def test_the_seller_exports_the_same_receipt_without_ids(idlemesh: Idlemesh, nodes: Nodes, tmp_path: Path) -> None:
    receipt = bought(idlemesh, nodes)
    mine = idlemesh("export", receipt, *home(nodes)).json()
    theirs = idlemesh("export", receipt, "--home", nodes.seller.home.folder).json()
    assert theirs == mine
    said = idlemesh("export", receipt, "--ids", "--home", nodes.seller.home.folder)
    assert said.status == 1
    assert "token ids of this receipt are not kept" in said.err


def test_an_export_that_cannot_be_written_says_so(idlemesh: Idlemesh, nodes: Nodes, tmp_path: Path) -> None:
    said = idlemesh("export", bought(idlemesh, nodes), "--out", tmp_path / "no" / "where.json", *home(nodes))
    assert said.status == 1
    assert "cannot be written" in said.err


def test_an_export_replaces_no_file(idlemesh: Idlemesh, nodes: Nodes, tmp_path: Path) -> None:
    receipt, file = bought(idlemesh, nodes), tmp_path / "receipt.json"
    assert idlemesh("export", receipt, "--out", file, *home(nodes)).status == 0
    before = file.read_bytes()
    said = idlemesh("export", receipt, "--ids", "--out", file, *home(nodes))
    assert (said.status, file.read_bytes()) == (1, before)
    assert f"{file} is there already: name another file" in said.err


def test_a_payment_by_other_means_counts_once_the_payee_confirms_it(idlemesh: Idlemesh, nodes: Nodes) -> None:
    bought(idlemesh, nodes)
    us, peer = nodes.owner.running.did, nodes.seller.running.did
    there = "--home", nodes.seller.home.folder
    assert "once the owner there confirms" in idlemesh("settle", peer, "0.000001usd", *home(nodes)).out
    waiting = idlemesh("settlements", *there, "--json").json()["waiting"]
    assert waiting == [{"peer": us, "amount": "0.000001usd"}]
    assert us in idlemesh("settlements", *there).out
    assert "counts as paid" in idlemesh("confirm", us, "0.000001usd", *there).out
    assert idlemesh("settle", peer, "0.000001usd", *home(nodes), "--json").json()["confirmed"]
    for where in (home(nodes), there):
        rows = idlemesh("accounts", *where, "--json").json()["accounts"]
        assert "0.000001usd" in {row["settled"] for row in rows}
    assert "No peer has asked" in idlemesh("settlements", *there).out


def test_a_settlement_that_was_not_asked_for_cannot_be_confirmed(idlemesh: Idlemesh, nodes: Nodes) -> None:
    said = idlemesh("confirm", nodes.seller.running.did, "5usd", *home(nodes))
    assert said.status == 1
    assert "has not asked to settle" in said.err


def test_a_settlement_names_a_peer_and_an_amount(idlemesh: Idlemesh, nodes: Nodes) -> None:
    assert "idlemesh accounts --json" in idlemesh("settle", "nobody", "5usd", *home(nodes)).err
    assert "has no unit" in idlemesh("settle", nodes.seller.running.did, "5", *home(nodes)).err


def test_nodes_that_do_not_owe_each_other_have_nothing_to_set_off(idlemesh: Idlemesh, nodes: Nodes) -> None:
    said = idlemesh("net", nodes.seller.running.did, *home(nodes))
    assert said.status == 1
    assert "do not owe each other" in said.err
