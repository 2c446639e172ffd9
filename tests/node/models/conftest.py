"""A real model, and hostile files made to measure."""

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from node.models.template import TemplateRenderer

Pairs = Sequence[tuple[str, int, bytes]]
Tensors = Sequence[tuple[str, tuple[int, ...], int, int]]
BuildGguf = Callable[..., bytes]

DEMO = Path(__file__).parents[3] / "node" / "models" / "demo" / "demo-Q8_0.gguf"


@pytest.fixture(scope="session")
def demo() -> Path:
    return DEMO


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def gguf_bytes(
    pairs: Pairs = (),
    tensors: Tensors = (),
    *,
    version: int = 3,
    tail: bytes = b"",
    pair_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A GGUF of (key, type, encoded value) and (name, shape, type, offset), padded before `tail`."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    raw = b"GGUF" + struct.pack("<IQQ", version, *counts)
    for key, kind, value in pairs:
        raw += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        raw += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return raw + bytes(-len(raw) % 32) + tail if tail else raw


@pytest.fixture
def build_gguf() -> BuildGguf:
    return gguf_bytes


@pytest.fixture
def encode_text() -> Callable[[str | bytes], bytes]:
    return text


@pytest.fixture
async def renderer() -> AsyncIterator[TemplateRenderer]:
    made = TemplateRenderer()
    yield made
    await made.close()
