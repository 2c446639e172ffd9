"""The answer's stream: the same frames from any pieces, every change detected, every cut noticed."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.wire.frames import (
    MAX_FRAME,
    AnswerReader,
    AnswerWriter,
    CancelFrame,
    CheckpointFrame,
    Frame,
    Ids,
    ReceiptFrame,
    ScoreFrame,
    StreamCut,
    StreamError,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "stream.json").read_text())
KEY = bytes.fromhex(VECTORS["key"])
ERRORS = {"StreamError": StreamError, "StreamCut": StreamCut}

RAW = st.binary(max_size=300)
INNER = st.one_of(
    st.builds(Ids, st.lists(st.integers(0, 2**32 - 1), max_size=70).map(tuple)),
    st.builds(CheckpointFrame, RAW),
    st.builds(ScoreFrame, RAW),
)
LAST = st.builds(ReceiptFrame, RAW) | st.builds(CancelFrame, RAW)
ANSWERS = st.builds(lambda inner, last: [*inner, last], st.lists(INNER, max_size=6), LAST)


def frames_of(vector: dict[str, Any]) -> list[Frame]:
    return [frame_of(frame["kind"], frame) for frame in vector["frames"]]


def frame_of(kind: str, vector: dict[str, Any]) -> Frame:
    match kind:
        case "ids":
            return Ids(tuple(vector["ids"]))
        case "checkpoint":
            return CheckpointFrame(bytes.fromhex(vector["raw"]))
        case "receipt":
            return ReceiptFrame(bytes.fromhex(vector["raw"]))
        case "score":
            return ScoreFrame(bytes.fromhex(vector["raw"]))
        case _:
            return CancelFrame(bytes.fromhex(vector["raw"]))


def written(frames: list[Frame]) -> bytes:
    writer = AnswerWriter(KEY)
    return b"".join(writer.write(frame) for frame in frames)


def read(pieces: list[bytes]) -> tuple[list[Frame], StreamError | None]:
    """The frames of a whole stream, and how it ended."""
    reader, frames = AnswerReader(KEY), list[Frame]()
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                frames.append(frame)
        reader.close()
    except StreamError as error:
        return frames, error
    return frames, None


def cut_at(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("vector", VECTORS["streams"], ids=lambda v: v["case"])
def test_a_stream_holds_the_frames_of_the_vectors(vector: dict[str, Any]) -> None:
    assert read([bytes.fromhex(vector["bytes"])]) == (frames_of(vector), None)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("vector", VECTORS["broken"], ids=lambda v: v["why"])
def test_a_broken_stream_gives_the_frames_before_the_break(vector: dict[str, Any], size: int) -> None:
    stream = bytes.fromhex(vector["bytes"])
    for pieces in ([stream], [stream[at : at + size] for at in range(0, len(stream), size)]):
        frames, error = read(pieces)
        assert frames == frames_of(vector)
        assert type(error) is ERRORS[vector["error"]]


@given(ANSWERS, st.lists(st.integers(0, 3000), max_size=12))
def test_any_pieces_give_the_same_frames(frames: list[Frame], cuts: list[int]) -> None:
    assert read(cut_at(written(frames), cuts)) == (frames, None)


@given(ANSWERS)
def test_single_bytes_give_the_same_frames(frames: list[Frame]) -> None:
    assert read([bytes([byte]) for byte in written(frames)]) == (frames, None)


@given(ANSWERS, st.data())
def test_any_changed_byte_is_detected(frames: list[Frame], data: st.DataObject) -> None:
    stream = bytearray(written(frames))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    got, error = read(cut_at(bytes(stream), data.draw(st.lists(st.integers(0, 3000), max_size=4))))
    assert error is not None
    assert got == frames[: len(got)]


@given(ANSWERS, st.data())
def test_a_stream_that_ends_early_was_cut(frames: list[Frame], data: st.DataObject) -> None:
    stream = written(frames)
    got, error = read([stream[: data.draw(st.integers(0, len(stream) - 1))]])
    assert type(error) is StreamCut
    assert got == frames[: len(got)]


@given(ANSWERS, st.binary(min_size=1, max_size=50))
def test_nothing_may_follow_the_last_frame(frames: list[Frame], more: bytes) -> None:
    got, error = read([written(frames), more])
    assert got == frames
    assert type(error) is StreamError


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_bytes_are_a_broken_stream_and_nothing_else_is_raised(pieces: list[bytes]) -> None:
    frames, error = read(pieces)
    assert (frames, error is None) == ([], False)


def test_after_an_error_a_reader_takes_nothing_more() -> None:
    writer, reader = AnswerWriter(KEY), AnswerReader(KEY)
    first = writer.write(Ids((1,)))
    genuine = writer.write(Ids((2,)))
    assert list(reader.feed(first)) == [Ids((1,))]
    for piece in (b"\x54" + bytes(20), genuine):
        with pytest.raises(StreamError, match="cannot be opened"):
            list(reader.feed(piece))
    with pytest.raises(StreamCut):
        reader.close()


def test_a_frame_is_refused_by_its_length_alone() -> None:
    reader = AnswerReader(KEY)
    with pytest.raises(StreamError, match="at most"):
        list(reader.feed(b"\x5a" + (MAX_FRAME + 1).to_bytes(4, "big")))


def test_a_stream_begins_with_its_header_even_when_it_is_one_frame() -> None:
    assert read([AnswerWriter(KEY).write(ReceiptFrame(b"receipt"))]) == ([ReceiptFrame(b"receipt")], None)
