"""The rail on a real chain: each movement once, at depth, whatever is lost and whoever asks again."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from attrs import evolve

from ledger.account import Account, apply
from ledger.changes import Funded
from ledger.rails.port import Answer, Sight
from ledger.rails.stablecoin.books import Promise
from ledger.rails.stablecoin.claims import Claims
from ledger.rails.stablecoin.contracts import Row
from ledger.rails.stablecoin.deposits import TooDearNow, TooLate, TooSmall, WrongChannel
from ledger.rails.stablecoin.digests import config_of
from ledger.rails.stablecoin.rail import Stablecoin
from ledger.rails.stablecoin.recovery import find_again
from ledger.rails.stablecoin.vouchers import AboveDeposit, NoChannel
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.channels import DELAY_S, key
from tests.ledger.rails.stablecoin.conftest import Opens
from tests.ledger.rails.stablecoin.trading import DEPTH, Node, Trade, trade

FUNDS = 10_000_000


async def test_a_channel_s_whole_life_moves_what_its_account_says(chain: Anvil, opens: Opens) -> None:
    """Without a wei at the buyer: the seller brings its deposit."""
    one = await trade(chain, opens, ether=0)
    before = one.dollars(one.buyer)
    await one.fund(FUNDS)
    assert (one.account.funded, one.account.capacity) == (FUNDS, FUNDS)

    one.pay(3_000_000)
    claim = one.effect("claim", 3_000_000, 0)
    assert (await one.seller.rail.fate(claim)).fate == "absent"
    assert (await one.seller.rail.perform(claim)).fate == "unknown"
    assert (await one.seller.rail.fate(claim)).fate == "unknown"  # in a block that may still go
    chain.mine(DEPTH)
    assert await one.seller.rail.fate(claim) == Answer("settled", 3_000_000)
    assert one.dollars(one.seller) == 3_000_000
    assert (await one.look()).paid == 3_000_000

    one.pay(1_000_000)
    close = one.effect("close", 1_000_000, 3_000_000)
    for _ in range(2):  # the claim first, and once that is deep, the rest goes back
        assert (await one.seller.rail.perform(close)).fate == "unknown"
        chain.mine(DEPTH)
    assert await one.seller.rail.fate(close) == Answer("settled", 1_000_000)
    sight = await one.look()
    assert (sight.funded - sight.withdrawn, one.account.owed) == (4_000_000, 4_000_000)
    assert (one.dollars(one.seller), one.dollars(one.buyer)) == (4_000_000, before - 4_000_000)


# Top-ups


async def test_a_top_up_that_the_payee_does_not_bring_is_brought_by_the_payer(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    one.buyer.books.relays = None
    await one.fund(FUNDS)
    assert chain.channel(one.seller.rail.place.channel_id(one.config)) == (FUNDS, 0)


async def test_a_top_up_moves_money_once_however_often_and_by_whomever_it_is_brought(
    chain: Anvil, opens: Opens
) -> None:
    one = await trade(chain, opens)
    effect = one.effect("top_up", FUNDS, 0)
    with chain.without_mining():
        assert (await one.buyer.rail.perform(effect)).fate == "unknown"
        await one.buyer.forgetful(opens)
        one.buyer.books.relays = None
        assert (await one.buyer.rail.perform(effect)).fate == "unknown"
        chain.mine(DEPTH)
    await one.buyer.forgetful(opens)
    assert await one.buyer.rail.fate(effect) == Answer("settled", FUNDS)
    assert await one.buyer.rail.perform(effect) == Answer("settled", FUNDS)
    assert chain.channel(one.seller.rail.place.channel_id(one.config)) == (FUNDS, 0)


async def test_a_token_without_signed_deposits_is_approved_and_then_fetched(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    network = one.buyer.chain.network
    one.buyer.chain.network = network.with_(token=evolve(network.token, eip3009=False))  # type: ignore[misc]
    effect = one.effect("top_up", FUNDS, 0)
    for _ in range(2):
        assert (await one.buyer.rail.perform(effect)).fate == "unknown"
        chain.mine(DEPTH)
    assert await one.buyer.rail.fate(effect) == Answer("settled", FUNDS)
    assert chain.channel(one.seller.rail.place.channel_id(one.config)) == (FUNDS, 0)


async def test_a_payee_brings_no_deposit_that_is_another_s_too_small_or_too_late(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    good = await one.buyer.chain.authorize(one.config, FUNDS, b"s" * 32, chain.time + 3600)
    for bad, error in (
        (evolve(good, channel=bytes(32)), WrongChannel),
        (evolve(good, amount=999), TooSmall),
        (evolve(good, valid_before=chain.time + 1), TooLate),
    ):
        with pytest.raises(error):
            await one.seller.rail.bring(one.key, bad)
    with pytest.raises(NoChannel):
        await one.seller.rail.bring(evolve(one.key, payer=one.key.payee), good)


# Claims


async def test_claims_that_come_together_are_one_transaction_and_are_paid_out_by_one(
    chain: Anvil, opens: Opens
) -> None:
    first = await trade(chain, opens)
    trades = [first]
    for number in (3, 4):
        buyer = await Node.open(number, key(chain, dollars=100_000_000), opens)
        trades.append(await Trade.begin(chain, first.seller, buyer))
    for one in trades:
        await one.fund(FUNDS)
        one.pay(2_000_000)
    # One of them has promised what its channel cannot bear any more: its row alone is left out.
    broken = trades[2]
    broken.seller.books.promises[broken.key] = Promise(2_000_000, bytes(65))
    effects = [one.effect("claim", 2_000_000, 0) for one in trades]
    with chain.without_mining():
        answers = await asyncio.gather(*(first.seller.rail.perform(effect) for effect in effects))
        assert [answer.fate for answer in answers] == ["unknown", "unknown", "failed"]
        assert len(chain.pending()) == 2
        chain.mine(DEPTH)
    assert [(await first.seller.rail.fate(effect)).fate for effect in effects[:2]] == ["settled", "settled"]
    assert first.dollars(first.seller) == 4_000_000


async def test_a_row_that_the_chain_refuses_holds_up_no_other(chain: Anvil, opens: Opens) -> None:
    first = await trade(chain, opens)
    await first.fund(FUNDS)
    rows = [
        Row(first.config, total, first.pay(1_000).record.signature or b"", total)
        for total in range(1_000, 4_001, 1_000)
    ]
    rows[2] = evolve(rows[2], signature=rows[1].signature)
    claims = Claims(first.seller.chain, gather_s=0.05)
    said = await asyncio.gather(
        *(claims.join(bytes((n,)) * 32, row) for n, row in enumerate(rows)), return_exceptions=True
    )
    assert [type(one).__name__ for one in said] == ["Outcome", "Outcome", "Refused", "Outcome"]
    assert said[0] == said[1] != said[3]
    chain.mine(DEPTH)
    assert (await first.look()).paid == 4_000


async def test_a_claim_that_a_reorganised_chain_lost_is_made_again(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.pay(3_000_000)
    claim = one.effect("claim", 3_000_000, 0)
    await one.seller.rail.perform(claim)
    chain.mine(DEPTH)
    assert (await one.seller.rail.fate(claim)).fate == "settled"
    chain.reorganise(DEPTH + 2)  # the claim is in the first of these, the payout in the next
    assert (await one.seller.rail.fate(claim)).fate == "absent"
    assert (await one.seller.rail.perform(claim)).fate == "unknown"
    chain.mine(DEPTH)
    assert await one.seller.rail.fate(claim) == Answer("settled", 3_000_000)


async def test_what_was_claimed_and_not_paid_out_is_paid_out_later(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.pay(3_000_000)
    claim = one.effect("claim", 3_000_000, 0)
    with chain.without_mining():
        await one.seller.rail.perform(claim)
        chain.drop(chain.pending()[1])
        chain.mine(DEPTH)
    await one.seller.forgetful(opens)
    assert one.dollars(one.seller) == 0
    assert (await one.seller.rail.fate(claim)).fate == "settled"
    chain.mine()
    assert one.dollars(one.seller) == 3_000_000


# Money that goes back


async def test_a_refund_happens_once_even_if_the_outbox_is_lost(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.pay(3_000_000)
    refund = one.effect("refund", 4_000_000, 0)
    with chain.without_mining():
        assert (await one.seller.rail.perform(refund)).fate == "unknown"
        await one.seller.forgetful(opens)
        await one.seller.rail.perform(refund)
        chain.mine(DEPTH)
    await one.seller.forgetful(opens)
    assert (await one.seller.rail.perform(refund)).fate == "settled"
    assert (await one.look()).withdrawn == 4_000_000
    assert chain.channel(one.seller.rail.place.channel_id(one.config)) == (6_000_000, 0)


async def test_what_vouchers_promise_is_not_given_back(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.pay(3_000_000)
    answer = await one.seller.rail.perform(one.effect("refund", 7_000_001, 0))
    assert (answer.fate, answer.why) == ("failed", "only 7000000 of the channel covers no voucher")


async def test_a_payer_s_withdrawal_takes_its_notice_and_what_is_claimed_meanwhile_stays(
    chain: Anvil, opens: Opens
) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.pay(3_000_000)
    wallet = one.dollars(one.buyer)
    refund = one.effect("refund", FUNDS, 0)
    assert (await one.buyer.rail.perform(refund)).fate == "unknown"

    # From its first moment on it covers nothing new, and vouchers still count as far as they can be claimed.
    chain.mine()
    assert await one.look() == Sight(FUNDS, FUNDS, chain.block, FUNDS, 0)
    assert one.account.capacity == 0
    early = one.buyer.rail.make_voucher(one.buyer.identity, one.account, 3_000_000)
    assert one.seller.rail.check_voucher(early, one.account).total == 3_000_000

    chain.mine(DEPTH)
    assert (await one.buyer.rail.fate(refund)).fate == "unknown"  # its notice is not over
    claim = one.effect("claim", 3_000_000, 0)
    await one.seller.rail.perform(claim)
    chain.mine(DEPTH)
    sight = await one.look()
    assert (sight.withdrawn, sight.leaving, one.account.capacity) == (7_000_000, 7_000_000, 3_000_000)

    chain.pass_time(DELAY_S)
    assert (await one.buyer.rail.fate(refund)).fate == "absent"  # now it has to be asked for
    assert (await one.buyer.rail.perform(refund)).fate == "unknown"
    chain.mine(DEPTH)
    assert await one.buyer.rail.fate(refund) == Answer("settled", FUNDS)
    assert one.dollars(one.buyer) - wallet == 7_000_000
    assert (await one.look()).withdrawn == 7_000_000


async def test_a_withdrawal_goes_on_after_everything_but_the_keys_and_the_journal_is_lost(
    chain: Anvil, opens: Opens
) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    refund = one.effect("refund", 4_000_000, 0)
    await one.buyer.rail.perform(refund)
    chain.mine()
    chain.pass_time(DELAY_S)
    chain.mine(DEPTH)
    for _ in range(2):
        await one.buyer.forgetful(opens)
        await one.buyer.rail.perform(refund)
        chain.mine(DEPTH)
    assert (await one.buyer.rail.fate(refund)).fate == "settled"
    assert chain.channel(one.seller.rail.place.channel_id(one.config)) == (6_000_000, 0)


async def test_an_emptied_channel_s_withdrawal_is_over_and_it_can_be_paid_into_again(
    chain: Anvil, opens: Opens
) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    refund = one.effect("refund", FUNDS, 0)
    await one.buyer.rail.perform(refund)
    chain.mine(DEPTH)
    chain.pass_time(DELAY_S)
    await one.buyer.rail.perform(refund)
    chain.mine(DEPTH)
    await one.buyer.forgetful(opens)
    assert (await one.buyer.rail.fate(refund)).fate == "settled"
    assert (await one.look()).funded - one.account.withdrawn == one.account.capacity == 0
    await one.fund(FUNDS)
    assert one.account.capacity == FUNDS

    # Those who have lost their sights, and then those who have lost their journal as well, sum from its first opening.
    sums = (2 * FUNDS, FUNDS)
    assert (one.account.funded, one.account.withdrawn) == sums
    await one.buyer.forgetful(opens)
    sight = await one.buyer.rail.collateral(one.account)
    assert sight is not None
    assert (sight.funded, sight.withdrawn) == sums
    await one.buyer.forgetful(opens)
    (found,) = await find_again(one.buyer.chain, one.buyer.identity, [one.seller.identity.did])
    assert found.view is not None
    assert (found.view.deposited, found.view.gone, found.view.balance) == (*sums, FUNDS)
    sight = await one.buyer.rail.collateral(Account(one.key))
    assert sight is not None
    assert (sight.funded, sight.withdrawn) == sums


async def test_another_wallet_than_the_channel_s_moves_nothing(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.pay(3_000_000)
    for node, effect in ((one.seller, one.effect("claim", 3_000_000, 0)), (one.buyer, one.effect("top_up", 1, FUNDS))):
        node.wallet = key(chain)
        await node.forgetful(opens)
        answer = await node.rail.perform(effect)
        assert (answer.fate, "start the node with the other one's key" in answer.why) == ("failed", True)
        assert chain.pending() == []


# What is not known


async def test_a_chain_that_does_not_answer_has_said_nothing(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.pay(3_000_000)
    claim = one.effect("claim", 3_000_000, 0)
    fee = await one.seller.rail.fee("claim", 1)
    assert fee is not None
    assert 0 < fee < (await one.seller.rail.fee("claim", 50) or 0) < 50 * fee
    with chain.down():
        assert (await one.seller.rail.perform(claim)).fate == "unknown"
        assert (await one.seller.rail.fate(claim)).fate == "unknown"
        assert await one.seller.rail.fee("claim", 1) is None
        one.pay(1_000_000)  # and what was seen goes on covering work
    chain.mine(1)


async def test_a_channel_that_was_not_seen_for_half_of_its_notice_bears_nothing_new(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.seller.now = DELAY_S / 2
    assert one.seller.rail.capacity(one.account) == FUNDS
    one.seller.now += 1
    assert (one.seller.rail.capacity(one.account), one.buyer.rail.capacity(one.account)) == (0, FUNDS)
    await one.look()
    assert one.seller.rail.capacity(one.account) == FUNDS


async def test_no_deposit_is_brought_whose_gas_costs_more_than_it_is_worth(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    seller = one.seller
    dear = Stablecoin(seller.chain, seller.books, seller.identity.did, ether=10**12)
    deposit = await one.buyer.chain.authorize(one.config, FUNDS, bytes(32), chain.time + 600)
    with pytest.raises(TooDearNow, match="bring it yourself"):
        await dear.bring(one.key, deposit)
    await seller.rail.bring(one.key, deposit)


@pytest.mark.parametrize(("off_s", "bears"), [(60, FUNDS), (DELAY_S, 0)])
async def test_a_node_that_was_off_for_longer_looks_before_a_channel_bears_anything(
    chain: Anvil, opens: Opens, tmp_path: Path, off_s: int, bears: int
) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    place, looked = one.seller.rail.place, time.time() - off_s
    os.utime(tmp_path / "1" / f"channels-{place.chain_id}-{place.contract.hex()}.json", (looked, looked))
    again = await Node.open(1, one.seller.wallet, opens, folder="1")
    again.books.channels[one.key] = one.config
    assert again.rail.capacity(one.account) == bears
    await again.rail.collateral(one.account)
    assert again.rail.capacity(one.account) == FUNDS


async def test_a_voucher_for_more_than_the_channel_holds_does_not_count(chain: Anvil, opens: Opens) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    seen = one.account
    one.account = apply(seen, Funded(2 * FUNDS, seen.funded_sequence + 1))  # as the payer says that it is
    with pytest.raises(AboveDeposit, match="deposit more first"):
        one.pay(FUNDS + 1, seen)


async def test_channels_are_found_again_from_the_keys_alone(chain: Anvil, opens: Opens) -> None:
    """Nothing is left but identity and wallet: what is in the channel, what was claimed, and what is leaving it."""
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    one.pay(3_000_000)
    await one.seller.rail.perform(one.effect("claim", 3_000_000, 0))
    await one.buyer.rail.perform(one.effect("refund", 2_000_000, 0))
    chain.mine(DEPTH)
    strangers = await trade(chain, opens)  # of the same identities, and other wallets
    await strangers.fund(FUNDS)
    await one.seller.forgetful(opens)
    await one.buyer.forgetful(opens)

    peers = [one.key.payer, one.key.payee]
    (paid,) = await find_again(one.buyer.chain, one.buyer.identity, peers)
    (earned,) = await find_again(one.seller.chain, one.seller.identity, peers)
    assert paid.channel is not None
    assert config_of(paid.channel.record) == paid.config == earned.config == one.config
    assert paid.view is not None
    assert (paid.view.deposited, paid.view.claimed, paid.view.withdrawing) == (FUNDS, 3_000_000, 2_000_000)
    assert (earned.view, earned.channel) == (paid.view, None)
    assert paid.channel.signer == one.key.payer
