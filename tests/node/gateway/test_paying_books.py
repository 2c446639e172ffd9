"""What the books say of money in channels to sellers that are paid by x402, while the chain gets to know it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ledger.account import Account
from ledger.payload import decode_events
from ledger.statement import Line, Statement
from node.engine.streaming import RemoteFailed
from node.exchange.effects import EffectDriver
from node.gateway.paying.fates import Sweeper
from node.gateway.paying.limits import AsksTooMuch, TurnedDown
from node.models.tokenizer import Tokenizer
from tests.chain import Anvil
from tests.node.strangers import stall
from tests.node.trading import engine_of
from tests.node.x402_buyer import DOLLARS, ME, Buyer, buying, moving, uusd
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


# What is taken back


async def withdraw(chain: Anvil, buyer: Buyer, driver: EffectDriver, amount: int) -> Account:
    """Give the notice for a part of the only channel; the account afterwards."""
    key = account_of(buyer).key
    await driver.ask(key, "refund", amount)
    chain.mine(DEPTH)
    await driver.step()
    return account_of(buyer)


async def end_of_notice(chain: Anvil, buyer: Buyer, driver: EffectDriver, delay_s: int) -> None:
    """The notice is over, and what was taken back is in the wallet."""
    chain.pass_time(delay_s)
    key = account_of(buyer).key
    for _ in range(4):
        buyer.clock.advance(61)
        await driver.step()
        chain.mine(DEPTH)
    assert buyer.book.journal.books.effects.get(key) is None or not buyer.book.journal.books.effects[key].under_way


def has(chain: Anvil, buyer: Buyer) -> int:
    return chain.dollars("0x" + buyer.wallet.address.hex())


async def test_a_channel_pays_on_while_a_part_of_it_is_taken_back(
    chain: Anvil, buyer: Buyer, driver: EffectDriver, seller: X402Seller
) -> None:
    await buyer.ask(seller, buyer.purse())
    chain.mine(DEPTH)
    await driver.step()
    before = has(chain, buyer)

    account = await withdraw(chain, buyer, driver, 7_000)
    assert (account.funded, account.withdrawn, account.available) == (10_000, 7_000, 2_700)
    for _ in range(2):
        assert await buyer.ask(seller, buyer.purse()) == "Once upon"
        await driver.step()
    assert (account_of(buyer).owed, has(chain, buyer)) == (900, before)

    # The rest is too little for this one, so more is put in: of that, and of what was left, nothing is taken back.
    seller.amount = 3_000
    assert await buyer.ask(seller, buyer.purse(max_payment=uusd(3_000))) == "Once upon"
    chain.mine(DEPTH)
    await driver.step()
    account = account_of(buyer)
    assert account.funded == 10_000 + (put_in := before - has(chain, buyer)) > 13_000
    await end_of_notice(chain, buyer, driver, seller.batch.get_withdraw_delay())

    assert has(chain, buyer) == before - put_in + 7_000
    assert await buyer.ask(seller, buyer.purse(max_payment=uusd(3_000))) == "Once upon"
    account = account_of(buyer)
    assert (account.funded, account.withdrawn, account.owed) == (10_000 + put_in, 7_000, 1_500)
    assert await collateral(buyer) == Line(debit=10_000 + put_in, credit=7_000)


async def test_a_node_s_door_serves_what_is_left_of_a_channel(
    chain: Anvil, buyer: Buyer, driver: EffectDriver, speaking: Tokenizer, tmp_path: Path
) -> None:
    engine = engine_of(speaking, slots=4)
    async with stall(chain, tmp_path / "seller", speaking, engine, chain.wallet()) as shop:
        purse = buyer.purse(max_payment=None, max_deposit=uusd(6_000))
        assert await buyer.ask_at(f"{shop.url}/v1", purse, "memory", 8)
        chain.mine(DEPTH)
        await driver.step()
        account = await withdraw(chain, buyer, driver, account_of(buyer).available // 2)
        for _ in range(2):
            assert await buyer.ask_at(f"{shop.url}/v1", purse, "memory", 8)
        (theirs,) = shop.accounts("stablecoin")
    await engine.close()
    assert account_of(buyer).owed == theirs.owed > account.owed
    assert (theirs.funded, theirs.withdrawn) == (account.funded, account.withdrawn)
    assert buyer.wallet.signed == ["ReceiveWithAuthorization"]


async def test_a_channel_that_was_taken_back_whole_is_paid_into_again_within_the_limits(
    chain: Anvil, buyer: Buyer, driver: EffectDriver, seller: X402Seller
) -> None:
    await buyer.ask(seller, buyer.purse())
    chain.mine(DEPTH)
    await driver.step()
    account = await withdraw(chain, buyer, driver, 9_700)
    assert account.capacity == account.owed == 300

    with pytest.raises(AsksTooMuch, match="max_deposit"):
        await buyer.ask(seller, buyer.purse(max_deposit=uusd(999)))
    assert await buyer.ask(seller, buyer.purse(max_deposit=uusd(10_000))) == "Once upon"
    chain.mine(DEPTH)
    await driver.step()
    await end_of_notice(chain, buyer, driver, seller.batch.get_withdraw_delay())
    account = account_of(buyer)
    assert (account.funded, account.withdrawn, account.owed) == (20_000, 9_700, 600)
    assert has(chain, buyer) == DOLLARS - 10_300


async def test_a_refusal_while_money_is_taken_back_says_until_when(
    chain: Anvil, buyer: Buyer, driver: EffectDriver, seller: X402Seller
) -> None:
    await buyer.ask(seller, buyer.purse())
    chain.mine(DEPTH)
    await driver.step()
    account = await withdraw(chain, buyer, driver, 5_000)
    channel = account.key.payee.partition("#")[2]
    seller.batch.get_storage().update_channel(
        channel,
        lambda it: None if it is None else replace(it, charged_cumulative_amount="0"),
    )
    buyer.clock.advance(61)
    await driver.step()
    with pytest.raises(
        TurnedDown, match=r"taking money back from its channel.*the notice of the withdrawal is over at"
    ):
        await buyer.ask(seller, buyer.purse())


async def test_the_latest_reason_why_money_is_under_way_is_told_and_since_when(
    chain: Anvil, buyer: Buyer, driver: EffectDriver, seller: X402Seller
) -> None:
    await buyer.ask(seller, buyer.purse())
    chain.mine(DEPTH)
    await driver.step()
    key = account_of(buyer).key

    def told() -> tuple[str, int]:
        tracked = buyer.book.journal.books.effects[key]
        return tracked.why.partition(" at ")[0].partition(" in transaction")[0], tracked.heard

    await driver.ask(key, "refund", 5_000)
    began = buyer.book.now()
    assert told() == ("the notice of the withdrawal, of 0.25 hours, is under way", began)
    chain.mine(DEPTH)
    await driver.step()
    assert told()[1] == began  # reasons that follow each other closely fill no journal
    buyer.clock.advance(61)
    await driver.step()
    assert told() == ("the notice of the withdrawal is over", began + 61)
    entries = buyer.book.journal.head.sequence
    buyer.clock.advance(61)
    await driver.step()
    assert (told()[1], buyer.book.journal.head.sequence) == (began + 61, entries)
