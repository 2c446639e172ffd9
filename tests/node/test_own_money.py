"""What is wrong with a chain is told when a node starts, whenever the chain can be asked."""

import asyncio
import logging
from pathlib import Path

import pytest

from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.networks import checksummed, network
from node.own_money import tell_what_is_wrong
from tests.chain import Anvil


async def test_a_wrong_contract_is_told(chain: Anvil, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    looked = await Chain.open(network("anvil"), [chain.url], tmp_path)
    try:
        await tell_what_is_wrong(looked)
        assert not caplog.records
        chain.rpc("anvil_setCode", checksummed(looked.place.contract), "0x")
        await tell_what_is_wrong(looked)
        assert "no channels contract at" in caplog.text
    finally:
        await looked.close()


class Told(logging.Handler):
    """What was said, and when something was."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.first = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.first.set()


async def test_a_chain_that_is_down_is_asked_until_it_is_up(chain: Anvil, tmp_path: Path) -> None:
    told = Told()
    logging.getLogger("node.own_money").addHandler(told)
    looked = await Chain.open(network("anvil"), [chain.url], tmp_path)
    try:
        with chain.down():
            telling = asyncio.create_task(tell_what_is_wrong(looked, again_s=0.01))
            await told.first.wait()
        await telling
        (text,) = told.texts
        assert "no RPC endpoint answers" in text
    finally:
        logging.getLogger("node.own_money").removeHandler(told)
        await looked.close()
