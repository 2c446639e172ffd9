"""A lock beside a file of SQLite: two processes that both write to one chain would each take the other for damage.

The kernel lets it go with the process, however that ends. It is not on the file itself: closing any handle of that
would take away the locks that SQLite has there. The lock's own file stays, since whoever removes it may take it from
under another process.
"""

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Final

from ledger.database.errors import LedgerInUse, translated

# For a process that is just ending.
_TRIES: Final = 10
_WAIT_S: Final = 0.1


class FileLock:
    """A lock that this process holds; made by `FileLock.take`."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    async def take(cls, file: str | Path) -> "FileLock":
        """Lock a file of SQLite for this process. Raises LedgerInUse, LedgerUnavailable."""
        name, handle = _open_beside(Path(file))
        try:
            for _ in range(_TRIES):
                if _locked(handle):
                    return cls(handle)
                await asyncio.sleep(_WAIT_S)
            raise LedgerInUse(f"another process has {name} open")
        except BaseException:
            os.close(handle)
            raise

    def release(self) -> None:
        """Let others have the file."""
        os.close(self._handle)


def _open_beside(file: Path) -> tuple[str, int]:
    """The file's own name, by whatever link it was reached, and the open file of its lock. Raises LedgerUnavailable."""
    with translated():
        path = file.resolve()
        return path.name, os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(handle: int) -> bool:
    with translated():
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
