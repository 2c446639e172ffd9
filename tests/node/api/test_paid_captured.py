"""Transfers that were shown at the door and that somebody else brings to the chain: their money is their payer's."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import httpx
import pytest
from attrs import evolve
from eth_account.signers.local import LocalAccount
from x402.mechanisms.evm.constants import ERR_NONCE_ALREADY_USED

from ledger.identity import Identity
from ledger.journal import MemoryJournal
from ledger.rails.stablecoin import transfers
from node.engine.memory import MemoryEngine
from node.exchange.strangers import PREPAID_RAIL, Transfer, did_of_wallet, ended, shown
from node.models.tokenizer import Tokenizer
from node.paid import bank
from node.paid.presented import SignedTransfer, read_payment
from node.wire.messages import Refused
from tests.chain import Anvil
from tests.node.strangers import (
    NETWORK,
    RICH,
    Stall,
    asking,
    client,
    exact_scheme,
    raw,
    refusal,
    required,
    settlement,
    signed,
    stall,
)

Open = Callable[..., AbstractAsyncContextManager[Stall]]
BUDGET = 2_000


@pytest.fixture
def door(chain: Anvil, tmp_path: Path, speaking: Tokenizer, engine: MemoryEngine) -> Open:
    return partial(stall, chain, tmp_path, speaking, engine, chain.wallet(dollars=10_000), budget=BUDGET)


def bring(chain: Anvil, door: Stall, headers: dict[str, str]) -> None:
    """What whoever has seen a header can do."""
    payment = read_payment(headers["PAYMENT-SIGNATURE"]).signed
    assert isinstance(payment, SignedTransfer)
    call = payment.authorization.call(door.chain.network.token, payment.signature)
    anyone = chain.wallet()
    chain.rpc("anvil_impersonateAccount", anyone.address)
    sent = {"from": anyone.address, "to": f"0x{call.to.hex()}", "data": f"0x{call.data.hex()}"}
    assert chain.rpc("eth_sendTransactionSync", sent)["status"] == "0x1"


async def test_a_transfer_that_only_signed_in_counts_for_its_payer_when_somebody_makes_it(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    journal = MemoryJournal(Identity(b"\x01" * 32).did)
    async with door(journal=journal) as open_door, httpx.AsyncClient() as plain:
        async with client(exact_scheme(buyer)) as paying:
            await paying.post(open_door.chat, json=asking())
        headers = [await signed(exact_scheme(buyer), open_door.chat, json=asking()) for _ in range(2)]
        for each in headers:
            answer = await plain.post(open_door.chat, json=asking(), headers=each)
            assert settlement(answer).amount == "0", "the balance pays"
        assert len(open_door.book.strangers.shown) == 2
        bring(chain, open_door, headers[0])
        # The node is started anew before it looks.
    async with door(journal=journal) as open_door, httpx.AsyncClient() as plain:
        for _ in range(2):
            await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == 2 * BUDGET
        assert chain.dollars(buyer.address) == RICH - 2 * BUDGET
        assert len(open_door.book.strangers.shown) == 1, "the other is still good"
        again = await plain.post(open_door.chat, json=asking(), headers=headers[0])
        assert refusal(again) == ERR_NONCE_ALREADY_USED


async def test_what_nobody_brought_is_looked_for_no_more_when_it_has_expired(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with door() as open_door:
        payer = did_of_wallet(NETWORK, raw(buyer.address))
        await open_door.book.post(shown(b"o" * 32, Transfer(payer, b"n" * 32, BUDGET, chain.time - 1_000)))
        await open_door.bank.sweep()
        assert (open_door.book.strangers.shown, open_door.prepaid(buyer).funded) == ({}, 0)


async def test_a_transfer_that_was_refused_counts_all_the_same_when_somebody_makes_it(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with door() as before:
        headers = await signed(exact_scheme(buyer), before.chat, json=asking())
    async with door(ether=10**12) as open_door, httpx.AsyncClient() as plain:
        refused = await plain.post(open_door.chat, json=asking(), headers=headers)
        assert refusal(refused) == "amount_below_gas"
        bring(chain, open_door, headers)
        for _ in range(2):
            await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == BUDGET


async def test_a_transfer_that_was_refused_counts_also_where_the_node_was_killed_before_somebody_makes_it(
    door: Open, chain: Anvil, buyer: LocalAccount, tmp_path: Path
) -> None:
    journal, file = MemoryJournal(Identity(b"\x01" * 32).did), tmp_path / "shown.jsonl"
    async with door() as before:
        made = [await signed(exact_scheme(buyer), before.chat, json=asking()) for _ in range(2)]
    async with door(ether=10**12, journal=journal) as open_door, httpx.AsyncClient() as plain:
        for headers in made:
            refused = await plain.post(open_door.chat, json=asking(), headers=headers)
            assert refusal(refused) == "amount_below_gas"
        left = file.read_bytes()  # when the answer is there
    file.write_bytes(left + left[:20])  # the node was killed, while it wrote another one
    bring(chain, open_door, made[0])
    async with door(journal=journal) as open_door:
        for _ in range(2):
            await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == BUDGET
        assert len(open_door.bank.watched) == 1, "the other is still good"
    file.write_bytes(left)  # the file of before: it cannot be counted again
    async with door(journal=journal) as open_door:
        bring(chain, open_door, made[1])
        for _ in range(2):
            await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == 2 * BUDGET
        assert not open_door.bank.watched


async def test_what_signed_for_a_request_that_was_not_even_begun_counts_all_the_same(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    """A request that comes to a closed door, one for another price, and the one unit that asks for a balance."""
    closed = Refused("not_selling", "the owner needs it")
    may: list[Refused | None] = [None]
    async with door(may_sell=lambda: may[0]) as open_door, httpx.AsyncClient() as plain:
        made = [await signed(exact_scheme(buyer), open_door.chat, json=asking()) for _ in range(2)]
        may[0] = closed
        assert (await plain.post(open_door.chat, json=asking(), headers=made[0])).status_code == 503
        may[0] = None
        other = await plain.post(open_door.chat, json=asking(1_000, n=2), headers=made[1])
        assert refusal(other) == "no_matching_requirements"
        at = f"{open_door.url}/v1/balance"
        made.append(await signed(exact_scheme(buyer), at, method="GET"))
        assert (await plain.get(at, headers=made[2])).json()["paid"] == "0"
        for each in made:
            bring(chain, open_door, each)
        await asyncio.gather(*(open_door.bank.sweep() for _ in range(3)))
        assert open_door.prepaid(buyer).funded == 2 * BUDGET + 1
        assert not open_door.bank.watched


async def test_a_transfer_that_was_counted_is_not_counted_again_however_often_it_is_shown(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    async with door(wait_s=0.5) as open_door, httpx.AsyncClient() as plain:
        headers = await signed(exact_scheme(buyer), open_door.chat, json=asking())
        with chain.without_mining():
            slow = await plain.post(open_door.chat, json=asking(), headers=headers)
            assert refusal(slow) == "settlement_pending"
        chain.mine()
        await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == BUDGET
        again = await plain.post(open_door.chat, json=asking(), headers=headers)
        assert (again.status_code, settlement(again).amount) == (200, "0")
        for _ in range(2):
            await open_door.bank.sweep()
        (account,) = open_door.accounts(PREPAID_RAIL)
        assert account.funded == BUDGET
        assert not open_door.bank.watched


@pytest.mark.parametrize("value", [BUDGET, 40_000])
async def test_another_transfer_with_a_nonce_that_was_counted_counts_for_nothing(
    door: Open, chain: Anvil, buyer: LocalAccount, value: int
) -> None:
    """A token takes a nonce once, a payer can sign any number of transfers with it, of any value and for any time."""
    async with door() as open_door, httpx.AsyncClient() as plain:
        headers = await signed(exact_scheme(buyer), open_door.chat, json=asking())
        paid = await plain.post(open_door.chat, json=asking(), headers=headers)
        assert settlement(paid).amount == str(BUDGET)
        # The ends of transfers that are good for long hide none that were good for a short time.
        long = Transfer(did_of_wallet(NETWORK, raw(buyer.address)), b"n" * 32, 1, chain.time + 10**6)
        await open_door.book.post(ended(b"o" * 32, long))
        first = read_payment(headers["PAYMENT-SIGNATURE"])
        assert isinstance(first.signed, SignedTransfer)
        other = evolve(first.signed.authorization, value=value, valid_before=int(time.time()) + 3_000)
        await open_door.watch(other, buyer)
        for _ in range(2):
            await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == BUDGET


async def test_what_is_counted_of_a_transfer_is_what_the_token_says_has_moved(
    door: Open, chain: Anvil, buyer: LocalAccount
) -> None:
    """Also where this node has brought another one with its nonce, and does not remember that."""
    async with door() as open_door, httpx.AsyncClient() as plain:
        headers = await signed(exact_scheme(buyer), open_door.chat, json=asking())
        await plain.post(open_door.chat, json=asking(), headers=headers)
        first = read_payment(headers["PAYMENT-SIGNATURE"]).signed
        assert isinstance(first, SignedTransfer)
        open_door.book.strangers._ended.clear()  # of ten days ago
        await open_door.watch(evolve(first.authorization, value=40_000), buyer)
        for _ in range(2):
            await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == BUDGET


async def test_what_endpoints_do_not_tell_of_some_keeps_no_others_waiting(
    door: Open, chain: Anvil, buyer: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with door() as before:
        made = [await signed(exact_scheme(buyer), before.chat, json=asking()) for _ in range(3)]
    async with door(ether=10**12) as open_door, httpx.AsyncClient() as plain:
        for headers in made:
            await plain.post(open_door.chat, json=asking(), headers=headers)
            bring(chain, open_door, headers)
        monkeypatch.setattr(bank, "MOST_NONCES", 2)
        monkeypatch.setattr(transfers, "_MAX_EVENTS", 1)
        for _ in range(2):
            await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == BUDGET, "that of the first two is not known"
        monkeypatch.undo()
        await open_door.bank.sweep()
        assert open_door.prepaid(buyer).funded == 3 * BUDGET


async def test_transfers_are_good_for_no_longer_than_it_takes_to_make_them(door: Open) -> None:
    async with door() as open_door, httpx.AsyncClient() as plain:
        asked = required(await plain.post(open_door.chat, json=asking())).accepts
        assert {each.scheme: each.max_timeout_seconds for each in asked} == {"exact": 120, "batch-settlement": 300}
