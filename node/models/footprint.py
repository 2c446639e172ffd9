"""How much memory a model takes, read from its file before anything is loaded."""

import math
from pathlib import Path
from typing import Final

from attrs import frozen

from node.models.gguf import Gguf, read_gguf

# Compute buffers, the vocabulary, and what the allocator rounds up to; the measurement after loading corrects it.
MARGIN_BYTES: Final = 64 * 2**20
# For each number; a q8_0 block keeps 32 of them and their scale in 34 bytes.
_KV_BYTES: Final = {"f16": 2.0, "q8_0": 34 / 32}
_MOST: Final = 2**20  # layers, heads or widths; more is no model's, and would only overflow the estimate


@frozen
class Footprint:
    """`weights` in bytes; `cell` the numbers that one token leaves in the KV cache; `trained` the context in tokens."""

    weights: int
    cell: int
    trained: int

    def bytes(self, tokens: int, kv: str) -> int:
        """An upper estimate of what the model takes with room for so many tokens in its KV cache ("f16" or "q8_0")."""
        return self.weights + math.ceil(self.cell * tokens * _KV_BYTES[kv]) + MARGIN_BYTES

    def room(self, bytes: int, kv: str) -> int:  # noqa: A002 - the unit is the point
        """For how many tokens a KV cache fits into so many bytes beside the weights; 0 if not even those do."""
        left = bytes - self.weights - MARGIN_BYTES
        if left <= 0 or not self.cell:
            return _MOST if left > 0 else 0
        return int(left / (self.cell * _KV_BYTES[kv]))


def footprint_of(path: Path) -> Footprint:
    """Read a model file's header. Raises BadModelFile, OSError."""
    gguf = read_gguf(path)
    return Footprint(path.stat().st_size, _cell(gguf), max(1, _number(gguf, "context_length") or 1))


def _cell(gguf: Gguf) -> int:
    """Numbers in one token's keys and values, over all layers; as if every layer kept every token."""
    layers, heads = _number(gguf, "block_count") or 0, _number(gguf, "attention.head_count") or 1
    width = _number(gguf, "embedding_length") or 0
    # Where it differs from layer to layer the file holds an array: then as many as there are heads at most.
    kept = _number(gguf, "attention.head_count_kv") or heads
    head = width // heads if heads else 0
    key = _number(gguf, "attention.key_length") or head
    value = _number(gguf, "attention.value_length") or head
    return layers * kept * (key + value)


def _number(gguf: Gguf, name: str) -> int | None:
    value = gguf.metadata.get(f"{gguf.architecture}.{name}")
    return value if type(value) is int and 0 < value < _MOST * 64 else None
