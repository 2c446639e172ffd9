"""What the books say of money in channels to sellers that are paid by x402, while the chain gets to know it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.account import Account
from ledger.events import decode_events
from ledger.statement import Line, Statement
from node.engine.streaming import RemoteFailed
from node.exchange.effects import EffectDriver
from node.gateway.paying.fates import Sweeper
from tests.chain import Anvil
from tests.node.x402_buyer import ME, Buyer, buying, moving, uusd
from tests.node.x402_seller import X402Seller, selling

DEPTH = 2


@pytest.fixture
async def seller(chain: Anvil) -> AsyncIterator[X402Seller]:
    async with selling(chain, "batch-settlement") as found:
        found.charge = 300
        yield found


@pytest.fixture
async def buyer(chain: Anvil, tmp_path: Path) -> AsyncIterator[Buyer]:
    async with buying(chain, tmp_path) as found:
        yield found


@pytest.fixture
async def driver(chain: Anvil, tmp_path: Path, buyer: Buyer) -> AsyncIterator[EffectDriver]:
    async with moving(chain, tmp_path, buyer) as found:
        yield found


def account_of(buyer: Buyer) -> Account:
    (account,) = buyer.payments.accounts()
    return account


async def collateral(buyer: Buyer) -> Line:
    """What the statement says of the money in channels."""
    statement = Statement(ME.did)
    async for entry in buyer.book.journal.entries():
        statement.add(entry.sequence, entry.time_ms, decode_events(entry.payload))
    assert statement.balanced
    return next((line for key, line in statement.lines.items() if key.account == "collateral"), Line())


async def test_a_deposit_is_in_the_statement_once_whenever_the_chain_is_looked_at(
    chain: Anvil, buyer: Buyer, driver: EffectDriver, seller: X402Seller
) -> None:
    seller.breaks = True
    with pytest.raises(RemoteFailed):
        await buyer.ask(seller, buyer.purse())
    await driver.step()  # it is presented, and on no chain
    seller.breaks = False
    for _ in range(2):
        assert await buyer.ask(seller, buyer.purse()) == "Once upon"
        await driver.step()  # it is in a block that is not deep
    chain.mine(DEPTH)
    await driver.step()
    assert await collateral(buyer) == Line(debit=10_000)

    # The next one goes into the channel that is there.
    buyer.clock.advance(1)
    seller.amount = 9_500
    assert await buyer.ask(seller, buyer.purse(max_payment=uusd(10_000))) == "Once upon"
    for _ in range(DEPTH + 1):
        await driver.step()
        chain.mine()
    funded = account_of(buyer).funded
    assert funded > 10_000
    assert await collateral(buyer) == Line(debit=funded)


async def test_a_deposit_that_never_came_is_taken_out_once(
    chain: Anvil, buyer: Buyer, driver: EffectDriver, seller: X402Seller
) -> None:
    await buyer.ask(seller, buyer.purse())
    chain.mine(DEPTH)
    seller.breaks, seller.amount = True, 9_800
    with pytest.raises(RemoteFailed):
        await buyer.ask(seller, buyer.purse(max_payment=uusd(10_000)))
    await driver.step()
    presented = account_of(buyer).funded
    assert presented > 10_000

    buyer.clock.advance(3_600)
    await driver.step()  # its time is over, and what became of it is told by its order
    assert account_of(buyer).funded == presented
    await Sweeper(buyer.payments, buyer.signing).sweep()
    await driver.step()
    assert (account_of(buyer).funded, account_of(buyer).withdrawn, account_of(buyer).reserved) == (10_000, 0, 0)
    assert await collateral(buyer) == Line(debit=presented, credit=presented - 10_000)


async def test_what_a_reorganisation_took_counts_no_longer_when_it_cannot_come_back(
    chain: Anvil, buyer: Buyer, driver: EffectDriver, seller: X402Seller
) -> None:
    await buyer.ask(seller, buyer.purse())
    await driver.step()
    chain.reorganise(1)
    chain.mine(DEPTH)
    await driver.step()
    assert account_of(buyer).funded == 10_000
    buyer.clock.advance(3_600)
    await driver.step()
    assert account_of(buyer).funded == 0
