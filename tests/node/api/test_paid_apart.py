"""Where channels of nodes come in at a node that strangers pay, too."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from eth_account import Account as Wallet
from x402.mechanisms.evm.batch_settlement import errors
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme, BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC

from ledger.identity import Identity
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.channels import open_channel, salt_of
from ledger.rails.stablecoin.digests import config_of
from ledger.rails.stablecoin.keys import Key
from ledger.rails.stablecoin.vouchers import voucher_key
from ledger.records import Channel, ChannelTerms, open_record
from node.exchange.till import Till, Wanted
from node.models.tokenizer import Tokenizer
from node.wire.messages import Refused
from tests.chain import Anvil
from tests.node.strangers import DELAY_S, Stall, asking, client, raw, refusal, stall
from tests.node.trading import engine_of

LEAST = 5_000
BUYER = Identity(b"\7" * 32)


def mesh(door: Stall) -> Till:
    """Where nodes name their channels, of the node whose door that is."""
    wanted = Wanted(door.chain.place, door.chain.network.token.address, door.chain.address, DELAY_S, LEAST)
    return Till(door.book, door.channels, door.rail, wanted, door.driver.look)


async def test_whoever_names_channels_that_are_not_there_keeps_no_new_buyer_waiting(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer
) -> None:
    engine = engine_of(speaking)
    async with stall(chain, tmp_path, speaking, engine, chain.wallet()) as door:
        till = mesh(door)
        terms = open_record(await till.channel_terms(), ChannelTerms).record

        async def name(number: int, address: str) -> str:
            identity = Identity(number.to_bytes(32, "big"))
            named = open_channel(identity, door.book.me, terms, door.chain.place, bytes(19) + b"\1")
            with pytest.raises(Refused) as refused:
                await till.channel(named.raw, address)
            return refused.value.code

        numbers = count(1)
        said = [await name(next(numbers), "198.51.100.1") for _ in range(30)]
        assert set(said) == {"credit", "too_many_requests"}
        assert await name(next(numbers), "198.51.100.2") == "credit"
        # All together are bounded, and take turns: those of few addresses that ask without end come after a new one.
        at_once = await asyncio.gather(*(name(next(numbers), f"2001:db8:0:{at % 8}::/64") for at in range(80)))
        assert at_once.count("credit") < 40
        hostile = [asyncio.create_task(_without_end(name, numbers, f"203.0.113.{each}")) for each in range(20)]
        try:
            assert await name(next(numbers), "198.51.100.3") == "credit"
        finally:
            for each in hostile:
                each.cancel()
            await asyncio.gather(*hostile, return_exceptions=True)
    await engine.close()


async def _without_end(name: Callable[[int, str], Awaitable[str]], numbers: Iterator[int], address: str) -> None:
    while True:
        await name(next(numbers), address)


@pytest.mark.parametrize("first", ["x402", "node"])
async def test_a_channel_pays_as_a_nodes_or_as_a_strangers(
    chain: Anvil, tmp_path: Path, speaking: Tokenizer, first: str
) -> None:
    engine, buyer = engine_of(speaking), chain.wallet(dollars=1_000_000)
    async with stall(chain, tmp_path, speaking, engine, chain.wallet()) as door:
        till, place = mesh(door), door.chain.place
        terms = open_record(await till.channel_terms(), ChannelTerms).record
        named = open_channel(BUYER, door.book.me, terms, place, raw(buyer.address)).raw
        # x402's own client, with the key and the salt of the node's channel.
        options = BatchSettlementEvmSchemeOptions(
            salt="0x" + salt_of(BUYER.did, door.book.me).hex(),
            voucher_signer=EthAccountSignerWithRPC(Wallet.from_key(voucher_key(BUYER).secret), chain.url),
        )
        scheme = BatchSettlementEvmScheme(EthAccountSignerWithRPC(buyer, chain.url), options)
        async with client(scheme) as paying:
            if first == "x402":
                response = await paying.post(door.chat, json=asking())
                assert response.status_code == 200, response.text
                with pytest.raises(Refused, match="pays here by x402"):
                    await till.channel(named, "127.0.0.1")
            else:
                config = config_of(open_record(named, Channel).record)
                payer = await Chain.open(
                    door.chain.network,
                    [chain.url],
                    tmp_path / "payer",
                    Key.of(bytes(buyer.key)),
                    contract=place.contract,
                )
                deposit = await payer.authorize(config, 2 * LEAST, bytes(32), chain.time + 600)
                await payer.close()
                await door.chain.submit(b"deposit", door.chain.bring(config, deposit))
                chain.catch_up()
                await till.channel(named, "127.0.0.1")
                refused = await paying.post(door.chat, json=asking())
                assert refusal(refused) == errors.ERR_CHANNEL_ID_MISMATCH
        assert len(door.accounts("stablecoin")) == 1
    await engine.close()
