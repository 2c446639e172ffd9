"""Text is a pure function of the ids and the stop strings, however the ids come."""

from hypothesis import given
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
