"""The rail that does as it is told: its bank is honest, and its vouchers are bound to their place."""

from typing import Any, get_args

import pytest
from attrs import evolve

from ledger.account import Account, AccountKey
from ledger.changes import VoucherReceived
from ledger.effects import Kind, draw_up
from ledger.identity import Identity
from ledger.rails.port import Answer, Rail, Sight, WrongNetwork, WrongRail
from ledger.rails.scripted import Bank, Performing, ScriptedRail
from ledger.records import sign

PAYER, PAYEE = (Identity(bytes([n]) * 32) for n in (1, 2))
KEY = AccountKey(PAYER.did, PAYEE.did, "stablecoin", "uusd")
OWING = evolve(Account(KEY), funded=100, earned=60)
ONE, OTHER = b"1" * 32, b"2" * 32


async def silence() -> None:
    """A line on which no answer comes before the wait is over."""
    raise TimeoutError


def rail(deposit: int = 100, **script: Any) -> ScriptedRail:
    bank = Bank()
    bank.deposit(KEY, deposit)
    return ScriptedRail(bank, silence, **script)


class TestTheBank:
    @pytest.mark.parametrize("kind", get_args(Kind))
    async def test_moves_the_money_of_a_key_once(self, kind: Kind) -> None:
        scripted = rail()
        effect = draw_up(OWING, kind, 30, ONE)
        assert await scripted.perform(effect) == await scripted.perform(effect) == Answer("settled", 30)
        purse = evolve(scripted.bank.purse(KEY))
        assert scripted.bank.carry_out(effect)
        assert scripted.bank.purse(KEY) == purse

    async def test_pays_claims_by_their_totals_whatever_their_keys(self) -> None:
        scripted = rail()
        for key in (ONE, OTHER):
            await scripted.perform(draw_up(OWING, "claim", 30, key))
        assert scripted.bank.purse(KEY).paid == 30

    async def test_pays_no_more_than_covers_it(self) -> None:
        scripted = rail(20)
        effect = draw_up(OWING, "claim", 30, ONE)
        assert (await scripted.perform(effect)).fate == (await scripted.fate(effect)).fate == "failed"
        scripted.bank.deposit(KEY, 10)
        assert (await scripted.perform(effect)).fate == "settled"

    async def test_what_is_leaving_can_be_claimed_until_it_is_gone(self) -> None:
        scripted = rail()
        scripted.bank.begin_withdrawal(KEY, 90)
        assert await scripted.collateral(OWING) == Sight(100, 90, 2, 90)
        await scripted.perform(draw_up(OWING, "claim", 30, ONE))
        scripted.bank.end_withdrawal(KEY)
        purse = scripted.bank.purse(KEY)
        assert (purse.paid, purse.withdrawn, purse.balance) == (30, 70, 0)
        assert (await scripted.perform(draw_up(OWING, "claim", 40, OTHER))).fate == "failed"

    async def test_there_is_no_collateral_where_nothing_ever_came(self) -> None:
        assert await ScriptedRail(Bank(), silence).collateral(OWING) is None


# What the bank has paid of 30, and what the rail says of it; None: nothing.
WORDS: dict[Performing, tuple[int, Answer | None]] = {
    "honest": (30, Answer("settled", 30)),
    "refuse": (0, Answer("failed", why="refused, as the script says")),
    "lose": (0, None),
    "forget": (30, None),
    "delay": (0, None),
    "twice": (30, Answer("settled", 30)),
    "break": (30, None),
    "feign": (0, Answer("settled", 30)),
    "deny": (30, Answer("failed", why="denied, as the script says")),
    "exaggerate": (30, Answer("settled", 61)),
    "understate": (30, Answer("settled", 15)),
}


@pytest.mark.parametrize("told", get_args(Performing))
async def test_a_request_goes_as_it_is_told(told: Performing) -> None:
    scripted = rail(performing=[told])
    effect = draw_up(OWING, "pay", 30, ONE)
    paid, said = WORDS[told]
    if said is None:
        with pytest.raises((TimeoutError, ConnectionError)):
            await scripted.perform(effect)
    else:
        assert await scripted.perform(effect) == said
    assert scripted.bank.purse(KEY).paid == paid
    assert (await scripted.fate(effect)).fate == ("settled" if paid else "absent")
    scripted.bank.deliver()
    assert scripted.bank.purse(KEY).paid == (30 if told == "delay" else paid)


def test_its_vouchers_are_good_on_it_and_nowhere_else() -> None:
    scripted: Rail = rail()
    voucher = scripted.make_voucher(PAYER, OWING, 60)
    assert scripted.check_voucher(voucher, OWING) == VoucherReceived(60)
    elsewhere = sign(evolve(voucher.record, network="another"), PAYER)
    with pytest.raises(WrongNetwork):
        scripted.check_voucher(elsewhere, OWING)
    with pytest.raises(WrongRail):
        rail(name="lightning").check_voucher(voucher, OWING)
