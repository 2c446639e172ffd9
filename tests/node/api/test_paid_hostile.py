"""What strangers do at the door who mean no good."""

import asyncio
from pathlib import Path

import httpx
import pytest
from eth_typing import Hash32
from x402.http.utils import decode_payment_signature_header, encode_payment_signature_header
from x402.mechanisms.evm.batch_settlement import errors

from ledger.identity import Identity
from ledger.journal import MemoryJournal
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.keys import Key
from node.api.paid import MAX_OF_ADDRESS
from node.models.tokenizer import Tokenizer
from node.paid.presented import Voucher, read_payment
from tests.chain import Anvil
from tests.node.strangers import asking, channel_scheme, client, exact_scheme, raw, refusal, signed, stall, until
from tests.node.trading import engine_of


async def test_vouchers_on_a_channel_that_nobody_opened_leave_nothing_and_keep_nobody_away(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer
) -> None:
    engine, poor = engine_of(speaking), chain.wallet()
    async with stall(chain, tmp_path, speaking, engine, chain.wallet()) as door:
        headers = await signed(channel_scheme(poor, chain), door.chat, json=asking())
        payment = decode_payment_signature_header(headers["PAYMENT-SIGNATURE"])
        channel = payment.payload["voucher"]["channelId"]
        signature = poor.unsafe_sign_hash(Hash32(door.chain.place.voucher(raw(channel), 0))).signature
        payment.payload["voucher"] = {
            "channelId": channel,
            "maxClaimableAmount": "0",
            "signature": signature.to_0x_hex(),
        }
        payment.payload["type"] = "voucher"
        del payment.payload["deposit"]
        headers = {"PAYMENT-SIGNATURE": encode_payment_signature_header(payment)}
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(local_address="127.0.0.2")) as hostile:
            said = {refusal(await hostile.post(door.chat, json=asking(), headers=headers)) for _ in range(30)}
        assert said == {errors.ERR_CHANNEL_NOT_FOUND, errors.ERR_RPC_READ_FAILED}
        assert (door.book.journal.head.sequence, door.book.strangers.vouchers) == (0, {})
        async with client(channel_scheme(chain.wallet(dollars=1_000_000), chain)) as paying:
            response = await paying.post(door.chat, json=asking())
            assert response.status_code == 200, response.text
    await engine.close()


@pytest.mark.parametrize("streaming", [False, True])
async def test_who_goes_away_while_the_prompt_is_read_owes_the_prompt(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer, streaming: bool
) -> None:
    engine, buyer = engine_of(speaking, stall_after=0), chain.wallet(dollars=1_000_000)
    scheme = channel_scheme(buyer, chain)
    async with stall(chain, tmp_path, speaking, engine, chain.wallet()) as door, client(scheme) as paying:
        asked = asyncio.create_task(paying.post(door.chat, json=asking(stream=streaming)))
        await until(lambda: not engine.free_slots())
        asked.cancel()
        await until(lambda: bool(engine.free_slots()) and not door.accounts("stablecoin")[0].reserved)
        (account,) = door.accounts("stablecoin")
        assert account.owed == account.authorized > 0
    await engine.close()


@pytest.mark.parametrize("scheme", ["exact", "batch-settlement"])
async def test_one_wallets_money_is_sent_for_once_however_many_payments_name_it(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer, scheme: str
) -> None:
    budget = 5_000
    engine, buyer, seller = engine_of(speaking, slots=8), chain.wallet(dollars=budget), chain.wallet()
    door_of = stall(chain, tmp_path, speaking, engine, seller, budget=budget, wait_s=1)
    async with door_of as door, httpx.AsyncClient() as plain:
        made = [exact_scheme(buyer) if scheme == "exact" else channel_scheme(buyer, chain, salt) for salt in range(4)]
        payments = [await signed(each, door.chat, json=asking()) for each in made]
        with chain.without_mining():
            said = await asyncio.gather(*(plain.post(door.chat, json=asking(), headers=each) for each in payments))
            assert {refusal(response) for response in said} == {"settlement_pending"}
            assert len(chain.pending()) == 1, "each of the others would be reverted, and cost its gas"
        chain.mine()
    await engine.close()


@pytest.mark.parametrize("scheme", ["exact", "batch-settlement"])
async def test_no_payment_is_brought_whose_gas_costs_more_than_it_is_worth(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer, scheme: str
) -> None:
    engine, buyer = engine_of(speaking), chain.wallet(dollars=1_000_000)
    made = exact_scheme(buyer) if scheme == "exact" else channel_scheme(buyer, chain)
    wallet = chain.wallet()
    async with stall(chain, tmp_path, speaking, engine, wallet) as before:
        headers = await signed(made, before.chat, json=asking())
    dear = stall(chain, tmp_path, speaking, engine, wallet, ether=10**12)
    async with dear as door, httpx.AsyncClient() as plain:
        response = await plain.post(door.chat, json=asking(), headers=headers)
        assert refusal(response) == "amount_below_gas"
        assert chain.dollars(buyer.address) == 1_000_000
        assert door.book.journal.head.sequence == 0
    await engine.close()


async def test_a_channel_with_dust_in_it_is_not_taken(chain: Anvil, tmp_path: Path, speaking: Tokenizer) -> None:
    engine, buyer = engine_of(speaking), chain.wallet(dollars=1_000_000)
    scheme = channel_scheme(buyer, chain)
    async with stall(chain, tmp_path, speaking, engine, chain.wallet()) as door, httpx.AsyncClient() as plain:
        headers = await signed(scheme, door.chat, json=asking())
        payment = read_payment(headers["PAYMENT-SIGNATURE"])
        assert isinstance(payment.signed, Voucher)
        opened = Chain.open(
            door.chain.network,
            [chain.url],
            tmp_path / "buyer",
            Key.of(bytes(buyer.key)),
            contract=door.chain.place.contract,
        )
        payer = await opened
        dust = await payer.authorize(payment.signed.config, 100, bytes(32), chain.time + 600)
        await payer.close()
        await door.chain.submit(b"dust", door.chain.bring(payment.signed.config, dust))
        chain.catch_up()
        del payment.whole.payload["deposit"]
        payment.whole.payload["type"] = "voucher"
        headers = {"PAYMENT-SIGNATURE": encode_payment_signature_header(payment.whole)}
        refused = await plain.post(door.chat, json=asking(), headers=headers)
        assert refusal(refused) == errors.ERR_CUMULATIVE_EXCEEDS_BALANCE
        assert door.book.journal.head.sequence == 0
    await engine.close()


async def test_nothing_goes_back_bit_by_bit_at_the_nodes_expense(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer
) -> None:
    engine, buyer, journal = (
        engine_of(speaking),
        chain.wallet(dollars=1_000_000),
        MemoryJournal(Identity(b"\x01" * 32).did),
    )
    seller, scheme = chain.wallet(dollars=10_000), channel_scheme(buyer, chain)
    async with (
        stall(chain, tmp_path, speaking, engine, seller, journal=journal) as door,
        client(scheme) as by_channel,
        client(exact_scheme(buyer)) as by_transfer,
    ):
        for paying in (by_channel, by_transfer):
            assert (await paying.post(door.chat, json=asking())).status_code == 200
    dear = stall(chain, tmp_path, speaking, engine, seller, journal=journal, ether=10**12)
    async with dear as door, client(exact_scheme(buyer)) as paying:
        spent = chain.rpc("eth_getTransactionCount", seller.address, "latest")
        assert (await paying.post(f"{door.url}/v1/refunds")).status_code == 409
        with pytest.raises(Exception, match="server returned 402"):
            await asyncio.to_thread(scheme.refund, door.chat)
        assert chain.rpc("eth_getTransactionCount", seller.address, "latest") == spent
    await engine.close()


async def test_bodies_that_never_come_from_one_address_keep_no_other_away(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer
) -> None:
    engine = engine_of(speaking)
    async with stall(chain, tmp_path, speaking, engine, chain.wallet()) as door, httpx.AsyncClient() as plain:
        where = httpx.URL(door.chat)
        head = f"POST {where.path} HTTP/1.1\r\nHost: door\r\nContent-Length: 9\r\n\r\n".encode()
        lines = [
            await asyncio.open_connection(where.host, where.port, local_addr=("127.0.0.2", 0))
            for _ in range(MAX_OF_ADDRESS + 1)
        ]
        for _, writer in lines:
            writer.write(head)
        answers = {asyncio.create_task(reader.readline()) for reader, _ in lines}
        done, waiting = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert [each.result().split()[1] for each in done] == [b"429"]
        assert (await plain.post(door.chat, json=asking())).status_code == 402
        for each in waiting:
            each.cancel()
        for _, writer in lines:
            writer.close()
            await writer.wait_closed()
    await engine.close()
