"""Money moves by rails once: whatever the rail does, and wherever the node is killed."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field

from ledger.account import Account, AccountKey
from ledger.changes import (
    Authorized,
    Claimed,
    Earned,
    Funded,
    Granted,
    Netted,
    Released,
    Reserved,
    Settled,
    VoucherReceived,
)
from ledger.database import Database, LedgerUnavailable
from ledger.effects import EffectPlanned, EffectUnderWay, Kind, Tracked, draw_up
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import Entry, Journal, MemoryJournal
from ledger.payload import decode_events
from ledger.rails import credit
from ledger.rails.policy import Policy
from ledger.rails.scripted import Bank, ScriptedRail
from ledger.statement import Statement
from node.exchange.book import Book
from node.exchange.effects import CannotMove, EffectDriver, NotNow
from node.exchange.pacing import Pace
from node.ports import ManualClock, SeededEntropy

ME, PEER = (Identity(bytes([number]) * 32) for number in (1, 2))
OWED = AccountKey(PEER.did, ME.did, "stablecoin", "uusd")  # to this node, which claims it
OWING = AccountKey(ME.did, PEER.did, "stablecoin", "uusd")  # by this node, which pays it
AT_ONCE = Policy(move_at=1)


def owed(count: int) -> list[AccountKey]:
    """Accounts of so many peers who owe this node."""
    dids = (Identity(bytes([10, number]) * 16).did for number in range(count))
    return [AccountKey(did, ME.did, "stablecoin", "uusd") for did in dids]


async def silence() -> None:
    """A line on which no answer comes before the wait is over."""
    raise TimeoutError


async def closing(house: "House") -> dict[str, int]:
    """What stands in each book account of a house at the end."""
    statement = Statement(house.book.me)
    async for entry in house.journal.entries():
        statement.add(entry.sequence, entry.time_ms, decode_events(entry.payload))
        assert statement.balanced
    return {key.account: line.closing for key, line in statement.lines.items()}


@define
class House:
    """A node that moves money by a scripted rail."""

    journal: Journal
    book: Book
    rail: ScriptedRail
    clock: ManualClock
    policy: Policy
    pace: Pace = field(factory=Pace)
    driver: EffectDriver = field(init=False)
    orders: int = 0

    def __attrs_post_init__(self) -> None:
        self.driver = EffectDriver(
            self.book,
            SeededEntropy(ord(self.book.me[-1])),
            [credit, self.rail],
            {self.rail.name: self.policy},
            self.pace,
        )

    @staticmethod
    async def open(
        policy: Policy = AT_ONCE,
        journal: Journal | None = None,
        stall: Callable[[], Awaitable[None]] = silence,
        pace: Pace | None = None,
        bank: Bank | None = None,
        me: Identity = ME,
        **script: Any,
    ) -> "House":
        clock, journal = ManualClock(), journal or MemoryJournal(me.did)
        book = await Book.open(journal, me, clock)
        if bank is None:
            bank = Bank()
            bank.deposit(OWED, 1_000)
        return House(journal, book, ScriptedRail(bank, stall, **script), clock, policy, pace or Pace())

    async def restart(self) -> None:
        """The same journal and the same bank under another driver, as after a stop at any place."""
        self.book = await Book.open(self.journal, ME, self.clock)
        self.driver = EffectDriver(
            self.book, SeededEntropy(self.orders + 2), [self.rail], {self.rail.name: self.policy}, self.pace
        )

    @property
    def bank(self) -> Bank:
        return self.rail.bank

    async def work(self, amount: int, key: AccountKey = OWED) -> None:
        """So much more is owed and promised."""
        account = self.account(key)
        self.orders += 1
        order = self.orders.to_bytes(32, "big")
        promise = (VoucherReceived if key.payee == self.book.me else Authorized)(account.owed + amount)
        if key == OWING and not account.funded:
            self.bank.deposit(OWING, 10_000)
        first = [Funded(10_000, 1)] if key == OWING and not account.funded else []
        grant = Granted(0, 10_000, account.grant_sequence + 1)
        changes = [*first, grant, Reserved(order, amount, 9), Earned(order, amount), Released(order), promise]
        await self.book.post(*(AccountChanged(key, change) for change in changes))

    async def rounds(self, count: int = 4, seconds: float = 100) -> None:
        for _ in range(count):
            await self.driver.step()
            self.clock.advance(seconds)

    def account(self, key: AccountKey = OWED) -> Account:
        return self.book.journal.books.account(key)

    def effect(self, key: AccountKey = OWED) -> Tracked | None:
        return self.book.journal.books.effects.get(key)

    def state(self, key: AccountKey = OWED) -> str | None:
        tracked = self.effect(key)
        return tracked.state if tracked else None

    def paid(self, key: AccountKey = OWED) -> int:
        return self.bank.purse(key).paid

    def asked(self, what: str) -> int:
        return sum(found == what for found, _ in self.rail.asked)


async def started(house: House) -> House:
    """With the collateral seen."""
    await house.book.post(AccountChanged(OWED, Funded(1_000, 1)))
    return house


class TestWhenMoneyMoves:
    async def test_what_is_due_is_claimed_and_counted_once(self) -> None:
        house = await started(await House.open())
        await house.work(60)
        await house.rounds(3)
        assert (house.paid(), house.account().settled, house.account().claimed) == (60, 60, 60)
        assert house.asked("perform") == 1

    async def test_what_is_owed_is_paid_and_counted_once(self) -> None:
        house = await House.open()
        await house.work(60, OWING)
        await house.rounds(3)
        assert (house.paid(OWING), house.account(OWING).settled) == (60, 60)

    async def test_small_sums_wait_until_they_are_old(self) -> None:
        house = await started(await House.open(Policy(move_at=100, move_after_s=1_000)))
        await house.work(60)
        await house.rounds(5)
        assert house.paid() == 0
        await house.rounds(10)
        assert house.paid() == 60

    async def test_a_restart_does_not_begin_the_wait_anew(self) -> None:
        house = await started(await House.open(Policy(move_at=100, move_after_s=1_000)))
        await house.work(60)
        for _ in range(12):
            await house.rounds(1)
            await house.restart()
        assert house.paid() == 60

    async def test_each_payment_begins_a_wait(self) -> None:
        house = await started(await House.open(Policy(move_at=100, move_after_s=1_000)))
        await house.work(60)
        house.clock.advance(1_000)
        house.rail.performing.append("forget")
        await house.driver.step()
        await house.work(20)
        await house.rounds(5)
        assert house.paid() == 60
        await house.rounds(10)
        assert house.paid() == 80

    async def test_small_sums_wait_until_there_is_more_of_them(self) -> None:
        house = await started(await House.open(Policy(move_at=100)))
        await house.work(60)
        await house.rounds(2)
        await house.work(60)
        await house.rounds(2)
        assert house.paid() == 120

    async def test_a_payer_that_takes_its_collateral_back_is_claimed_from_at_once(self) -> None:
        house = await started(await House.open(Policy(move_at=100)))
        await house.work(60)
        house.bank.begin_withdrawal(OWED, 1_000)
        await house.rounds(1)
        house.bank.end_withdrawal(OWED)
        assert house.paid() == 60
        assert house.account().shortfall == 0

    async def test_the_collateral_that_the_rail_sees_stands_in_the_account(self) -> None:
        house = await started(await House.open())
        house.bank.deposit(OWED, 500)
        await house.rounds(1)
        assert house.account().capacity == 1_500
        house.bank.begin_withdrawal(OWED, 700)
        await house.rounds(4)
        assert house.account().capacity == 800

    async def test_collateral_is_topped_up_when_little_of_it_is_free(self) -> None:
        house = await House.open(Policy(move_at=1, top_up_below=100, top_up_to=300))
        await house.book.post(AccountChanged(OWING, Granted(0, 1_000, 1)))
        await house.rounds(5)
        assert house.account(OWING).funded == house.bank.purse(OWING).funded == 300

    async def test_a_seller_that_is_no_node_is_paid_within_limits_of_its_own(self) -> None:
        house = await House.open(Policy(move_at=1, top_up_below=100, top_up_to=300))
        seller = evolve(OWING, payee=f"did:pkh:eip155:8453:0x{'12' * 20}#0x{'34' * 32}")
        await house.book.post(AccountChanged(seller, Granted(0, 1_000, 1)))
        await house.rounds(5)
        assert house.account(seller).funded == 0

    async def test_a_rail_of_trust_alone_is_never_asked(self) -> None:
        house = await House.open()
        await house.book.post(AccountChanged(AccountKey(PEER.did, ME.did, "credit", "uusd"), Granted(5, 5, 1)))
        await house.rounds(2)
        with pytest.raises(CannotMove):
            await house.driver.ask(AccountKey(PEER.did, ME.did, "credit", "uusd"), "claim", 1)

    async def test_it_is_in_the_statement_and_the_statement_balances(self) -> None:
        house = await started(await House.open())
        await house.work(60)
        await house.work(40, OWING)
        await house.rounds(2)
        statement = Statement(ME.did)
        async for entry in house.journal.entries():
            statement.add(entry.sequence, entry.time_ms, decode_events(entry.payload))
        moved = {(key.account, line.closing) for key, line in statement.lines.items()}
        assert statement.balanced
        assert {("money", 60 - 10_000), ("collateral", 10_000 - 40)} <= moved


class TestBothSidesOfAChannel:
    """A payer and a payee over one bank: what a chain knows, both books come to say."""

    CHANNEL: frozenset[Kind] = frozenset({"top_up", "claim", "refund", "close"})

    @pytest.mark.parametrize("end", ["close", "refund", "withdrawal"])
    async def test_of_a_whole_life_both_statements_balance_and_agree_with_the_chain(self, end: str) -> None:
        bank = Bank(outside=False)
        payee = await House.open(effects=self.CHANNEL, bank=bank)
        payer = await House.open(Policy(top_up_below=100, top_up_to=500), effects=self.CHANNEL, bank=bank, me=PEER)
        await payer.book.post(AccountChanged(OWED, Granted(0, 1_000, 1)))
        for _ in range(2):
            await payer.rounds(3)
            await payee.driver.look(OWED)
            for house in (payer, payee):
                await house.work(450, OWED)
            await payee.rounds(3)
        purse = bank.purse(OWED)
        assert purse.paid == 900
        match end:
            case "close":
                await payee.driver.ask(OWED, "close", 0)
            case "refund":
                await payee.driver.ask(OWED, "refund", purse.balance)
            case "withdrawal":
                bank.begin_withdrawal(OWED, purse.balance)
                bank.end_withdrawal(OWED)
        for house in (payer, payee):
            await house.rounds(10)
        assert (purse.balance, purse.funded - purse.withdrawn) == (0, 900)
        lines = [await closing(house) for house in (payer, payee)]
        assert lines == [
            {"expense": 900, "money": -900, "payable": 0, "vouchers given": 0, "collateral": 0},
            {"income": -900, "money": 900, "receivable": 0, "vouchers held": 0},
        ]


class TestOnDemand:
    async def test_what_settled_before_does_not_stand_in_the_way(self) -> None:
        house = await started(await House.open())
        await house.work(60)
        await house.driver.step()
        assert house.state() == "settled"
        await house.driver.ask(OWED, "refund", 940)
        assert house.account().capacity == 60

    async def test_free_collateral_goes_back(self) -> None:
        house = await started(await House.open())
        await house.work(60)
        tracked = await house.driver.ask(OWED, "refund", 940)
        assert tracked is not None
        assert tracked.state == "settled"
        assert house.account().capacity == 60
        assert house.bank.purse(OWED).balance == 60

    async def test_what_covers_a_debt_does_not_go_back(self) -> None:
        house = await started(await House.open())
        await house.work(60)
        with pytest.raises(NotNow, match=r"0\.000940usd of the collateral"):
            await house.driver.ask(OWED, "refund", 941)

    async def test_what_is_to_go_back_covers_nothing_whatever_the_rail_sees_meanwhile(self) -> None:
        house = await started(await House.open(performing=["refuse"], telling=["failed"]))
        await house.driver.ask(OWED, "refund", 900)
        house.bank.deposit(OWED, 50)
        house.bank.deposit(OWED, 50)
        house.rail.performing.append("refuse")
        await house.rounds(1)
        assert (house.state(), house.account().capacity) == ("failed", 200)
        await house.rounds(5)
        assert (house.bank.purse(OWED).balance, house.account().capacity) == (200, 200)

    async def test_closing_takes_what_is_due_and_gives_the_rest_back(self) -> None:
        house = await started(await House.open())
        await house.work(60)
        await house.driver.ask(OWED, "close", 0)
        purse = house.bank.purse(OWED)
        assert (purse.paid, purse.withdrawn, purse.balance) == (60, 940, 0)
        assert (house.account().settled, house.account().available) == (60, 0)

    @pytest.mark.parametrize("kind", ["pay", "top_up"])
    async def test_a_payee_does_not_do_what_its_payer_does(self, kind: Kind) -> None:
        house = await started(await House.open())
        await house.work(60)
        with pytest.raises(CannotMove):
            await house.driver.ask(OWED, kind, 5)

    async def test_nothing_is_asked_for_while_something_is_under_way(self) -> None:
        house = await started(await House.open(performing=["lose"]))
        await house.work(60)
        await house.driver.step()
        assert house.state() == "unknown"
        with pytest.raises(NotNow, match="one at a time"):
            await house.driver.ask(OWED, "refund", 5)


class TestNoAnswer:
    @pytest.mark.parametrize("fault", ["lose", "forget", "delay", "break"])
    @pytest.mark.parametrize("key", [OWED, OWING], ids=["claim", "pay"])
    async def test_is_unknown_until_the_rail_tells_and_nothing_moves_twice(self, fault: Any, key: AccountKey) -> None:
        house = await started(await House.open(performing=[fault], telling=["silent", "unsure"]))
        await house.work(60, key)
        await house.driver.step()
        assert (house.state(key), house.account(key).settled) == ("unknown", 0)
        await house.rounds(6)
        house.bank.deliver()
        await house.rounds(20)
        assert (house.paid(key), house.account(key).settled, house.state(key)) == (60, 60, None)

    async def test_holds_up_no_other_account(self) -> None:
        hanging = asyncio.Event()

        async def stall() -> None:
            await hanging.wait()

        house = await started(await House.open(stall=stall, pace=Pace(answer_s=0.01), performing=["lose"]))
        await house.work(60)
        await house.work(40, OWING)
        await house.driver.step()
        states = {house.state(OWED), house.state(OWING)}
        assert states == {"unknown", "settled"}

    async def test_a_restart_asks_before_it_tries(self) -> None:
        house = await started(await House.open(performing=["forget"]))
        await house.work(60, OWING)
        await house.driver.step()
        await house.restart()
        house.rail.asked.clear()
        await house.rounds(1)
        assert [what for what, _ in house.rail.asked] == ["fate"]
        assert house.account(OWING).settled == house.paid(OWING) == 60

    async def test_pauses_grow_and_a_clock_that_goes_back_does_not_stretch_them(self) -> None:
        house = await started(await House.open(performing=["forget"], telling=["silent"] * 1_000))
        await house.work(60, OWING)
        await house.rounds(200, seconds=5)
        asked = house.asked("fate")
        assert asked < 12
        house.clock.advance(-86_400)
        await house.driver.step()
        assert house.asked("fate") == asked + 1


class BrokenDisk(MemoryJournal):
    """A journal of which some of the next writes fail."""

    def __init__(self, chain_id: str) -> None:
        super().__init__(chain_id)
        self.failing: list[bool] = []

    async def append(self, *arguments: Any, **more: Any) -> Entry:
        if self.failing and self.failing.pop(0):
            raise LedgerUnavailable("the disk is full")
        return await super().append(*arguments, **more)


class TestWithoutADisk:
    async def test_what_could_not_be_written_is_not_tried(self) -> None:
        disk = BrokenDisk(ME.did)
        house = await House.open(journal=disk)
        await house.work(60, OWING)
        disk.failing = [True] * 3
        await house.rounds(3)
        assert house.rail.asked == []
        await house.rounds(2)
        assert house.paid(OWING) == 60

    async def test_an_answer_that_could_not_be_written_is_asked_for_again(self) -> None:
        disk = BrokenDisk(ME.did)
        house = await House.open(journal=disk)
        await house.work(60, OWING)
        disk.failing = [False, True]
        await house.driver.step()
        assert (house.state(OWING), house.paid(OWING), house.account(OWING).settled) == ("planned", 60, 0)
        await house.rounds(1)
        assert (house.account(OWING).settled, house.asked("perform")) == (60, 1)


async def test_it_runs_in_the_background_and_a_stop_leaves_what_is_under_way_to_the_next_start() -> None:
    reached, hanging = asyncio.Event(), asyncio.Event()

    async def stall() -> None:
        reached.set()
        await hanging.wait()

    house = await House.open(stall=stall, pace=Pace(round_s=0.001), performing=["forget"])
    await house.work(60, OWING)
    running = asyncio.create_task(house.driver.run())
    await reached.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert house.state(OWING) == "planned"
    await house.restart()
    await house.rounds(1)
    assert (house.account(OWING).settled, house.asked("perform")) == (60, 1)


class TestWhatFails:
    async def test_is_tried_again_under_the_same_key(self) -> None:
        house = await House.open(performing=["refuse", "refuse"])
        await house.work(60, OWING)
        await house.rounds(6)
        assert house.paid(OWING) == house.account(OWING).settled == 60
        assert len({key for _, key in house.rail.asked}) == 1

    async def test_a_claim_takes_along_what_is_due_by_then(self) -> None:
        house = await started(await House.open(performing=["refuse"]))
        await house.work(60)
        await house.driver.step()
        assert house.state() == "failed"
        await house.work(30)
        await house.rounds(3)
        assert (house.paid(), house.account().settled) == (90, 90)

    async def test_what_was_set_off_meanwhile_is_not_paid(self) -> None:
        house = await House.open(performing=["refuse"])
        await house.work(60, OWING)
        await house.driver.step()
        await house.book.post(AccountChanged(OWING, Netted(60)))
        await house.rounds(5)
        assert house.paid(OWING) == 0

    async def test_the_owner_can_put_it_aside(self) -> None:
        house = await House.open(Policy(move_at=50), performing=["refuse"])
        await house.work(60, OWING)
        await house.driver.step()
        tracked = house.effect(OWING)
        assert tracked is not None
        await house.driver.dismiss(tracked.effect.key)
        assert house.state(OWING) is None
        with pytest.raises(NotNow, match="no effect"):
            await house.driver.dismiss(tracked.effect.key)

    async def test_what_may_have_moved_cannot_be_put_aside(self) -> None:
        house = await House.open(performing=["lose"])
        await house.work(60, OWING)
        await house.driver.step()
        tracked = house.effect(OWING)
        assert tracked is not None
        with pytest.raises(NotNow, match="asks on until"):
            await house.driver.dismiss(tracked.effect.key)


class TestLies:
    async def test_settled_and_then_failed_is_shown_and_nothing_else_moves(self) -> None:
        house = await House.open(performing=["feign"])
        await house.work(60, OWING)
        await house.rounds(10)
        tracked = house.effect(OWING)
        assert tracked is not None
        assert (tracked.state, tracked.why) == ("contradicted", "it said settled first, and then absent")
        assert house.account(OWING).settled == 60  # what was counted stands
        await house.work(60, OWING)
        await house.rounds(10)
        assert house.asked("perform") == 1

    async def test_more_than_was_asked_is_never_counted(self) -> None:
        house = await started(await House.open(performing=["exaggerate"]))
        await house.work(60)
        await house.driver.step()
        tracked = house.effect()
        assert tracked is not None
        assert (tracked.state, tracked.moved, house.account().settled) == ("contradicted", 60, 60)
        assert "121" in tracked.why

    async def test_less_than_was_asked_is_counted_as_that(self) -> None:
        house = await started(await House.open(performing=["understate"]))
        await house.work(60)
        await house.driver.step()
        assert (house.state(), house.account().settled) == ("contradicted", 30)

    async def test_failed_and_then_settled_is_found_before_it_is_tried_again(self) -> None:
        house = await House.open(performing=["deny"])
        await house.work(60, OWING)
        await house.rounds(5)
        assert (house.state(OWING), house.account(OWING).settled, house.paid(OWING)) == ("contradicted", 60, 60)
        assert house.asked("perform") == 1

    @pytest.mark.parametrize("key", [OWED, OWING], ids=["claim", "pay"])
    async def test_a_rail_that_denies_for_ever_still_pays_once(self, key: AccountKey) -> None:
        house = await started(await House.open(performing=["deny"] * 50, telling=["failed"] * 50))
        await house.work(60, key)
        await house.rounds(20, seconds=4_000)
        assert house.paid(key) == 60

    async def test_collateral_that_was_feigned_does_not_stay(self) -> None:
        house = await House.open(performing=["feign"])
        await house.driver.ask(OWING, "top_up", 100)
        await house.rounds(10)
        assert (house.state(OWING), house.account(OWING).funded) == ("contradicted", 0)

    @pytest.mark.parametrize(
        ("key", "lie"),
        [
            *((OWING, lie) for lie in ("feign", "exaggerate", "understate", "deny")),
            *((OWED, lie) for lie in ("exaggerate", "understate", "deny")),
        ],
    )
    async def test_its_owner_can_have_it_asked_for_once_more(self, lie: Any, key: AccountKey) -> None:
        house = await started(await House.open(performing=[lie]))
        await house.work(60, key)
        await house.rounds(10)
        tracked = house.effect(key)
        assert tracked is not None
        assert tracked.state == "contradicted"
        await house.driver.retry(tracked.effect.key)
        await house.rounds(10)
        assert (house.state(key), house.paid(key), house.account(key).settled) == (None, 60, 60)

    async def test_a_claim_that_was_contradicted_is_pressed_once_when_collateral_is_leaving(self) -> None:
        house = await started(await House.open(performing=["feign"] * 5))
        await house.work(60)
        await house.rounds(50)
        assert (house.state(), house.asked("perform"), house.paid()) == ("contradicted", 4, 0)
        house.bank.begin_withdrawal(OWED, 1_000)
        await house.rounds(20)
        assert (house.state(), house.asked("perform")) == ("contradicted", 5)
        house.bank.end_withdrawal(OWED)
        house.bank.deposit(OWED, 100)
        await house.rounds(2)
        house.bank.begin_withdrawal(OWED, 100)
        await house.rounds(2)
        assert (house.paid(), house.account().settled) == (60, 60)

    async def test_after_its_owner_has_looked_the_account_goes_on(self) -> None:
        house = await started(await House.open(performing=["understate"]))
        await house.work(60)
        await house.rounds(10)
        tracked = house.effect()
        assert tracked is not None
        await house.driver.dismiss(tracked.effect.key)
        await house.work(40)
        await house.rounds(3)
        assert (house.paid(), house.account().settled) == (100, 100)  # claims are paid by their totals


class TestAReorganisedChain:
    async def test_a_claim_that_it_lost_is_made_again_and_counted_once(self) -> None:
        house = await started(await House.open(performing=["feign"]))
        await house.work(60)
        await house.driver.step()
        assert (house.state(), house.account().settled, house.paid()) == ("settled", 60, 0)
        await house.rounds(10)
        assert (house.account().settled, house.paid(), house.asked("perform")) == (60, 60, 2)
        assert len({key for _, key in house.rail.asked}) == 1
        await house.rounds(10)
        assert house.state() is None

    async def test_a_payment_that_it_lost_waits_for_its_owner(self) -> None:
        house = await House.open(performing=["feign"])
        await house.work(60, OWING)
        await house.rounds(20)
        assert (house.state(OWING), house.asked("perform")) == ("contradicted", 1)


class TestFees:
    """A claim costs 90 and 10 for each account, and may cost 10 in a hundred."""

    SHARE = Policy(move_at=1_000, move_after_s=1_000, max_fee_ppm=100_000)

    async def house(self, *dues: int, fees: tuple[int, int] | None = (90, 10), **script: Any) -> House:
        house = await House.open(self.SHARE, fees=fees, **script)
        for key, due in zip(owed(len(dues)), dues, strict=True):
            house.bank.deposit(key, 10_000)
            await house.book.post(AccountChanged(key, Funded(10_000, 1)))
            await house.work(due, key)
        return house

    async def test_a_claim_waits_until_its_fee_is_a_small_share_of_it(self) -> None:
        house = await self.house(999)
        await house.rounds(30)
        assert house.paid(owed(1)[0]) == 0  # however old it is
        await house.work(1, owed(1)[0])
        await house.rounds(1)
        assert house.paid(owed(1)[0]) == 1_000

    async def test_what_is_small_goes_along_with_what_is_not_and_what_is_smaller_than_its_fee_does_not(self) -> None:
        house = await self.house(2_000, 300, 100, 99)
        await house.rounds(1)
        assert [house.paid(key) for key in owed(4)] == [2_000, 300, 100, 0]

    async def test_old_claims_that_are_too_small_alone_go_together(self) -> None:
        house = await self.house(400, 400, 400)
        await house.rounds(9)
        assert house.bank.carried_out == {}
        await house.rounds(3)
        assert [house.paid(key) for key in owed(3)] == [400, 400, 400]

    @pytest.mark.parametrize("fees", [(90, 10), None])
    async def test_a_withdrawal_forces_a_claim_whatever_its_share(self, fees: tuple[int, int] | None) -> None:
        house = await self.house(101, 99, fees=fees)
        house.bank.begin_withdrawal(owed(1)[0], 10_000)
        await house.rounds(1)
        assert house.paid(owed(1)[0]) == 101

    async def test_a_claim_that_costs_more_than_it_brings_is_not_made_even_then(self) -> None:
        house = await self.house(100)
        house.bank.begin_withdrawal(owed(1)[0], 10_000)
        await house.rounds(3)
        assert house.asked("perform") == 0

    async def test_what_nobody_can_tell_the_fee_of_waits(self) -> None:
        house = await self.house(9_000, fees=None)
        await house.rounds(20)
        assert house.asked("perform") == 0
        house.rail.fees = (90, 10)
        await house.rounds(1)
        assert house.paid(owed(1)[0]) == 9_000

    async def test_those_that_move_together_reach_the_rail_together(self) -> None:
        arrived, all_there = 0, asyncio.Event()

        async def stall() -> None:
            nonlocal arrived
            arrived += 1
            if arrived == 40:
                all_there.set()
            await all_there.wait()

        house = await self.house(*[2_000] * 40, stall=stall, performing=["forget"] * 40)
        await house.driver.step()
        assert arrived == 40

    async def test_no_more_move_together_than_fit_into_one_transaction(self) -> None:
        house = await self.house(*[2_000] * 51)
        await house.driver.step()
        assert house.asked("perform") == 50
        await house.driver.step()
        assert house.asked("perform") == 51

    async def test_a_top_up_waits_for_a_fee_that_is_worth_it(self) -> None:
        house = await House.open(Policy(top_up_below=100, top_up_to=300, max_fee_ppm=100_000), fees=(0, 31))
        await house.book.post(AccountChanged(OWING, Granted(0, 1_000, 1)))
        await house.rounds(3)
        assert house.account(OWING).funded == 0
        house.rail.fees = (0, 30)
        await house.rounds(3)
        assert house.account(OWING).funded == 300

    async def test_collateral_that_was_taken_back_is_not_put_in_again_by_itself(self) -> None:
        house = await House.open(Policy(top_up_below=100, top_up_to=300))
        await house.book.post(AccountChanged(OWING, Granted(0, 1_000, 1)))
        await house.rounds(3)
        await house.driver.ask(OWING, "refund", 300)
        await house.rounds(10)
        assert house.bank.purse(OWING).balance == 0


class TestLooking:
    @pytest.mark.parametrize(("owed", "emptied", "looks"), [(60, False, 60), (0, False, 12), (0, True, 1)])
    async def test_is_often_where_something_is_at_stake_and_seldom_where_nothing_lies(
        self, owed: int, emptied: bool, looks: int
    ) -> None:
        house = await started(await House.open(Policy(move_at=1_000, move_after_s=1e9)))
        if emptied:
            house.bank.begin_withdrawal(OWED, 1_000)
            house.bank.end_withdrawal(OWED)
        await house.driver.step()
        if owed:
            await house.work(owed)
        seen = 0
        for _ in range(60):
            house.clock.advance(60)
            house.bank.purse(OWED).sequence += 1
            house.bank.purse(OWED).funded += 1
            house.bank.purse(OWED).withdrawn += 1
            before = house.account().funded
            await house.driver.step()
            seen += house.account().funded > before
        assert seen == looks


class TestLookingAtOnce:
    async def test_a_deposit_that_somebody_tells_of_counts_at_once(self) -> None:
        house = await started(await House.open())
        await house.rounds(1, seconds=2)
        house.bank.deposit(OWED, 500)
        assert (await house.driver.look(OWED)).capacity == 1_500

    async def test_whoever_tells_often_is_listened_to_in_a_while(self) -> None:
        house = await started(await House.open())
        await house.driver.look(OWED)
        house.bank.deposit(OWED, 500)
        assert (await house.driver.look(OWED)).capacity == 1_000
        house.clock.advance(5)
        await house.driver.step()
        assert house.account().capacity == 1_500

    async def test_an_account_that_nobody_has_yet_begins_with_its_deposit(self) -> None:
        house = await House.open()
        (key,) = owed(1)
        house.bank.deposit(key, 700)
        assert (await house.driver.look(key)).capacity == 700
        assert key in house.book.journal.books.accounts


async def test_what_is_settled_in_between_is_not_overwritten() -> None:
    house = await House.open(performing=["forget"])
    await house.work(60, OWING)
    await house.driver.step()
    await house.book.post(AccountChanged(OWING, Settled(15)))
    await house.rounds(2)
    assert house.account(OWING).settled == 75


async def test_effects_are_picked_up_from_a_file(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "ledger.sqlite", ME.did) as database:
        house = await House.open(journal=database, performing=["lose"])
        await house.work(60, OWING)
        await house.driver.step()
        assert house.state(OWING) == "unknown"
    async with await Database.open(tmp_path / "ledger.sqlite", ME.did) as database:
        house.journal = database
        await house.restart()
        assert house.state(OWING) == "unknown"
        await house.rounds(3)
        assert (house.paid(OWING), house.account(OWING).settled) == (60, 60)


async def test_of_plans_that_are_written_together_one_counts(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "ledger.sqlite", ME.did) as database:
        house = await started(await House.open(journal=database))
        await house.work(60)
        plans = [draw_up(house.account(), "claim", 60, bytes([n]) * 32) for n in range(5)]
        tried = (house.book.post(EffectPlanned(plan, 5), AccountChanged(OWED, Claimed(60))) for plan in plans)
        outcomes = await asyncio.gather(*tried, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(EffectUnderWay) == 4
        await house.rounds(2)
        assert (house.paid(), house.account().settled) == (60, 60)
