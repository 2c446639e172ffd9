"""Files that commands write: there whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from node.cli.output import CommandFailed


@contextmanager
def new_file(file: Path) -> Iterator[BinaryIO]:
    """A file that was not there, for the owner's eyes only. Raises CommandFailed."""
    try:
        # From its first moment on: who opens a file before its mode is changed may read it for ever.
        with open(file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as written:
            try:
                yield written
                written.flush()
                os.fsync(written.fileno())
            except BaseException:
                file.unlink()
                raise
    except FileExistsError:
        raise CommandFailed(f"{file} is there already: name another file") from None
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None


@contextmanager
def changed_file(file: Path) -> Iterator[BinaryIO]:
    """What takes the place of a file that is there; until it is whole, that stays as it was. Raises CommandFailed."""
    partial = file.with_name(f"{file.name}.new")
    try:
        partial.unlink(missing_ok=True)
        with new_file(partial) as written:
            yield written
        partial.replace(file)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None
