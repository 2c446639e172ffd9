"""Read the metadata of a GGUF file that may be hostile, before anything written in C++ sees it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Only the
header, the key-value pairs and the tensors' descriptions are read; tensor data is never touched, only its
place is checked. What llama.cpp would refuse, or crash on, is refused here with a reason: nested arrays, keys
given twice, tensors outside the file or out of order.
"""

import math
import os
import re
import struct
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

from attrs import field, frozen

from node.models.quantization import TENSOR_TYPES

# The largest vocabularies of today (262,144 tokens with scores and merges) take some 20 MiB.
MAX_METADATA: Final = 64 * 2**20  # bytes
MAX_FILE: Final = 4 * 2**40  # bytes
MAX_PAIRS: Final = 65_536
MAX_TENSORS: Final = 131_072
MAX_ARRAY: Final = 4 * 2**20  # elements
MAX_KEY: Final = 512  # bytes
MAX_STRING: Final = 32 * 2**20  # bytes
MAX_TENSOR_NAME: Final = 63  # bytes; ggml's GGML_MAX_NAME less its final zero
MAX_DIMENSIONS: Final = 4
MAX_ELEMENTS: Final = 2**48  # in one tensor

_MAGIC: Final = b"GGUF"
_CHUNK: Final = 2**20  # bytes read at a time
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_ARCHITECTURE: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class BadModelFile(Exception):
    """A model file that cannot be used: which, why, and what to do about it."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(f"{path}: {reason}. {advice}")
        self.path, self.reason, self.advice = path, reason, advice


class NotGguf(BadModelFile):
    """The file is something else."""

    def __init__(self, path: str, start: bytes) -> None:
        super().__init__(path, f"not a GGUF file (it begins with {start!r})", "Name a .gguf model file.")
        self.start = start


class UnsupportedGguf(BadModelFile):
    """A GGUF, but of a version or kind that is not read here."""

    def __init__(self, path: str, reason: str, advice: str = "Convert it with a recent llama.cpp.") -> None:
        super().__init__(path, reason, advice)


class TruncatedGguf(BadModelFile):
    """The file ends before what it announces."""

    def __init__(self, path: str, needs: int, has: int) -> None:
        super().__init__(path, f"cut short: needs {needs} bytes, has {has}", "Download it again.")
        self.needs, self.has = needs, has


class GgufTooLarge(BadModelFile):
    """Some count or length in the file is above what any honest model needs."""

    def __init__(self, path: str, what: str, size: int, limit: int) -> None:
        super().__init__(path, f"{what} is {size}, at most {limit} allowed", "Get it from a source you trust.")
        self.what, self.size, self.limit = what, size, limit


class MalformedGguf(BadModelFile):
    """The file contradicts itself or its format."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason, "Get it from a source you trust.")


@frozen
class Array:
    """An array's type and length; its elements stay in the file, for nothing here needs them."""

    kind: int
    count: int


Value = int | float | bool | str | Array


@frozen
class Pair:
    """One key with its value, and where it stands: `raw[start:end]` of the file, key and type included."""

    key: str
    value: Value
    start: int
    end: int


@frozen
class Tensor:
    """A tensor's name, shape (fastest dimension first), ggml type number, and place: offset from the file's
    start.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@frozen
class Gguf:
    """What a GGUF says about itself. `raw` is the file up to the end of its key-value pairs."""

    path: str
    version: int
    pairs: tuple[Pair, ...]
    tensors: tuple[Tensor, ...]
    raw: bytes = field(repr=False)

    @property
    def metadata(self) -> dict[str, Value]:
        """The values by key."""
        return {pair.key: pair.value for pair in self.pairs}

    @property
    def architecture(self) -> str:
        """`general.architecture`, the prefix of the model's own keys. Raises MalformedGguf."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not _ARCHITECTURE.fullmatch(value):
            raise MalformedGguf(self.path, f"general.architecture is {value!r}")
        return value

    @property
    def parameters(self) -> int:
        """How many weights the model has: the elements of all its tensors."""
        return sum(tensor.elements for tensor in self.tensors)


def read_gguf(source: Path | bytes) -> Gguf:
    """Read a file, or the bytes of one from a peer. Raises BadModelFile, or OSError where the file cannot be
    read.
    """
    if isinstance(source, bytes):
        return read_stream(BytesIO(source), len(source), "the peer's GGUF")
    with source.open("rb") as stream:
        return read_stream(stream, os.fstat(stream.fileno()).st_size, str(source))


def read_stream(stream: BinaryIO, size: int, path: str) -> Gguf:
    """Read from an open file of `size` bytes; `path` only names it in errors. Raises BadModelFile."""
    if size > MAX_FILE:
        raise GgufTooLarge(path, "the file's size in bytes", size, MAX_FILE)
    return _Reader(stream, size, path).read()


class _Reader:
    """Walks the file once; `_need` makes sure that bytes are there before anything is unpacked from them."""

    def __init__(self, stream: BinaryIO, size: int, path: str) -> None:
        self._stream, self._size, self._path = stream, size, path
        self._raw = bytearray()
        self._at = 0

    def read(self) -> Gguf:
        version = self._header()
        tensor_count = self._limited("the number of tensors", MAX_TENSORS)
        pair_count = self._limited("the number of keys", MAX_PAIRS)
        pairs = tuple(self._pair() for _ in range(pair_count))
        if len({pair.key for pair in pairs}) != len(pairs):
            raise MalformedGguf(self._path, "a key is given twice")
        end = self._at
        alignment = self._alignment(pairs)
        tensors = tuple(self._place([self._tensor() for _ in range(tensor_count)], alignment))
        return Gguf(self._path, version, pairs, tensors, bytes(self._raw[:end]))

    def _header(self) -> int:
        self._fill(min(self._size, 8))
        if self._raw[:4] != _MAGIC:
            raise NotGguf(self._path, bytes(self._raw[:4]))
        self._at = 4
        version = self._u32()
        if version & 0xFFFF == 0:
            raise UnsupportedGguf(self._path, "a big-endian GGUF", "Get the little-endian file.")
        if version not in (2, 3):
            raise UnsupportedGguf(self._path, f"GGUF version {version}, only 2 and 3 are read")
        return version

    def _pair(self) -> Pair:
        start = self._at
        key = self._text("a key's length", MAX_KEY)
        kind = self._u32()
        return Pair(key, self._value(kind), start, self._at)

    def _value(self, kind: int) -> Value:
        if kind in _SCALARS:
            scalar: int | float | bool = self._unpack(_SCALARS[kind])
            return scalar
        if kind == _STRING:
            return self._text("a string's length", MAX_STRING)
        if kind == _ARRAY:
            return self._array()
        raise MalformedGguf(self._path, f"a value of unknown type {kind}")

    def _array(self) -> Array:
        kind = self._u32()
        count = self._limited("an array's length", MAX_ARRAY)
        if kind in _SCALARS:
            self._skip(count * _SCALARS[kind].size)
        elif kind == _STRING:
            self._skip_strings(count)
        else:
            raise MalformedGguf(self._path, f"an array of elements of type {kind}")
        return Array(kind, count)

    def _skip_strings(self, count: int) -> None:
        # A loop of its own, without calls: vocabularies have half a million strings.
        at, have = self._at, len(self._raw)
        for _ in range(count):
            if at + 8 > have:
                self._fill(at + 8)
            (length,) = _U64.unpack_from(self._raw, at)
            at += 8 + length
            if at > have:
                self._fill(at)
                have = len(self._raw)
        self._at = at

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text("a tensor name's length", MAX_TENSOR_NAME)
        dimensions = self._u32()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise MalformedGguf(self._path, f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._u64() for _ in range(dimensions))
        if not 0 < math.prod(shape) <= MAX_ELEMENTS:
            raise MalformedGguf(self._path, f"tensor {name!r} has the shape {shape}")
        return name, shape, self._u32(), self._u64()

    def _place(self, described: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> list[Tensor]:
        """Check that the tensors lie one behind the other, as llama.cpp demands, and inside the file."""
        if len({name for name, *_ in described}) != len(described):
            raise MalformedGguf(self._path, "a tensor is given twice")
        base = _align(self._at, alignment)
        expected, tensors = 0, []
        for name, shape, kind, offset in described:
            size = self._tensor_size(name, shape, kind)
            if offset != expected:
                raise MalformedGguf(self._path, f"tensor {name!r} is at {offset} and should be at {expected}")
            if base + offset + size > self._size:
                raise TruncatedGguf(self._path, base + offset + size, self._size)
            expected = _align(offset + size, alignment)
            tensors.append(Tensor(name, shape, kind, base + offset, size))
        return tensors

    def _tensor_size(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        stored = TENSOR_TYPES.get(kind)
        if stored is None:
            raise UnsupportedGguf(self._path, f"tensor {name!r} has the unknown type {kind}", "Update idlemesh.")
        if shape[0] % stored.block:
            raise MalformedGguf(self._path, f"rows of tensor {name!r} are no whole blocks of {stored.name}")
        return math.prod(shape) // stored.block * stored.size

    def _alignment(self, pairs: tuple[Pair, ...]) -> int:
        value = next((pair.value for pair in pairs if pair.key == "general.alignment"), 32)
        if type(value) is not int or not 1 <= value <= 65_536 or value & (value - 1):
            raise MalformedGguf(self._path, f"general.alignment is {value!r}")
        return value

    def _text(self, what: str, limit: int) -> str:
        length = self._limited(what, limit)
        self._skip(length)
        return self._raw[self._at - length : self._at].decode("utf-8", "replace")

    def _limited(self, what: str, limit: int) -> int:
        count = self._u64()
        if count > limit:
            raise GgufTooLarge(self._path, what, count, limit)
        return count

    def _u32(self) -> int:
        value: int = self._unpack(_U32)
        return value

    def _u64(self) -> int:
        value: int = self._unpack(_U64)
        return value

    def _unpack(self, form: struct.Struct) -> Any:
        self._skip(form.size)
        return form.unpack_from(self._raw, self._at - form.size)[0]

    def _skip(self, size: int) -> None:
        end = self._at + size
        if end > len(self._raw):
            self._fill(end)
        self._at = end

    def _fill(self, end: int) -> None:
        if end > MAX_METADATA:
            raise GgufTooLarge(self._path, "the metadata's size in bytes", end, MAX_METADATA)
        if end > self._size:
            raise TruncatedGguf(self._path, end, self._size)
        while len(self._raw) < end:
            chunk = self._stream.read(max(_CHUNK, end - len(self._raw)))
            if not chunk:
                raise TruncatedGguf(self._path, end, len(self._raw))
            self._raw += chunk


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
