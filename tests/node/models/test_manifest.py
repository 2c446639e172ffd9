"""A manifest is a function of the bytes alone, and its canonical bytes have one form."""

import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from attrs import evolve
from gguf import GGUFReader

from ledger import codec
from node.models.gguf import MalformedGguf, read_gguf
from node.models.llama import quantize
from node.models.manifest import (
    BadManifest,
    Manifest,
    SplitModel,
    manifest_of,
    tokenizer_bytes,
    tokenizer_file,
)
from node.models.vocab import open_vocab

Build = Callable[..., bytes]
Text = Callable[[str | bytes], bytes]


def test_the_demo_model_has_its_manifest(demo: Path) -> None:
    manifest = manifest_of(demo)
    assert (manifest.format, manifest.architecture, manifest.quantization) == ("gguf", "llama", "Q8_0")
    assert (manifest.parameters, manifest.context) == (3_410_176, 2_048)
    (file,) = manifest.files
    assert file.sha256 == sha256(demo.read_bytes()).digest()
    assert manifest.tokenizer == sha256(tokenizer_file(demo)).digest()


def test_a_files_name_does_not_matter(demo: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "Llama-3.1-405B-F32.gguf"
    renamed.write_bytes(demo.read_bytes())
    assert manifest_of(renamed).digest == manifest_of(demo).digest


def test_one_changed_weight_is_another_model(demo: Path, tmp_path: Path) -> None:
    raw = bytearray(demo.read_bytes())
    raw[-1] ^= 1
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(raw)
    before, after = manifest_of(demo), manifest_of(changed)
    assert before.digest != after.digest
    assert before.files[0].root != after.files[0].root
    assert before.tokenizer == after.tokenizer


def test_a_manifest_survives_the_wire(demo: Path) -> None:
    manifest = manifest_of(demo)
    assert Manifest.decode(manifest.raw) == manifest
    assert manifest.digest == sha256(manifest.raw).digest()


def test_bytes_that_are_no_manifest_are_refused(demo: Path) -> None:
    manifest = manifest_of(demo)
    fields = codec.decode(manifest.raw, 1_000)
    wrong: list[object] = [
        7,
        {},
        {**fields, "more": 1},
        {**fields, "files": []},
        {**fields, "files": 3},
        {**fields, "context": -1},
        {**fields, "context": "2048"},
        {**fields, "tokenizer": b"short"},
        {**fields, "architecture": ""},
        {**fields, "files": [{"length": 1, "sha256": bytes(32)}]},
    ]
    for raw in [b"", b"\xff", manifest.raw[:-1], manifest.raw + b"\x00", *map(codec.encode, wrong)]:
        with pytest.raises(BadManifest):
            Manifest.decode(raw)


def test_every_field_is_in_the_name(demo: Path) -> None:
    manifest = manifest_of(demo)
    others = [
        evolve(manifest, architecture="qwen3"),
        evolve(manifest, parameters=1),
        evolve(manifest, quantization="Q2_K"),
        evolve(manifest, context=4_096),
        evolve(manifest, tokenizer=bytes(32)),
        evolve(manifest, files=manifest.files * 2),
    ]
    assert len({other.digest for other in [manifest, *others]}) == len(others) + 1


def test_quantizations_of_one_model_share_its_tokenizer(demo: Path, tmp_path: Path) -> None:
    worse = tmp_path / "q2.gguf"
    quantize(demo, worse, "Q2_K")
    before, after = manifest_of(demo), manifest_of(worse)
    assert after.quantization == "Q2_K"
    assert after.tokenizer == before.tokenizer
    assert after.digest != before.digest


def test_the_tokenizer_file_is_a_small_gguf_that_others_read(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.gguf"
    path.write_bytes(tokenizer_file(demo))
    assert path.stat().st_size < 30_000
    full, part = GGUFReader(demo), GGUFReader(path)
    assert part.tensors == []
    kept = [name for name in part.fields if not name.startswith("GGUF.")]
    assert kept[0] == "general.architecture"
    assert kept[1:] == [name for name in full.fields if name.startswith(("llama.", "tokenizer."))]
    for name in kept:
        assert part.fields[name].contents() == full.fields[name].contents()


def test_the_tokenizer_file_gives_the_same_ids_as_the_model(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.gguf"
    path.write_bytes(tokenizer_file(demo))
    whole, alone = open_vocab(demo), open_vocab(path)
    for text in ("Tell me a story about a fox.", "<|user|>Grüße 🦊\n\n  x<|end|>", "", "a" * 5_000):
        for special in (True, False):
            assert whole.tokenize(text, parse_special=special) == alone.tokenize(text, parse_special=special)
    assert [whole.piece(token) for token in range(whole.size)] == [alone.piece(token) for token in range(alone.size)]
    assert (whole.eog, whole.control, whole.chat_template) == (alone.eog, alone.control, alone.chat_template)
    whole.close()
    alone.close()


def test_the_tokenizer_of_a_tokenizer_file_is_itself(demo: Path) -> None:
    raw = tokenizer_file(demo)
    assert tokenizer_bytes(read_gguf(raw)) == raw


def test_without_a_file_type_most_weights_name_the_quantization(
    build_gguf: Build, encode_text: Text, tmp_path: Path
) -> None:
    path = tmp_path / "plain.gguf"
    path.write_bytes(
        build_gguf(
            [
                ("general.architecture", 8, encode_text("llama")),
                ("llama.context_length", 4, struct.pack("<I", 64)),
            ],
            [("norm", (32,), 0, 0), ("weight", (32, 32), 8, 128)],
            tail=bytes(128 + 32 * 34),
        )
    )
    assert manifest_of(path).quantization == "Q8_0"


def test_a_part_of_a_model_and_a_file_without_weights_or_context_are_refused(
    build_gguf: Build, encode_text: Text, demo: Path, tmp_path: Path
) -> None:
    architecture = ("general.architecture", 8, encode_text("llama"))
    split = build_gguf([architecture, ("split.count", 2, struct.pack("<H", 3))])
    bare = tokenizer_file(demo)
    no_context = build_gguf([architecture], [("t", (8,), 0, 0)], tail=bytes(32))
    for raw, error in ((split, SplitModel), (bare, MalformedGguf), (no_context, MalformedGguf)):
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        with pytest.raises(error):
            manifest_of(path)
