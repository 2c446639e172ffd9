"""What others say is shown, and steers no terminal."""

import pytest

from node.cli.output import plain, print_facts, print_table

HOSTILE = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x9b2J\u202eabc\r\x00\x7f"


def test_text_from_others_is_shown_without_what_steers_a_terminal() -> None:
    assert plain(HOSTILE) == "[31mred[0m ]0;title2Jabc"
    assert plain("Zwölf 你好 🦊\n\tdone") == "Zwölf 你好 🦊\n\tdone"


def test_neither_tables_nor_facts_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"name": HOSTILE})
    print_table("Peers", ["name"], [[HOSTILE]], "none")

    assert not set("\x1b\x07\x9b\u202e\r\x00\x7f") & set(capsys.readouterr().out)
