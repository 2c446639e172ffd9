"""What others say is shown, and steers no terminal."""

import pytest

from node.cli.output import counted, plain, print_facts, print_table, progress, short, size

HOSTILE = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x9b2J\u202eabc\r\x00\x7f"


def test_text_from_others_is_shown_without_what_steers_a_terminal() -> None:
    assert plain(HOSTILE) == "[31mred[0m ]0;title2Jabc"
    assert plain("Zwölf 你好 🦊\n\tdone") == "Zwölf 你好 🦊\n\tdone"


def test_a_did_is_short_on_a_terminal_and_whole_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    did = "did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH"
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert (short(did), short(None)) == (did, "")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert (short(did), short("did:key:z6Mk")) == ("did:key:z6Mk…sdvktH", "did:key:z6Mk")


def test_sizes_are_told_in_units_that_fit() -> None:
    assert (size(0), size(3 * 2**20), size(2**30 + 2**29)) == ("0 MiB", "3 MiB", "1.5 GiB")


def test_one_thing_is_told_in_the_singular() -> None:
    assert [counted(n, "entry", "entries") for n in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]


def test_neither_tables_nor_facts_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"name": HOSTILE})
    print_table("Peers", ["name"], [[HOSTILE]], "none")

    assert not set("\x1b\x07\x9b\u202e\r\x00\x7f") & set(capsys.readouterr().out)


def test_a_bar_leaves_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Reading", "entries", quiet=False) as begin:
        begin(2)(1)
    assert capsys.readouterr() == ("", "")
