"""Money moves by rails once: whatever the rail does, and wherever the node is killed."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from ledger.account import Account, AccountKey
from ledger.changes import Authorized, Earned, Funded, Granted, Netted, Released, Reserved, Settled, VoucherReceived
from ledger.database import Database, LedgerUnavailable
from ledger.effects import Kind, Tracked
from ledger.events import AccountChanged, decode_events
from ledger.identity import Identity
from ledger.journal import Entry, Journal, MemoryJournal
from ledger.rails import credit
from ledger.rails.policy import Policy
from ledger.rails.scripted import Bank, ScriptedRail
from ledger.statement import Statement
from node.exchange.book import Book
from node.exchange.effects import CannotMove, EffectDriver, NotNow, Pace
from node.ports import ManualClock, SeededEntropy

ME, PEER = (Identity(bytes([number]) * 32) for number in (1, 2))
OWED = AccountKey(PEER.did, ME.did, "stablecoin", "uusd")  # to this node, which claims it
OWING = AccountKey(ME.did, PEER.did, "stablecoin", "uusd")  # by this node, which pays it
AT_ONCE = Policy(move_at=1)


async def silence() -> None:
    """A line on which no answer comes before the wait is over."""
    raise TimeoutError


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
        self.driver = EffectDriver(self.book, SeededEntropy(1), [credit, self.rail], self.policy, self.pace)

    @staticmethod
    async def open(
        policy: Policy = AT_ONCE,
        journal: Journal | None = None,
        stall: Callable[[], Awaitable[None]] = silence,
        pace: Pace | None = None,
        **script: Any,
    ) -> "House":
        clock, journal = ManualClock(), journal or MemoryJournal(ME.did)
        book = await Book.open(journal, ME, clock)
        bank = Bank()
        bank.deposit(OWED, 1_000)
        return House(journal, book, ScriptedRail(bank, stall, **script), clock, policy, pace or Pace())

    async def restart(self) -> None:
        """The same journal and the same bank under another driver, as after a stop at any place."""
        self.book = await Book.open(self.journal, ME, self.clock)
        self.driver = EffectDriver(self.book, SeededEntropy(self.orders + 2), [self.rail], self.policy, self.pace)

    @property
    def bank(self) -> Bank:
        return self.rail.bank

    async def work(self, amount: int, key: AccountKey = OWED) -> None:
        """So much more is owed and promised."""
        account = self.account(key)
        self.orders += 1
        order = self.orders.to_bytes(32, "big")
        promise = (VoucherReceived if key == OWED else Authorized)(account.owed + amount)
        first = [Funded(10_000, 10_000)] if key == OWING and not account.funded else []
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
        await house.rounds(1)
        assert house.account().capacity == 800

    async def test_collateral_is_topped_up_when_little_of_it_is_free(self) -> None:
        house = await House.open(Policy(move_at=1, top_up_below=100, top_up_to=300))
        await house.book.post(AccountChanged(OWING, Granted(0, 1_000, 1)))
        await house.rounds(5)
        assert house.account(OWING).funded == house.bank.purse(OWING).funded == 300

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


class TestOnDemand:
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
        with pytest.raises(NotNow, match="940 of the collateral"):
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

    async def test_a_rail_that_denies_for_ever_still_pays_once(self) -> None:
        house = await House.open(performing=["deny"] * 50, telling=["failed"] * 50)
        await house.work(60, OWING)
        await house.rounds(20, seconds=4_000)
        assert house.paid(OWING) == 60

    async def test_collateral_that_was_feigned_does_not_stay(self) -> None:
        house = await House.open(performing=["feign"])
        await house.driver.ask(OWING, "top_up", 100)
        assert house.account(OWING).funded == 100
        await house.rounds(10)
        assert (house.state(OWING), house.account(OWING).funded) == ("contradicted", 0)

    async def test_after_its_owner_has_looked_the_account_goes_on(self) -> None:
        house = await started(await House.open(performing=["feign"]))
        await house.work(60)
        await house.rounds(10)
        tracked = house.effect()
        assert tracked is not None
        await house.driver.dismiss(tracked.effect.key)
        await house.work(40)
        await house.rounds(3)
        assert (house.paid(), house.account().settled) == (100, 100)  # claims are paid by their totals


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
