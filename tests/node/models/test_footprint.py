"""How much memory a model takes is read from its header."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from node.models.footprint import MARGIN_BYTES, Footprint, footprint_of
from tests.node.models.conftest import BuildGguf

U32, ARRAY = 4, 9


def test_the_demo_models_kv_cache_is_its_layers_heads_and_widths(demo: Path) -> None:
    footprint = footprint_of(demo)
    assert footprint.weights == demo.stat().st_size
    assert footprint.trained == 2_048
    assert footprint.bytes(1_000, "f16") == footprint.weights + 2_000 * footprint.cell + MARGIN_BYTES
    assert footprint.bytes(1_000, "q8_0") < footprint.bytes(1_000, "f16")


@pytest.mark.parametrize(
    ("keys", "cell"),
    [
        ({"block_count": 4, "embedding_length": 64, "attention.head_count": 8}, 4 * 8 * 16),
        (
            {"block_count": 4, "embedding_length": 64, "attention.head_count": 8, "attention.head_count_kv": 2},
            4 * 2 * 16,
        ),
        (
            {
                "block_count": 4,
                "attention.head_count": 8,
                "attention.head_count_kv": 2,
                "attention.key_length": 32,
                "attention.value_length": 16,
            },
            4 * 2 * 48,
        ),
        ({}, 0),
        ({"block_count": 2**32 - 1, "embedding_length": 64, "attention.head_count": 8}, 0),
    ],
    ids=["all heads", "grouped", "own widths", "nothing said", "nonsense"],
)
def test_a_cell_holds_the_keys_and_values_of_all_layers(
    keys: dict[str, int], cell: int, build_gguf: BuildGguf, encode_text: Callable[[str], bytes], tmp_path: Path
) -> None:
    pairs = [("general.architecture", 8, encode_text("llama"))]
    pairs += [(f"llama.{key}", U32, struct.pack("<I", value)) for key, value in keys.items()]
    path = tmp_path / "model.gguf"
    path.write_bytes(build_gguf(pairs))
    assert footprint_of(path) == Footprint(path.stat().st_size, cell, 1)
