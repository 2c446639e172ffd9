"""The door for anyone who pays, with x402's own client, unchanged, on a real chain."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from x402.http.utils import (
    decode_payment_response_header,
    decode_payment_signature_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm.batch_settlement import errors
from x402.mechanisms.evm.constants import ERR_INSUFFICIENT_BALANCE

from ledger.account import Account
from ledger.identity import Identity
from ledger.journal import MemoryJournal
from node.engine.memory import MemoryEngine
from node.engine.pool import Pool
from node.engine.port import Job
from node.engine.turns import Pace
from node.models.tokenizer import Tokenizer
from node.wire.messages import Refused
from tests.chain import X402_CHANNELS, Anvil
from tests.node.strangers import (
    RICH,
    Stall,
    asking,
    channel_scheme,
    client,
    exact_scheme,
    facilitator,
    refusal,
    required,
    settlement,
    signed,
    stall,
    until,
)
from tests.node.trading import HOT, PROMPT, engine_of, pooled

Open = Callable[..., AbstractAsyncContextManager[Stall]]


@pytest.fixture
def seller(chain: Anvil) -> LocalAccount:
    return chain.wallet(dollars=10_000)


@pytest.fixture
def door(chain: Anvil, tmp_path: Path, speaking: Tokenizer, engine: MemoryEngine, seller: LocalAccount) -> Open:
    return partial(stall, chain, tmp_path, speaking, engine=engine, wallet=seller)


def cost_of(usage: dict[str, int]) -> int:
    return usage["prompt_tokens"] + 2 * usage["completion_tokens"]


def on_chain(chain: Anvil, account: Account) -> tuple[int, int]:
    """Balance and total claimed of an account's channel."""
    return chain.channel(bytes.fromhex(account.key.payer.rpartition("0x")[2]), X402_CHANNELS)


async def test_a_request_without_a_payment_is_told_how_to_pay_and_how_much(door: Open) -> None:
    async with door() as open_door, httpx.AsyncClient() as plain:
        response = await plain.post(open_door.chat, json=asking())
        asked = required(response)
        assert response.status_code == 402
        assert [each.scheme for each in asked.accepts] == ["batch-settlement", "exact"]
        assert int(asked.accepts[0].amount) > 16
        assert open_door.book.journal.head.sequence == 0, "asking leaves nothing behind"


async def test_a_channel_pays_for_requests_and_is_charged_what_they_cost(
    door: Open, chain: Anvil, buyer: LocalAccount, seller: LocalAccount
) -> None:
    async with door() as open_door, client(channel_scheme(buyer, chain)) as paying:
        costs = []
        for length in (8, 3, 16):
            response = await paying.post(open_door.chat, json=asking(length))
            assert response.status_code == 200, response.text
            costs.append(cost_of(response.json()["usage"]))
            assert settlement(response).extra["chargedAmount"] == str(costs[-1])
        (account,) = open_door.accounts("stablecoin")
        assert account.owed == account.authorized == sum(costs)
        assert chain.dollars(buyer.address) == RICH - account.funded
        await until(lambda: not open_door.accounts("stablecoin")[0].unsettled)
        assert on_chain(chain, account) == (account.funded, sum(costs)), "what was charged is claimed, and no more"


async def test_a_stream_is_charged_too_and_a_client_that_cannot_know_is_corrected(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with door() as open_door, client(channel_scheme(buyer, chain)) as paying:
        costs = []
        for _ in range(2):
            streaming = asking(stream=True, stream_options={"include_usage": True})
            async with paying.stream("POST", open_door.chat, json=streaming) as response:
                assert response.status_code == 200
                lines = [line async for line in response.aiter_lines() if line]
            told = next(line for line in lines if line.startswith(": PAYMENT-RESPONSE: "))
            said = decode_payment_response_header(told.rpartition(" ")[2])
            costs.append(int((said.extra or {})["chargedAmount"]))
            assert lines[-1] == "data: [DONE]"
        # What x402's client believes is behind by two streams: it is told, signs again, and is answered.
        response = await paying.post(open_door.chat, json=asking())
        assert response.status_code == 200, response.text
        (account,) = open_door.accounts("stablecoin")
        assert account.owed == sum(costs) + cost_of(response.json()["usage"])


async def test_a_stream_that_is_hung_up_owes_what_was_computed(
    door: Open, chain: Anvil, buyer: LocalAccount, engine: MemoryEngine
) -> None:
    async with door() as open_door, client(channel_scheme(buyer, chain)) as paying:
        async with paying.stream("POST", open_door.chat, json=asking(300, stream=True)) as response:
            async for _ in response.aiter_lines():
                break
        await until(lambda: not open_door.accounts("stablecoin")[0].reserved)
        (account,) = open_door.accounts("stablecoin")
        assert 0 < account.owed < 600
        assert engine.free_slots() == 4


async def test_a_channel_has_one_request_at_a_time_and_another_channel_another(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with door() as open_door, client(channel_scheme(buyer, chain)) as first:
        await first.post(open_door.chat, json=asking())
        (account,) = open_door.accounts("stablecoin")
        open_door.tabs.take_turn(account.key)  # as a request does that is under way
        async with client(channel_scheme(buyer, chain)) as same, client(channel_scheme(buyer, chain, salt=7)) as other:
            refused = await first.post(open_door.chat, json=asking())
            assert refusal(refused) == errors.ERR_CHANNEL_BUSY
            assert "another salt" in refused.json()["error"]["message"]
            assert (await other.post(open_door.chat, json=asking())).status_code == 200
            open_door.tabs.give_back(account.key)
            assert (await same.post(open_door.chat, json=asking())).status_code == 200
        assert len(open_door.accounts("stablecoin")) == 2


@pytest.mark.parametrize("scheme", ["exact", "batch-settlement"])
async def test_a_payment_that_comes_again_pays_for_nothing(
    door: Open, chain: Anvil, buyer: LocalAccount, scheme: str
) -> None:
    async with door() as open_door, httpx.AsyncClient() as plain:
        made = exact_scheme(buyer) if scheme == "exact" else channel_scheme(buyer, chain)
        headers = await signed(made, open_door.chat, json=asking())
        both = await asyncio.gather(*(plain.post(open_door.chat, json=asking(), headers=headers) for _ in range(2)))
        again = await plain.post(open_door.chat, json=asking(), headers=headers)
        assert sorted(response.status_code for response in (*both, again)) == [200, 402, 402]
        (account,) = open_door.accounts("prepaid" if scheme == "exact" else "stablecoin")
        paid = next(response for response in both if response.status_code == 200)
        assert account.owed == cost_of(paid.json()["usage"])


async def test_a_transfer_pays_in_advance_and_the_next_requests_spend_of_it(
    door: Open, chain: Anvil, buyer: LocalAccount, seller: LocalAccount
) -> None:
    async with door(budget=500) as open_door, client(exact_scheme(buyer)) as paying:
        moved = []
        for _ in range(3):
            response = await paying.post(open_door.chat, json=asking())
            assert response.status_code == 200, response.text
            moved.append(settlement(response).amount)
        account = open_door.prepaid(buyer)
        assert moved == ["500", "0", "0"], "money is fetched only where the balance does not cover the request"
        assert (account.funded, chain.dollars(seller.address)) == (500, 10_500)
        assert account.owed == account.settled > 0
        balance = await paying.get(f"{open_door.url}/v1/balance")
        assert balance.json()["left"] == str(500 - account.owed)


async def test_who_signs_for_money_that_it_does_not_have_leaves_nothing_behind(door: Open, chain: Anvil) -> None:
    for scheme in (exact_scheme(chain.wallet()), channel_scheme(chain.wallet(), chain)):
        async with door() as open_door, client(scheme) as paying:
            refused = await paying.post(open_door.chat, json=asking())
            assert refusal(refused) in (ERR_INSUFFICIENT_BALANCE, errors.ERR_DEPOSIT_TRANSACTION_FAILED)
            assert open_door.book.journal.head.sequence == 0


async def test_what_is_left_of_transfers_goes_back_when_its_wallet_asks(
    door: Open, chain: Anvil, buyer: LocalAccount, seller: LocalAccount
) -> None:
    async with door() as open_door, client(exact_scheme(buyer)) as paying:
        cost = cost_of((await paying.post(open_door.chat, json=asking())).json()["usage"])
        back = await paying.post(f"{open_door.url}/v1/refunds")
        assert back.status_code == 200, back.text
        assert not settlement(back).extra["underWay"]
        assert chain.dollars(buyer.address) == RICH - cost
        assert chain.dollars(seller.address) == 10_000 + cost
        assert (await paying.post(f"{open_door.url}/v1/refunds")).status_code == 409, "nothing is left"


async def test_what_is_left_in_a_channel_goes_back_when_its_key_asks(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    scheme = channel_scheme(buyer, chain)
    async with door() as open_door, client(scheme) as paying:
        cost = cost_of((await paying.post(open_door.chat, json=asking())).json()["usage"])
        said = await asyncio.to_thread(scheme.refund, open_door.chat)
        assert said.success
        (account,) = open_door.accounts("stablecoin")
        assert on_chain(chain, account)[0] == cost
        assert chain.dollars(buyer.address) == RICH - cost
        # The channel can be used again: its next request brings a deposit.
        response = await paying.post(open_door.chat, json=asking())
        assert response.status_code == 200, response.text
        assert open_door.accounts("stablecoin")[0].owed == cost + cost_of(response.json()["usage"])


async def test_a_channel_goes_on_where_it_was_when_the_node_starts_again(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    journal = MemoryJournal(Identity(b"\x01" * 32).did)
    async with client(channel_scheme(buyer, chain)) as paying:
        for _ in range(2):
            async with door(journal=journal) as open_door:
                response = await paying.post(open_door.chat, json=asking())
                assert response.status_code == 200, response.text
        assert open_door.accounts("stablecoin")[0].owed == 2 * cost_of(response.json()["usage"])


async def test_a_node_that_lost_its_journal_goes_on_from_what_it_has_claimed(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with client(channel_scheme(buyer, chain)) as paying:
        async with door() as open_door:
            cost = cost_of((await paying.post(open_door.chat, json=asking())).json()["usage"])
            await until(lambda: not open_door.accounts("stablecoin")[0].unsettled)
        async with door() as open_door:
            response = await paying.post(open_door.chat, json=asking())
            assert response.status_code == 200, response.text
            (account,) = open_door.accounts("stablecoin")
            assert (account.owed, account.settled) == (cost + cost_of(response.json()["usage"]), cost)


async def test_who_takes_its_deposit_back_is_not_answered_and_what_it_owes_is_claimed(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    scheme = channel_scheme(buyer, chain)
    async with door() as open_door, client(scheme) as paying, httpx.AsyncClient() as plain:
        cost = cost_of((await paying.post(open_door.chat, json=asking())).json()["usage"])
        asked = required(await plain.post(open_door.chat, json=asking())).accepts[0]
        (account,) = open_door.accounts("stablecoin")
        config = list(scheme.build_channel_config(asked).to_dict().values())
        config[-1] = bytes.fromhex(config[-1][2:])
        types = "initiateWithdraw((address,address,address,address,address,uint40,bytes32),uint128)"
        chain.send(X402_CHANNELS, types, config, account.funded - cost, sender=buyer.address)
        await until(lambda: open_door.accounts("stablecoin")[0].capacity <= cost)
        refused = await paying.post(open_door.chat, json=asking())
        assert refusal(refused) == errors.ERR_CUMULATIVE_EXCEEDS_BALANCE
        await until(lambda: on_chain(chain, account)[1] == cost)


async def test_without_the_chain_what_channels_hold_still_pays(door: Open, chain: Anvil, buyer: LocalAccount) -> None:
    async with door() as open_door, client(channel_scheme(buyer, chain)) as paying:
        await paying.post(open_door.chat, json=asking())
        with chain.down():
            response = await paying.post(open_door.chat, json=asking())
        assert response.status_code == 200, response.text


async def test_a_transfer_that_the_chain_is_slow_to_make_counts_when_it_is_made(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    journal = MemoryJournal(Identity(b"\x01" * 32).did)
    async with client(exact_scheme(buyer)) as paying:
        with chain.without_mining():
            async with door(wait_s=0.5, journal=journal) as open_door:
                slow = await paying.post(open_door.chat, json=asking())
                assert refusal(slow) == "settlement_pending"
                await open_door.bank.sweep()
                assert open_door.prepaid(buyer).funded == 0
        # The node has ended meanwhile; what it had sent is mined.
        chain.mine()
        async with door(journal=journal) as open_door:
            await asyncio.gather(*(open_door.bank.sweep() for _ in range(3)))
            assert (open_door.prepaid(buyer).funded, open_door.book.strangers.transfers) == (2_000, {})
            response = await paying.post(open_door.chat, json=asking())
            assert settlement(response).amount == "0", "the balance pays"


async def test_a_deposit_that_the_chain_is_slow_to_take_is_made_once(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with client(channel_scheme(buyer, chain)) as paying, httpx.AsyncClient() as plain:
        async with door(wait_s=0.5) as open_door:
            headers = await signed(channel_scheme(buyer, chain), open_door.chat, json=asking())
            with chain.without_mining():
                slow = await plain.post(open_door.chat, json=asking(), headers=headers)
                assert refusal(slow) == "settlement_pending"
        chain.mine()
        async with door() as open_door:
            # The same deposit again, and then x402's client, which finds its money in the channel.
            again = await plain.post(open_door.chat, json=asking(), headers=headers)
            assert again.status_code == 200, again.text
            response = await paying.post(open_door.chat, json=asking())
            assert response.status_code == 200, response.text
            (account,) = open_door.accounts("stablecoin")
            assert on_chain(chain, account)[0] == account.funded == 5_000
            assert chain.dollars(buyer.address) == RICH - 5_000


async def test_a_transfer_that_somebody_else_made_counts(
    door: Open, chain: Anvil, buyer: LocalAccount, engine: MemoryEngine
) -> None:
    async with door(wait_s=3.0) as open_door, client(exact_scheme(buyer)) as paying:
        with chain.without_mining():
            await paying.post(open_door.chat, json=asking())
            (ours,) = chain.pending()
            data = chain.rpc("eth_getTransactionByHash", ours)["input"]
            chain.drop(ours)
        # Anyone may carry out what was signed: the node's own transaction finds it done.
        chain.rpc("anvil_impersonateAccount", buyer.address)
        chain.rpc("eth_sendTransactionSync", {"from": buyer.address, "to": chain.deployed.dollar, "data": data})
        await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == 2_000


@pytest.mark.parametrize("scheme", ["exact", "batch-settlement"])
async def test_somebody_elses_facilitator_may_bring_payments_to_the_chain(
    door: Open, chain: Anvil, buyer: LocalAccount, seller: LocalAccount, scheme: str
) -> None:
    chain.rpc("anvil_setBalance", seller.address, "0x0")  # the node itself could send nothing
    made = exact_scheme(buyer) if scheme == "exact" else channel_scheme(buyer, chain)
    async with facilitator(chain) as elsewhere, door(facilitator=elsewhere) as open_door, client(made) as paying:
        for _ in range(2):
            response = await paying.post(open_door.chat, json=asking())
            assert response.status_code == 200, response.text
        (account,) = open_door.accounts("prepaid" if scheme == "exact" else "stablecoin")
        assert account.owed == 2 * cost_of(response.json()["usage"])
        assert chain.dollars(buyer.address) == RICH - account.funded


async def test_no_payment_is_taken_for_what_cannot_be_had(
    door: Open, chain: Anvil, buyer: LocalAccount, engine: MemoryEngine
) -> None:
    paused = Refused("not_selling", "the owner of this machine needs it now")
    async with door(may_sell=lambda: paused) as open_door, client(channel_scheme(buyer, chain)) as paying:
        response = await paying.post(open_door.chat, json=asking())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "nobody_can_answer")
    async with door() as open_door, client(channel_scheme(buyer, chain)) as paying:
        work = [engine.generate(Job(PROMPT, HOT, seed, 500)) for seed in range(4)]
        for each in work:
            await anext(each)
        assert (await paying.post(open_door.chat, json=asking())).status_code == 429
        for each in work:
            await each.aclose()
    assert chain.dollars(buyer.address) == RICH


async def test_an_answer_that_fails_costs_nothing_and_its_deposit_is_told(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer, seller: LocalAccount, buyer: LocalAccount
) -> None:
    engine = engine_of(speaking, fail_after=2)
    door = stall(chain, tmp_path, speaking, engine, seller)
    async with door as open_door, client(channel_scheme(buyer, chain)) as paying:
        response = await paying.post(open_door.chat, json=asking())
        assert (response.status_code, settlement(response).extra["chargedAmount"]) == (500, "0")
        (account,) = open_door.accounts("stablecoin")
        assert (account.owed, account.reserved) == (0, 0)
        await paying.post(open_door.chat, json=asking())
        assert on_chain(chain, account)[0] == account.funded, "nothing was deposited twice"
    await engine.close()


async def test_a_deposit_that_is_worth_less_than_its_gas_is_not_brought(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    poor = chain.wallet(dollars=4_000)
    scheme = channel_scheme(poor, chain)
    scheme._deposit_strategy = lambda _: "3000"
    async with door() as open_door, client(scheme) as paying:
        assert refusal(await paying.post(open_door.chat, json=asking())) == errors.ERR_DEPOSIT_BELOW_MIN_DEPOSIT
        assert open_door.book.journal.head.sequence == 0


def _changed(payload: dict[str, Any], *path: str, value: str) -> None:
    for name in path[:-1]:
        payload = payload[name]
    payload[path[-1]] = value


async def test_what_was_not_signed_is_not_taken(door: Open, chain: Anvil, buyer: LocalAccount) -> None:
    changes = [
        (("voucher", "maxClaimableAmount"), "1", errors.ERR_INVALID_VOUCHER_SIGNATURE),
        (("voucher", "channelId"), "0x" + "11" * 32, errors.ERR_CHANNEL_ID_MISMATCH),
        (("channelConfig", "salt"), "0x" + "11" * 32, errors.ERR_CHANNEL_ID_MISMATCH),
        (("deposit", "amount"), "6000", errors.ERR_INVALID_RECEIVE_AUTHORIZATION_SIGNATURE),
        (("voucher", "signature"), "0x" + "11" * 65, errors.ERR_INVALID_VOUCHER_SIGNATURE),
        (("voucher", "signature"), "0x12", errors.ERR_INVALID_PAYLOAD_TYPE),
    ]
    async with door() as open_door, httpx.AsyncClient() as plain:
        headers = await signed(channel_scheme(buyer, chain), open_door.chat, json=asking())
        for path, value, why in changes:
            payment = decode_payment_signature_header(headers["PAYMENT-SIGNATURE"])
            _changed(payment.payload, *path, value=value)
            changed = {"PAYMENT-SIGNATURE": encode_payment_signature_header(payment)}
            assert refusal(await plain.post(open_door.chat, json=asking(), headers=changed)) == why
        assert open_door.book.journal.head.sequence == 0


@pytest.mark.parametrize("proven", [True, False])
async def test_a_request_that_finds_no_room_for_its_model_gets_it_the_next_turn(
    door: Open, chain: Anvil, buyer: LocalAccount, speaking: Tokenizer, tmp_path: Path, proven: bool
) -> None:
    """As with orders: only for who has paid for an answer before."""
    pool = Pool(100, pace=Pace(after=0, residence=0.05, pause=0, comeback=600))
    busy = pooled(pool, tmp_path, "busy", lambda: MemoryEngine(eog=frozenset()))
    asked = pooled(pool, tmp_path, "asked", lambda: engine_of(speaking))
    async with door(engine=asked, miss=asked.miss) as open_door, client(exact_scheme(buyer)) as paying:
        if proven:
            assert (await paying.post(open_door.chat, json=asking())).status_code == 200
        running = busy.generate(Job((1, 2), HOT, 1, 9, sold=True))
        await anext(running)
        assert (await paying.post(open_door.chat, json=asking())).status_code == 429
        following = asyncio.create_task(anext(busy.generate(Job((1, 2), HOT, 1, 9, sold=True))))
        await asyncio.sleep(0)
        await running.aclose()
        if proven:
            assert (await paying.post(open_door.chat, json=asking())).status_code == 200
        assert (await following).ids
    await pool.close()
