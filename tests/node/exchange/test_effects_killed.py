"""A node that is killed at any boundary of any effect, on a rail that loses, delays and doubles: nothing moves twice.

The boundaries are each side of every write of the journal and of every word with the rail. After each kill the books
are rebuilt from the entries alone, and another driver goes on. In the end the line is quiet, and all that was due has
moved, once, and stands in the books.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ledger import snapshot
from ledger.account import Account, AccountKey
from ledger.changes import Authorized, Change, Earned, Granted, Released, Reserved, VoucherReceived
from ledger.effects import Effect, Kind
from ledger.events import AccountChanged, Books
from ledger.identity import Identity
from ledger.journal import Entry, Kept, Material, MemoryJournal, Nonce, replay
from ledger.rails.policy import Policy
from ledger.rails.port import Answer
from ledger.rails.scripted import Bank, Performing, ScriptedRail, Telling
from node.exchange.book import Book
from node.exchange.effects import EffectDriver, EffectRefused
from node.exchange.pacing import Pace
from node.ports import ManualClock, SeededEntropy

ME, PEER = (Identity(bytes([number]) * 32) for number in (1, 2))
OWED = AccountKey(PEER.did, ME.did, "stablecoin", "uusd")
OWING = AccountKey(ME.did, PEER.did, "stablecoin", "uusd")
KEYS = (OWED, OWING)
POLICY = Policy(move_at=20, move_after_s=5_000, top_up_below=50, top_up_to=200)

keys = st.sampled_from(KEYS)
faults: st.SearchStrategy[Performing] = st.sampled_from(
    ["honest", "refuse", "lose", "forget", "delay", "twice", "break"]
)
doubts: st.SearchStrategy[Telling] = st.sampled_from(["honest", "silent", "unsure"])


class Killed(BaseException):
    """The process is gone."""


class Fuse:
    """Counts boundaries, and kills at one of them; nothing goes on after that."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.passed = 0

    def tick(self) -> None:
        self.passed += 1
        if self.left is not None:
            if self.left <= 0:
                raise Killed
            self.left -= 1


class MortalJournal(MemoryJournal):
    """A journal that its process may be killed at, before and after each write."""

    def __init__(self, chain_id: str, fuse: Fuse) -> None:
        super().__init__(chain_id)
        self.fuse = fuse

    async def append(
        self,
        events: Any = (),
        *,
        time_ms: int,
        records: Sequence[Kept] = (),
        nonces: Sequence[Nonce] = (),
        materials: Sequence[Material] = (),
        check: Callable[[Books], None] | None = None,
    ) -> Entry:
        self.fuse.tick()
        entry = await super().append(
            tuple(events), time_ms=time_ms, records=records, nonces=nonces, materials=materials, check=check
        )
        self.fuse.tick()
        return entry


class MortalRail(ScriptedRail):
    """A rail that its asker may be killed at, before and after each word."""

    def __init__(self, bank: Bank, fuse: Fuse) -> None:
        super().__init__(bank, self.silence)
        self.fuse = fuse

    async def silence(self) -> None:
        raise TimeoutError

    async def perform(self, effect: Effect) -> Answer:
        self.fuse.tick()
        answer = await super().perform(effect)
        self.fuse.tick()
        return answer

    async def fate(self, effect: Effect) -> Answer:
        self.fuse.tick()
        answer = await super().fate(effect)
        self.fuse.tick()
        return answer


class KilledNode(RuleBasedStateMachine):
    """One node with a debt each way, its rail and its bank."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.fuse, self.clock, self.bank = Fuse(), ManualClock(), Bank()
        self.bank.deposit(OWED, 100_000)
        self.journal = MortalJournal(ME.did, self.fuse)
        self.rail = MortalRail(self.bank, self.fuse)
        self.orders = self.starts = 0
        self.start()

    @initialize()
    def begin(self) -> None:
        self.runner.run(self.book.post(*(AccountChanged(key, Granted(0, 10_000, 1)) for key in KEYS)))
        self.step()

    # The node

    def start(self) -> None:
        """From the entries alone."""
        self.starts += 1
        self.fuse.left = None
        entries = self.journal._entries
        books = replay(ME.did, entries)
        assert books == self.journal.books
        if entries:
            taken = snapshot.take(ME.did, entries[-1], books)
            assert snapshot.decode(snapshot.encode(taken), ME.did) == taken
        self.book = self.runner.run(Book.open(self.journal, ME, self.clock))
        self.driver = EffectDriver(self.book, SeededEntropy(self.starts), [self.rail], {self.rail.name: POLICY}, Pace())

    def step(self) -> None:
        self.runner.run(self.driver.step())

    def account(self, key: AccountKey) -> Account:
        return self.journal.books.account(key)

    @rule(key=keys, amount=st.integers(1, 60))
    def work(self, key: AccountKey, amount: int) -> None:
        account = self.account(key)
        if account.available < amount:
            grant = AccountChanged(key, Granted(0, 10_000, account.grant_sequence + 1))
            self.runner.run(self.book.post(grant))
            account = self.account(key)
        if account.available < amount:
            return
        self.orders += 1
        order = self.orders.to_bytes(32, "big")
        promise = (VoucherReceived if key == OWED else Authorized)(account.owed + amount)
        changes: list[Change] = [Reserved(order, amount, 9), Earned(order, amount), Released(order), promise]
        self.runner.run(self.book.post(*(AccountChanged(key, change) for change in changes)))

    @rule(key=keys, kind=st.sampled_from(["refund", "top_up", "close"]), amount=st.integers(1, 60))
    def ask(self, key: AccountKey, kind: Kind, amount: int) -> None:
        try:
            self.runner.run(self.driver.ask(key, kind, amount))
        except EffectRefused:
            return

    @rule()
    def go_on(self) -> None:
        self.step()

    @rule(seconds=st.integers(-5_000, 10_000))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.step()

    @rule(boundary=st.integers(0, 12))
    def kill(self, boundary: int) -> None:
        """At so many boundaries from here, if there are as many in a round."""
        self.fuse.left = boundary
        try:
            self.step()
        except Killed:
            self.runner.run(self.driver.close())
        self.start()

    # The rail

    @rule(found=st.lists(faults, max_size=4))
    def trouble(self, found: list[Performing]) -> None:
        self.rail.performing.extend(found)

    @rule(found=st.lists(doubts, max_size=4))
    def doubt(self, found: list[Telling]) -> None:
        self.rail.telling.extend(found)

    @rule()
    def deliver(self) -> None:
        self.bank.deliver()

    @rule(amount=st.integers(1, 100))
    def payer_withdraws(self, amount: int) -> None:
        # Never more than covers nothing: else what is lost is lost to a withdrawal, and not to us.
        free = self.bank.purse(OWED).balance - self.account(OWED).unsettled
        self.bank.begin_withdrawal(OWED, min(amount, max(free, 0)))

    # What must hold

    @invariant()
    def nothing_is_paid_twice(self) -> None:
        for key in KEYS:
            assert self.bank.purse(key).paid <= self.account(key).due

    @invariant()
    def nothing_is_counted_that_has_not_moved(self) -> None:
        for key in KEYS:
            purse, account = self.bank.purse(key), self.account(key)
            assert account.settled <= purse.paid
            assert all(tracked.state != "contradicted" for tracked in self.journal.books.effects.values())

    @invariant()
    def what_is_about_to_go_back_covers_nothing(self) -> None:
        for key, tracked in self.journal.books.effects.items():
            if tracked.effect.kind == "refund":
                assert self.account(key).withdrawn >= tracked.effect.total

    def teardown(self) -> None:
        try:
            self.calm_down()
        finally:
            self.runner.run(self.driver.close())
            self.runner.close()

    def calm_down(self) -> None:
        """The line is quiet from here: everything comes to its end."""
        self.rail.performing.clear()
        self.rail.telling.clear()
        self.bank.deliver()
        for _ in range(8):
            self.clock.advance(10_000)
            self.step()
        for key in KEYS:
            purse, account = self.bank.purse(key), self.account(key)
            assert account.settled == purse.paid == account.due
            assert (account.funded, account.withdrawn) == (purse.funded, purse.withdrawn)
        assert not self.journal.books.effects


class OneEffect(KilledNode):
    """The same node, with one effect on its way and no chance in it."""

    def ready_for(self, kind: Kind, fault: Performing) -> None:
        self.begin()
        self.calm_down()
        self.rail.performing.append(fault)
        if kind in ("pay", "claim"):
            self.work(OWING if kind == "pay" else OWED, 40)

    def carry_out(self, kind: Kind) -> None:
        if kind in ("pay", "claim"):
            self.step()
        else:
            self.ask(OWING if kind == "top_up" else OWED, kind, 40)

    def moved(self, kind: Kind) -> int:
        """What the bank has moved by it."""
        owed, owing = self.bank.purse(OWED), self.bank.purse(OWING)
        before = POLICY.top_up_to  # the driver's own top up
        return {"pay": owing.paid, "claim": owed.paid, "top_up": owing.funded - before}.get(kind, owed.withdrawn)


# What only its owner asked for is asked for again by nobody, if not even the plan was written.
MOVED: dict[Kind, int] = {"pay": 40, "claim": 40, "top_up": 40, "refund": 40, "close": 100_000}


@pytest.mark.parametrize("fault", ["honest", "refuse", "forget"])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_killed_at_each_boundary_of_an_effect_it_moves_once(kind: Kind, fault: Performing) -> None:
    boundary, killed = 0, True
    while killed:
        node = OneEffect()
        try:
            node.ready_for(kind, fault)
            node.fuse.left, killed = boundary, False
            try:
                node.carry_out(kind)
            except Killed:
                killed = True
                node.runner.run(node.driver.close())
            node.start()
            node.calm_down()
            assert node.moved(kind) == (0 if boundary == 0 and kind not in ("pay", "claim") else MOVED[kind])
        finally:
            node.runner.run(node.driver.close())
            node.runner.close()
        boundary += 1
    print(f"killed at {boundary - 1} boundaries of a {kind} ({fault})")
    assert boundary > 4


TestKilled = KilledNode.TestCase
TestKilled.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
