"""`idlemesh ledger`, and the other commands on a ledger that is not in the home folder."""

import json
from pathlib import Path

import pytest

from tests.node.cli.conftest import Idlemesh


@pytest.fixture
def home(tmp_path: Path, bare_postgres_url: str) -> Path:
    """A home whose ledger is to be in a database without tables."""
    (tmp_path / "config.toml").write_text(f"[ledger]\nurl = {json.dumps(bare_postgres_url)}\n")
    return tmp_path


def test_a_file_is_made_and_then_up_to_date(idlemesh: Idlemesh, tmp_path: Path) -> None:
    upgrade = ["ledger", "upgrade", "--home", tmp_path]
    assert "now of version" in idlemesh(*upgrade).out
    assert "up to date" in idlemesh(*upgrade).out
    done = idlemesh(*upgrade, "--json").json()
    assert (done["before"], done["backup"]) == (done["after"], None)


def test_without_tables_commands_say_how_to_make_them(idlemesh: Idlemesh, home: Path) -> None:
    for command in (["accounts"], ["up", "--port", 0]):
        said = idlemesh(*command, "--home", home)
        assert said.status == 1
        assert "idlemesh ledger upgrade" in said.err
        assert "Traceback" not in said.err


def test_after_an_upgrade_the_accounts_are_found_in_the_database(idlemesh: Idlemesh, home: Path) -> None:
    assert idlemesh("ledger", "upgrade", "--home", home, "--json").json()["before"] is None
    assert idlemesh("accounts", "--home", home, "--json").json()["chain"] == "intact"
    assert not (home / "ledger.db").exists()


def test_other_settings_can_be_named(idlemesh: Idlemesh, home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    done = idlemesh("ledger", "upgrade", "--home", other, "--config", home / "config.toml")
    assert done.status == 0
    assert not (other / "ledger.db").exists()


def test_a_server_that_is_not_there_is_told_without_the_password(idlemesh: Idlemesh, tmp_path: Path) -> None:
    url = "postgresql+asyncpg://me:geheim@127.0.0.1:1/ledger"
    (tmp_path / "config.toml").write_text(f"[ledger]\nurl = {json.dumps(url)}\n")
    said = idlemesh("ledger", "upgrade", "--home", tmp_path)
    assert said.status == 1
    assert "Check that the server of ledger.url runs" in said.err
    assert "geheim" not in said.err
