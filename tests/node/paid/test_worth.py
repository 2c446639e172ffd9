"""What is asked for up front follows the price of gas, and what was asked for is taken for a while."""

import asyncio

import pytest

from node.paid import worth
from node.paid.worth import Least, Toll, Worth
from node.ports import ManualClock

PREPAID = 1_000
MOST = 10_000
VALID_S = 120.0


class Gas:
    """What the chain says that it costs to bring a payment."""

    def __init__(self, fee: int | None) -> None:
        self.fee, self.asked = fee, 0

    async def __call__(self) -> int | None:
        self.asked += 1
        return self.fee


async def least(gas: Gas, clock: ManualClock) -> Least:
    toll = Toll(gas, clock.now)
    await toll.look()
    return Least(toll, PREPAID, MOST, VALID_S, clock.now)


@pytest.mark.parametrize(
    ("fee", "asked"),
    [(0, 1_000), (None, 1_000), (500, 1_000), (501, 2_000), (4_500, MOST), (5_000, MOST), (5_001, None)],
)
async def test_the_owner_s_least_is_doubled_until_it_is_worth_twice_its_gas(fee: int | None, asked: int | None) -> None:
    assert (await least(Gas(fee), ManualClock())).offer() == asked


async def test_what_was_asked_for_is_taken_for_as_long_as_what_is_signed_for_it_is_good() -> None:
    clock, gas = ManualClock(), Gas(500)
    asking = await least(gas, clock)
    assert asking.offer() == 1_000
    gas.fee = 3_000
    clock.advance(VALID_S)
    assert await asking.lacks(1_000) is None
    assert await asking.lacks(999) == 6_000, "nobody was asked for less"
    assert asking.offer() == 8_000
    clock.advance(VALID_S)
    assert await asking.lacks(1_000) == 6_000
    assert await asking.lacks(6_000) is None


async def test_what_was_never_asked_for_is_taken_only_if_it_is_worth_its_gas_today() -> None:
    asking = await least(gas := Gas(500), ManualClock())
    assert asking.amount == 1_000
    gas.fee = 501
    assert await asking.lacks(1_000) == 1_002


async def test_the_chain_is_asked_seldom_and_not_waited_for_where_it_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "_WAIT_S", 0.0)
    clock, gas = ManualClock(), Gas(500)
    toll = Toll(gas, clock.now)
    for _ in range(3):
        await toll.look()
        await asyncio.sleep(0)
    assert gas.asked == 1

    hanging = asyncio.Event()

    async def hangs() -> int:
        gas.asked += 1
        await hanging.wait()
        return 900

    toll._fee = hangs
    clock.advance(worth.FRESH_S)
    for _ in range(3):
        await toll.look()
        await asyncio.sleep(0)
    assert (gas.asked, toll.needed) == (2, 1_000)
    hanging.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert toll.needed == 1_800


async def test_what_the_chain_said_last_holds_while_it_says_nothing() -> None:
    clock, gas = ManualClock(), Gas(600)
    asking = await least(gas, clock)
    gas.fee = None
    assert await asking.lacks(1) is None, "nobody knows"
    assert asking.amount == 2_000


async def test_what_others_bring_costs_this_node_nothing_but_for_what_goes_back() -> None:
    gas = Gas(10**6)
    made = Worth.of(
        gas,
        ManualClock().now,
        prepaid=PREPAID,
        most_prepaid=MOST,
        deposit=5_000,
        valid_s=(VALID_S, VALID_S),
        is_brought_by_others=True,
    )
    await made.look()
    assert (made.transfers.offer(), made.deposits.offer()) == (PREPAID, 5_000)
    assert await made.back.ask() == 2 * 10**6
