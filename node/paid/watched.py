"""Transfers that were shown at the door and not taken, in a file: they are followed after a restart, too.

Theory of operation. Whoever has seen one can bring it to the chain, and then its money is its payer's. To show one
costs nothing: so those that were taken are in the journal, which keeps everything for ever, and of the others the
latest are here. A line is added for each, on the disk before its request is answered, and the file is written anew
where many of its lines are over. One that cannot be written is followed until the node ends.
"""

import asyncio
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from node.exchange.strangers import Transfer

# So many are remembered: the latest.
MOST: Final = 4_096
# What was counted is known for ten days by the journal (`Strangers.is_ended`), whatever this file says.
_LONGEST_S: Final = 9 * 86_400

_log = logging.getLogger(__name__)


class Watched:
    """By order, the latest of them."""

    def __init__(self, path: Path, most: int = MOST) -> None:
        self._path = path
        self._most = most
        self._kept: OrderedDict[bytes, Transfer] = OrderedDict()
        self._unwritten: dict[bytes, Transfer] = {}
        self._lines = 0
        self._writing = asyncio.Lock()

    @classmethod
    def open(cls, path: Path, now: int, is_known: Callable[[bytes], bool], most: int = MOST) -> "Watched":
        """What an earlier run left, but for what `is_known` to the journal and what is too old."""
        found = cls(path, most)
        try:
            written = path.read_bytes()
        except FileNotFoundError:
            return found
        except OSError as error:
            _log.warning("%s cannot be read: %s", path, error.strerror)
            return found
        lines = written.splitlines()
        # No line is added to one that was not written to its end.
        found._lines = len(lines) if written.endswith(b"\n") else 2 * most + 1
        for line in lines:
            read = _read(line)
            if read is not None and not is_known(read[0]) and read[1].expires >= now - _LONGEST_S:
                found._remember(*read)
        return found

    def __len__(self) -> int:
        return len(self._kept)

    def items(self) -> list[tuple[bytes, Transfer]]:
        """All of them, the latest last."""
        return list(self._kept.items())

    def add(self, order: bytes, transfer: Transfer) -> None:
        """Follow one more; it is on the disk after the next `keep`."""
        if self._kept.get(order) != transfer:
            self._remember(order, transfer)
            self._unwritten[order] = transfer

    def drop(self, order: bytes) -> None:
        """It is over, or in the journal."""
        self._kept.pop(order, None)
        self._unwritten.pop(order, None)

    async def keep(self) -> None:
        """Have them all on the disk, and not many others."""
        async with self._writing:
            added, self._unwritten = self._unwritten, {}
            anew = self._lines + len(added) > 2 * max(len(self._kept), self._most // 8)
            if not added and not anew:
                return
            rows = self.items() if anew else list(added.items())
            try:
                await asyncio.to_thread(_write, self._path, rows, anew=anew)
            except OSError as error:
                _log.warning("%s cannot be written: %s", self._path, error.strerror)
                left = {order: transfer for order, transfer in added.items() if order in self._kept}
                self._unwritten = left | self._unwritten
                # A part of a line may be there, to which none can be added.
                self._lines = 2 * self._most + 1
                return
            self._lines = len(rows) if anew else self._lines + len(rows)

    def _remember(self, order: bytes, transfer: Transfer) -> None:
        self._kept.pop(order, None)
        self._kept[order] = transfer
        while len(self._kept) > self._most:
            oldest, _ = self._kept.popitem(last=False)
            self._unwritten.pop(oldest, None)


def _read(line: bytes) -> tuple[bytes, Transfer] | None:
    """What a line says; None where it was not written to its end."""
    try:
        order, payer, nonce, value, expires = json.loads(line)
        return bytes.fromhex(order), Transfer(str(payer), bytes.fromhex(nonce), int(value), int(expires))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _write(path: Path, rows: Iterable[tuple[bytes, Transfer]], *, anew: bool) -> None:
    """Add these lines, or put them in the place of all others; on the disk on return. Raises OSError."""
    text = "".join(
        json.dumps([order.hex(), one.payer, one.nonce.hex(), one.value, one.expires]) + "\n" for order, one in rows
    )
    to = path.with_name(f"{path.name}.new") if anew else path
    file_number = os.open(to, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if anew else os.O_APPEND), 0o600)
    with os.fdopen(file_number, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    if anew:
        to.replace(path)
