"""Manifests: a model's one name, computed from the bytes of its file alone, never from what it is called."""

from collections import Counter
from functools import cached_property
from hashlib import sha256
from os import fstat
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen

from ledger import codec
from node.models.gguf import BadModelFile, Gguf, MalformedGguf, TruncatedGguf, read_gguf, read_stream
from node.models.merkle import File, Progress, digest_stream
from node.models.quantization import FILE_TYPES, TENSOR_TYPES

MAX_MANIFEST: Final = 65_536  # bytes; a file takes about 100, and models come in some hundred files at most
_DIGEST_BYTES: Final = 32
_GGUF_VERSION: Final = 3
_MAX_CONTEXT: Final = 2**31 - 1  # tokens; llama.cpp counts positions in 32 bits


class BadManifest(ValueError):
    """Bytes from a peer that are no manifest."""


class SplitModel(BadModelFile):
    """One part of a model that lies in several files."""

    def __init__(self, path: str, parts: int) -> None:
        super().__init__(path, f"one of {parts} parts", "Merge them with `llama-gguf-split --merge` first.")
        self.parts = parts


@frozen
class Manifest:
    """What a model is. `context` in tokens, `parameters` in weights, `tokenizer` the digest of its tokenizer
    file.
    """

    format: str
    architecture: str
    parameters: int
    quantization: str
    context: int
    files: tuple[File, ...]
    tokenizer: bytes

    @property
    def raw(self) -> bytes:
        """The canonical bytes: deterministic CBOR of the fields by name."""
        return codec.encode(asdict(self))

    @cached_property
    def digest(self) -> bytes:
        """The model's name: SHA-256 of `raw`."""
        return sha256(self.raw).digest()

    @classmethod
    def decode(cls, raw: bytes) -> "Manifest":
        """Read canonical bytes from a peer. Raises BadManifest."""
        try:
            manifest = _structured(codec.decode(raw, MAX_MANIFEST))
        except (codec.Malformed, KeyError, TypeError) as error:
            raise BadManifest(f"not a manifest: {error}") from None
        if manifest.raw != raw or not _well_formed(manifest):
            raise BadManifest("not a manifest: a field is missing, unknown or out of range")
        return manifest


def manifest_of(path: Path, progress: Progress | None = None) -> Manifest:
    """Read a model's file once and name it; about a second for each GB. Raises BadModelFile, OSError."""
    with path.open("rb") as stream:
        size = fstat(stream.fileno()).st_size
        gguf = read_stream(stream, size, str(path))
        stream.seek(0)
        file = digest_stream(stream, size, progress)
    if file.length != size:
        raise TruncatedGguf(str(path), size, file.length)
    _refuse_parts(gguf)
    return Manifest(
        format="gguf",
        architecture=gguf.architecture,
        parameters=gguf.parameters,
        quantization=quantization_of(gguf),
        context=_context_of(gguf),
        files=(file,),
        tokenizer=sha256(tokenizer_bytes(gguf)).digest(),
    )


def tokenizer_file(path: Path) -> bytes:
    """The tokenizer of a model file, a GGUF without tensors. Raises BadModelFile, OSError."""
    return tokenizer_bytes(read_gguf(path))


def tokenizer_bytes(gguf: Gguf) -> bytes:
    """A GGUF (version 3) without tensors: the architecture, then its and the tokenizer's keys as they are."""
    architecture = gguf.architecture
    prefixes = (f"{architecture}.", "tokenizer.")
    first = [pair for pair in gguf.pairs if pair.key == "general.architecture"]
    rest = [pair for pair in gguf.pairs if pair.key.startswith(prefixes) and pair not in first]
    kept = [gguf.raw[pair.start : pair.end] for pair in first + rest]
    counts = (0).to_bytes(8, "little") + len(kept).to_bytes(8, "little")
    return b"GGUF" + _GGUF_VERSION.to_bytes(4, "little") + counts + b"".join(kept)


def quantization_of(gguf: Gguf) -> str:
    """llama.cpp's name for how weights are stored; without `general.file_type`, the type of most of them."""
    declared = gguf.metadata.get("general.file_type")
    if isinstance(declared, int) and declared in FILE_TYPES:
        return FILE_TYPES[declared]
    weights: Counter[int] = Counter()
    for tensor in gguf.tensors:
        weights[tensor.kind] += tensor.elements
    if not weights:
        raise MalformedGguf(gguf.path, "it has no tensors, so it is no model")
    return TENSOR_TYPES[weights.most_common(1)[0][0]].name


def _context_of(gguf: Gguf) -> int:
    value = gguf.metadata.get(f"{gguf.architecture}.context_length")
    if type(value) is not int or not 1 <= value <= _MAX_CONTEXT:
        raise MalformedGguf(gguf.path, f"its context length is {value!r}")
    return value


def _refuse_parts(gguf: Gguf) -> None:
    parts = gguf.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise SplitModel(gguf.path, parts)


def _structured(fields: dict[str, Any]) -> Manifest:
    files = tuple(File(**file) for file in fields["files"])
    return Manifest(**{**fields, "files": files})


def _well_formed(manifest: Manifest) -> bool:
    words: tuple[object, ...] = (manifest.format, manifest.architecture, manifest.quantization)
    return (
        all(isinstance(word, str) and 0 < len(word) <= 64 for word in words)
        and all(_is_count(count) for count in (manifest.parameters, manifest.context))
        and _is_digest(manifest.tokenizer)
        and len(manifest.files) > 0
        and all(_is_count(file.length) and _is_digest(file.sha256, file.root) for file in manifest.files)
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**63


def _is_digest(*values: object) -> bool:
    return all(isinstance(value, bytes) and len(value) == _DIGEST_BYTES for value in values)
