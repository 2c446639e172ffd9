"""What lists say of rows that a node in a test rarely has."""

from typing import Any

import pytest

from node.cli import show
from node.cli.output import local_time
from node.cli.wallet_channels import show_channels


def peer(**said: Any) -> dict[str, Any]:
    row = {"did": "did:key:z6Mk", "condemned": False, "reputation": 0.5, "delivered": 1, "failed": 0}
    return row | {"audits_passed": 2, "scores_distrusted": False, "trouble": None, "paused": None} | said


def receipt(**said: Any) -> dict[str, Any]:
    row = {"id": "ab" * 32, "finished_ms": 1_700_000_000_000, "role": "bought", "seller": "did:key:z6Mk"}
    row |= {"model": "village", "prompt_tokens": 5, "output_tokens": 0, "cost": "1uusd", "acknowledged": False}
    return row | {"verdicts": []} | said


def test_a_peer_whose_scores_are_not_believed_any_more_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    show.peers({"peers": [peer(), peer(did="did:key:z6Mm", scores_distrusted=True)]})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not believed" in line]
    assert line.startswith("did:key:z6Mm: ")


def test_a_peer_that_sells_nothing_now_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    show.peers({"peers": [peer(paused="its owner needs it")]})
    assert "sells nothing: its owner needs it" in capsys.readouterr().out


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


def doing(**said: Any) -> dict[str, Any]:
    today: dict[str, Any] = {"earned": [], "paid": [], "network_fees": []}
    body = {
        "did": "did:key:z6Mk",
        "selling": {"words": "It sells."},
        "ledger": {"trouble": None, "shared": False},
        "today": today,
    }
    memory = {"taken": 0, "allowed": 0}
    return body | {"slashes": [], "door": None, "models": [], "remotes": [], "memory": memory} | said


@pytest.mark.parametrize(
    ("schemes", "trouble", "shown"),
    [
        (["exact", "batch-settlement"], None, "by transfers of 0.1usd or more in advance and from channels."),
        (["batch-settlement"], "gas is so dear now", "from channels.\ngas is so dear now ([paid] max_prepaid)."),
        ([], "gas is so dear now", "Strangers cannot pay at its door now.\ngas is so dear now ([paid] max_prepaid)."),
    ],
)
def test_the_status_says_how_strangers_can_pay(
    schemes: list[str], trouble: str | None, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show.status(doing(door={"schemes": schemes, "prepaid": "0.1usd", "trouble": trouble}))
    assert shown in capsys.readouterr().out


def test_the_status_says_what_a_remote_was_paid_and_by_which_bound_how_much_it_may_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"remote": "remote shop", "price": "1usd:2usd", "privacy": "public", "free_slots": 1, "trouble": None}
    paid = {"paid_today": "0.2usd", "max_per_day": "1usd", "bounded_by": "[buy] max_per_day"}
    show.status(doing(remotes=[row | paid, row]))
    said = capsys.readouterr().out
    assert said.count("was paid") == 1
    assert "remote shop was paid 0.2usd today, of 1usd that [buy] max_per_day allows" in said


def test_the_status_says_what_transactions_cost_in_coins(capsys: pytest.CaptureFixture[str]) -> None:
    fees = [{"network": "eip155:8453", "wei": 12 * 10**12}, {"network": "eip155:137", "wei": 3}]
    show.status(doing(today={"earned": [], "paid": [], "network_fees": fees}))
    said = capsys.readouterr().out
    assert "have cost 0.000012 ETH on eip155:8453, <0.000000001 POL on eip155:137." in said


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


WHOLE = "did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH"


def test_lists_fit_a_terminal_of_80_columns_and_say_what_they_leave_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    disputed = receipt(work="generate", acknowledged=True, accepted=False, paid="0.000060usd", disputed="0.000040usd")
    show.receipts({"receipts": [disputed | {"seller": WHOLE, "model": "Llama-3.1-8B-Instruct", "cost": "0.000100usd"}]})
    figures = dict.fromkeys(("earned", "authorized", "unpaid", "unsettled", "available"), "0.123456usd")
    account = {"peer": WHOLE, "direction": "they pay", "rail": "stablecoin", **figures}
    show.accounts(compared(accounts=[account]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("abababababab" in line and "0.000060usd, disputed" in line for line in lines)
    assert any("they pay" in line and line.count("0.123456usd") == 3 for line in lines)
    assert [line for line in lines if "--json" in line] == [
        "For a wider terminal, or --json: with, model, tokens, audit.",
        "For a wider terminal, or --json: rail, earned, not promised.",
    ]


def test_channels_fit_a_terminal_of_80_columns_and_say_what_is_under_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    names = ("deposited", "gone_back", "owed", "promised", "paid", "free", "at_risk")
    channel = {"peer": WHOLE, "direction": "they pay", **dict.fromkeys(names, "5000.000000usd")}
    effect: dict[str, Any] = {"kind": "top_up", "amount": "3.000000usd", "direction": "they pay", "peer": WHOLE}
    effect |= {"why": "it is sent", "heard": 1_767_225_600}
    show_channels([channel | {"effect": effect | {"state": state}} for state in ("settled", "unknown")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert [line.count("5000.000000") for line in lines if "5000" in line] == [4, 4]
    assert lines[-1].startswith("top up of 3.000000usd")
    assert f"(it is sent, since {local_time(1_767_225_600_000)})" in lines[-1]


def test_accounts_of_one_peer_on_two_rails_can_be_told_apart_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    figures = dict.fromkeys(("earned", "authorized", "unpaid", "unsettled", "available"), "0.123456usd")
    rails = [{"peer": WHOLE, "direction": "we pay", "rail": rail, **figures} for rail in ("credit", "stablecoin")]
    show.accounts(compared(accounts=rails))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [sum(f" {rail} " in line for line in lines) for rail in ("credit", "stablecoin")] == [1, 1]


def test_a_receipt_says_whether_its_dispute_was_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    shared = receipt(work="generate", acknowledged=True, accepted=False, paid="0.000060usd")
    show.receipts({"receipts": [shared | {"disputed": None}, shared | {"disputed": "0.000040usd"}]})
    lines = [line for line in capsys.readouterr().out.splitlines() if "0.000060usd" in line]
    assert ["resolved" in line for line in lines] == [True, False]
    assert ["disputed" in line for line in lines] == [False, True]
