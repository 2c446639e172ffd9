"""The home folder: identity, settings, ledger, models, and how a command finds the running node.

identity.key   the node's Ed25519 key, 32 bytes in hexadecimal, readable by the owner alone
config.toml    the owner's settings
ledger.db      the journal and the records
models/        model and tokenizer files
calibrations/  what honest engines show, for each model
wallet.json    keys of money on a chain, encrypted with a passphrase
chain/         transactions under way, and what was seen of channels and payments
api.key        the key that `/v1` asks for on hosts other than loopback
node.json      address and token of the running node
node.lock      held while a node runs in this home, or a command works on it
process.id     under what other processes of the node know that of this home, where they share a ledger
"""

import fcntl
import json
import os
import secrets
import time
from pathlib import Path
from typing import IO, Final

from attrs import field, frozen

from ledger.identity import SEED_BYTES, Identity
from node.ports import Entropy

DEFAULT_HOME: Final = Path("~/.idlemesh")
# A command that looks for a running node holds the lock for a moment; only a node holds it for longer.
_LOCK_TRIES: Final = 5
_PROCESS_BYTES: Final = 16
_LOCK_WAIT_S: Final = 0.02


class HomeError(Exception):
    """Something is wrong with the home folder; the message says what to do."""


class HomeInUse(HomeError):
    """A node runs in this home, or another command is at work there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is in use, by a node or another command: stop it, or use another --home")


class NotRunning(HomeError):
    """No node runs in this home."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"no node is running in {folder}: start one with `idlemesh up --home {folder}`")


class NotReady(HomeError):
    """Somebody has this home, and cannot be asked yet or any more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"a node in {folder} is starting or ending, or another command works there: try again in a moment"
        )


class CannotWrite(HomeError):
    """A file of this home cannot be written."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path} cannot be written: {error.strerror}: check the disk's space and permissions, or use another --home"
        )


@frozen
class Running:
    """Where a running node is reached."""

    url: str
    token: str = field(repr=False)
    did: str


@frozen
class Home:
    """One home folder; nothing is read or made until it is asked for."""

    folder: Path

    @property
    def config(self) -> Path:
        """The settings."""
        return self.folder / "config.toml"

    @property
    def ledger(self) -> Path:
        """The database."""
        return self.folder / "ledger.db"

    @property
    def models(self) -> Path:
        """Model files."""
        return self.folder / "models"

    @property
    def tokenizers(self) -> Path:
        """Tokenizer files, own ones and those from peers."""
        return self.folder / "models" / "tokenizers"

    @property
    def calibrations(self) -> Path:
        """What `idlemesh calibrate` found, a file for each model."""
        return self.folder / "calibrations"

    @property
    def wallet(self) -> Path:
        """The encrypted keys of the owner's money on a chain."""
        return self.folder / "wallet.json"

    @property
    def chain(self) -> Path:
        """What was sent to the chain, and seen there."""
        return self.folder / "chain"

    def make(self) -> None:
        """Make the folder, for the owner's eyes only. Raises HomeError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.models.mkdir(exist_ok=True)
        except OSError as error:
            raise HomeError(f"{self.folder} cannot be made: {error.strerror}: choose another --home") from None

    def identity(self, entropy: Entropy) -> Identity:
        """The node's identity, made at the first time. Raises HomeError."""
        if not self.has_identity:
            self.put_identity(entropy.bytes(SEED_BYTES))
        return Identity(self.seed())

    @property
    def has_identity(self) -> bool:
        """Whether an identity was made or restored here."""
        return (self.folder / "identity.key").exists()

    def seed(self) -> bytes:
        """The 32 secret bytes of the node's identity. Raises HomeError."""
        path = self.folder / "identity.key"
        try:
            seed = bytes.fromhex(path.read_text().strip())
            Identity(seed)
        except (OSError, ValueError):
            raise HomeError(
                f"{path} is not readable as a key of 64 hexadecimal digits: restore it from a backup"
            ) from None
        return seed

    def put_identity(self, seed: bytes) -> None:
        """Make this the node's identity; there is none yet."""
        self.make()
        _write_secret(self.folder / "identity.key", seed.hex() + "\n")

    def process_id(self, entropy: Entropy) -> bytes:
        """Random bytes that no other home of the node has, made at the first time. Raises HomeError."""
        path = self.folder / "process.id"
        if not path.exists():
            _write_secret(path, entropy.bytes(_PROCESS_BYTES).hex() + "\n")
        try:
            name = bytes.fromhex(path.read_text().strip())
        except (OSError, ValueError):
            name = b""
        if len(name) != _PROCESS_BYTES:  # without a name it would end what others are at work on
            raise HomeError(f"{path} is not {2 * _PROCESS_BYTES} hexadecimal digits: delete it while no node runs here")
        return name

    def api_key(self) -> str | None:
        """The key to `/v1`, if one was made."""
        path = self.folder / "api.key"
        return path.read_text().strip() if path.exists() else None

    def make_api_key(self) -> str:
        """The key to `/v1`, made at the first time."""
        key = self.api_key()
        if key is None:
            self.make()
            key = "im-" + secrets.token_urlsafe(32)
            _write_secret(self.folder / "api.key", key + "\n")
        return key

    def lock(self) -> IO[bytes]:
        """Take the home for this process, until the file is closed. Raises HomeInUse, CannotWrite."""
        self.make()
        path = self.folder / "node.lock"
        try:
            handle = path.open("ab")
        except OSError as error:
            raise CannotWrite(path, error) from None
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_LOCK_WAIT_S)
            else:
                return handle
        handle.close()
        raise HomeInUse(self.folder)

    def announce(self, running: Running) -> None:
        """Say where the node is reached."""
        body = {"url": running.url, "token": running.token, "did": running.did, "pid": os.getpid()}
        _write_secret(self.folder / "node.json", json.dumps(body))

    def withdraw(self) -> None:
        """The node is not reached any more."""
        (self.folder / "node.json").unlink(missing_ok=True)

    def running(self) -> Running:
        """The node that runs in this home. Raises NotRunning, NotReady."""
        try:
            with (self.folder / "node.lock").open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            raise NotRunning(self.folder) from None
        except OSError:
            pass  # somebody holds it: a node is running
        else:
            raise NotRunning(self.folder)
        try:
            body = json.loads((self.folder / "node.json").read_text())
            return Running(body["url"], body["token"], body["did"])
        except (OSError, ValueError, KeyError, TypeError):
            raise NotReady(self.folder) from None


def _write_secret(path: Path, text: str) -> None:
    """Write a file that only the owner may read, whole or not at all. Raises CannotWrite."""
    partial = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            os.fchmod(handle.fileno(), 0o600)
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        raise CannotWrite(path, error) from None


def open_home(folder: Path | None) -> Home:
    """The home folder: as given, else IDLEMESH_HOME, else ~/.idlemesh."""
    chosen = folder or Path(os.environ.get("IDLEMESH_HOME") or DEFAULT_HOME)
    return Home(chosen.expanduser().absolute())
