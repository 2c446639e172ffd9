"""What was sent or is about to be, in a file: written before anything leaves, so that nothing is sent twice.

One JSON file, replaced as a whole. What is through is kept for a while, so that who asks late still gets an answer.
"""

import json
import os
from pathlib import Path
from typing import Any, Final, Literal, Self

from attrs import asdict, define, evolve, field, frozen

from ledger.rails.stablecoin.contracts import Call
from ledger.rails.stablecoin.errors import ChainError

MAX_WAITING: Final = 64
_KEPT: Final = 1024  # of those that are through
_VERSION: Final = 1

State = Literal["absent", "waiting", "mined", "settled", "failed"]


class OutboxUnreadable(ChainError):
    """The file cannot be read: what was sent is not known, so nothing more is."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} cannot be read: restore it, or move it away once no transaction of the wallet waits")


@frozen
class Outcome:
    """What became of a transaction.

    `absent` was never sent from here; `waiting` is sent and in no block; `mined` is in a block that may still go;
    `settled` and `failed` (reverted: it did nothing) have enough confirmations. `fee` is what it cost in wei, `nonce`
    its number among the wallet's.
    """

    state: State
    hash: bytes | None = None
    block: int | None = None
    gas: int = 0
    fee: int = 0
    nonce: int | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state in ("settled", "failed")


@frozen
class Sent:
    """A transaction that is not through: the newest form of it, and the hashes of all forms, which share a nonce.

    `gas` is its limit, `most` and `tip` are wei per gas; `raw` is what is sent.
    """

    key: bytes
    call: Call
    nonce: int
    gas: int
    most: int
    tip: int
    raw: bytes = field(repr=False)
    hashes: tuple[bytes, ...]
    mined: bool = False


@define
class Outbox:
    """One wallet's, on one chain."""

    path: Path
    chain_id: int
    address: bytes
    waiting: dict[bytes, Sent] = field(factory=dict)
    through: dict[bytes, Outcome] = field(factory=dict)

    @classmethod
    def open(cls, path: Path, chain_id: int, address: bytes) -> Self:
        """Read what an earlier run left. Raises OutboxUnreadable."""
        made = cls(path, chain_id, address)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if (kept["version"], kept["chain"]) != (_VERSION, chain_id):
                raise ValueError("another chain's")
            if kept["address"] == address.hex():
                made.waiting = {sent.key: sent for sent in map(_sent, kept["waiting"])}
            elif kept["waiting"]:
                raise ValueError("another wallet's")
            made.through = {bytes.fromhex(key): _outcome(each) for key, each in kept["through"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise OutboxUnreadable(path) from None
        return made

    def outcome(self, key: bytes) -> Outcome:
        """As far as it is known here."""
        sent = self.waiting.get(key)
        if sent is not None:
            return Outcome("mined" if sent.mined else "waiting", sent.hashes[-1])
        return self.through.get(key, Outcome("absent"))

    def write(self, sent: Sent) -> None:
        """Keep a transaction, or its newer form, before it is sent."""
        before = self.waiting.get(sent.key)
        self.waiting[sent.key] = sent
        try:
            self._save()
        except BaseException:
            # It is not on the disk, so it must not be sent.
            if before is None:
                del self.waiting[sent.key]
            else:
                self.waiting[sent.key] = before
            raise

    def mark(self, key: bytes, mined: bool) -> None:
        """Whether it is in a block; not worth a write, for it is asked again."""
        self.waiting[key] = evolve(self.waiting[key], mined=mined)

    def close(self, key: bytes, outcome: Outcome) -> None:
        """It is through."""
        del self.waiting[key]
        self.through[key] = outcome
        for old in list(self.through)[:-_KEPT]:
            del self.through[old]
        self._save()

    def _save(self) -> None:
        kept = {
            "version": _VERSION,
            "chain": self.chain_id,
            "address": self.address.hex(),
            "waiting": [asdict(sent) for sent in self.waiting.values()],
            "through": {key.hex(): asdict(outcome) for key, outcome in self.through.items()},
        }
        write_whole(self.path, kept)


def write_whole(path: Path, kept: dict[str, Any]) -> None:
    """Replace a file by a JSON object, on the disk before this returns: the old one, or the new one, never a part."""
    new = path.with_name(f"{path.name}.new")
    file_number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file_number, "w", encoding="utf-8") as file:
        json.dump(kept, file, default=bytes.hex)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sent(kept: dict[str, Any]) -> Sent:
    call = kept["call"]
    return Sent(
        key=bytes.fromhex(kept["key"]),
        call=Call(bytes.fromhex(call["to"]), bytes.fromhex(call["data"]), call["value"], call["gas"]),
        nonce=kept["nonce"],
        gas=kept["gas"],
        most=kept["most"],
        tip=kept["tip"],
        raw=bytes.fromhex(kept["raw"]),
        hashes=tuple(bytes.fromhex(each) for each in kept["hashes"]),
    )


def _outcome(kept: dict[str, Any]) -> Outcome:
    hash_ = bytes.fromhex(kept["hash"]) if kept["hash"] else None
    return Outcome(kept["state"], hash_, kept["block"], kept["gas"], kept["fee"], kept.get("nonce"))
