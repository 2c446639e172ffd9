"""Transactions arrive once: through time-outs, crashes, replaced blocks and forgetful chains."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from ledger.rails.stablecoin import contracts
from ledger.rails.stablecoin.contracts import Call
from ledger.rails.stablecoin.errors import ChainError, Refused, Unreachable
from ledger.rails.stablecoin.keys import Key
from ledger.rails.stablecoin.networks import checksummed
from ledger.rails.stablecoin.outbox import OutboxUnreadable
from tests.chain import ETHER, Anvil
from tests.ledger.rails.stablecoin.channels import Pair, key, raw
from tests.ledger.rails.stablecoin.conftest import Opens

SOMEONE = bytes.fromhex("00000000000000000000000000000000000a11ce")


def gift(wei: int = 1) -> Call:
    """Something that can be done any number of times, and shows how often it was."""
    return Call(SOMEONE, b"", wei)


def given(chain: Anvil) -> int:
    return int(chain.rpc("eth_getBalance", checksummed(SOMEONE), "latest"), 16)


async def test_one_key_is_sent_once_however_often_it_is_asked_for(chain: Anvil, opens: Opens) -> None:
    sender = await opens(key(chain))
    for _ in range(3):
        await sender.submit(b"1", gift())
        chain.catch_up()
    assert given(chain) == 1
    assert (await sender.outcome(b"1")).state == "mined"
    chain.mine(2)
    found = await sender.outcome(b"1")
    assert (found.state, found.gas) == ("settled", 21_000)
    assert await sender.submit(b"1", gift()) == found
    assert given(chain) == 1


@define
class Deliberate:
    """A signer that takes its time."""

    key: Key
    asked: asyncio.Event = field(factory=asyncio.Event)
    agreed: asyncio.Event = field(factory=asyncio.Event)

    @property
    def address(self) -> bytes:
        return self.key.address

    async def sign(self, digest: bytes, shown: Mapping[str, Any]) -> bytes:
        self.asked.set()
        await self.agreed.wait()
        return self.key.signature(digest)


async def test_who_stops_waiting_for_a_signature_stops_nothing(chain: Anvil, opens: Opens) -> None:
    signer = Deliberate(key(chain))
    sender = await opens(signer)
    waiting = asyncio.create_task(sender.submit(b"1", gift()))
    await signer.asked.wait()
    waiting.cancel()
    assert (await sender.outcome(b"1")).state == "absent"
    again = asyncio.create_task(sender.submit(b"1", gift()))
    signer.agreed.set()
    assert (await again).state == "waiting"
    chain.mine(3)
    assert (await sender.outcome(b"1")).state == "settled"
    assert given(chain) == 1


async def test_a_node_that_ends_while_it_waits_for_a_signature_sends_nothing(chain: Anvil, opens: Opens) -> None:
    signer = Deliberate(key(chain))
    sender = await opens(signer, folder="same")
    waiting = asyncio.create_task(sender.submit(b"1", gift()))
    await signer.asked.wait()
    await sender.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await (await opens(signer, folder="same")).outcome(b"1")).state == "absent"


async def test_what_was_sent_before_a_crash_is_known_after_it(chain: Anvil, opens: Opens) -> None:
    wallet = key(chain)
    before = await opens(wallet, folder="same")
    with chain.without_mining():
        await before.submit(b"1", gift())
        for waiting in chain.pending():
            chain.drop(waiting)  # it never reached anybody
        await before.close()
        after = await opens(wallet, folder="same")
        assert (await after.submit(b"1", gift())).state == "waiting"
        assert chain.pending() == []
        await after.tend()
        assert len(chain.pending()) == 1
        await after.submit(b"2", gift())
        chain.mine(3)
    assert [(await after.outcome(each)).state for each in (b"1", b"2")] == ["settled", "settled"]
    assert given(chain) == 2


async def test_a_transaction_whose_block_was_replaced_is_sent_again(chain: Anvil, opens: Opens) -> None:
    sender = await opens(key(chain))
    await sender.submit(b"1", gift())
    chain.catch_up()
    assert (await sender.outcome(b"1")).state == "mined"
    chain.reorganise(1)
    assert given(chain) == 0
    assert (await sender.outcome(b"1")).state == "waiting"
    chain.catch_up()
    assert given(chain) == 1
    chain.mine(2)
    assert (await sender.outcome(b"1")).state == "settled"


async def test_one_that_is_stuck_is_replaced_at_a_higher_price_and_happens_once(chain: Anvil, opens: Opens) -> None:
    sender = await opens(key(chain), stuck_s=0)
    with chain.without_mining():
        first = (await sender.submit(b"1", gift())).hash
        await sender.submit(b"2", gift())
        await sender.tend()
        waiting = [chain.rpc("eth_getTransactionByHash", each) for each in chain.pending()]
        assert sorted(int(each["nonce"], 16) for each in waiting) == [0, 1]
        second = (await sender.outcome(b"1")).hash
        assert second != first
        chain.mine(3)
    assert [(await sender.outcome(each)).state for each in (b"1", b"2")] == ["settled", "settled"]
    assert given(chain) == 2


async def test_an_older_form_that_was_mined_after_all_counts_as_the_transaction(chain: Anvil, opens: Opens) -> None:
    sender = await opens(key(chain), stuck_s=0)
    with chain.without_mining():
        older = (await sender.submit(b"1", gift())).hash
        assert older is not None
        raw_form = chain.rpc("eth_getRawTransactionByHash", f"0x{older.hex()}")
        await sender.tend()
        for waiting in chain.pending():
            chain.drop(waiting)
        chain.rpc("eth_sendRawTransaction", raw_form)
        chain.mine(3)
        found = await sender.outcome(b"1")
        assert (found.state, found.hash) == ("settled", older)
        await sender.tend()
        chain.mine(3)
    assert given(chain) == 1


async def test_a_replacement_never_offers_more_than_the_owner_pays(chain: Anvil, opens: Opens) -> None:
    price = int(chain.rpc("eth_gasPrice"), 16)
    bound = price * 3
    sender = await opens(key(chain), stuck_s=0, max_gas_price=bound)
    with chain.without_mining():
        await sender.submit(b"1", gift())
        for _ in range(20):
            await sender.tend()
        (waiting,) = chain.pending()
        assert int(chain.rpc("eth_getTransactionByHash", waiting)["maxFeePerGas"], 16) <= bound
        chain.mine(3)
    assert (await sender.outcome(b"1")).state == "settled"


async def test_a_nonce_that_another_program_used_up_costs_a_while_and_nothing_else(chain: Anvil, opens: Opens) -> None:
    wallet = key(chain)
    ours, others = await opens(wallet, stuck_s=0), await opens(wallet)
    with chain.without_mining():
        await ours.submit(b"1", gift())
        for waiting in chain.pending():
            chain.drop(waiting)
        await others.submit(b"2", gift(100))
        chain.mine(3)
    assert given(chain) == 100
    await ours.tend()
    chain.catch_up()
    assert given(chain) == 101
    chain.mine(2)
    assert (await ours.outcome(b"1")).state == "settled"


async def test_what_reverts_when_it_is_mined_has_failed_and_moved_nothing(
    chain: Anvil, pair: Pair, opens: Opens
) -> None:
    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    await pair.deposit(payee, payer, 1_000)
    to = payee.place.contract
    with chain.without_mining():
        # Each alone would do; the second finds nothing left. The chain does not know of the first when it simulates.
        await payer.submit(b"1", contracts.initiate_withdraw(to, pair.config, 1_000))
        for waiting in chain.pending():
            chain.drop(waiting)
        await payer.submit(b"2", contracts.initiate_withdraw(to, pair.config, 1_000))
        await payer.tend()
        chain.mine(3)
    assert [(await payer.outcome(each)).state for each in (b"1", b"2")] == ["settled", "failed"]


async def test_what_the_contract_would_refuse_is_not_sent(chain: Anvil, pair: Pair, opens: Opens) -> None:
    payee = await opens(pair.receiver)
    with pytest.raises(Refused, match="ClaimExceedsBalance") as refused:
        await payee.submit(b"1", contracts.claim(payee.place.contract, [pair.row(payee, 5)]))
    assert refused.value.by_contract
    assert (await payee.outcome(b"1")).state == "absent"


async def test_nothing_is_sent_while_the_chain_is_down_and_what_waits_goes_on_after_it(
    chain: Anvil, opens: Opens
) -> None:
    sender = await opens(key(chain))
    with chain.without_mining():
        await sender.submit(b"1", gift())
    with chain.down():
        with pytest.raises(Unreachable):
            await sender.submit(b"2", gift())
        assert (await sender.outcome(b"2")).state == "absent"
        assert (await sender.outcome(b"1")).state == "waiting"
    chain.mine(1)
    await sender.tend()
    chain.catch_up()
    chain.mine(3)
    assert (await sender.outcome(b"1")).state == "settled"
    assert given(chain) == 1


async def test_the_outbox_holds_no_more_than_is_reasonable_and_is_refused_when_damaged(
    chain: Anvil, opens: Opens, tmp_path: Path
) -> None:
    wallet = key(chain)
    sender = await opens(wallet, folder="same")
    await sender.submit(b"1", gift())
    await sender.close()
    (kept,) = (tmp_path / "same").glob("outbox-*.json")
    assert json.loads(kept.read_text())["waiting"][0]["nonce"] == 0
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_text(kept.read_text()[:-2])
    with pytest.raises(OutboxUnreadable, match="restore it"):
        await opens(wallet, folder="same")


async def test_a_call_with_value_is_afforded_as_a_whole(chain: Anvil, opens: Opens) -> None:
    sender = await opens(key(chain))
    with pytest.raises(ChainError, match=r"funds|gas needs"):
        await sender.submit(b"1", gift(2 * ETHER))
    assert (await sender.outcome(b"1")).state == "absent"
    assert raw(checksummed(SOMEONE)) == SOMEONE
