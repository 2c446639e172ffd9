import fcntl
import json
import stat
import threading
from pathlib import Path

import pytest

from ledger.identity import Identity
from node.home import Home, HomeError, HomeInUse, NotReady, NotRunning, Running, open_home
from node.ports import SeededEntropy


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_identity_is_made_once_and_stays(home: Home) -> None:
    made = home.identity(SeededEntropy(1))

    assert home.identity(SeededEntropy(2)).did == made.did
    assert (home.folder / "identity.key").read_text() == SeededEntropy(1).bytes(32).hex() + "\n"


def test_secrets_are_readable_by_the_owner_alone(home: Home) -> None:
    home.identity(SeededEntropy(1))
    home.make_api_key()
    home.announce(Running("http://127.0.0.1:1", "a token", "did:key:z6Mk"))

    assert {name: mode(home.folder / name) for name in ("identity.key", "api.key", "node.json")} == {
        "identity.key": 0o600,
        "api.key": 0o600,
        "node.json": 0o600,
    }
    assert mode(home.folder) == 0o700


def test_a_secret_left_half_written_with_loose_rights_is_written_anew_with_tight_ones(home: Home) -> None:
    home.make()
    partial = home.folder / "identity.key.new"
    partial.write_text("half of a ke")
    partial.chmod(0o644)

    home.identity(SeededEntropy(1))

    assert mode(home.folder / "identity.key") == 0o600
    assert not partial.exists()


def test_secrets_are_not_shown_where_things_are_printed(home: Home) -> None:
    seed = SeededEntropy(1).bytes(32)
    running = Running("http://127.0.0.1:1", "a token", "did:key:z6Mk")

    assert "a token" not in repr(running)
    shown = repr(home.identity(SeededEntropy(1))) + repr(home)
    assert seed.hex() not in shown
    assert repr(seed) not in shown


@pytest.mark.parametrize("content", ["", "not hexadecimal", "00" * 31, "00" * 33, "\xff"])
def test_a_damaged_identity_is_never_replaced(home: Home, content: str) -> None:
    home.make()
    key = home.folder / "identity.key"
    key.write_text(content)

    with pytest.raises(HomeError, match="restore it from a backup"):
        home.identity(SeededEntropy(1))

    assert key.read_text() == content


def test_a_home_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(HomeError, match="choose another --home"):
        Home(tmp_path / "file" / "home").identity(SeededEntropy(1))


def test_the_api_key_is_made_once(home: Home) -> None:
    assert home.api_key() is None

    key = home.make_api_key()

    assert key.startswith("im-")
    assert len(key) > 40
    assert home.make_api_key() == home.api_key() == key


def test_a_process_is_named_once_and_a_damaged_name_is_not_replaced(home: Home) -> None:
    home.make()
    name = home.process_id(SeededEntropy(1))
    assert len(name) == 16
    assert home.process_id(SeededEntropy(2)) == name
    for damaged in ("me", "", "\n", "00" * 15, "00" * 17):
        (home.folder / "process.id").write_text(damaged)
        with pytest.raises(HomeError, match=r"process\.id.*delete it"):
            home.process_id(SeededEntropy(3))


def test_a_home_is_one_nodes_at_a_time(home: Home) -> None:
    held = home.lock()

    with pytest.raises(HomeInUse, match="use another --home"):
        home.lock()
    held.close()

    home.lock().close()


def test_a_running_node_is_found_by_where_it_announced_itself(home: Home) -> None:
    with home.lock():
        running = Running("http://127.0.0.1:8080", "a token", "did:key:z6Mk")
        home.announce(running)

        assert home.running() == running
        home.withdraw()
        home.withdraw()
        with pytest.raises(NotReady, match="try again in a moment"):
            home.running()


def test_what_a_dead_node_left_behind_is_not_taken_for_a_running_one(home: Home) -> None:
    with home.lock():
        home.announce(Running("http://127.0.0.1:8080", "a token", "did:key:z6Mk"))

    with pytest.raises(NotRunning, match="idlemesh up --home"):
        home.running()


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '"text"', "{", json.dumps({"url": "http://x"})])
def test_a_damaged_announcement_is_none(home: Home, content: str) -> None:
    with home.lock():
        (home.folder / "node.json").write_text(content)

        with pytest.raises(NotReady):
            home.running()


def test_where_there_is_no_home_nothing_runs_and_nothing_is_made(home: Home) -> None:
    with pytest.raises(NotRunning):
        home.running()

    assert not home.folder.exists()


def test_looking_for_a_running_node_does_not_keep_one_from_starting(home: Home) -> None:
    home.make()
    with pytest.raises(NotRunning):
        home.running()

    home.lock().close()


def test_a_command_that_looks_at_the_lock_just_then_does_not_keep_a_node_from_starting(home: Home) -> None:
    home.lock().close()
    with (home.folder / "node.lock").open("ab") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
        gone = threading.Timer(0.01, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        gone.start()

        home.lock().close()
        gone.join()


def test_the_home_is_the_one_given_else_the_environments_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IDLEMESH_HOME", raising=False)
    assert open_home(None).folder == tmp_path / ".idlemesh"

    monkeypatch.setenv("IDLEMESH_HOME", str(tmp_path / "other"))
    assert open_home(None).folder == tmp_path / "other"
    assert open_home(Path("~/given")).folder == tmp_path / "given"
    assert open_home(Path("relative")).folder.is_absolute()


def test_everything_of_a_home_lies_in_its_folder(home: Home) -> None:
    for path in (home.config, home.ledger, home.models, home.tokenizers):
        assert path.is_relative_to(home.folder)
    assert isinstance(home.identity(SeededEntropy(1)), Identity)
