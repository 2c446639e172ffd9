"""What lists say of rows that a node in a test rarely has."""

from typing import Any

import pytest

from node.cli import show


def peer(**said: Any) -> dict[str, Any]:
    row = {"did": "did:key:z6Mk", "condemned": False, "reputation": 0.5, "delivered": 1, "failed": 0}
    return row | {"audits_passed": 2, "scores_distrusted": False, "trouble": None} | said


def receipt(**said: Any) -> dict[str, Any]:
    row = {"id": "ab" * 32, "finished_ms": 1_700_000_000_000, "role": "bought", "seller": "did:key:z6Mk"}
    row |= {"model": "village", "prompt_tokens": 5, "output_tokens": 0, "cost": "1uusd", "acknowledged": False}
    return row | {"verdicts": []} | said


def test_a_peer_whose_scores_are_not_believed_any_more_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    show.peers({"peers": [peer(), peer(did="did:key:z6Mm", scores_distrusted=True)]})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not believed" in line]
    assert line.startswith("did:key:z6Mm: ")


@pytest.mark.parametrize(("work", "shown"), [("generate", "bought"), ("score", "score bought"), (None, "bought")])
def test_a_receipt_says_whether_a_score_was_ordered(
    work: str | None, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show.receipts({"receipts": [receipt(work=work)]})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "abab" in line]
    assert f" {shown} " in line
    assert ("score" in line) == (work == "score")


@pytest.mark.parametrize(("tokens", "shown"), [(0, " not checked "), (5, " undecided ")])
def test_an_audit_that_could_check_nothing_is_told_from_one_that_is_undecided(
    tokens: int, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show.receipts({"receipts": [receipt(work="generate", verdicts=[{"tokens": tokens, "outcome": "undecided"}])]})
    assert shown in capsys.readouterr().out


def compared(**said: Any) -> dict[str, Any]:
    body = {"chain": "intact", "entries": 3, "checked_after": 0, "balanced": True, "accounts": [], "effects": []}
    return body | {"comparisons": [], "cut": None} | said


@pytest.mark.parametrize(("payee", "shown"), [("did:key:z6Mk", "what you owe"), ("did:key:z6Mx", "what they owe")])
def test_accounts_say_what_a_peer_counts_otherwise(payee: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    difference = {"payee": payee, "what": "settled", "ours": "1uusd", "theirs": "2uusd"}
    show.accounts(compared(comparisons=[{"peer": "did:key:z6Mk", "differences": [difference]}]))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "counts" in line]
    assert f"counts 2uusd as settled of {shown}, and this node 1uusd" in line


def test_accounts_say_that_the_ledger_was_cut(capsys: pytest.CaptureFixture[str]) -> None:
    cut = {"shown_by": "did:key:z6Mk", "signed": 9, "left": 4, "found_ms": 1_700_000_000_000}
    show.accounts(compared(cut=cut))
    said = capsys.readouterr().out
    assert "it had 4 entries" in said
    assert "under entry 9" in said


@pytest.mark.parametrize(("after", "shown"), [(0, "each chained to the one before"), (2, "those after 2 read again")])
def test_accounts_say_how_much_of_the_journal_was_read(
    after: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show.accounts(compared(checked_after=after))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "journal is whole" in line]
    assert shown in line
