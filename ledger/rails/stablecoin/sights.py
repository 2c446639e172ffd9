"""What is added up of channels' events, in a file: so that the past of a channel is read once."""

import contextlib
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from ledger.rails.stablecoin.digests import Place
from ledger.rails.stablecoin.logs import Event
from ledger.rails.stablecoin.outbox import write_whole

_VERSION: Final = 1

_log = logging.getLogger(__name__)


@frozen
class Sums:
    """What came into a channel and what went, in units of the token."""

    deposited: int = 0
    gone: int = 0

    def plus(self, happened: list[Event]) -> "Sums":
        """With what happened since."""
        came = sum(each.amount for each in happened if each.kind == "deposited")
        went = sum(each.amount for each in happened if each.kind in ("refunded", "withdrawn"))
        return Sums(self.deposited + came, self.gone + went)


@frozen
class Cursor:
    """The deep block up to which everything is added up."""

    block: int
    hash: bytes


@define
class Sights:
    """The sums of one contract's channels up to one block; a file that cannot be used is made anew from the chain."""

    path: Path
    place: Place
    sums: dict[bytes, Sums] = field(factory=dict)
    cursor: Cursor | None = None
    unseen_s: float = math.inf  # for how long nobody had looked when this run began
    _kept_to: int = 0

    def load(self) -> None:
        """Go on where an earlier run was."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["version"] != _VERSION or kept["place"] != self._where():
                return
            sums = {bytes.fromhex(key): Sums(*map(int, each)) for key, each in kept["channels"].items()}
            cursor = Cursor(int(kept["block"]), bytes.fromhex(kept["hash"]))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            _log.warning("%s cannot be used: the channels are read anew from the chain", self.path)
            return
        self.sums, self.cursor, self._kept_to = sums, cursor, cursor.block
        with contextlib.suppress(OSError):
            ago_s = time.time() - self.path.stat().st_mtime
            self.unseen_s = ago_s if ago_s >= 0 else math.inf  # a clock that was set back tells nothing

    def looked(self) -> None:
        """The chain was looked at: the next run can tell when. Nothing that counts depends on the file's time alone."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def move(self, cursor: Cursor, recent: dict[bytes, list[Event]], far: int) -> None:
        """Take in what is deep by now, and leave the rest in `recent`.

        Without events in between it makes no difference from where the next run reads on, so that is kept only when
        it is `far` blocks ahead.
        """
        moved = False
        for channel, happened in list(recent.items()):
            stay = [each for each in happened if each.block <= cursor.block]
            if stay and channel in self.sums:
                self.sums[channel] = self.sums[channel].plus(stay)
                recent[channel] = [each for each in happened if each.block > cursor.block]
                moved = True
        self.cursor = cursor
        if moved or cursor.block - self._kept_to >= far:
            self.save()

    def save(self) -> None:
        """Keep them for the next run."""
        assert self.cursor is not None
        kept = {
            "version": _VERSION,
            "place": self._where(),
            "block": self.cursor.block,
            "hash": self.cursor.hash.hex(),
            "channels": {key.hex(): [each.deposited, each.gone] for key, each in self.sums.items()},
        }
        write_whole(self.path, kept)
        self._kept_to = self.cursor.block

    def _where(self) -> list[str]:
        return [self.place.network, self.place.contract.hex()]
