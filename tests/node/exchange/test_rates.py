"""Turns: one bucket for all, shared fairly."""

import asyncio

from node.exchange.rates import Turns
from node.ports import ManualClock

PATIENT_S = 20.0


async def settle() -> None:
    """Let everybody who waits look once more."""
    await asyncio.sleep(0.15)


async def test_while_there_is_enough_nobody_waits(clock: ManualClock) -> None:
    turns = Turns(clock.now, per_s=1, burst=3, patience_s=0)
    assert [await turns.take("one") for _ in range(3)] == [True] * 3
    assert not await turns.take("one")


async def test_who_had_a_turn_long_ago_or_never_comes_before_those_that_ask_all_the_time(clock: ManualClock) -> None:
    turns = Turns(clock.now, per_s=1, burst=3, patience_s=PATIENT_S)
    for name in ("a", "b", "c"):
        assert await turns.take(name)
    order: list[str] = []

    async def wait(name: str) -> None:
        assert await turns.take(name)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for name in ("c", "b", "a", "new", "newer"):
            group.create_task(wait(name))
            await asyncio.sleep(0)
        for _ in range(5):
            await settle()
            clock.advance(1)
    assert order == ["new", "newer", "a", "b", "c"]


async def test_a_name_waits_once_and_who_gives_up_leaves_its_place(clock: ManualClock) -> None:
    turns = Turns(clock.now, per_s=1, burst=1, patience_s=PATIENT_S)
    assert await turns.take("hostile")
    first = asyncio.create_task(turns.take("a"))
    await settle()
    assert not await turns.take("a")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    clock.advance(1)
    assert await turns.take("a")


async def test_a_full_line_loses_whoever_had_the_last_turn(clock: ManualClock) -> None:
    turns = Turns(clock.now, per_s=1, burst=70, patience_s=PATIENT_S)
    for number in range(70):
        assert await turns.take(str(number))
    waiting = [asyncio.create_task(turns.take(str(number))) for number in range(64)]
    await settle()
    new = asyncio.create_task(turns.take("new"))
    await settle()
    clock.advance(1)
    assert await new
    assert [number for number, each in enumerate(waiting) if each.done()] == [63]
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
