"""Double entry: whatever happens to accounts, postings sum to zero, and their sums are the accounts' own counters."""

from collections import Counter as Counts
from collections.abc import Sequence
from itertools import pairwise

from attrs import fields_dict
from hypothesis import given
from hypothesis import strategies as st

from ledger.account import Account, AccountError, AccountKey
from ledger.changes import (
    Acknowledged,
    Admitted,
    Authorized,
    Change,
    Disputed,
    Drawn,
    Earned,
    Forgiven,
    ForgivenessReceived,
    Funded,
    Granted,
    Netted,
    Released,
    Reserved,
    Resolved,
    Settled,
    VoucherReceived,
    Withdrawn,
)
from ledger.events import AccountChanged, Books, Observed
from ledger.statement import (
    COUNTERS,
    DAY_MS,
    Line,
    LineKey,
    Movement,
    Posting,
    Statement,
    Turnover,
    figures,
    line_rows,
    post,
    posting_row,
)

ME, PEER, OTHER = "did:me", "did:peer", "did:other"
SOLD = AccountKey(PEER, ME, "credit", "uusd")
BOUGHT = AccountKey(ME, PEER, "credit", "uusd")
ORDERS = [bytes([n]) * 32 for n in range(3)]

keys = st.builds(
    AccountKey,
    st.sampled_from([ME, PEER, OTHER]),
    st.sampled_from([ME, PEER, OTHER]),
    st.just("credit"),
    st.sampled_from(["msat", "uusd"]),
)
amounts, orders = st.integers(0, 60), st.sampled_from(ORDERS)
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(Granted, st.just(500), st.just(500), st.integers(1, 3)),
    st.builds(Reserved, orders, amounts, st.just(9)),
    st.builds(Admitted, orders, amounts, amounts, st.just(9)),
    st.builds(Drawn, orders, amounts),
    st.builds(Earned, orders, amounts),
    st.builds(Released, orders),
    st.builds(Acknowledged, orders, amounts),
    st.builds(Authorized, amounts),
    st.builds(VoucherReceived, amounts),
    st.builds(Forgiven, amounts),
    st.builds(Settled, amounts),
    st.builds(Disputed, orders, amounts, amounts),
    st.builds(Resolved, orders, amounts),
    st.builds(ForgivenessReceived, amounts),
    st.builds(Netted, amounts),
    st.builds(Funded, amounts, st.integers(1, 3)),
    st.builds(Withdrawn, amounts, st.integers(1, 3)),
)
Step = tuple[int, AccountChanged]
steps = st.lists(st.tuples(st.integers(0, 9), st.builds(AccountChanged, keys, changes)), max_size=40)


def lawful(tried: Sequence[Step]) -> tuple[list[Step], Books]:
    """Those of the steps that the guards admit, after a grant for every account; and where they lead."""
    books, done = Books(), []
    granted = [(0, AccountChanged(event.key, Granted(500, 500, 1))) for _, event in tried]
    for step in [*granted, *tried]:
        try:
            books = books.apply([step[1]])
        except AccountError:
            continue
        done.append(step)
    return done, books


def fold(steps: Sequence[Step], since: int = 0, until: int = 10) -> tuple[Statement, list[Posting]]:
    statement = Statement(ME, since, until)
    postings: list[Posting] = []
    for n, (time_ms, event) in enumerate(steps, 1):
        postings += statement.add(n, time_ms, [event])
        assert statement.balanced
    return statement, postings


class TestDoubleEntry:
    @given(steps)
    def test_postings_sum_to_zero_for_each_counterparty_rail_and_unit(self, tried: list[Step]) -> None:
        _, postings = fold(lawful(tried)[0])
        sums: Counts[tuple[int, str, str]] = Counts()
        for one in postings:
            sums[one.sequence, one.movement.counterparty, one.movement.unit] += one.amount
        assert not any(sums.values())

    @given(steps)
    def test_what_stands_in_them_is_what_the_accounts_say(self, tried: list[Step]) -> None:
        done, books = lawful(tried)
        lines = fold(done)[0].lines

        def closing(counterparty: str, account: Account, name: str) -> int:
            found = lines.get(LineKey(counterparty, "credit", account.key.unit, name))  # type: ignore[arg-type]
            return found.closing if found else 0

        for key, account in books.accounts.items():
            if (key.payer == ME) == (key.payee == ME):
                continue
            other, sign = (key.payer, 1) if key.payee == ME else (key.payee, -1)
            bare, promise = ("receivable", "vouchers held") if sign == 1 else ("payable", "vouchers given")
            turnover = "income" if sign == 1 else "expense"
            assert closing(other, account, turnover) == -sign * account.earned
            let_go = account.waived + account.forgiven
            assert closing(other, account, bare) == sign * (account.earned - let_go - account.authorized)
            assert closing(other, account, promise) == sign * (account.authorized - account.settled - account.netted)

    @given(steps, st.integers(0, 9), st.integers(0, 9))
    def test_periods_that_follow_each_other_join_exactly(self, tried: list[Step], first: int, second: int) -> None:
        done, _ = lawful(tried)
        early, late = sorted((first, second))
        whole, all_postings = fold(done)
        parts = [fold(done, *period) for period in ((0, early), (early, late), (late, 10))]
        assert sorted((p for _, found in parts for p in found), key=lambda p: p.sequence) == all_postings
        for (before, _), (after, _) in pairwise(parts):
            ended = {key: line.closing for key, line in before.lines.items()}
            began = {key: line.opening for key, line in after.lines.items() if key in ended}
            assert ended == began
        assert {k: line.closing for k, line in parts[-1][0].lines.items()} == {
            k: line.closing for k, line in whole.lines.items()
        }

    def test_every_counter_of_an_account_is_posted_or_known_to_move_no_money(self) -> None:
        promises = {"key", "limit", "window", "grant_sequence", "claimed", "orders"}
        promises |= {"funded_sequence", "withdrawn_sequence"}
        assert fields_dict(Account).keys() == promises | set(COUNTERS)

    def test_an_account_between_two_others_posts_nothing(self) -> None:
        key = AccountKey(PEER, OTHER, "credit", "uusd")
        statement, postings = fold([(0, AccountChanged(key, Settled(7)))])
        assert (postings, statement.lines) == ([], {})

    def test_settling_without_a_voucher_stands_as_an_advance(self) -> None:
        lines = fold([(0, AccountChanged(SOLD, Settled(7)))])[0].lines
        assert {key.account: line.closing for key, line in lines.items()} == {"money": 7, "vouchers held": -7}

    def test_on_rails_with_deposits_a_payer_settles_from_its_collateral(self) -> None:
        key = AccountKey(ME, PEER, "lightning", "msat")
        moved = [Movement(key, "payer", "funded", 9), Movement(key, "payer", "settled", 9)]
        assert [(p.account, p.amount) for movement in moved for p in post(movement, 1, 0)] == [
            ("collateral", 9),
            ("money", -9),
            ("vouchers given", 9),
            ("collateral", -9),
        ]

    def test_a_deposit_of_the_payer_is_no_money_of_the_payee(self) -> None:
        assert post(Movement(SOLD, "payee", "funded", 9), 1, 0) == ()

    def test_netting_sums_to_zero_over_both_directions(self) -> None:
        statement, _ = fold([(0, AccountChanged(key, Netted(7))) for key in (SOLD, BOUGHT)])
        assert statement.lines[LineKey(PEER, "credit", "uusd", "set off")].closing == 0

    def test_what_is_prepaid_is_money_that_is_owed_until_it_is_settled_or_goes_back(self) -> None:
        key = AccountKey(PEER, ME, "prepaid", "uusd")
        changes: list[Change] = [
            *(Granted(0, 9, 1), Funded(9, 1), Reserved(ORDERS[0], 6, 9), Earned(ORDERS[0], 5)),
            *(VoucherReceived(5), Released(ORDERS[0]), Settled(5), Withdrawn(3, 2)),
        ]
        statement, _ = fold([(1, AccountChanged(key, change)) for change in changes])
        closing = {line.account: found.closing for line, found in statement.lines.items()}
        assert closing == {"income": -5, "money": 6, "prepaid": -1, "receivable": 0, "vouchers held": 0}

    def test_collateral_that_is_seen_to_be_less_goes_back(self) -> None:
        key = AccountKey(ME, PEER, "lightning", "msat")
        statement, _ = fold([(0, AccountChanged(key, Funded(9, 1))), (1, AccountChanged(key, Funded(4, 2)))])
        lines = statement.lines
        assert lines[LineKey(PEER, "lightning", "msat", "collateral")] == Line(0, 9, 5)
        assert lines[LineKey(PEER, "lightning", "msat", "money")] == Line(0, 5, 9)


SALE: list[Step] = [
    (1, AccountChanged(SOLD, Granted(100, 100, 1))),
    (2, AccountChanged(SOLD, Reserved(ORDERS[0], 50, 9))),
    (3, AccountChanged(SOLD, Earned(ORDERS[0], 40))),
    (4, AccountChanged(SOLD, VoucherReceived(30))),
    (5, AccountChanged(SOLD, Forgiven(10))),
    (6, AccountChanged(SOLD, Settled(30))),
]


class TestRows:
    def test_a_sale_from_delivery_to_money(self) -> None:
        statement, postings = fold(SALE)
        assert [(p.sequence, p.account, p.amount) for p in postings] == [
            (3, "receivable", 40),
            (3, "income", -40),
            (4, "vouchers held", 30),
            (4, "receivable", -30),
            (5, "let go", 10),
            (5, "receivable", -10),
            (6, "money", 30),
            (6, "vouchers held", -30),
        ]
        closing = {row["account"]: row["closing"] for row in line_rows(statement.lines)}
        assert closing == {"income": -40, "let go": 10, "money": 30, "receivable": 0, "vouchers held": 0}

    def test_a_posting_is_one_flat_row(self) -> None:
        _, postings = fold(SALE)
        assert posting_row(postings[0]) == {
            "sequence": 3,
            "time_ms": 3,
            "counterparty": PEER,
            "rail": "credit",
            "unit": "uusd",
            "account": "receivable",
            "amount": 40,
            "counter": "earned",
            "order": ORDERS[0].hex(),
            "transaction": "",
        }

    def test_the_figures_of_an_account_have_their_unit(self) -> None:
        books = Books().apply([event for _, event in SALE])
        shown = {name: str(amount) for name, amount in figures(books.account(SOLD)).items()}
        assert shown["earned"] == "0.000040usd"
        assert shown["unpaid"] == "0.000000usd"


class TestTurnover:
    def test_each_day_has_its_own_sums(self) -> None:
        turnover = Turnover(ME)
        turnover.take(0, [AccountChanged(BOUGHT, Granted(100, 100, 1)), Observed(PEER, "seen")])
        turnover.take(1, [AccountChanged(BOUGHT, Reserved(ORDERS[0], 50, 9))])
        turnover.take(2, [AccountChanged(BOUGHT, Earned(ORDERS[0], 40)), AccountChanged(BOUGHT, Authorized(30))])
        turnover.take(DAY_MS, [AccountChanged(BOUGHT, Authorized(40))])
        assert turnover.on(0, "payer", "authorized") == {"uusd": 30}
        assert turnover.on(1, "payer", "authorized") == {"uusd": 10}
        assert turnover.on(0, "payee", "earned") == {}

    def test_an_account_seen_later_counts_once_whatever_was_missed(self) -> None:
        turnover, books = Turnover(ME), Books()
        for time_ms, event in SALE[:3]:
            books = books.apply([event])
            turnover.take(time_ms, [event])
        books = books.apply([event for _, event in SALE[3:]])
        for _ in range(2):
            turnover.see(DAY_MS, books.account(SOLD))
        assert turnover.on(0, "payee", "earned") == {"uusd": 40}
        assert turnover.on(1, "payee", "authorized") == {"uusd": 30}
        assert turnover.on(1, "payee", "earned") == {}
