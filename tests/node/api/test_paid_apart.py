"""A channel's money stands behind one account: a node's, or a stranger's that pays by x402."""

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
                    await till.channel(named)
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
                await till.channel(named)
                refused = await paying.post(door.chat, json=asking())
                assert refusal(refused) == errors.ERR_CHANNEL_ID_MISMATCH
        assert len(door.accounts("stablecoin")) == 1
    await engine.close()
