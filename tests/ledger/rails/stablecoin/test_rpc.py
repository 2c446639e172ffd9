"""Endpoints that are wrong, slow, greedy or lying harm nobody who has another one."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from eth_abi.abi import encode

from ledger.rails.stablecoin import contracts, rpc
from ledger.rails.stablecoin.contracts import DEPOSITED, FUNCTIONS, answered
from ledger.rails.stablecoin.errors import Disagreement, Unreachable
from ledger.rails.stablecoin.reading import MULTICALL
from ledger.rails.stablecoin.rpc import hexed, octets
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.channels import Pair, key
from tests.ledger.rails.stablecoin.conftest import Opens
from tests.ledger.rails.stablecoin.endpoints import Twist, between, honest, plain, serving

DEPOSIT = 10_000_000
TOKEN = "secret-access-token"


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def flood(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" " * 100_000)
    except ConnectionError:
        return response


async def elsewhere(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect(f"http://127.0.0.1:1/{TOKEN}")


BAD = {
    "no JSON": plain("<html>"),
    "deep JSON": plain("[" * 100_000),
    "no object": plain([1]),
    "no result": plain({"jsonrpc": "2.0", "id": 1}),
    "no number": plain({"jsonrpc": "2.0", "id": 1, "result": "x"}),
    "no good error": plain({"jsonrpc": "2.0", "id": 1, "error": "no"}),
    "too many questions": plain({"jsonrpc": "2.0", "id": 1, "error": {"code": -32005, "message": "slow down"}}),
    "another chain": plain({"jsonrpc": "2.0", "id": 1, "result": "0x1"}),
    "status": plain("", 500),
    "hanging": hang,
    "flooding": flood,
    "redirecting": elsewhere,
}


@pytest.mark.parametrize("what", BAD)
async def test_an_endpoint_of_no_use_is_put_aside_for_the_next(
    chain: Anvil, opens: Opens, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.DEBUG, logger="ledger")
    async with serving(BAD[what]) as address:
        bad = f"{address}v2/{TOKEN}"
        looked = await opens(rpc=(bad, chain.url), answer_s=1 if what == "hanging" else 30)
        assert await looked.block() == (chain.block, chain.time)
        alone = await opens(rpc=(bad,), answer_s=0.2 if what == "hanging" else 30)
        with pytest.raises(Unreachable) as raised:
            await alone.block()
        assert TOKEN not in f"{raised.value}{caplog.text}"


async def test_an_endpoint_that_was_put_aside_is_not_asked_for_a_while(chain: Anvil, opens: Opens, pair: Pair) -> None:
    async with between(chain.url, lambda *_: "nonsense") as (bad, asked):
        looked = await opens(rpc=(bad, chain.url))
        for _ in range(5):
            await looked.block()
        assert asked == ["eth_chainId"]


async def test_one_that_comes_back_is_asked_again(chain: Anvil, opens: Opens) -> None:
    looked = await opens()
    with chain.down(), pytest.raises(Unreachable, match=r"127\.0\.0\.1: nothing listens there: is it running"):
        await looked.block()
    assert await looked.block() == (chain.block, chain.time)


async def test_events_are_read_in_spans_that_an_endpoint_grants(chain: Anvil, opens: Opens, pair: Pair) -> None:
    def short(method: str, parameters: list[Any], found: Any) -> Any:
        if method == "eth_getLogs":
            asked = parameters[0]
            if int(asked["toBlock"], 16) - int(asked["fromBlock"], 16) >= 20:
                return {"code": -32600, "message": "block range is too wide"}
        return found

    async with between(chain.url, short) as (address, _):
        payer, payee = await opens(pair.payer), await opens(pair.receiver, rpc=(address,))
        await pair.deposit(payee, payer, DEPOSIT)
        chain.mine(100)
        await pair.deposit(payee, payer, DEPOSIT, b"2" * 32)
        chain.mine(2)
        assert (await payee.look(pair.config)).deposited == 2 * DEPOSIT


async def test_one_that_invents_or_hides_events_is_not_believed(chain: Anvil, opens: Opens, pair: Pair) -> None:
    def more(method: str, parameters: list[Any], found: Any) -> Any:
        if method == "eth_getLogs":
            return found + [each for each in found if each["topics"][0] == hexed(DEPOSITED)]
        return found

    def none(method: str, parameters: list[Any], found: Any) -> Any:
        return [] if method == "eth_getLogs" else found

    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    await pair.deposit(payee, payer, DEPOSIT)
    chain.mine(2)
    for lie in (more, none):
        async with between(chain.url, lie) as (liar, _):
            looked = await opens(rpc=(liar, chain.url))
            assert (await looked.look(pair.config)).deposited == DEPOSIT
            alone = await opens(rpc=(liar,))
            with pytest.raises(Disagreement):
                await alone.look(pair.config)


def instead(which: int, raw: bytes) -> Twist:
    """Another answer to one of the calls that tell a channel's state."""

    def twist(method: str, parameters: list[Any], found: Any) -> Any:
        if method != "eth_call" or parameters[0]["to"] != hexed(MULTICALL):
            return found
        results = list(answered("tryAggregate", octets(found))[0])
        results[which] = (True, raw)
        return hexed(encode(FUNCTIONS["tryAggregate"][1], [results]))

    return twist


async def test_one_that_hides_a_withdrawal_is_overruled_and_a_false_balance_counts_for_nothing(
    chain: Anvil, opens: Opens, pair: Pair
) -> None:
    hide, double = instead(1, bytes(64)), instead(0, encode(["uint128", "uint128"], [2 * DEPOSIT, 0]))
    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    await pair.deposit(payee, payer, DEPOSIT)
    chain.mine(2)
    await pair.withdraw(payer, DEPOSIT)
    for order in (1, -1):
        async with between(chain.url, hide) as (liar, _):
            looked = await opens(rpc=(liar, chain.url)[::order])
            assert (await looked.look(pair.config)).withdrawing == DEPOSIT
        async with between(chain.url, double) as (liar, _):
            looked = await opens(rpc=(liar, chain.url)[::order])
            with pytest.raises(Disagreement, match="what a channel holds"):
                await looked.look(pair.config)


async def test_a_transaction_is_through_when_everyone_says_so(chain: Anvil, opens: Opens, pair: Pair) -> None:
    hidden = {"eth_getTransactionReceipt": None, "eth_getTransactionCount": "0x0"}

    def hide(method: str, parameters: list[Any], found: Any) -> Any:
        return hidden.get(method, found)

    async with between(chain.url, hide) as (liar, _):
        sender = await opens(key(chain), rpc=(chain.url, liar))
        await pair.submit(sender, b"1", contracts.approve(pair.config.token, pair.receiver.address, 1))
        chain.mine(2)
        assert (await sender.outcome(b"1")).state == "mined"
        hidden.pop("eth_getTransactionCount")  # it keeps no receipts, and says at least that the nonce is used
        assert (await sender.outcome(b"1")).state == "settled"


async def test_one_that_invents_a_receipt_keeps_no_transaction_from_being_replaced(
    chain: Anvil, opens: Opens, pair: Pair
) -> None:
    def invent(method: str, parameters: list[Any], found: Any) -> Any:
        if method != "eth_getTransactionReceipt":
            return found
        receipt = {"blockNumber": "0x1", "blockHash": hexed(bytes(32)), "status": "0x1", "gasUsed": "0x1"}
        return {"transactionHash": parameters[0], "effectiveGasPrice": "0x1"} | receipt

    async with between(chain.url, invent) as (liar, _):
        sender = await opens(key(chain), rpc=(liar, chain.url), stuck_s=0)
        with chain.without_mining():
            await sender.submit(b"1", contracts.approve(pair.config.token, pair.receiver.address, 1))
            (first,) = chain.pending()
            assert (await sender.outcome(b"1")).state == "waiting"
            (second,) = chain.pending()
            assert (await sender.outcome(b"1")).state == "waiting"
            (third,) = chain.pending()
            assert len({first, second, third}) == 3
            chain.mine(3)
        assert (await sender.outcome(b"1")).state == "mined"


async def test_one_that_lags_lowers_what_is_seen_and_shows_nothing_false(
    chain: Anvil, opens: Opens, pair: Pair
) -> None:
    payer, payee = await opens(pair.payer), await opens(pair.receiver)
    await pair.deposit(payee, payer, DEPOSIT)
    old = chain.rpc("eth_getBlockByNumber", "latest", False)

    def lag(method: str, parameters: list[Any], found: Any) -> Any:
        return old if (method, parameters[:1]) == ("eth_getBlockByNumber", ["latest"]) else found

    chain.mine(2)
    async with between(chain.url, lag) as (lagging, _):
        looked = await opens(rpc=(chain.url, lagging))
        seen = await looked.look(pair.config)
        assert (seen.block, seen.deposited, seen.balance) == (int(old["number"], 16), 0, DEPOSIT)


async def test_one_that_stopped_long_ago_holds_nobody_up(chain: Anvil, opens: Opens, pair: Pair) -> None:
    payer = await opens(pair.payer)
    old = chain.rpc("eth_getBlockByNumber", "latest", False)
    old["timestamp"] = hexed(int(old["timestamp"], 16) - 86_400)

    def stopped(method: str, parameters: list[Any], found: Any) -> Any:
        return old if (method, parameters[:1]) == ("eth_getBlockByNumber", ["latest"]) else found

    await pair.deposit(payer, payer, DEPOSIT)
    chain.mine(2)
    async with between(chain.url, stopped) as (address, _):
        looked = await opens(rpc=(address, chain.url))
        assert (await looked.look(pair.config)).deposited == DEPOSIT


async def test_every_endpoint_is_told_what_it_serves_before_it_counts(chain: Anvil, opens: Opens) -> None:
    async with between(chain.url, honest) as (address, asked):
        looked = await opens(rpc=(address,))
        await looked.block()
        await looked.gas_price()
        assert asked[0] == "eth_chainId"
        assert asked.count("eth_chainId") == 1


def test_numbers_and_bytes_are_read_strictly() -> None:
    wrong: object
    for wrong in (None, 1, "", "1", "0x", "0xzz", "0x" + "1" * 65, [], "0x-1", "0x1_0"):
        with pytest.raises(contracts.Malformed):
            rpc.quantity(wrong)
    for wrong in (None, 1, "", "00", "0x0", "0xzz", "0x00 00"):
        with pytest.raises(contracts.Malformed):
            rpc.octets(wrong)
    assert (rpc.quantity("0x10"), rpc.octets("0x10")) == (16, b"\x10")


def test_no_library_lets_a_strangers_brackets_end_the_process() -> None:
    """One of eth-account's raises the limit of recursion when it is imported, for all that the process does."""
    script = """
import json, sys
import ledger.rails.stablecoin
import eth_keyfile
try:
    json.loads("[" * 100_000)
except RecursionError:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[4], check=False)
    assert done.returncode == 7
