"""The reader takes what llama.cpp takes, agrees with the gguf library, and refuses the rest with a reason."""

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.models.gguf import (
    MAX_ARRAY,
    MAX_METADATA,
    MAX_PAIRS,
    MAX_TENSORS,
    Array,
    BadModelFile,
    GgufTooLarge,
    MalformedGguf,
    NotGguf,
    TruncatedGguf,
    UnsupportedGguf,
    read_gguf,
)
from node.models.quantization import TENSOR_TYPES

Build = Callable[..., bytes]
Text = Callable[[str | bytes], bytes]
U32, FLOAT, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
F32, Q8_0 = 0, 8


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def test_it_reads_what_the_gguf_library_reads(demo: Path) -> None:
    ours, theirs = read_gguf(demo), GGUFReader(demo)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert [pair.key for pair in ours.pairs] == list(fields)
    for pair in ours.pairs:
        expected = fields[pair.key].contents()
        if isinstance(pair.value, Array):
            assert pair.value.count == len(expected)
        else:
            assert pair.value == expected
    assert [(t.name, t.shape, t.kind, t.offset, t.size) for t in ours.tensors] == [
        (t.name, tuple(t.shape), t.tensor_type, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
    assert ours.parameters == sum(int(tensor.n_elements) for tensor in theirs.tensors)
    assert ours.architecture == "llama"


def test_pairs_lie_end_to_end_and_their_ranges_hold_their_keys(demo: Path) -> None:
    gguf = read_gguf(demo)
    assert gguf.pairs[0].start == 24
    assert gguf.pairs[-1].end == len(gguf.raw)
    for one, next_one in zip(gguf.pairs, gguf.pairs[1:], strict=False):
        assert one.end == next_one.start
    for pair in gguf.pairs:
        assert gguf.raw[pair.start + 8 :].startswith(pair.key.encode())


def test_bytes_read_like_the_file(demo: Path) -> None:
    assert read_gguf(demo.read_bytes()).pairs == read_gguf(demo).pairs


def test_the_table_of_tensor_types_is_ggmls() -> None:
    for kind, (block, size) in GGML_QUANT_SIZES.items():
        if kind in TENSOR_TYPES:
            known = TENSOR_TYPES[kind]
            assert (known.name, known.block, known.size) == (kind.name, block, size)


def test_version_2_is_read_too(build_gguf: Build) -> None:
    raw = build_gguf([("a", U32, u32(7)), ("b", BOOL, b"\x01")], version=2)
    assert read_gguf(raw).metadata == {"a": 7, "b": True}


@pytest.mark.parametrize("raw", [b"", b"GG", b"PK\x03\x04" + bytes(100), b"from typing import Any"])
def test_what_is_no_gguf_is_called_so(raw: bytes) -> None:
    with pytest.raises(NotGguf, match="not a GGUF file"):
        read_gguf(raw)


def test_an_error_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("nothing")
    with pytest.raises(NotGguf) as caught:
        read_gguf(path)
    assert caught.value.path == str(path)
    assert caught.value.advice in str(caught.value)


@pytest.mark.parametrize("version", [0, 1, 4, 3 << 24])
def test_other_versions_and_byte_orders_are_refused(build_gguf: Build, version: int) -> None:
    with pytest.raises(UnsupportedGguf):
        read_gguf(build_gguf(version=version))


def test_a_file_cut_anywhere_in_its_metadata_is_called_cut_short(demo: Path) -> None:
    raw = demo.read_bytes()[:40_000]
    for end in (5, 20, 30, 1_000, 20_000, 28_908, 29_000, 31_000, 39_999):
        with pytest.raises(TruncatedGguf) as caught:
            read_gguf(raw[:end])
        assert caught.value.needs > caught.value.has


def test_a_download_cut_in_its_last_tensor_is_called_cut_short(demo: Path) -> None:
    with pytest.raises(TruncatedGguf, match="Download it again"):
        read_gguf(demo.read_bytes()[:-1])


@pytest.mark.parametrize(
    "counts", [{"pair_count": MAX_PAIRS + 1}, {"tensor_count": MAX_TENSORS + 1}, {"pair_count": 2**64 - 1}]
)
def test_counts_above_the_limits_are_refused_before_anything_is_read(build_gguf: Build, counts: dict[str, int]) -> None:
    with pytest.raises(GgufTooLarge):
        read_gguf(build_gguf(**counts))


def test_lengths_above_the_limits_are_refused(build_gguf: Build) -> None:
    hostile = [
        ("s", STRING, u64(2**62)),
        ("a", ARRAY, u32(U32) + u64(MAX_ARRAY + 1)),
        ("a", ARRAY, u32(STRING) + u64(1) + u64(2**63)),
        ("k" * 600, U32, u32(1)),
    ]
    for pair in hostile:
        with pytest.raises(GgufTooLarge):
            read_gguf(build_gguf([pair]))


def test_metadata_as_a_whole_has_a_limit(build_gguf: Build, tmp_path: Path) -> None:
    array = u32(U64) + u64(MAX_ARRAY)
    raw = build_gguf([("a", ARRAY, array + bytes(8 * MAX_ARRAY)), ("b", ARRAY, array), ("c", ARRAY, array)])
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(4 * MAX_METADATA)
    with pytest.raises(GgufTooLarge, match="metadata"):
        read_gguf(path)


def test_what_llama_cpp_would_not_survive_is_malformed(build_gguf: Build, encode_text: Text) -> None:
    for raw in (
        build_gguf([("a", ARRAY, u32(ARRAY) + u64(1))]),  # nested arrays
        build_gguf([("a", 13, b"")]),
        build_gguf([("a", U32, u32(1)), ("a", U32, u32(2))]),
        build_gguf([("general.alignment", U32, u32(3))]),
        build_gguf([("general.alignment", STRING, encode_text("32"))]),
        build_gguf([], [("t", (), F32, 0)]),
        build_gguf([], [("t", (1, 1, 1, 1, 1), F32, 0)]),
        build_gguf([], [("t", (0,), F32, 0)], tail=bytes(64)),
        build_gguf([], [("t", (2**63, 2), F32, 0)], tail=bytes(64)),
        build_gguf([], [("t", (33,), Q8_0, 0)], tail=bytes(64)),  # no whole block
        build_gguf([], [("t", (8,), F32, 32)], tail=bytes(64)),  # not where it should be
        build_gguf([], [("t", (8,), F32, 0), ("t", (8,), F32, 32)], tail=bytes(64)),
    ):
        with pytest.raises(MalformedGguf):
            read_gguf(raw)


def test_a_tensor_of_an_unknown_type_is_unsupported(build_gguf: Build) -> None:
    with pytest.raises(UnsupportedGguf, match="unknown type 999"):
        read_gguf(build_gguf([], [("t", (8,), 999, 0)], tail=bytes(64)))


def test_a_tensor_outside_the_file_is_called_cut_short(build_gguf: Build) -> None:
    with pytest.raises(TruncatedGguf):
        read_gguf(build_gguf([], [("t", (2**40,), F32, 0)], tail=bytes(64)))


@pytest.mark.parametrize("value", ["../../etc", "", "Llama", "a" * 65])
def test_an_architecture_that_is_no_word_is_malformed(build_gguf: Build, encode_text: Text, value: str) -> None:
    gguf = read_gguf(build_gguf([("general.architecture", STRING, encode_text(value))]))
    with pytest.raises(MalformedGguf):
        _ = gguf.architecture


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 34_000), st.binary(min_size=1, max_size=9)), max_size=4))
def test_a_mutated_model_is_read_or_refused_and_nothing_else(demo: Path, changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(demo.read_bytes()[:34_000])
    for at, replacement in changes:
        raw[at : at + len(replacement)] = replacement
    with suppress(BadModelFile):
        read_gguf(bytes(raw))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400))
def test_random_bytes_behind_the_magic_are_read_or_refused(tail: bytes) -> None:
    with suppress(BadModelFile):
        read_gguf(b"GGUF\x03\x00\x00\x00" + tail)
