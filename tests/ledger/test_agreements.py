"""Settlements and nettings count with both signatures, once."""

import pytest
from attrs import evolve

from ledger.account import Account, AccountKey, apply
from ledger.agreements import (
    AboveMutual,
    NotOfNow,
    NotSignedByBoth,
    NotTheSame,
    OutOfDate,
    check_borne,
    check_netting,
    check_settlement,
    mutual_debt,
    net,
    propose_netting,
    propose_settlement,
    settle,
)
from ledger.changes import Authorized, Change, Earned, Granted, Netted, Reserved, Settled
from ledger.events import Books
from ledger.identity import Identity
from ledger.records import Netting, sign

ALICE, BOB, EVE = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
ORDER = b"1" * 32
NOW = 1_800_000_000
TO_BOB = AccountKey(ALICE.did, BOB.did, "credit", "msat")
TO_ALICE = AccountKey(BOB.did, ALICE.did, "credit", "msat")


def owing(key: AccountKey, amount: int, *more: Change) -> Account:
    account = Account(key)
    changes = Granted(1000, 1000, 1), Reserved(ORDER, amount, 9), Earned(ORDER, amount), Authorized(amount), *more
    for change in changes:
        account = apply(account, change)
    return account


class TestSettling:
    def test_both_signatures_settle_the_amount(self) -> None:
        account = owing(TO_BOB, 80, Settled(10))
        said = propose_settlement(account, 30, NOW)
        check_settlement(said, account)
        event = settle(sign(said, ALICE), sign(said, BOB))
        assert (event.key, apply(account, event.change).settled) == (TO_BOB, 40)

    def test_the_same_pair_again_changes_nothing(self) -> None:
        said = propose_settlement(owing(TO_BOB, 80), 30, NOW)
        events = [settle(sign(said, BOB), sign(said, ALICE))] * 2
        assert Books().apply(events).account(TO_BOB).settled == 30

    def test_of_two_requests_made_at_once_the_second_is_out_of_date(self) -> None:
        account = owing(TO_BOB, 80)
        said = propose_settlement(account, 5, NOW)
        with pytest.raises(OutOfDate, match="builds on 0, and the account stands at 30"):
            check_settlement(said, apply(account, Settled(30)))

    @pytest.mark.parametrize("signers", [(ALICE, ALICE), (BOB, BOB), (ALICE, EVE), (EVE, BOB)])
    def test_it_takes_both_signatures(self, signers: tuple[Identity, Identity]) -> None:
        said = propose_settlement(owing(TO_BOB, 80), 30, NOW)
        with pytest.raises(NotSignedByBoth, match="one each"):
            settle(sign(said, signers[0]), sign(said, signers[1]))

    def test_it_takes_both_signatures_under_the_same(self) -> None:
        said = propose_settlement(owing(TO_BOB, 80), 30, NOW)
        with pytest.raises(NotTheSame):
            settle(sign(said, ALICE), sign(evolve(said, total=31), BOB))

    @pytest.mark.parametrize("wrong", [{"total": 0}, {"before": 30}, {"payee": ALICE.did}])
    def test_one_that_settles_nothing_cannot_be_written(self, wrong: dict[str, object]) -> None:
        said = propose_settlement(owing(TO_BOB, 80), 30, NOW)
        with pytest.raises(ValueError, match="must"):
            evolve(said, **wrong)  # type: ignore[arg-type]


class TestNetting:
    def test_mutual_debts_become_none(self) -> None:
        accounts = owing(TO_BOB, 80), owing(TO_ALICE, 50)
        said = propose_netting(ALICE.did, BOB.did, "msat", accounts, NOW)
        check_netting(said, accounts[::-1], NOW + 1)
        books = Books({account.key: account for account in accounts}).apply(net(sign(said, ALICE), sign(said, BOB)))
        there, back = books.account(TO_BOB), books.account(TO_ALICE)
        assert (there.unsettled, back.unsettled) == (30, 0)
        assert mutual_debt(there, back) == 0

    def test_what_was_given_makes_room_to_take_as_much(self) -> None:
        accounts = owing(TO_BOB, 1000), owing(TO_ALICE, 1000)
        said = propose_netting(BOB.did, ALICE.did, "msat", accounts, NOW)
        books = Books({account.key: account for account in accounts}).apply(net(sign(said, BOB), sign(said, ALICE)))
        assert [books.account(key).available for key in (TO_BOB, TO_ALICE)] == [1000, 1000]

    def test_what_was_paid_already_is_not_set_off(self) -> None:
        assert mutual_debt(owing(TO_BOB, 80, Settled(60)), owing(TO_ALICE, 50, Netted(10))) == 20

    def test_where_nothing_is_mutual_nothing_is_proposed(self) -> None:
        with pytest.raises(AboveMutual):
            propose_netting(ALICE.did, BOB.did, "msat", (owing(TO_BOB, 80), Account(TO_ALICE)), NOW)

    def test_more_than_the_other_s_books_bear_is_not_signed(self) -> None:
        said = propose_netting(ALICE.did, BOB.did, "msat", (owing(TO_BOB, 80), owing(TO_ALICE, 50)), NOW)
        with pytest.raises(AboveMutual, match="49 is what both owe each other: 50"):
            check_netting(said, (owing(TO_BOB, 80), owing(TO_ALICE, 49)), NOW)

    def test_one_that_builds_on_an_older_total_is_not_signed(self) -> None:
        said = propose_netting(ALICE.did, BOB.did, "msat", (owing(TO_BOB, 80), owing(TO_ALICE, 50)), NOW)
        accounts = owing(TO_BOB, 80, Netted(10)), owing(TO_ALICE, 60, Netted(10))
        with pytest.raises(OutOfDate):
            check_netting(said, accounts, NOW)

    @pytest.mark.parametrize("later", [301, -121])
    def test_one_that_was_not_issued_just_now_is_not_signed(self, later: int) -> None:
        accounts = owing(TO_BOB, 80), owing(TO_ALICE, 50)
        said = propose_netting(ALICE.did, BOB.did, "msat", accounts, NOW)
        with pytest.raises(NotOfNow, match="ask again"):
            check_netting(said, accounts, NOW + later)
        check_netting(said, accounts, NOW + 300)

    def test_one_counts_only_while_both_owe_what_it_sets_off(self) -> None:
        said = propose_netting(ALICE.did, BOB.did, "msat", (owing(TO_BOB, 80), owing(TO_ALICE, 50)), NOW)
        check_borne(said, (owing(TO_BOB, 80, Settled(30)), owing(TO_ALICE, 50)))
        with pytest.raises(AboveMutual):
            check_borne(said, (owing(TO_BOB, 80, Settled(31)), owing(TO_ALICE, 50)))
        check_borne(said, (owing(TO_BOB, 80, Netted(10), Settled(30)), owing(TO_ALICE, 50, Netted(10))))

    def test_it_takes_both_signatures_under_the_same(self) -> None:
        said = propose_netting(ALICE.did, BOB.did, "msat", (owing(TO_BOB, 80), owing(TO_ALICE, 50)), NOW)
        with pytest.raises(NotSignedByBoth):
            net(sign(said, ALICE), sign(said, EVE))
        with pytest.raises(NotTheSame):
            net(sign(said, ALICE), sign(evolve(said, issued=NOW + 1), BOB))

    def test_a_pair_has_one_spelling(self) -> None:
        said = propose_netting(ALICE.did, BOB.did, "msat", (owing(TO_BOB, 80), owing(TO_ALICE, 50)), NOW)
        with pytest.raises(ValueError, match="sorts first"):
            Netting(said.second, said.first, said.unit, said.before, said.total, said.issued)
