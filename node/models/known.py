"""Model files on disk: telling one from what it was replaced with, and manifests that need no second reading.

A file is taken to be the same as long as size, time of change and inode are: cheap to look at before every use. To
name a model its whole file is read, a second for each GB; so the manifests of files that have not changed since are
remembered in the home folder.
"""

import json
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen

from node.models.gguf import BadModelFile
from node.models.manifest import MAX_MANIFEST, BadManifest, Manifest, manifest_of
from node.models.merkle import Progress

MAX_KNOWN: Final = 256  # files; the longest unused are forgotten
# A manifest computed by other rules is another name for the same bytes: then nothing remembered counts.
_RULES: Final = 1
_MAX_FILE: Final = MAX_KNOWN * (4 * MAX_MANIFEST)


class ChangedWhileRead(BadModelFile):
    """Somebody wrote to the file while it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "it changed while it was read", "Wait until it is complete, then start again.")


@frozen
class FileIdentity:
    """What tells a file from another under the same name. Size in bytes, time of change in nanoseconds."""

    size: int
    modified_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> "FileIdentity":
        """As it is now. Raises OSError."""
        seen = path.stat()
        return cls(seen.st_size, seen.st_mtime_ns, seen.st_ino, seen.st_dev)


@frozen
class KnownModel:
    """A model file that was read: its manifest, and what the file was then."""

    path: Path
    identity: FileIdentity
    manifest: Manifest


class KnownModels:
    """The manifests of the files that were read before, in one JSON file; what is damaged there is forgotten."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, dict[str, Any]] = _read(file)

    def read(self, path: Path, progress: Progress | None = None) -> KnownModel:
        """A file's manifest, from its bytes if it is new or has changed. Raises BadModelFile, OSError."""
        identity = FileIdentity.of(path)
        manifest = self._remembered(path, identity)
        if manifest is None:
            manifest = manifest_of(path, progress)
            if FileIdentity.of(path) != identity:
                raise ChangedWhileRead(str(path))
            self._remember(path, identity, manifest)
        return KnownModel(path, identity, manifest)

    def _remembered(self, path: Path, identity: FileIdentity) -> Manifest | None:
        held = self._known.get(str(path.absolute()))
        if not isinstance(held, dict) or held.get("identity") != asdict(identity):
            return None
        try:
            return Manifest.decode(bytes.fromhex(held["manifest"]))
        except (BadManifest, KeyError, TypeError, ValueError):
            return None

    def _remember(self, path: Path, identity: FileIdentity, manifest: Manifest) -> None:
        name = str(path.absolute())
        self._known.pop(name, None)
        self._known[name] = {"identity": asdict(identity), "manifest": manifest.raw.hex()}
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_name(self._file.name + ".new")
        partial.write_text(json.dumps({"rules": _RULES, "files": self._known}))
        partial.replace(self._file)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        if file.stat().st_size > _MAX_FILE:
            return {}
        body = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(body, dict) or body.get("rules") != _RULES or not isinstance(body.get("files"), dict):
        return {}
    return dict(body["files"])
