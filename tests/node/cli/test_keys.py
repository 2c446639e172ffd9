"""`idlemesh key backup | restore`: one encrypted file brings a node back, and never two of it into one home."""

import asyncio
import io
import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from ledger.database import Database
from ledger.events import Observed
from node.home import Home
from node.ports import SystemEntropy
from tests.node.cli.conftest import Idlemesh, Nodes, Said

ENTRIES = 3


async def write(home: Home, count: int) -> None:
    me = home.identity(SystemEntropy()).did
    async with await Database.open(home.ledger, me) as database:
        for _ in range(count):
            await database.append([Observed(me, "noted")], time_ms=1)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an identity, a ledger and a passphrase beside it."""
    home = Home(tmp_path_factory.mktemp("lived"))
    asyncio.run(write(home, ENTRIES))
    (home.folder / "phrase").write_text("correct horse\nanother line\n")
    return home.folder


@pytest.fixture(scope="module")
def made(lived: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its backup, made once: a key takes its time."""
    file = tmp_path_factory.mktemp("made") / "node.backup"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", _arguments("backup", file, lived, lived))
        from node.cli import main

        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0
    return file


def _arguments(what: str, file: Path, home: Path, lived: Path) -> list[str]:
    return ["idlemesh", "key", what, *map(str, (file, "--home", home, "--passphrase-file", lived / "phrase"))]


def run(idlemesh: Idlemesh, what: str, file: Path, home: Path, lived: Path, *more: object) -> Said:
    return idlemesh(*_arguments(what, file, home, lived)[1:], *more)


def verified(idlemesh: Idlemesh, home: Path) -> object:
    """What is verified of a journal, without the snapshot, which stays where it was made."""
    body = idlemesh("ledger", "verify", "--home", home, "--json").json()
    return {name: body[name] for name in body if name != "snapshot"}


def names(home: Path) -> set[str]:
    return {path.name for path in home.iterdir() if path.suffix != ".lock"} - {"models"}


def test_a_restored_node_is_the_same_with_its_whole_ledger(
    idlemesh: Idlemesh, lived: Path, made: Path, tmp_path: Path
) -> None:
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    said = run(idlemesh, "restore", made, tmp_path / "new", lived, "--json").json()
    assert (said["did"], said["entries"]) == (idlemesh("id", "--home", lived).out.strip(), ENTRIES)
    assert verified(idlemesh, tmp_path / "new") == verified(idlemesh, lived)
    key = tmp_path / "new" / "identity.key"
    assert key.read_text() == (lived / "identity.key").read_text()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_an_identity_is_never_overwritten(idlemesh: Idlemesh, lived: Path, made: Path, tmp_path: Path) -> None:
    idlemesh("id", "--home", tmp_path)
    before = (tmp_path / "identity.key").read_text()
    said = run(idlemesh, "restore", made, tmp_path, lived)
    assert said.status == 1
    assert "has an identity already" in said.err
    assert (tmp_path / "identity.key").read_text() == before
    assert names(tmp_path) == {"identity.key"}


def test_a_backup_is_never_written_over(idlemesh: Idlemesh, lived: Path, made: Path) -> None:
    before = made.read_bytes()
    said = run(idlemesh, "backup", made, lived, lived)
    assert (said.status, made.read_bytes()) == (1, before)
    assert "name another file" in said.err


@pytest.mark.parametrize("damage", ["cut", "changed", "another phrase"])
def test_what_cannot_be_restored_leaves_nothing_behind(
    idlemesh: Idlemesh, lived: Path, made: Path, tmp_path: Path, damage: str
) -> None:
    raw, file, phrase = made.read_bytes(), tmp_path / "file", tmp_path / "phrase"
    phrase.write_text("correct house\n" if damage == "another phrase" else "correct horse\n")
    file.write_bytes(raw[:-1] if damage == "cut" else raw[:-20] + bytes(20) if damage == "changed" else raw)
    said = idlemesh("key", "restore", file, "--home", tmp_path / "new", "--passphrase-file", phrase)
    assert said.status == 1
    assert "not a backup that can be restored" in said.err
    assert names(tmp_path / "new") == set()


def test_a_restore_that_was_interrupted_goes_on(idlemesh: Idlemesh, lived: Path, made: Path, tmp_path: Path) -> None:
    run(idlemesh, "restore", made, tmp_path, lived)
    (tmp_path / "identity.key").unlink()  # it comes last
    assert run(idlemesh, "restore", made, tmp_path, lived).status == 0
    assert verified(idlemesh, tmp_path) == verified(idlemesh, lived)


def test_a_ledger_that_went_on_is_kept(idlemesh: Idlemesh, lived: Path, made: Path, tmp_path: Path) -> None:
    shutil.copy(lived / "identity.key", tmp_path / "identity.key")
    shutil.copy(lived / "ledger.db", tmp_path / "ledger.db")
    asyncio.run(write(Home(tmp_path), 2))
    (tmp_path / "identity.key").unlink()
    assert run(idlemesh, "restore", made, tmp_path, lived, "--json").json()["entries"] == ENTRIES + 2


def test_a_ledger_that_is_not_the_backups_is_not_taken_for_it(
    idlemesh: Idlemesh, lived: Path, made: Path, tmp_path: Path
) -> None:
    shutil.copy(lived / "identity.key", tmp_path / "identity.key")
    asyncio.run(write(Home(tmp_path), 1))
    (tmp_path / "identity.key").unlink()
    said = run(idlemesh, "restore", made, tmp_path, lived)
    assert said.status == 1
    assert "does not go on from the backup's" in said.err
    assert names(tmp_path) == {"ledger.db"}


def test_a_node_with_its_ledger_in_a_server_is_backed_up_and_restored(
    idlemesh: Idlemesh, lived: Path, made: Path, tmp_path: Path, postgres_url: str
) -> None:
    (tmp_path / "config.toml").write_text(f"[ledger]\nurl = {json.dumps(postgres_url)}\n")
    assert run(idlemesh, "restore", made, tmp_path, lived, "--json").json()["entries"] == ENTRIES
    assert not (tmp_path / "ledger.db").exists()
    assert run(idlemesh, "backup", tmp_path / "again", tmp_path, lived, "--json").json()["entries"] == ENTRIES
    (tmp_path / "identity.key").unlink()
    assert run(idlemesh, "restore", tmp_path / "again", tmp_path, lived).status == 0
    assert verified(idlemesh, tmp_path) == verified(idlemesh, lived)


def test_a_running_node_is_backed_up(idlemesh: Idlemesh, nodes: Nodes, lived: Path, tmp_path: Path) -> None:
    home = nodes.owner.home.folder
    said = run(idlemesh, "backup", tmp_path / "file", home, lived, "--json").json()
    assert said["did"] == nodes.owner.running.did


def test_an_identity_without_a_ledger_is_backed_up_too(idlemesh: Idlemesh, lived: Path, tmp_path: Path) -> None:
    idlemesh("id", "--home", tmp_path / "new")
    assert run(idlemesh, "backup", tmp_path / "file", tmp_path / "new", lived, "--json").json()["entries"] == 0
    assert run(idlemesh, "restore", tmp_path / "file", tmp_path / "other", lived).status == 0
    assert idlemesh("id", "--home", tmp_path / "new").out == idlemesh("id", "--home", tmp_path / "other").out


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"", "there is no passphrase"),
        (b"\n", "there is no passphrase"),
        (b"short\n", "at least 8 characters"),
        (b"\xff" * 9, "not UTF-8"),
        (b"x" * 2_000, "longer than 1024 bytes"),
    ],
    ids=["nothing", "empty", "short", "binary", "long"],
)
@pytest.mark.parametrize("option", [[], ["--passphrase-file", "-"]], ids=["", "-"])
def test_a_passphrase_that_will_not_do_is_refused(
    idlemesh: Idlemesh,
    lived: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: bytes,
    complaint: str,
    option: list[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
    end = idlemesh("key", "backup", tmp_path / "file", "--home", lived, *option)
    assert end.status == 1
    assert complaint in end.err
    assert not (tmp_path / "file").exists()


def test_a_home_without_an_identity_has_nothing_to_back_up(idlemesh: Idlemesh, lived: Path, tmp_path: Path) -> None:
    said = run(idlemesh, "backup", tmp_path / "file", tmp_path / "none", lived)
    assert said.status == 1
    assert "there is no identity" in said.err
