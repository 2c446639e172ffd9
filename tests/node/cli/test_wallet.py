"""Keys of money on a chain, made and taken over without a running node."""

import json
import stat
from pathlib import Path

import pytest
from eth_account import Account

from tests.node.cli.conftest import Idlemesh

SECRET = "11" * 32
ADDRESS = Account.from_key(SECRET).address
PASSPHRASE = "correct horse"


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_key_is_made_once_for_its_owner_alone(home: Path, passphrase: Path, idlemesh: Idlemesh) -> None:
    made = idlemesh("wallet", "create", "--home", home, "--passphrase-file", passphrase, "--json").json()
    file = Path(made["keystore"])
    assert file == home / "wallet.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["crypto"]["kdf"] == "scrypt"
    assert idlemesh("wallet", "address", "--home", home, "--json").json() == {"address": made["address"]}

    again = idlemesh("wallet", "create", "--home", home, "--passphrase-file", passphrase)
    assert again.status == 1
    assert "is there already, and may hold money" in again.err


def test_a_private_key_is_taken_over(home: Path, passphrase: Path, tmp_path: Path, idlemesh: Idlemesh) -> None:
    (tmp_path / "key").write_text(f"0x{SECRET}\n")
    arguments = ("wallet", "import", "--home", home, "--passphrase-file", passphrase, "--key", tmp_path / "key")
    said = idlemesh(*arguments)
    assert said.status == 0
    assert ADDRESS in said.out
    assert SECRET not in said.out + said.err + (home / "wallet.json").read_text()


def test_the_keystore_of_another_wallet_is_taken_over_with_its_passphrase(
    home: Path, passphrase: Path, tmp_path: Path, idlemesh: Idlemesh
) -> None:
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps(Account.encrypt(bytes.fromhex(SECRET), PASSPHRASE, kdf="pbkdf2", iterations=1_000)))
    arguments = ("wallet", "import", "--home", home, "--keystore", theirs, "--passphrase-file")
    (tmp_path / "wrong").write_text("wrong horse\n")

    wrong = idlemesh(*arguments, tmp_path / "wrong")
    assert wrong.status == 1
    assert "does not open" in wrong.err
    assert not (home / "wallet.json").exists()
    assert idlemesh(*arguments, passphrase, "--json").json()["address"] == ADDRESS
    assert (home / "wallet.json").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("text", "why"),
    [("not hex", "64 hexadecimal digits"), ("11" * 31, "64 hexadecimal digits"), ("", "there is no private key")],
)
def test_what_is_no_private_key_is_refused(
    text: str, why: str, home: Path, passphrase: Path, tmp_path: Path, idlemesh: Idlemesh
) -> None:
    (tmp_path / "key").write_text(text)
    arguments = ("wallet", "import", "--home", home, "--passphrase-file", passphrase, "--key", tmp_path / "key")
    said = idlemesh(*arguments)
    assert said.status == 1
    assert why in said.err


def test_without_a_wallet_the_command_says_how_to_make_one(home: Path, idlemesh: Idlemesh) -> None:
    said = idlemesh("wallet", "address", "--home", home)
    assert said.status == 1
    assert "`idlemesh wallet create` makes one" in said.err


def test_with_a_signer_there_is_no_key_to_make(home: Path, passphrase: Path, idlemesh: Idlemesh) -> None:
    home.mkdir()
    (home / "config.toml").write_text('[stablecoin]\nsigner = ["ledger-signer"]\n')
    said = idlemesh("wallet", "create", "--home", home, "--passphrase-file", passphrase)
    assert said.status == 1
    assert "behind [stablecoin] signer" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("find",),
        ("deposit", "did:key:z6Mk", "1usd"),
        ("claim",),
        ("withdraw", "did:key:z6Mk"),
        ("bond",),
        ("bond", "1usd"),
        ("unbond",),
    ],
    ids=" ".join,
)
def test_what_moves_money_needs_a_running_node(arguments: tuple[str, ...], home: Path, idlemesh: Idlemesh) -> None:
    said = idlemesh("wallet", *arguments, "--home", home)
    assert said.status == 1
    assert "no node is running" in said.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("claim", "--close"), "name the peer"),
        (("unbond", "1usd", "--take"), "one of"),
        (("import", "--key", "a", "--keystore", "b"), "one of"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments: tuple[str, ...], why: str, idlemesh: Idlemesh) -> None:
    said = idlemesh("wallet", *arguments)
    assert said.status == 1
    assert why in said.err
