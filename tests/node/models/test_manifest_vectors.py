"""Manifests and Merkle roots as the vectors have them, for other implementations to compare with."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from node.models.manifest import BadManifest, Manifest
from node.models.merkle import File, digest_stream

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "manifest.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["manifests"], ids=lambda v: v["digest"][:8])
def test_a_manifest_reads_and_names_the_model_as_the_vectors_say(vector: dict[str, Any]) -> None:
    manifest = Manifest.decode(bytes.fromhex(vector["raw"]))
    assert (manifest.raw.hex(), manifest.digest.hex()) == (vector["raw"], vector["digest"])


@pytest.mark.parametrize("vector", VECTORS["malformed"], ids=lambda v: v["why"])
def test_what_is_no_manifest_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(BadManifest):
        Manifest.decode(bytes.fromhex(vector["raw"]))


@pytest.mark.parametrize("vector", VECTORS["files"], ids=lambda v: v["length"])
def test_a_file_has_the_digests_of_the_vectors(vector: dict[str, Any]) -> None:
    content = bytes(i % 251 for i in range(vector["length"]))
    found = digest_stream(io.BytesIO(content), len(content))
    assert found == File(len(content), bytes.fromhex(vector["sha256"]), bytes.fromhex(vector["root"]))
