"""`idlemesh calibrate`, on the demo model."""

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from ledger.records import Sampling
from node.cli import calibrate as calibrating
from node.engine.calibration import CalibrationFiles, fingerprint
from node.home import Home
from node.models.manifest import manifest_of
from tests.node.cli.conftest import Idlemesh
from tests.node.trading import DEMO
from verify.attestation import abstention
from verify.calibration import decode
from verify.steering import Steering

OTHER = "llama.cpp of another machine"
BAD: tuple[dict[str, Any], ...] = (
    {"answer": [1] * 200},
    {"answer": [True]},
    {"answer": [-1]},
    {"seed": 2**64},
    {"seller": 2},
    {"sampling": [5, 5, 5, 5]},
)


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


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a machine with another build recorded."""
    folder = tmp_path_factory.mktemp("recording")
    calibrating.record_answers(Home(folder), DEMO, 100, 1, -1, folder / "file", quiet=True)
    head, *answers = (folder / "file").read_text().splitlines()
    sellers = [one | {"build": OTHER} for one in json.loads(head)["sellers"]]
    path = folder / "answers.jsonl"
    path.write_text("\n".join([json.dumps(json.loads(head) | {"sellers": sellers}), *answers]) + "\n")
    return path


def test_two_machines_calibrate_the_engine_of_one_against_that_of_the_other(
    idlemesh: Idlemesh, tmp_path: Path, recording: Path
) -> None:
    calibrate = ["calibrate", DEMO, "--home", tmp_path, "--threads", "1", "--json", "--answers", recording]

    first, again = idlemesh(*calibrate).json(), idlemesh(*calibrate).json()

    assert first["added"] == again["tokens"] == first["tokens"] >= 200, "the same answers count once"
    model = manifest_of(DEMO).digest
    seller, checker = evolve(fingerprint("q8_0"), build=OTHER), fingerprint("f16")
    found = CalibrationFiles(tmp_path / "calibrations").find(model, seller, checker)
    assert found is not None
    assert sum(1 for counts in found.counts.values() for n in counts[6:] if n) == 0
    why = abstention(seller, checker, found, Sampling(0, 1_000_000, 0, 0), Steering())
    assert why is not None
    assert "tokens are calibrated" in why


def test_a_recording_of_another_model_or_of_nonsense_calibrates_nothing(
    idlemesh: Idlemesh, tmp_path: Path, recording: Path
) -> None:
    head, answer, *_ = recording.read_text().splitlines()

    def with_line(**changed: Any) -> list[str]:
        return [head, json.dumps(json.loads(answer) | changed)]

    wrong = [
        ("of another model", [json.dumps(json.loads(head) | {"model": "00" * 32}), answer]),
        ("no answers", [head]),
        ("does not begin", [answer]),
        ("which engines", [json.dumps(json.loads(head) | {"sellers": [{}]}), answer]),
        ("no lines of JSON", [head, "[" * 60_000]),
        ("a line of more", [head, " " * 70_000]),
        *(("is no answer", with_line(**changed)) for changed in BAD),
    ]
    for why, lines in wrong:
        (tmp_path / "file").write_text("\n".join(lines))
        said = idlemesh("calibrate", DEMO, "--home", tmp_path, "--answers", tmp_path / "file")
        assert said.status == 1
        assert why in said.err.replace("\n", " ")
    assert not (tmp_path / "calibrations").exists()


def test_answers_that_the_model_would_not_give_are_refused(idlemesh: Idlemesh, tmp_path: Path, recording: Path) -> None:
    head, *answers = recording.read_text().splitlines()
    other = [json.dumps(json.loads(one) | {"answer": [7] * 30}) for one in answers]
    (tmp_path / "file").write_text("\n".join([head, *other]))
    said = idlemesh("calibrate", DEMO, "--home", tmp_path, "--threads", "1", "--answers", tmp_path / "file")
    assert said.status == 1
    assert "another model answers" in said.err.replace("\n", " ")


def test_one_way_to_calibrate_is_chosen(idlemesh: Idlemesh, tmp_path: Path) -> None:
    said = idlemesh("calibrate", DEMO, "--home", tmp_path, "--remote", "x", "--answers", tmp_path / "file")
    assert said.status == 2
    assert "choose one" in said.err
