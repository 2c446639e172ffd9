"""Buying from sellers that are x402's own server code, on a real chain: what is promised, taken, lost and refused."""

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from ledger.account import Account
from ledger.payload import decode_events
from ledger.statement import Statement
from node.engine.streaming import RemoteFailed
from node.exchange.strangers import channel_of
from node.gateway.paying.fates import Sweeper
from node.gateway.paying.limits import (
    AsksTooMuch,
    Charged,
    DayIsSpent,
    OtherChannel,
    OtherMoney,
    OtherPayee,
    PaymentPending,
    TooPoor,
    TurnedDown,
)
from node.gateway.paying.payments import Payments
from node.gateway.paying.purse import Purse
from node.models.tokenizer import Tokenizer
from node.ports import SeededEntropy
from tests.chain import X402_CHANNELS, Anvil
from tests.node.strangers import stall
from tests.node.trading import engine_of
from tests.node.x402_buyer import DOLLARS, ME, Buyer, buying, uusd
from tests.node.x402_seller import NETWORK, X402Seller, selling


@pytest.fixture
async def exact(chain: Anvil) -> AsyncIterator[X402Seller]:
    async with selling(chain, "exact") as seller:
        yield seller


@pytest.fixture
async def batch(chain: Anvil) -> AsyncIterator[X402Seller]:
    async with selling(chain, "batch-settlement") as seller:
        yield seller


@pytest.fixture
async def buyer(chain: Anvil, tmp_path: Path) -> AsyncIterator[Buyer]:
    async with buying(chain, tmp_path) as found:
        yield found


def only_account(buyer: Buyer, seller: X402Seller) -> Account:
    (account,) = buyer.payments.accounts_with(NETWORK, seller.address)
    return account


async def balances(buyer: Buyer) -> dict[str, int]:
    statement = Statement(ME.did)
    async for entry in buyer.book.journal.entries():
        statement.add(entry.sequence, entry.time_ms, decode_events(entry.payload))
    assert statement.balanced
    return {key.account: line.closing for key, line in statement.lines.items() if line.closing}


async def test_a_seller_whose_terms_fill_a_payment_is_paid_nothing_and_blocks_nobody(
    exact: X402Seller, buyer: Buyer
) -> None:
    exact.asks = {"extra": {"padding": "x" * 48_450}}
    for _ in range(2):
        with pytest.raises(RemoteFailed, match="in a form that cannot be read"):
            await buyer.ask(exact, buyer.purse())
    assert exact.presented == []
    await Sweeper(buyer.payments, buyer.signing).sweep()


# Transfers


async def test_a_request_is_paid_by_a_transfer(chain: Anvil, exact: X402Seller, buyer: Buyer) -> None:
    purse = buyer.purse()

    assert await buyer.ask(exact, purse) == "Once upon"

    assert chain.dollars(exact.address) == purse.charged == 1_000
    account = only_account(buyer, exact)
    assert (account.owed, account.authorized, account.settled, account.reserved) == (1_000, 1_000, 1_000, 0)
    assert buyer.book.spent_today() == {"uusd": 1_000}
    assert await balances(buyer) == {"expense": 1_000, "money": -1_000}


async def test_a_transfer_whose_answer_was_lost_is_known_from_the_chain(
    chain: Anvil, exact: X402Seller, buyer: Buyer
) -> None:
    purse, exact.loses = buyer.purse(), True
    with pytest.raises(RemoteFailed):
        await buyer.ask(exact, purse)
    assert only_account(buyer, exact).reserved == 1_000
    exact.loses = False

    await buyer.ask(exact, purse)

    assert chain.dollars(exact.address) == only_account(buyer, exact).settled == 2_000
    assert only_account(buyer, exact).reserved == 0


async def test_a_transfer_that_was_not_taken_is_presented_again_also_by_the_next_run(
    chain: Anvil, exact: X402Seller, buyer: Buyer
) -> None:
    exact.breaks = True
    for _ in range(2):
        with pytest.raises(RemoteFailed, match="HTTP 500"):
            await buyer.ask(exact, buyer.purse())
    exact.amount = 900
    with pytest.raises(PaymentPending):
        await buyer.ask(exact, buyer.purse())
    exact.amount, exact.breaks = 1_000, False
    again = Payments(buyer.book, SeededEntropy(2))
    await again.open()

    await buyer.ask(exact, Purse(buyer.purse().limits, buyer.signing, again))

    assert len(set(exact.presented)) == 1
    assert len(buyer.wallet.signed) == 1
    assert chain.dollars(exact.address) == only_account(buyer, exact).settled == 1_000


async def test_a_transfer_whose_time_is_over_came_to_nothing(chain: Anvil, exact: X402Seller, buyer: Buyer) -> None:
    exact.breaks = True
    with pytest.raises(RemoteFailed, match="HTTP 500"):
        await buyer.ask(exact, buyer.purse())
    exact.breaks, exact.amount = False, 900
    buyer.clock.advance(3_600)
    chain.pass_time(3_600)

    with pytest.raises(RemoteFailed):  # what x402 signs follows this machine's clock, which did not move
        await buyer.ask(exact, buyer.purse())

    account = only_account(buyer, exact)
    assert (account.funded, account.withdrawn, account.owed) == (1_900, 1_000, 0)
    assert len(buyer.wallet.signed) == 2


async def test_payments_whose_time_is_over_are_ended_without_another_request(
    exact: X402Seller, batch: X402Seller, buyer: Buyer
) -> None:
    sweeper = Sweeper(buyer.payments, buyer.signing)
    exact.loses = batch.breaks = True
    for seller, name in ((exact, "one"), (batch, "other")):
        with pytest.raises(RemoteFailed):
            await buyer.ask(seller, buyer.purse(name=name))
    await sweeper.sweep()
    taken, waiting = only_account(buyer, exact), only_account(buyer, batch)
    assert (taken.owed, taken.reserved) == (1_000, 0)
    assert (waiting.funded, waiting.reserved) == (10_000, 1_000)

    buyer.clock.advance(3_600)
    await sweeper.sweep()

    over = only_account(buyer, batch)
    assert (over.funded - over.withdrawn, over.owed, over.reserved) == (0, 0, 0)
    assert await balances(buyer) == {"expense": 1_000, "money": -1_000}


# Channels


async def test_requests_are_paid_from_a_channel_by_what_they_cost(
    chain: Anvil, batch: X402Seller, buyer: Buyer
) -> None:
    purse, batch.charge = buyer.purse(), 300

    for _ in range(3):
        assert await buyer.ask(batch, purse) == "Once upon"

    account = only_account(buyer, batch)
    channel = channel_of(account.key.payee)
    assert channel is not None
    assert chain.channel(channel, X402_CHANNELS) == (10_000, 0)
    assert (account.funded, account.owed, account.authorized, account.reserved) == (10_000, 900, 900, 0)
    assert buyer.wallet.signed == ["ReceiveWithAuthorization"]
    assert purse.charged == 900
    assert purse.spent_today() == uusd(900)


async def test_what_was_paid_is_told_at_the_end_of_a_stream(batch: X402Seller, buyer: Buyer) -> None:
    purse, batch.charge, batch.in_stream = buyer.purse(), 300, True

    assert await buyer.ask(batch, purse) == "Once upon"

    assert (purse.charged, only_account(buyer, batch).reserved) == (300, 0)


async def test_what_a_lost_answer_cost_is_learned_from_the_next(batch: X402Seller, buyer: Buyer) -> None:
    purse, batch.charge = buyer.purse(), 300
    await buyer.ask(batch, purse)
    batch.loses = True
    with pytest.raises(RemoteFailed):
        await buyer.ask(batch, purse)
    assert buyer.book.spent_today() == {"uusd": 300 + 1_000}
    batch.loses = False

    await buyer.ask(batch, purse)

    assert only_account(buyer, batch).owed == 900
    assert only_account(buyer, batch).reserved == 0


async def test_a_deposit_of_which_nothing_was_heard_is_presented_again_and_moves_once(
    chain: Anvil, batch: X402Seller, buyer: Buyer
) -> None:
    batch.breaks = True
    for amount in (1_000, 800):
        batch.amount = amount
        with pytest.raises(RemoteFailed, match="HTTP 500"):
            await buyer.ask(batch, buyer.purse())
    batch.breaks, batch.loses = False, True
    with pytest.raises(RemoteFailed):
        await buyer.ask(batch, buyer.purse())
    batch.loses = False

    await buyer.ask(batch, buyer.purse())

    assert buyer.wallet.signed == ["ReceiveWithAuthorization"]
    assert chain.dollars(X402_CHANNELS) == only_account(buyer, batch).funded == 10_000
    assert only_account(buyer, batch).owed == 1_600


async def test_a_channel_that_the_journal_has_lost_is_found_on_the_chain(
    chain: Anvil, batch: X402Seller, buyer: Buyer, tmp_path: Path
) -> None:
    batch.charge = 300
    await buyer.ask(batch, buyer.purse())
    (tmp_path / "other").mkdir()
    async with buying(chain, tmp_path / "other", buyer.wallet) as anew:
        await anew.ask(batch, anew.purse())
        found = only_account(anew, batch)
    assert (found.funded, found.owed) == (10_000, 600)
    assert buyer.wallet.signed == ["ReceiveWithAuthorization"]


# Whatever happens


@pytest.mark.parametrize("scheme", ["exact", "batch-settlement"])
async def test_books_and_seller_never_differ_by_more_than_what_is_open(
    chain: Anvil, buyer: Buyer, scheme: Literal["exact", "batch-settlement"]
) -> None:
    rng = random.Random(scheme)
    async with selling(chain, scheme) as seller:

        def taken() -> int:
            if scheme == "exact":
                return chain.dollars(seller.address)
            kept = seller.batch.get_storage().get(only_account(buyer, seller).key.payee.partition("#")[2])
            return int(kept.charged_cumulative_amount) if kept is not None else 0

        for step in range(40):
            seller.breaks, seller.loses = rng.random() < 0.2, rng.random() < 0.3
            seller.amount = rng.choice((400, 700, 1_000))
            seller.charge = None if scheme == "exact" else rng.randint(0, seller.amount)
            if rng.random() < 0.3:  # the node starts again
                buyer.payments = Payments(buyer.book, SeededEntropy(1_000 + step))
                await buyer.payments.open()
            with contextlib.suppress(RemoteFailed):
                await buyer.ask(seller, buyer.purse())
            account = only_account(buyer, seller)
            assert account.owed <= taken() <= account.owed + account.reserved <= account.capacity
        seller.breaks = seller.loses = False
        with contextlib.suppress(PaymentPending):
            await buyer.ask(seller, buyer.purse())
        buyer.clock.advance(3_600)
        await Sweeper(buyer.payments, buyer.signing).sweep()
        account = only_account(buyer, seller)
        assert (account.owed, account.reserved) == (taken(), 0)
        spent = DOLLARS - chain.dollars("0x" + buyer.wallet.address.hex())
        assert account.capacity == spent


# A node's own door


@pytest.fixture
async def door(chain: Anvil, tmp_path: Path, speaking: Tokenizer) -> AsyncIterator[Callable[..., Any]]:
    engine = engine_of(speaking, slots=4)
    yield partial(stall, chain, tmp_path / "seller", speaking, engine, chain.wallet())
    await engine.close()


async def test_a_node_s_channel_is_charged_what_its_door_says(door: Callable[..., Any], buyer: Buyer) -> None:
    async with door() as shop:
        with pytest.raises(AsksTooMuch, match="max_deposit"):
            await buyer.ask_at(f"{shop.url}/v1", buyer.purse(max_deposit=uusd(4_999)), "memory", 8)
        purse = buyer.purse(max_payment=None, max_deposit=uusd(6_000))
        for _ in range(3):
            assert await buyer.ask_at(f"{shop.url}/v1", purse, "memory", 8)
        (theirs,), (ours,) = shop.accounts("stablecoin"), buyer.payments.accounts()

    assert ours.owed == theirs.owed == ours.authorized == purse.charged > 0
    assert (ours.funded, ours.reserved) == (theirs.funded, 0)
    assert buyer.wallet.signed == ["ReceiveWithAuthorization"]


async def test_a_node_s_balance_pays_for_the_next_requests(
    chain: Anvil, door: Callable[..., Any], buyer: Buyer
) -> None:
    async with door(budget=500) as shop:
        purse = buyer.purse(schemes=("exact",))
        for _ in range(3):
            assert await buyer.ask_at(f"{shop.url}/v1", purse, "memory", 8)
        (theirs,) = shop.accounts("prepaid")
        (ours,) = buyer.payments.accounts()
        assert ours.owed == theirs.owed == purse.charged > 0
        # Two signatures were not needed, and can be taken for a while yet: all of them, for the balance has paid.
        assert (theirs.funded, ours.funded, ours.reserved) == (500, 1_500, 1_000)

        buyer.clock.advance(3_600)
        await Sweeper(buyer.payments, buyer.signing).sweep()

    (ours,) = buyer.payments.accounts()
    assert (ours.funded - ours.withdrawn, ours.reserved) == (500, 0)


@pytest.mark.parametrize("scheme", ["exact", "batch-settlement"])
async def test_who_is_turned_down_is_told_why_in_the_door_s_own_words(
    door: Callable[..., Any], buyer: Buyer, scheme: Literal["exact", "batch-settlement"]
) -> None:
    async with door(budget=1) as shop:
        for _ in range(4):  # so many transactions are made for a wallet at a time
            shop.bank.gas._charge(buyer.wallet.address, 1)
        with pytest.raises(TurnedDown, match="moved money here often enough by now: wait two minutes") as refused:
            await buyer.ask_at(f"{shop.url}/v1", buyer.purse(max_deposit=uusd(9_000), schemes=(scheme,)), "memory", 8)
    assert refused.value.error.endswith("transaction_failed")
    assert refused.value.error in str(refused.value)


async def test_terms_may_be_long_within_bounds(chain: Anvil, buyer: Buyer) -> None:
    async with selling(chain, "exact", ways=30) as talkative:
        assert await buyer.ask(talkative, buyer.purse()) == "Once upon"
    async with selling(chain, "exact", ways=300) as endless:
        with pytest.raises(RemoteFailed):
            await buyer.ask(endless, buyer.purse(name="other"))


# What is refused before anything is signed


@pytest.mark.parametrize(
    ("asks", "limits", "refusal"),
    [
        ({"amount": "1001"}, {}, AsksTooMuch),
        ({}, {"max_payment": None}, AsksTooMuch),
        ({}, {"max_per_day": uusd(999)}, DayIsSpent),
        ({}, {"pay_to": "0x" + "11" * 20}, OtherPayee),
        ({"asset": "0x" + "22" * 20}, {}, OtherMoney),
        ({"extra": {"name": "Another Coin"}}, {}, OtherMoney),
        ({"extra": {"assetTransferMethod": "permit2"}}, {}, OtherMoney),
        ({}, {"schemes": ("batch-settlement",)}, OtherMoney),
    ],
)
async def test_what_is_beyond_the_limits_is_refused_unsigned(
    exact: X402Seller, buyer: Buyer, asks: dict[str, Any], limits: dict[str, Any], refusal: type[RemoteFailed]
) -> None:
    exact.asks = asks

    with pytest.raises(refusal):
        await buyer.ask(exact, buyer.purse(**limits), max_tokens=10)

    assert (buyer.wallet.signed, exact.presented) == ([], [])
    assert not buyer.payments.accounts_with(NETWORK, exact.address)
    assert buyer.payments.pay_to("shop") is None


async def test_the_money_goes_where_it_went_first(exact: X402Seller, chain: Anvil, buyer: Buyer) -> None:
    await buyer.ask(exact, buyer.purse())
    async with selling(chain, "exact") as other:
        with pytest.raises(OtherPayee, match=r"name the new one as pay_to"):
            await buyer.ask(other, buyer.purse())
        assert not other.presented


async def test_a_day_s_limit_holds_over_restarts_and_counts_what_is_unknown(exact: X402Seller, buyer: Buyer) -> None:
    exact.loses = True
    with pytest.raises(RemoteFailed):
        await buyer.ask(exact, buyer.purse())
    exact.loses = False
    again = Payments(buyer.book, SeededEntropy(2))
    await again.open()
    limits = buyer.purse(max_per_day=uusd(1_900)).limits

    with pytest.raises(DayIsSpent, match="900"):
        await buyer.ask(exact, Purse(limits, buyer.signing, again))

    assert len(buyer.wallet.signed) == 1


async def test_a_channel_s_terms_cannot_be_changed_to_draw_another_deposit(batch: X402Seller, buyer: Buyer) -> None:
    await buyer.ask(batch, buyer.purse())
    batch.batch._withdraw_delay += 1

    with pytest.raises(OtherChannel):
        await buyer.ask(batch, buyer.purse())

    assert len(buyer.wallet.signed) == 1


async def test_what_a_seller_says_of_a_channel_counts_by_our_own_signature_alone(
    batch: X402Seller, buyer: Buyer
) -> None:
    await buyer.ask(batch, buyer.purse())
    channel = only_account(buyer, batch).key.payee.partition("#")[2]
    kept = batch.batch.get_storage().get(channel)
    assert kept is not None
    kept.charged_cumulative_amount = kept.signed_max_claimable = "9000"
    batch.batch.get_storage().update_channel(channel, lambda _: kept)

    with pytest.raises(Charged, match="promised what it was not"):
        await buyer.ask(batch, buyer.purse())

    assert only_account(buyer, batch).owed == 1_000


async def test_an_empty_wallet_signs_nothing(chain: Anvil, batch: X402Seller, exact: X402Seller, buyer: Buyer) -> None:
    wallet = "0x" + buyer.wallet.address.hex()
    chain.send(chain.deployed.dollar, "transfer(address,uint256)", exact.address, DOLLARS, sender=wallet)
    for seller, name in ((batch, "one"), (exact, "other")):
        with pytest.raises(TooPoor):
            await buyer.ask(seller, buyer.purse(name=name))
    assert buyer.wallet.signed == []


async def test_no_more_counts_than_was_promised(batch: X402Seller, buyer: Buyer) -> None:
    def boast(said: dict[str, Any]) -> None:
        said["extra"]["chargedAmount"] = "1001"

    batch.tells = boast
    with pytest.raises(Charged):
        await buyer.ask(batch, buyer.purse())

    assert only_account(buyer, batch).owed == 1_000
