"""Models that can be loaded, what is known of them before and now, and why one of them cannot answer."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

from attrs import frozen

from ledger.records import Fingerprint
from node.engine.port import Engine, EngineBusy, EngineError
from node.models.known import FileIdentity
from node.models.manifest import Manifest

RETRY_AFTER_S: Final = 5.0  # when it is worth to come again for room in memory
_MIB: Final = 2**20

State = Literal["loaded", "loading", "on disk", "changed"]


class NoRoom(EngineBusy):
    """The models in memory are all at work, and a model has to wait for room beside them."""

    def __init__(self, name: str) -> None:
        super().__init__(0, RETRY_AFTER_S)
        again = f"try again in {RETRY_AFTER_S:.0f} s, or allow more with [node] memory"
        self.args = (f"{name} has to wait for room in memory: other models are at work; {again}",)
        self.name = name


class DoesNotFit(EngineError):
    """A model that needs more memory than all models together may take. Both in bytes."""

    def __init__(self, name: str, needed: int, allowed: int) -> None:
        super().__init__(
            f"{name} needs about {_shown(needed)} and models may take {_shown(allowed)}: allow more with "
            "[node] memory, or choose fewer slots, a smaller context or a smaller model"
        )
        self.name, self.needed, self.allowed = name, needed, allowed


class LoadFailed(EngineError):
    """A model could not be loaded; `__cause__` is why."""

    def __init__(self, name: str, cause: BaseException) -> None:
        super().__init__(f"{name} could not be loaded: {str(cause) or type(cause).__name__}")
        self.name = name


class ModelChanged(EngineError):
    """The model's file is not the one that was read when the node started."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} is not answered with any more: its file {what}; start the node again")
        self.name, self.what = name, what


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / _MIB:.0f} MiB"


@frozen
class Stock:
    """A model that can be loaded, and what is known of it before: `bytes` estimates what it takes in memory."""

    name: str
    path: Path
    identity: FileIdentity
    manifest: Manifest
    fingerprint: Fingerprint
    context: int
    slots: int
    bytes: int
    load: Callable[[], Awaitable[Engine]]


@frozen
class Seen:
    """One model as it is now: `bytes` in memory, measured where it was loaded before, and what is wrong with it."""

    name: str
    model: bytes
    state: State
    users: int
    bytes: int
    slots: int
    free_slots: int
    context: int
    trouble: str | None
