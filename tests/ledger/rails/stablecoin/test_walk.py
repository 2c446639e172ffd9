"""A walk at random through what may happen to effects: nothing is moved twice or lost, by the chain's own counts."""

import random

import pytest

from ledger.effects import Effect, Kind
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.channels import DELAY_S
from tests.ledger.rails.stablecoin.conftest import Opens
from tests.ledger.rails.stablecoin.trading import DEPTH, Node, Trade, trade

START = 100_000_000
STEPS = 15
# More rounds than any effect takes to its end, and shallower reorganisations than what counts as deep.
_ROUNDS = 20
_SHALLOW = 2


class Walk:
    """One account, one effect at a time, as the driver asks for them, and a chain that misbehaves."""

    def __init__(self, one: Trade, opens: Opens, seed: int) -> None:
        self.one, self.opens, self.random = one, opens, random.Random(seed)
        self.funded = self.settled = 0
        self.told: list[str] = []

    async def step(self) -> None:
        """One movement to its end."""
        await self.one.look()
        kind: Kind = self.random.choice(("top_up", "claim", "claim", "refund", "close"))
        effect, node = self._wish(kind)
        if effect is None:
            return
        for turn in range(_ROUNDS):
            answer = await (node.rail.perform(effect) if turn % 2 == 0 else node.rail.fate(effect))
            self.told.append(f"{effect.kind} {effect.before}+{effect.amount}: {answer.fate} {answer.why}")
            if answer.fate in ("settled", "failed") and turn:
                break
            if "is over at" in answer.why and self.random.random() < 0.5:
                self.one.anvil.pass_time(DELAY_S)
            await self._trouble(node)
            for each in (self.one.seller, self.one.buyer):
                await each.chain.tend()
        self.told.append("")
        assert answer.fate == "settled", "\n".join(self.told[-40:])
        assert answer.moved == effect.amount
        if effect.kind == "top_up":
            self.funded += effect.amount
        if effect.settles:
            self.settled = effect.total

    def _wish(self, kind: Kind) -> tuple[Effect | None, Node]:
        one, account = self.one, self.one.account
        amount = self.random.randint(1_000, 50_000)
        free = account.capacity - account.owed
        if kind != "top_up" and free > 100_000:
            one.pay(self.random.randint(1_000, 50_000))
        due = one.account.owed - self.settled
        match kind:
            case "top_up":
                return one.effect("top_up", 4 * amount, account.funded), one.buyer
            case "claim" if due:
                return one.effect("claim", due, self.settled), one.seller
            case "close":
                return one.effect("close", due, self.settled), one.seller
            case "refund" if one.account.capacity - one.account.owed >= amount:
                by = self.random.choice((one.seller, one.buyer))
                return one.effect("refund", amount, account.withdrawn), by
        return None, one.seller

    async def _trouble(self, node: Node) -> None:
        chain = self.one.anvil
        match self.random.randint(0, 6):
            case 0:
                chain.mine()  # anvil's blocks do not fit each other if one is mined as others are replaced
                chain.reorganise(self.random.randint(1, _SHALLOW))
            case 1:
                await node.forgetful(self.opens)
            case _:
                chain.mine(self.random.randint(1, DEPTH))


@pytest.mark.parametrize("seed", range(2))
async def test_money_moves_once_whatever_happens(chain: Anvil, opens: Opens, seed: int) -> None:
    one = await trade(chain, opens)
    await one.fund(1_000_000)
    walk = Walk(one, opens, seed)
    for _ in range(STEPS):
        await walk.step()
    chain.mine(DEPTH)
    sight = await one.look()
    assert sight.funded == 1_000_000 + walk.funded
    assert sight.paid == walk.settled
    await one.seller.rail.fate(one.effect("close", 0, walk.settled))
    chain.mine(DEPTH)
    assert one.dollars(one.seller) == walk.settled
    assert one.dollars(one.buyer) == START - (sight.funded - sight.withdrawn)
