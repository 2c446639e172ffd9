"""A channel's life on a real chain, as the facade does and sees it."""

import asyncio
from pathlib import Path

import pytest

from ledger.rails.stablecoin import contracts
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.errors import ChannelUnknown, NoContract, NoEther, Refused, TooDear
from ledger.rails.stablecoin.networks import checksummed, network
from tests.chain import MULTICALL, Anvil
from tests.ledger.rails.stablecoin.channels import DELAY_S, Pair, key
from tests.ledger.rails.stablecoin.conftest import Opens
from tests.ledger.rails.stablecoin.endpoints import between

DEPOSIT = 10_000_000


async def test_a_channel_is_paid_into_claimed_from_settled_and_emptied(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    await payee.check()
    with pytest.raises(ChannelUnknown):
        await payee.look(pair.config)
    await pair.deposit(payee, payer, DEPOSIT)

    seen = await payee.look(pair.config)
    assert (seen.balance, seen.deposited) == (DEPOSIT, 0)  # in a block that may still go
    chain.mine(2)
    seen = await payee.look(pair.config)
    assert (seen.balance, seen.deposited, seen.block - seen.deep) == (DEPOSIT, DEPOSIT, 2)

    # Back to back, in one block: neither collides with the other.
    to = payee.place.contract
    with chain.without_mining():
        await payee.submit(b"claim", contracts.claim(to, [pair.row(payee, 3_000_000)]))
        await payee.submit(b"settle", contracts.settle(to, pair.receiver.address, pair.config.token))
        chain.mine(3)
    for act in (b"claim", b"settle"):
        assert (await payee.outcome(act)).state == "settled"
    assert chain.dollars(checksummed(pair.receiver.address)) == 3_000_000
    assert await payee.unsettled() == 0
    seen = await payer.look(pair.config)
    assert (seen.claimed, seen.claimed_at_head, seen.balance) == (3_000_000, 3_000_000, DEPOSIT)

    await pair.withdraw(payer, 6_000_000)
    seen = await payee.look(pair.config)
    assert (seen.withdrawing, seen.gone) == (6_000_000, 0)
    assert seen.withdraw_began == chain.time
    await pair.submit(payee, b"refund", contracts.refund(to, pair.config, 2_000_000))
    seen = await payee.look(pair.config)
    assert (seen.withdrawing, seen.gone, seen.refund_nonce) == (4_000_000, 2_000_000, 1)
    chain.pass_time(DELAY_S)
    await pair.submit(payer, b"finalize", contracts.finalize_withdraw(to, pair.config))
    chain.mine(2)
    seen = await payee.look(pair.config)
    assert (seen.deposited, seen.gone, seen.withdrawing, seen.balance) == (DEPOSIT, 6_000_000, 0, 4_000_000)
    assert chain.dollars(checksummed(pair.payer.address)) == 100_000_000 - 4_000_000


async def test_a_channel_is_found_again_from_the_chain_alone(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    await pair.deposit(payee, payer, DEPOSIT)
    await pair.deposit(payee, payer, DEPOSIT, b"2" * 32)
    chain.mine(2)
    stranger = await opens()
    for party in (pair.receiver, pair.authorizer):
        assert [found.config for found in await stranger.find_all(party.address)] == [pair.config]
    assert await stranger.find_all(bytes(20)) == []
    assert (await stranger.look(pair.config)).deposited == 2 * DEPOSIT


async def test_a_deposit_happens_once_whoever_brings_it(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    deposit = await payer.authorize(pair.config, DEPOSIT, b"1" * 32, chain.time + 600)
    assert not await payee.deposited(pair.config, b"1" * 32, deep=False)
    await pair.submit(payee, b"first", payee.bring(pair.config, deposit))
    assert await payee.deposited(pair.config, b"1" * 32, deep=False)
    assert not await payee.deposited(pair.config, b"1" * 32)
    with pytest.raises(Refused, match="ERC3009UsedAuthorization"):
        await payee.submit(b"second", payee.bring(pair.config, deposit))
    assert (await payee.outcome(b"second")).state == "absent"


async def test_a_token_without_signed_deposits_is_approved_first(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer = await opens(pair.payer)
    collector = payer.deployment.approve_collector
    assert collector is not None
    await pair.submit(payer, b"approve", contracts.approve(pair.config.token, collector, DEPOSIT))
    await pair.submit(payer, b"deposit", contracts.deposit(payer.place.contract, pair.config, DEPOSIT, collector))
    assert (await payer.look(pair.config)).balance == DEPOSIT


async def test_what_the_owner_cannot_pay_or_does_not_want_to_is_not_sent(
    chain: Anvil, pair: Pair, opens: Opens
) -> None:
    poor = await opens(key(chain, dollars=5, ether=0))
    approve = contracts.approve(pair.config.token, pair.receiver.address, 1)
    with pytest.raises(NoEther, match="send some there"):
        await poor.submit(b"1", approve)
    thrifty = await opens(key(chain), max_gas_price=1)
    with pytest.raises(TooDear, match="max_gas_price"):
        await thrifty.submit(b"1", approve)
    assert (await poor.outcome(b"1")).state == (await thrifty.outcome(b"1")).state == "absent"
    assert chain.pending() == []


async def test_settings_that_name_no_contract_are_told(chain: Anvil, opens: Opens) -> None:
    looked = await opens()
    await looked.check()
    chain.rpc("anvil_setCode", checksummed(looked.place.contract), "0x")
    with pytest.raises(NoContract, match="channels contract"):
        await looked.check()


async def test_a_wrong_address_is_told_and_is_no_endpoints_fault(chain: Anvil, pair: Pair, opens: Opens) -> None:
    looked = await opens()
    with pytest.raises(NoContract, match="refundNonce"):
        await looked.read(pair.payer.address, "refundNonce", bytes(32))
    chain.rpc("anvil_setCode", checksummed(looked.place.contract), "0x")
    with pytest.raises(NoContract, match="channels contract"):
        await looked.look(pair.config)
    assert looked.endpoints.usable[0].aside_until == 0


async def test_a_look_asks_little_and_needs_nobody_who_calls_for_others(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer = await opens(pair.payer)
    await pair.deposit(payer, payer, DEPOSIT)
    async with between(chain.url) as (address, asked):
        looked = await opens(rpc=(address,))
        seen = await looked.look(pair.config)
        asked.clear()
        assert await looked.look(pair.config) == seen
        assert asked == ["eth_getBlockByNumber"]
        chain.mine()
        await looked.look(pair.config)
        assert asked.count("eth_call") == 2
        chain.rpc("anvil_setCode", MULTICALL, "0x")
        chain.mine()
        assert (await looked.look(pair.config)).balance == DEPOSIT


async def test_a_long_past_is_read_to_its_end_though_nobody_waits_for_it(
    chain: Anvil, pair: Pair, opens: Opens
) -> None:
    payer = await opens(pair.payer)
    await pair.deposit(payer, payer, DEPOSIT)
    chain.mine(2)
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(method: str) -> None:
        if method == "eth_getLogs":
            reading.set()
            await go_on.wait()

    async with between(chain.url, before=slowly) as (address, asked):
        looked = await opens(rpc=(address,))
        looking = asyncio.create_task(looked.look(pair.config))
        await reading.wait()
        looking.cancel()
        again = asyncio.create_task(looked.look(pair.config))
        go_on.set()
        assert (await again).deposited == DEPOSIT
        # Its past once, and once more what came after it.
        assert asked.count("eth_getLogs") == 2


async def test_what_the_network_below_takes_for_bytes_is_told(chain: Anvil, tmp_path: Path) -> None:
    # Returns 7 * 1024 whatever it is asked: a stand-in for the oracle of an OP stack chain.
    chain.rpc("anvil_setCode", "0x" + "0f" * 20, "0x611c0060005260206000f3")
    looked = await Chain.open(network("anvil").with_(l1_fees=b"\x0f" * 20), [chain.url], tmp_path)
    try:
        price = await looked.gas_price()
    finally:
        await looked.close()
    assert price.l1_byte == 7
    assert price.cost(100, 10) == 100 * price.expected + 70


async def test_a_replaced_block_takes_its_deposit_with_it(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    await pair.deposit(payee, payer, DEPOSIT)
    chain.mine(2)
    await payee.look(pair.config)
    await pair.deposit(payee, payer, DEPOSIT, b"2" * 32)
    assert (await payee.look(pair.config)).balance == 2 * DEPOSIT
    chain.reorganise(1)
    seen = await payee.look(pair.config)
    assert (seen.balance, seen.deposited) == (DEPOSIT, DEPOSIT)


async def test_even_what_was_deep_is_read_anew_when_it_is_replaced(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    await pair.deposit(payee, payer, DEPOSIT)
    chain.mine(4)
    await pair.deposit(payee, payer, DEPOSIT, b"2" * 32)
    chain.mine(3)
    assert (await payee.look(pair.config)).deposited == 2 * DEPOSIT
    chain.reorganise(5)
    chain.mine(3)
    assert (await payee.look(pair.config)).deposited == DEPOSIT


async def test_sights_outlive_the_process_and_the_loss_of_their_file(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer, payee = await opens(pair.payer), await opens(pair.receiver, folder="same")
    await pair.deposit(payee, payer, DEPOSIT)
    chain.mine(3)
    seen = await payee.look(pair.config)
    await payee.close()
    for folder in ("same", "lost"):
        again = await opens(pair.receiver, folder=folder)
        assert await again.look(pair.config) == seen


async def test_a_wait_ends_when_a_transaction_is_deep(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payer = await opens(pair.payer, poll_s=0.01)
    await payer.submit(b"1", contracts.approve(pair.config.token, pair.receiver.address, 1))
    waiting = asyncio.create_task(payer.settled(b"1"))
    chain.catch_up()
    chain.mine(2)
    found = await waiting
    assert (found.state, found.gas > 21_000, found.fee > found.gas) == ("settled", True, True)
