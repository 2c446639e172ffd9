"""A disk that does a stated number of syncs in a second, on a machine whose own does more.

A small library (`slow_disk.c`, compiled by the machine's `cc`) is loaded before the C library's own into a process and
all that it starts. It lets each fsync and fdatasync be done, and return no sooner than such a disk would; one after
another, whichever process they come from. Linux alone.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("slow_disk.c")


class NoCompiler(Exception):
    """The library cannot be compiled."""

    def __str__(self) -> str:
        return "there is no C compiler on this machine: apt install gcc libc6-dev"


def run_on_slow_disk(command: Sequence[str], syncs: float) -> int:
    """Run a command whose syncs last as on a disk that does so many per second; its exit status. Raises NoCompiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler
    with tempfile.TemporaryDirectory(prefix="idlemesh-slow-disk-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # a server of PostgreSQL runs as another user
        library, queue = folder / "slow_disk.so", folder / "queue"
        queue.touch()
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
        slowed = {"LD_PRELOAD": str(library), "SLOW_DISK_QUEUE": str(queue), "SLOW_DISK_NS": str(int(1e9 / syncs))}
        return subprocess.run(command, env=os.environ | slowed, check=False).returncode
