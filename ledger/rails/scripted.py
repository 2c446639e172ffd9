"""A rail that does as it is told, in good and in bad: for tests and simulations.

Theory of operation. The money lies with a `Bank`, which outlives the rails that ask it, as a chain or a Lightning
network outlives a node. The bank is honest: it carries each key out once, pays no more than what covers it, and counts
everything, so money that was paid twice, or never, shows in its sums. Between a node and the bank is a `ScriptedRail`,
the way there and back, which is told for each request what happens to it: it can be lost, come late or twice, its
answer can be lost, and the rail can lie. What is not told is carried out and answered as it is.

Waiting is an argument, as time is everywhere here: a `stall` that never returns is a line that hangs, one that raises
is a line that breaks.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal, get_args

from attrs import define, field

from ledger.account import Account, AccountKey
from ledger.changes import VoucherReceived
from ledger.effects import Effect, Kind
from ledger.identity import Identity
from ledger.rails import vouchers
from ledger.rails.port import Answer, Sight
from ledger.records import Signed, Voucher

# What may be told of a request to move money:
Performing = Literal[
    "honest",
    "refuse",  # the bank never sees it, and it is said to have failed
    "lose",  # the request is lost, and no answer comes
    "forget",  # it is carried out, and the answer is lost
    "delay",  # the request travels on, to arrive at `Bank.deliver`, and no answer comes
    "twice",  # it reaches the bank twice, and is answered
    "break",  # it is carried out, and the line breaks with an error
    "feign",  # it is not carried out, and said to have settled
    "deny",  # it is carried out, and said to have failed
    "exaggerate",  # it is carried out, and said to have moved more than it was asked to
    "understate",  # it is carried out, and said to have moved less
]
# And of a question after one:
Telling = Literal[
    "honest",
    "silent",  # no answer comes
    "unsure",  # it cannot tell now
    "settled",  # whatever the bank says
    "failed",
    "absent",
]


@define
class Purse:
    """What the bank holds and has moved for one account, in its unit."""

    funded: int = 0
    withdrawn: int = 0
    leaving: int = 0
    paid: int = 0
    sequence: int = 0

    @property
    def balance(self) -> int:
        """What of the deposits is neither paid out nor gone back; what is leaving can still be claimed."""
        return self.funded - self.withdrawn + self.leaving - self.paid


@define
class Bank:
    """Where the money is. `outside` is what payers may pay out of other pockets, without a deposit."""

    outside: bool = True
    purses: dict[AccountKey, Purse] = field(factory=dict)
    carried_out: dict[bytes, Effect] = field(factory=dict)
    refused: set[bytes] = field(factory=set)
    under_way: list[Effect] = field(factory=list)

    def purse(self, key: AccountKey) -> Purse:
        """One account's."""
        return self.purses.setdefault(key, Purse())

    def carry_out(self, effect: Effect) -> bool:
        """Move an effect's money unless its key was carried out before; whether it is carried out by now."""
        if effect.key in self.carried_out:
            return True
        if not self._move(effect):
            self.refused.add(effect.key)
            return False
        self.refused.discard(effect.key)
        self.carried_out[effect.key] = effect
        self.purse(effect.account).sequence += 1
        return True

    def _move(self, effect: Effect) -> bool:
        purse = self.purse(effect.account)
        match effect.kind:
            case "top_up":
                purse.funded += effect.amount
            case "pay":
                if not self.outside:
                    return False
                purse.paid += effect.amount
            case "claim":
                return self._claim(purse, effect.total)
            case "refund":
                if effect.amount > purse.balance - purse.leaving:
                    return False
                purse.withdrawn += effect.amount
            case "close":
                if not self._claim(purse, effect.total):
                    return False
                purse.withdrawn += purse.balance - purse.leaving
        return True

    def _claim(self, purse: Purse, total: int) -> bool:
        """Claims are paid by their totals, as those of payment channels are."""
        due = max(total - purse.paid, 0)
        if due > purse.balance:
            return False
        stopped = max(due - (purse.balance - purse.leaving), 0)  # of what was leaving
        purse.leaving -= stopped
        purse.withdrawn -= stopped
        purse.paid += due
        return True

    def deliver(self) -> None:
        """The requests that were delayed arrive."""
        while self.under_way:
            self.carry_out(self.under_way.pop(0))

    def deposit(self, key: AccountKey, amount: int) -> None:
        """A payer brings collateral, by other means than an effect."""
        purse = self.purse(key)
        purse.funded += amount
        purse.sequence += 1

    def begin_withdrawal(self, key: AccountKey, amount: int) -> None:
        """A payer begins to take collateral back; until it ends, it can still be claimed."""
        purse = self.purse(key)
        amount = min(amount, purse.balance - purse.leaving)
        purse.withdrawn += amount
        purse.leaving += amount
        purse.sequence += 1

    def end_withdrawal(self, key: AccountKey) -> None:
        """What was leaving, and was not claimed, is gone."""
        purse = self.purse(key)
        purse.leaving = 0
        purse.sequence += 1


class ScriptedRail:
    """A `port.Rail` over a bank, with a script of what happens to the next requests and questions."""

    effects: Final[frozenset[Kind]]

    def __init__(
        self,
        bank: Bank,
        stall: Callable[[], Awaitable[None]],
        *,
        name: str = "stablecoin",
        performing: Iterable[Performing] = (),
        telling: Iterable[Telling] = (),
        effects: Iterable[Kind] = get_args(Kind),
        fees: tuple[int, int] | None = (0, 0),
    ) -> None:
        """`stall` is what a request without an answer waits for.

        `fees` are what moving costs, in the unit of its accounts: once, and for each account; None: it cannot tell.
        """
        self.bank = bank
        self.name = name
        self.effects = frozenset(effects)
        self.fees = fees
        self.performing: deque[Performing] = deque(performing)
        self.telling: deque[Telling] = deque(telling)
        self.asked: list[tuple[str, bytes]] = []  # "perform" or "fate", and the key
        self._stall = stall
        self._place = (name, "scripted")

    def capacity(self, account: Account) -> int:
        """What the account's counters say."""
        return account.capacity

    def make_voucher(self, identity: Identity, account: Account, total: int) -> Signed[Voucher]:
        """The payer's promise of a growing total. See `vouchers.make_voucher` for what it raises."""
        return vouchers.make_voucher(self.name, self._place, identity, account, total)

    def check_voucher(self, voucher: Signed[Voucher], account: Account, at_least: int = 0) -> VoucherReceived:
        """The fact that a voucher is to the payee's account. See `vouchers.check_voucher` for what it raises."""
        return vouchers.check_voucher(self.name, self._place, voucher, account, at_least)

    async def collateral(self, account: Account) -> Sight | None:
        """What the bank holds."""
        purse = self.bank.purse(account.key)
        if not purse.sequence:
            return None
        # What is paid by effects of the payer's, it counts by those.
        paid = 0 if "pay" in self.effects else purse.paid
        return Sight(purse.funded, purse.withdrawn, purse.sequence, purse.leaving, paid)

    async def fee(self, kind: Kind, accounts: int) -> int | None:
        """What it was told that moving costs."""
        return None if self.fees is None else self.fees[0] + accounts * self.fees[1]

    async def perform(self, effect: Effect) -> Answer:
        """As the script says. Raises ConnectionError where the line breaks, and what `stall` raises."""
        self.asked.append(("perform", effect.key))
        what = self.performing.popleft() if self.performing else "honest"
        match what:
            case "refuse":
                return Answer("failed", why="refused, as the script says")
            case "feign":
                return Answer("settled", effect.amount)
            case "lose":
                return await self._silence()
            case "delay":
                self.bank.under_way.append(effect)
                return await self._silence()
        done = self._honest(effect) if self.bank.carry_out(effect) else Answer("failed", why="not covered")
        match what:
            case "forget":
                return await self._silence()
            case "break":
                raise ConnectionError("the line broke")
            case "twice":
                self.bank.carry_out(effect)
            case "deny":
                return Answer("failed", why="denied, as the script says")
            case "exaggerate" if done.fate == "settled":
                return Answer("settled", 2 * effect.amount + 1)
            case "understate" if done.fate == "settled":
                return Answer("settled", effect.amount // 2)
        return done

    async def fate(self, effect: Effect) -> Answer:
        """As the script says. Raises what `stall` raises."""
        self.asked.append(("fate", effect.key))
        what = self.telling.popleft() if self.telling else "honest"
        match what:
            case "silent":
                return await self._silence()
            case "unsure":
                return Answer("unknown")
            case "settled":
                return Answer("settled", effect.amount)
            case "failed" | "absent":
                return Answer(what)
        return self._honest(effect)

    def _honest(self, effect: Effect) -> Answer:
        if effect.key in self.bank.carried_out:
            return Answer("settled", effect.amount)
        return Answer("failed", why="not covered") if effect.key in self.bank.refused else Answer("absent")

    async def _silence(self) -> Answer:
        await self._stall()
        return Answer("unknown")
