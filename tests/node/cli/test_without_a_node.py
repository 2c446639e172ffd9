"""Commands where no node runs: they work, or say how to start one."""

import json
import re
import stat
from pathlib import Path

import pytest

from ledger.identity import parse_did
from tests.node.cli.conftest import Idlemesh, Nodes


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "Who is there?"],
        ["peers"],
        ["offers"],
        ["receipts"],
        ["receipts", "abcdef"],
        ["audit", "abcdef"],
        ["export", "abcdef"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["words", "JSON"])
def test_a_command_that_needs_a_node_says_how_to_start_one(
    arguments: list[str], options: list[str], idlemesh: Idlemesh, tmp_path: Path
) -> None:
    said = idlemesh(*arguments, *options, "--home", tmp_path)
    assert said.status == 1
    assert f"idlemesh up --home {tmp_path}" in said.err
    assert said.out == ""


def test_the_version_is_told(idlemesh: Idlemesh) -> None:
    assert re.fullmatch(r"idlemesh \d+\.\d+\.\d+\n", idlemesh("--version").out)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_a_question_that_is_none_is_not_asked(question: str, idlemesh: Idlemesh, tmp_path: Path) -> None:
    said = idlemesh("ask", question, "--home", tmp_path)
    assert said.status == 1
    assert 'idlemesh ask "What is a receipt?"' in said.err


def test_accounts_without_a_ledger_says_how_to_begin(idlemesh: Idlemesh, tmp_path: Path) -> None:
    said = idlemesh("accounts", "--home", tmp_path)
    assert said.status == 1
    assert "idlemesh up" in said.err


def test_the_id_is_made_once_and_for_the_owners_eyes_only(idlemesh: Idlemesh, tmp_path: Path) -> None:
    home = tmp_path / "new"
    did = idlemesh("id", "--home", home).out.strip()
    assert parse_did(did) == did
    assert idlemesh("id", "--home", home, "--json").json() == {"did": did}
    assert stat.S_IMODE((home / "identity.key").stat().st_mode) == 0o600


def test_an_identity_that_cannot_be_read_is_not_replaced(idlemesh: Idlemesh, tmp_path: Path) -> None:
    key = tmp_path / "identity.key"
    key.write_text("not a key")
    said = idlemesh("id", "--home", tmp_path)
    assert said.status == 1
    assert "restore it from a backup" in said.err
    assert key.read_text() == "not a key"


def test_the_api_key_is_made_once_and_for_the_owners_eyes_only(idlemesh: Idlemesh, tmp_path: Path) -> None:
    made = idlemesh("key", "api", "--home", tmp_path).out.strip()
    assert len(made) > 32
    assert idlemesh("key", "api", "--home", tmp_path, "--json").json() == {"api_key": made}
    assert stat.S_IMODE((tmp_path / "api.key").stat().st_mode) == 0o600


def test_the_home_may_come_from_the_environment(
    idlemesh: Idlemesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did = idlemesh("id", "--home", tmp_path).out
    monkeypatch.setenv("IDLEMESH_HOME", str(tmp_path))
    assert idlemesh("id").out == did


def test_a_home_that_cannot_be_made_is_named(idlemesh: Idlemesh, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = idlemesh("id", "--home", tmp_path / "file" / "home")
    assert said.status == 1
    assert "choose another --home" in said.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sell", "0.05:0.15"], "has no unit"),
        (["--sell", "5usd"], "IN:OUT"),
        (["--sell", "1usd:1sat"], "mixes units"),
        (["--sell", "1usd:2usd", "--open-credit", "5sat"], "use one unit"),
        (["--open-credit", "much"], "has no unit"),
        (["--peer", "nobody"], "DID@URL"),
        (["--peer", "nobody@http://127.0.0.1:1"], "did:key:z6Mk"),
        (["--peer", "did:key:z6Mkiphone@192.0.2.7"], "http://192.168.1.20:8080"),
        (["--peer", "did:key:z6Mkiphone@http://192.0.2.7:8080/v1"], "nothing after it"),
        (["--open-credit", "1usd"], "nothing is sold"),
        (["--model", "/nonexistent/model.gguf", "--port", "0"], "cannot be read"),
        (["--port", "70000"], "port"),
        (["--config", "/nonexistent/config.toml"], "cannot be read"),
        (["--host", "no.such.host.invalid", "--port", "0"], "listen"),
        (["--host", "0.0.0.0", "--port", "0"], "idlemesh key api"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_node_that_cannot_be_started_so_says_what_to_write(
    arguments: list[str], complaint: str, idlemesh: Idlemesh, tmp_path: Path
) -> None:
    said = idlemesh("up", "--home", tmp_path, *arguments)
    assert said.status == 1
    assert complaint in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[node]\nprot = 1", "node.prot"),
        ("[nodes]\nport = 1", "nodes"),
        ("[node]\nport = ", "not TOML"),
        ("[buy]\nmin_reputation = 2", "buy.min_reputation"),
        ('[buy]\nmax_order_cost = "5"', "buy.max_order_cost"),
        ('[api]\nprivacy = "secret"', "api.privacy"),
        ('[[peers]]\ndid = "x"\nurl = "http://127.0.0.1"', "peers[1].did"),
        ('[catalogue]\nname = "short"', "catalogue.name"),
    ],
)
def test_settings_that_cannot_be_used_are_named(text: str, complaint: str, idlemesh: Idlemesh, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    said = idlemesh("up", "--home", tmp_path)
    assert said.status == 1
    assert str(tmp_path / "config.toml") in said.err
    assert complaint in said.err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "idlemesh export"),
        (b"[]", "idlemesh export"),
        (json.dumps({"format": "idlemesh-receipt-1"}).encode(), "lacks its offer"),
        (
            json.dumps({"format": "idlemesh-receipt-1", "offer": 5, "order": "", "receipt": ""}).encode(),
            "base64",
        ),
    ],
    ids=["empty", "not UTF-8", "deep", "object", "list", "no records", "a number"],
)
def test_a_file_that_is_no_receipt_is_refused(
    content: bytes, complaint: str, idlemesh: Idlemesh, tmp_path: Path
) -> None:
    file = tmp_path / "receipt.json"
    file.write_bytes(content)
    said = idlemesh("verify", file)
    assert said.status == 1
    assert complaint in said.err


def test_a_file_that_is_not_there_is_named(idlemesh: Idlemesh, tmp_path: Path) -> None:
    said = idlemesh("verify", tmp_path / "nowhere.json")
    assert said.status == 1
    assert "nowhere.json cannot be read" in said.err


def test_a_second_node_in_one_home_is_refused(idlemesh: Idlemesh, nodes: Nodes) -> None:
    said = idlemesh("up", "--home", nodes.owner.home.folder, "--port", 0)
    assert said.status == 1
    assert "is in use, by a node or another command: stop it" in said.err
    assert idlemesh("id", "--home", nodes.owner.home.folder).out.strip() == nodes.owner.running.did
