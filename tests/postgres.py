"""A server of PostgreSQL for the tests, from the machine's packages: private to them, and gone afterwards."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any, Final

from attrs import field, frozen

from ledger.database import POSTGRES
from tools.watchdog import Watchdog

_USER: Final = "idlemesh"
# Tests kill clients and the server, never the machine: nothing has to reach the disk.
_FAST: Final = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "max_connections=50",
    "shared_buffers=16MB",
    "max_wal_size=64MB",
)
# A memory file system, as Linux has it: there a database is made in a fifth of the time.
_MEMORY: Final = Path("/dev/shm")
_ENOUGH: Final = 2 * 2**30  # bytes free in it; containers often have little


class NotInstalled(Exception):
    """This machine has no PostgreSQL."""


@frozen
class Server:
    """A running server, reached through a socket in `folder`."""

    programs: Path
    folder: Path
    _numbers: Iterator[int] = field(factory=lambda: count(1), repr=False)

    def url(self, database: str) -> str:
        """Where a node finds a database."""
        return f"{POSTGRES}{_USER}@/{database}?host={self.folder}"

    def run(self, database: str, statement: str) -> str:
        """Run SQL in a database; returns what it says."""
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-U", _USER]
        command = [str(self.programs / "psql"), *options, "-d", database, "-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """A database of its own, by name; dropped at the end, whoever uses it."""
        name = f"test_{next(self._numbers)}"
        self.run("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name
        finally:
            self.run("postgres", f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def running(settings: Sequence[str] = _FAST) -> Iterator[Server]:
    """Start a server, and stop it at the end; without settings it is as durable as any. Raises NotInstalled."""
    programs = _programs()
    # Not in pytest's folders: they are closed to other users, and their paths too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="idlemesh-postgres-", dir=_memory() if settings == _FAST else None))
    rights = _rights(folder)
    try:
        data = folder / "data"
        made = [str(programs / "initdb"), "-D", str(data), "-U", _USER]
        made += ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **rights)
        command = [str(programs / "postgres"), "-D", str(data), "-c", "listen_addresses=", "-k", str(folder)]
        command += [part for setting in settings for part in ("-c", setting)]
        with (folder / "log").open("wb") as log, _started(command, log, folder, rights) as process:
            watchdog = Watchdog(process.pid, folder)
            try:
                server = Server(programs, folder)
                _await(server, process)
                yield server
            finally:
                watchdog.close()
                process.send_signal(signal.SIGINT)
    finally:
        shutil.rmtree(folder)


def _memory() -> Path | None:
    """Where files lie in memory, if there is enough of it."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _ENOUGH:
        return None
    return _MEMORY


def _started(command: list[str], log: IO[bytes], folder: Path, rights: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **rights)


def _programs() -> Path:
    """Where the server's programs lie: Debian keeps them off the path."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    for folder in [*debian, *([Path(on_path).resolve().parent] if on_path else [])]:
        if all((folder / program).exists() for program in ("initdb", "postgres", "psql", "pg_isready")):
            return folder
    raise NotInstalled("there is no PostgreSQL on this machine: apt install postgresql")


def _rights(folder: Path) -> dict[str, Any]:
    """As whom the server runs: it refuses to be root."""
    if os.geteuid() != 0:
        return {}
    user = _user("postgres") or pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _await(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server takes connections."""
    ready = [str(server.programs / "pg_isready"), "-q", "-t", "1", "-h", str(server.folder), "-U", _USER]
    while subprocess.run(ready, check=False).returncode != 0:
        if process.poll() is not None:
            raise AssertionError((server.folder / "log").read_text())
