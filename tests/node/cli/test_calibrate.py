"""`idlemesh calibrate`, on the demo model."""

import json
from pathlib import Path

from node.models.manifest import manifest_of
from tests.node.cli.conftest import Idlemesh
from tests.node.trading import DEMO
from verify.calibration import decode


def test_a_model_is_calibrated_and_called_again_it_goes_on(idlemesh: Idlemesh, tmp_path: Path) -> None:
    calibrate = ["calibrate", DEMO, "--home", tmp_path, "--threads", "1", "--json"]

    first = idlemesh(*calibrate, "--tokens", "100").json()
    again = idlemesh(*calibrate, "--tokens", first["tokens"] + 1).json()

    assert first["model"] == manifest_of(DEMO).digest.hex()
    assert {(pair["seller"], pair["checker"]) for pair in again["pairs"]} == {
        (seller, checker) for seller in ("f16", "q8_0") for checker in ("f16", "q8_0")
    }
    assert again["tokens"] == first["tokens"] + again["added"] > first["tokens"] >= 100
    file = Path(again["file"])
    assert file.parent == tmp_path / "calibrations"
    assert sum(one.tokens for one in decode(file.read_bytes())) == again["tokens"]


def test_what_is_calibrated_already_is_shown_for_people(idlemesh: Idlemesh, tmp_path: Path) -> None:
    calibrate = ["calibrate", DEMO, "--home", tmp_path, "--threads", "1"]
    idlemesh(*calibrate, "--tokens", "100", "--json")

    said = idlemesh(*calibrate, "--tokens", "1")

    assert said.status == 0
    assert "too few" in said.out
    assert str(tmp_path / "calibrations") in said.out.replace("\n", "")


def test_a_remote_that_is_not_there_or_not_described_cannot_be_calibrated(idlemesh: Idlemesh, tmp_path: Path) -> None:
    remote = 'name = "cloud"\nurl = "http://127.0.0.1:9/v1"\nmodel = "x"'
    (tmp_path / "config.toml").write_text(f"[[remotes]]\n{remote}\n")
    for name, hint in (("clod", "it has: cloud"), ("cloud", "server = ")):
        said = idlemesh("calibrate", DEMO, "--home", tmp_path, "--remote", name)
        assert said.status == 1
        assert hint in said.err.replace("\n", " ")


def test_what_is_no_model_cannot_be_calibrated(idlemesh: Idlemesh, tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        said = idlemesh("calibrate", path, "--home", tmp_path)
        assert said.status == 1
        assert "Name a .gguf model file" in said.err


def test_a_damaged_calibration_says_what_to_do(idlemesh: Idlemesh, tmp_path: Path) -> None:
    made = idlemesh("calibrate", DEMO, "--home", tmp_path, "--threads", "1", "--tokens", "1", "--json").json()
    body = json.loads(Path(made["file"]).read_bytes())
    Path(made["file"]).write_text(json.dumps(body | {"edges": []}))

    said = idlemesh("calibrate", DEMO, "--home", tmp_path)

    assert said.status == 1
    assert "delete the file" in said.err
