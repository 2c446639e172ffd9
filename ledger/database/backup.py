"""A copy of a ledger's file, made before its tables are changed."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path


def back_up(file: Path, version: str) -> Path:
    """Copy a file of SQLite, whole or not at all, to one beside it that is named after its version.

    It may be open, with a transaction under way that has not written yet. A copy of an earlier try is replaced:
    it holds nothing that the file does not. Raises sqlite3.Error, OSError.
    """
    copy = file.with_name(f"{file.name}.{version}.backup")
    partial = copy.with_name(f"{copy.name}.new")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    source = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(source, uri=True)) as old, closing(sqlite3.connect(partial)) as new:
        old.backup(new)
    _to_disk(partial)
    partial.replace(copy)
    _to_disk(copy.parent)
    return copy


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
