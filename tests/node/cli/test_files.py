"""Files that commands write are there whole, or not at all."""

import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from node.cli.files import changed_file, new_file
from node.cli.output import CommandFailed


def fail_after(written: BinaryIO, error: Exception) -> None:
    written.write(b"half")
    raise error


def test_a_new_file_is_the_owners_alone_and_replaces_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with new_file(file) as written:
        written.write(b"first")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(CommandFailed, match="is there already: name another file"), new_file(file) as written:
        written.write(b"second")
    assert file.read_bytes() == b"first"


def test_a_new_file_that_was_not_finished_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), new_file(tmp_path / "file") as written:
        fail_after(written, ValueError("stop"))
    assert not list(tmp_path.iterdir())


def test_a_file_stays_as_it_was_until_what_takes_its_place_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    (tmp_path / "file.new").write_bytes(b"left by one that was killed")
    with pytest.raises(CommandFailed, match="cannot be written: No space"), changed_file(file) as written:
        fail_after(written, OSError(28, "No space left on device"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"before")]
    with changed_file(file) as written:
        written.write(b"after")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"after")]


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    for write in (new_file, changed_file):
        with pytest.raises(CommandFailed, match=r"file(\.new)? cannot be written: No such file"):
            write(tmp_path / "no" / "file").__enter__()
