"""A prompt beside running streams slows them to half or little more, on slow machines and fast ones."""

import pytest

from node.engine.pace import GAP, LEAST, Pace


@pytest.mark.parametrize("seconds_per_row", [0.002, 0.00001])
@pytest.mark.parametrize("streams", [1, 4, 16])
def test_chunks_settle_where_a_step_takes_so_many_times_as_long(seconds_per_row: float, streams: int) -> None:
    pace, base = Pace(), 0.01

    def takes(chunk: int) -> float:
        return base + seconds_per_row * (streams + chunk)

    for _ in range(5):
        pace.note(streams, 0, takes(0))
    for _ in range(40):
        chunk = pace.chunk(streams, 2_000)
        pace.note(streams, chunk, takes(chunk))
    assert chunk == 2_000 or takes(chunk) / takes(0) == pytest.approx(GAP, rel=0.25)


def test_without_streams_a_prompt_has_the_whole_batch() -> None:
    assert Pace().chunk(0, 256) == 256


def test_a_chunk_is_never_nothing_and_never_more_than_there_is_room_for() -> None:
    pace = Pace()
    pace.note(8, 0, 0.001)
    pace.note(8, 8, 10.0)
    assert pace.chunk(8, 256) == LEAST
    assert pace.chunk(1, 256) == LEAST
    assert pace.chunk(8, 2) == 2


@pytest.mark.parametrize(("share", "chunk"), [(0.021, 29), (0.1, 8), (0.13, 7), (0.2, 5), (0.5, LEAST)])
def test_a_chunk_has_a_token_for_each_stream_unless_that_takes_too_long(share: float, chunk: int) -> None:
    pace, step = Pace(), 1.0
    pace.note(8, 0, step)
    pace.note(0, 10, 10 * share * step)  # in a batch of its own
    assert pace.chunk(8, 256) == chunk


def test_one_slow_step_does_not_change_much() -> None:
    pace = Pace()
    for _ in range(10):
        pace.note(4, 0, 0.01)
        pace.note(4, 10, 0.02)
    before = pace.chunk(4, 256)
    pace.note(4, 10, 30.0)
    assert pace.chunk(4, 256) >= before / 2
