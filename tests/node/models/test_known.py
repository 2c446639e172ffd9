"""A file is read once until it changes; what is remembered of it is believed only if it is whole."""

import json
import os
from pathlib import Path

import pytest

from node.models import known
from node.models.gguf import BadModelFile
from node.models.known import FileIdentity, KnownModels
from node.models.manifest import manifest_of


class Reading:
    """Counts how often a file was read."""

    def __init__(self) -> None:
        self.files = 0

    def __call__(self, done: int, whole: int) -> None:
        self.files += done == whole


@pytest.fixture
def model(demo: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model.gguf"
    copy.write_bytes(demo.read_bytes())
    return copy


def test_a_file_is_read_once(model: Path, tmp_path: Path) -> None:
    reading, cache = Reading(), tmp_path / "home" / "manifests.json"
    first = KnownModels(cache).read(model, reading)
    second = KnownModels(cache).read(model, reading)
    assert first == second
    assert (first.manifest, first.identity) == (manifest_of(model), FileIdentity.of(model))
    assert reading.files == 1


def test_a_relative_path_names_the_same_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, models = Reading(), KnownModels(tmp_path / "manifests.json")
    models.read(model, reading)
    monkeypatch.chdir(model.parent)
    models.read(Path(model.name), reading)
    assert reading.files == 1


def test_a_file_that_was_touched_or_replaced_is_read_again(model: Path, tmp_path: Path) -> None:
    reading, models = Reading(), KnownModels(tmp_path / "manifests.json")
    before = models.read(model, reading)
    os.utime(model, ns=(1, 1))
    touched = models.read(model, reading)
    copy = model.with_suffix(".new")
    copy.write_bytes(model.read_bytes())
    copy.replace(model)
    replaced = models.read(model, reading)
    assert reading.files == 3
    assert before.manifest == touched.manifest == replaced.manifest
    assert len({before.identity, touched.identity, replaced.identity}) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda _: "[" * 100_000,
        lambda _: "[]",
        lambda text: text.replace('"rules": 1', '"rules": 0'),
        lambda text: text.replace('"manifest": "', '"manifest": "00'),
        lambda text: text.replace('"manifest": "', '"manifest": "xy'),
        lambda text: text.replace('"manifest"', '"other"'),
        lambda text: json.dumps({"rules": 1, "files": dict.fromkeys(json.loads(text)["files"], 3)}),
        lambda text: json.dumps({"rules": 1, "files": [3]}),
    ],
)
def test_what_is_damaged_is_forgotten(damage: object, model: Path, tmp_path: Path) -> None:
    reading, cache = Reading(), tmp_path / "manifests.json"
    true = KnownModels(cache).read(model, reading)
    assert callable(damage)
    cache.write_text(damage(cache.read_text()))
    assert KnownModels(cache).read(model, reading) == true
    assert reading.files == 2


def test_a_cache_that_is_too_large_is_not_read(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, cache = Reading(), tmp_path / "manifests.json"
    KnownModels(cache).read(model, reading)
    monkeypatch.setattr(known, "_MAX_FILE", 10)
    KnownModels(cache).read(model, reading)
    assert reading.files == 2


def test_the_longest_unused_is_forgotten_first(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MAX_KNOWN", 1)
    reading, models = Reading(), KnownModels(tmp_path / "manifests.json")
    other = model.with_name("other.gguf")
    other.write_bytes(model.read_bytes())
    models.read(model, reading)
    models.read(other, reading)
    models.read(other, reading)
    models.read(model, reading)
    assert reading.files == 3


def test_a_file_that_changes_while_it_is_read_is_refused(model: Path, tmp_path: Path) -> None:
    def meddle(done: int, whole: int) -> None:
        os.utime(model, ns=(done, done))

    with pytest.raises(BadModelFile, match="changed while it was read"):
        KnownModels(tmp_path / "manifests.json").read(model, meddle)


def test_what_is_no_model_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(BadModelFile):
        KnownModels(tmp_path / "manifests.json").read(tmp_path / "x.gguf")
    with pytest.raises(FileNotFoundError):
        KnownModels(tmp_path / "manifests.json").read(tmp_path / "y.gguf")
    assert not (tmp_path / "manifests.json").exists()
