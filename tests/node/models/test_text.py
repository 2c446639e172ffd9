"""Text is a pure function of the ids and the stop strings, however the ids come."""

from hypothesis import assume, given
from hypothesis import strategies as st

from node.models.text import TextStream


def byte_of(token: int) -> bytes:
    return bytes([token])


def ids_of(text: str) -> list[int]:
    return list(text.encode())


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    stream = TextStream(byte_of)
    assert [stream.feed([token]) for token in ids_of("ä🦊")] == ["", "ä", "", "", "", "🦊"]


def test_a_broken_character_is_shown_as_such_at_the_end() -> None:
    stream = TextStream(byte_of)
    assert stream.feed("🦊".encode()[:3]) == ""
    assert stream.finish() == "\ufffd"


def test_invisible_tokens_count_and_show_nothing() -> None:
    stream = TextStream(byte_of, frozenset({ord("!")}))
    assert stream.feed(ids_of("a!b!")) == "ab"
    assert stream.tokens == 4


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stream = TextStream(byte_of, stops=["\n\nUser:"])
    assert [stream.feed([token]) for token in ids_of("Hi\n\nUs!")] == ["H", "i", "", "", "", "", "\n\nUs!"]
    assert stream.stopped_at is None


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(byte_of, stops=["END"])
    assert stream.feed(ids_of("the EN")) == "the "
    assert stream.finish() == "EN"


def test_a_stop_string_ends_the_text_before_it_and_names_its_token() -> None:
    stream = TextStream(byte_of, stops=["END"])
    assert stream.feed(ids_of("a END b")) == "a "
    assert stream.stopped_at == 5
    assert stream.tokens == 5
    assert stream.feed(ids_of("more")) == ""
    assert stream.finish() == ""


def test_a_token_may_hold_a_stop_string_and_more() -> None:
    pieces = [b"one ", b"two STOP three"]
    stream = TextStream(pieces.__getitem__, stops=["STOP"])
    assert stream.feed([0, 1]) == "one two "
    assert stream.stopped_at == 2


def test_of_stop_strings_complete_at_once_the_earliest_counts() -> None:
    stream = TextStream([b"abcd"].__getitem__, stops=["cd", "bc"])
    assert stream.feed([0]) == "a"


def test_an_empty_stop_string_stops_nothing() -> None:
    stream = TextStream(byte_of, stops=[""])
    assert stream.feed(ids_of("abc")) == "abc"


ids = st.lists(st.sampled_from(ids_of("abä\n🦊")), max_size=40)
stops = st.lists(st.text(alphabet="abä\n", max_size=4), max_size=3)


@given(ids, stops, st.lists(st.integers(1, 7)))
def test_how_ids_are_grouped_changes_nothing(ids: list[int], stops: list[str], sizes: list[int]) -> None:
    single, grouped = TextStream(byte_of, stops=stops), TextStream(byte_of, stops=stops)
    one_by_one = "".join(single.feed([token]) for token in ids) + single.finish()
    parts, rest = [], ids
    for size in sizes:
        parts.append(grouped.feed(rest[:size]))
        rest = rest[size:]
    together = "".join(parts) + grouped.feed(rest) + grouped.finish()
    assert (one_by_one, single.stopped_at) == (together, grouped.stopped_at)


@given(ids, stops)
def test_the_text_never_holds_a_stop_string_and_begins_the_whole(ids: list[int], stops: list[str]) -> None:
    stream = TextStream(byte_of, stops=stops)
    shown = stream.feed(ids)
    whole = bytes(ids).decode(errors="replace")
    assert whole.startswith(shown)
    assert not any(stop and stop in shown for stop in stops)
    if stream.stopped_at is None:
        assert shown + stream.finish() == whole
        assert not any(stop and stop in whole for stop in stops)


@given(st.lists(st.binary(max_size=3), max_size=12), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_how_much_is_shown_and_where_each_token_ends_is_known(pieces: list[bytes], stops: list[str]) -> None:
    stream = TextStream(pieces.__getitem__, stops=stops)
    text, ends = "", []
    for token in range(len(pieces)):
        text += stream.feed([token])
        assert stream.shown == len(text)
        if stream.stopped_at is None:
            assert stream.ends_at >= stream.shown
            ends.append(stream.ends_at)
    text += stream.finish()
    assert stream.shown == len(text)
    assert ends == sorted(ends)
    if stream.stopped_at is None:
        assert max(ends, default=0) <= len(text)


@given(
    st.text("ab\nä🦊", max_size=60),
    st.lists(st.text("ab\nä🦊\ufffd", min_size=1, max_size=6), max_size=3),
    st.integers(0, 200),
    st.integers(0, 3),
)
def test_an_answer_that_goes_on_elsewhere_stops_where_it_would_have(
    text: str, stops: list[str], seam: int, broken: int
) -> None:
    ids = ids_of(text)[broken:] + [ord("!")] * 8
    seam = min(seam, len(ids))
    whole = TextStream(byte_of, frozenset({ord("!")}), stops)
    whole.feed(ids[:seam])
    assume(whole.stopped_at is None)
    shown = whole.feed(ids[seam:]) + whole.finish()

    rest = TextStream(byte_of, frozenset({ord("!")}), stops)
    rest.resume(ids[:seam])

    assert rest.feed(ids[seam:]) + rest.finish() == shown
    assert rest.stopped_at == (None if whole.stopped_at is None else whole.stopped_at - seam)


def test_of_a_long_earlier_part_only_the_end_is_looked_at() -> None:
    looked_at: list[int] = []

    def piece(token: int) -> bytes:
        looked_at.append(token)
        return b"x"

    TextStream(piece, stops=["stop"]).resume(range(100_000))
    assert looked_at == list(range(99_999, 99_979, -1))
