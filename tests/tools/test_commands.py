"""Commands of the set-up: what they show, and how they fail."""

import sys
from pathlib import Path

import pytest

from tools.commands import SetUpError, alone, stage, watched


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("", ""),
        ("Collecting cbor2==6.2.1\n  Downloading cbor2-6.2.1.whl", "Downloading cbor2-6.2.1.whl"),
        ("  Collecting x\n  [1/140] c++ a.cpp\n  [12/140] c++ b.cpp\n  warning: [-Wall] 9/9\n", "[12/140]"),
        ("[  3%] Building CXX object a.o\n[ 14%] Building CXX object b.o\n", "[14%]"),
    ],
)
def test_the_stage_is_read_off_the_log(log: str, shown: str) -> None:
    assert stage(log) == shown


def test_a_command_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    script = "import sys; print('the reason'); sys.exit(3)"
    with pytest.raises(SetUpError, match=r"(?s)Trying: failed \(3\)\..*the reason"):
        watched("Trying", [sys.executable, "-c", script], tmp_path / "log")


def test_a_command_that_works_says_its_title(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched("Trying", [sys.executable, "-c", "print('done')"], tmp_path / "log")
    assert capsys.readouterr() == ("", "Trying\n")
    assert (tmp_path / "log").read_text() == "done\n"


def test_a_lock_is_free_again_after_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "lock", "waiting"):
        raise ZeroDivisionError
    with alone(tmp_path / "lock", "waiting"):
        pass
    assert capsys.readouterr() == ("", "")
