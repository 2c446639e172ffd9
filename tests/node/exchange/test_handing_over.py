"""Acknowledgements on their way to a seller: many at a time, whatever order they come in, and none is forgotten."""

import asyncio
from typing import Any

from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from tests.node.trading import Customer, Line, Store

ORDERS = 6


class Narrow(Line):
    """Lets nothing through for now, and then the last that came first."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.open = asyncio.Event()
        self.waiting: list[bytes] = []
        self.passed: list[int] = []  # how many waited with each

    async def acknowledge(self, raw: bytes) -> None:
        self.waiting.append(raw)
        await self.open.wait()
        await asyncio.sleep(0)  # the others come as well
        while raw != self.waiting[-1]:  # noqa: ASYNC110 - those behind it go first
            await asyncio.sleep(0)
        self.passed.append(len(self.waiting))
        await super().acknowledge(raw)
        self.waiting.remove(raw)


class Broken(Line):
    """Breaks once, as nothing should."""

    broken = False

    async def acknowledge(self, raw: bytes) -> None:
        if not self.broken:
            self.broken = True
            raise RuntimeError("a fault of the program")
        await super().acknowledge(raw)


async def bought(customer: Customer, line: Line, orders: int) -> int:
    """What so many orders cost together."""
    offer, cost = await customer.meet(line), 0
    for _ in range(orders):
        cost += (await customer.buy(offer, max_tokens=10).outcome()).owed
        await customer.settled_but_not_handed_over()
    return cost


async def test_many_are_on_their_way_at_a_time_and_count_whatever_their_order(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = Narrow(store.seller)
    cost = await bought(customer, line, ORDERS)
    assert store.owed_by(customer.did).authorized == 0
    line.open.set()
    await customer.handed_over()

    theirs, ours = store.owed_by(customer.did), customer.owes(store.did)
    assert max(line.passed) == ORDERS - 1, "the first was alone, and the others came while it waited"
    assert theirs.authorized == theirs.owed == ours.authorized == cost
    assert [one.granted for one in theirs.orders.values()] == [one.granted for one in ours.orders.values()]


async def test_what_a_fault_has_stopped_goes_on_its_way_again(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    cost = await bought(customer, Broken(store.seller), 1)
    await customer.handed_over()
    assert store.owed_by(customer.did).authorized == 0
    await customer.settler.sweep()
    await customer.handed_over()
    assert store.owed_by(customer.did).authorized == cost
