"""A node that is killed at any point of what it has its rail move, and what must be true of the money afterwards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen

from ledger.database import Database, Place
from ledger.effects import EffectTold, Kind
from ledger.rails.scripted import Performing, Purse
from tests.integration.banking import FileBank, account_of
from tests.integration.crashes import PAID_IN_THE_END, CrashingNode, Gone, Point, check_chain
from tests.integration.crashing_node import write_clock

AMOUNT: Final = 1_000
# So much collateral comes before each movement, and covers all of it.
_DEPOSIT: Final = 4 * AMOUNT
_OWED_BEFORE: Final = frozenset({"pay", "claim", "close"})
# By then the collateral is looked at again, what failed is tried again, and what settled is asked for once more.
_PAUSE_S: Final = 700
_ROUNDS: Final = 8
_REACHED_S: Final = 3.0


@frozen
class Movement:
    """What a node has its rail move, and what happens to its first requests before the node is killed."""

    kind: Kind
    script: Sequence[Performing] = ()

    def __str__(self) -> str:
        return " ".join([self.kind, *self.script])

    def moves(self, purse: Mapping[str, int]) -> Mapping[str, int]:
        """By how much it changes the sums of the bank, which are now as in `purse`."""
        match self.kind:
            case "top_up":
                return {"funded": AMOUNT}
            case "refund":
                return {"withdrawn": AMOUNT}
            case "close":
                held = purse["funded"] - purse["withdrawn"] - purse["paid"]
                return {"paid": AMOUNT, "withdrawn": held - AMOUNT}
        return {"paid": AMOUNT}


@frozen
class Sums:
    """What a bank holds and has moved for an account, and how many requests it has carried out in all."""

    purse: Mapping[str, int]
    requests: int


class Mover:
    """A node with a bank; the other side of its accounts never runs."""

    def __init__(self, folder: Path, server: Path, place: Place | None) -> None:
        folder.mkdir()
        self._clock, self._now = folder / "clock", 0
        write_clock(self._clock, 0)
        self.node: Final = CrashingNode("mover", folder, place, server, self._clock)
        self._peer: Final = CrashingNode("peer", folder, place, server, self._clock)
        self.node.configure(self._peer, PAID_IN_THE_END)

    async def points_of(self, movement: Movement) -> list[Point]:
        """All points of a movement, in a run without a crash."""
        before = await self._prepare(movement)
        await self.node.do("watch", fatal=None)
        await self._move(movement)
        await self._follow(movement)
        counted: Counter[str] = Counter()
        found = []
        for passed in (await self.node.do("seen"))["seen"]:
            counted[passed] += 1
            found.append(Point(self.node.name, passed, counted[passed]))
        await self._check(movement, before)
        return found

    async def crash(self, movement: Movement, point: Point) -> bool:
        """Kill the node at a point of a movement, start it again and check what became of it; whether it was reached.

        What was planned is followed to its end by the node alone; what was not has not moved, and is asked for again.
        """
        before = await self._prepare(movement)
        await self.node.do("watch", fatal=[point.name, point.nth])
        reached = False
        try:
            await self._move(movement)
            await self._follow(movement)
            await self.node.do("seen")
        except Gone:
            reached = await self.node.dies(_REACHED_S)
            await self.node.start()
            await self._follow(movement)
        planned = not ("planned" in point.name and point.name.endswith(("the first row", "before the commit")))
        if reached and not planned:
            assert self._sums(movement) == before, f"{movement}, {point}: moved what nobody had planned"
            await self._move(movement)
            await self._follow(movement)
        await self._check(movement, before, point)
        return reached

    async def check_ledger(self) -> None:
        """Check the stopped node's ledger: it is whole, and says once of all that the bank has moved, and of no more,
        that it has settled."""
        async with await Database.open(self.node.place, self.node.did) as database:
            events = await check_chain(self.node, database)
        settled = Counter(event.key for event in events if isinstance(event, EffectTold) and event.news == "settled")
        assert settled == Counter(FileBank.open(self.node.bank).carried_out.keys())

    async def _prepare(self, movement: Movement) -> Sums:
        """Bring collateral, and a debt where it is about one."""
        await self._do("deposit", movement, amount=_DEPOSIT)
        await self._pass_time(movement)
        if movement.kind in _OWED_BEFORE:
            await self._do("owe", movement, amount=AMOUNT)
        return self._sums(movement)

    async def _move(self, movement: Movement) -> None:
        amount = 0 if movement.kind == "close" else AMOUNT
        await self._do("move", movement, amount=amount, performing=list(movement.script))

    async def _follow(self, movement: Movement) -> None:
        """Let time pass until nothing is under way."""
        for _ in range(_ROUNDS):
            if (await self._pass_time(movement))["state"] is None:
                return
        raise AssertionError(f"{movement} does not come to its end")

    async def _pass_time(self, movement: Movement) -> dict[str, Any]:
        self._now += _PAUSE_S
        write_clock(self._clock, self._now)
        return await self._do("step", movement)

    async def _do(self, task: str, movement: Movement, **more: object) -> dict[str, Any]:
        return await self.node.do("teller", task=task, kind=movement.kind, peer=self._peer.did, **more)

    def _sums(self, movement: Movement) -> Sums:
        bank = FileBank.open(self.node.bank)
        key = account_of(movement.kind, self.node.did, self._peer.did)
        return Sums(asdict(bank.purses.get(key, Purse())), len(bank.carried_out))

    async def _check(self, movement: Movement, before: Sums, point: Point | None = None) -> None:
        """The money has moved once, and the node's books say what the bank says."""
        now, says = self._sums(movement), (await self._do("look", movement))["counted"]
        moved = {name: now.purse[name] - before.purse[name] for name in says}
        where = f"{movement}, killed at {point}"
        assert {name: by for name, by in moved.items() if by} == movement.moves(before.purse), where
        assert now.requests == before.requests + 1, where
        assert says == {name: now.purse[name] for name in says}, where
