"""What paying by channels costs: vouchers signed and verified, and whatever else `PARTS` names.

    python -m benchmarks.stablecoin [--json] [--part NAME ...]

Vouchers are measured on one core, in one process, held against the x402 package on the same vouchers: what a payee does
to believe one (its EIP-712 digest, and whose key signed that), and what a payer does to make one. Gas is that of whole
transactions on a chain of its own, and of a request where a channel is claimed for a thousand of them. Overhead is what
an order takes that a channel pays for, against one on credit (`benchmarks/channel_orders.py`).
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from coincurve import PrivateKey
from eth_account import Account
from eth_account.messages import encode_typed_data
from x402.mechanisms.evm.batch_settlement.client.voucher import sign_voucher
from x402.mechanisms.evm.batch_settlement.constants import BATCH_SETTLEMENT_ADDRESS, VOUCHER_TYPES
from x402.mechanisms.evm.batch_settlement.utils import get_batch_settlement_eip712_domain
from x402.mechanisms.evm.signers import EthAccountSigner

from benchmarks.channel_gas import measured
from benchmarks.channel_orders import overhead
from benchmarks.report import Row, report
from ledger.rails.stablecoin.digests import ChannelConfig, Place
from ledger.rails.stablecoin.gas import Spent
from ledger.rails.stablecoin.vouchers import address_of, is_promised, signed
from tests.chain import running

VERIFIED_GOAL: Final = 10_000.0
# Of a claim, for each channel in it, by how many there are.
GAS_GOALS: Final = {1: 40_300, 10: 19_300, 50: 18_000}
REQUESTS: Final = 1_000
_CHAIN: Final = 8453
_OURS, _THEIRS = 4_000, 200
# The best of so many: what else the machine does is no part of the measure.
_ROUNDS: Final = 5


def vouchers() -> list[Row]:
    """Vouchers per second, made and believed."""
    secret, place = b"\1" * 32, Place(_CHAIN, bytes.fromhex(BATCH_SETTLEMENT_ADDRESS[2:]))
    key, wallet = PrivateKey(secret), Account.from_key(secret)
    address = address_of(key.public_key)
    config = ChannelConfig(address, address, b"\2" * 20, b"\2" * 20, b"\3" * 20, 900, bytes(32))
    channel = place.channel_id(config)
    totals = random.Random(6).sample(range(2**53), _OURS)
    made = [(total, signed(key, place.voucher(channel, total))) for total in totals]
    domain = get_batch_settlement_eip712_domain(_CHAIN)

    def believe() -> None:
        assert all(is_promised(place, config, channel, total, signature) for total, signature in made)

    def believe_as_they_do() -> None:
        for total, signature in made[:_THEIRS]:
            said = encode_typed_data(domain, VOUCHER_TYPES, {"channelId": channel, "maxClaimableAmount": total})
            assert Account.recover_message(said, signature=signature) == wallet.address

    def promise() -> None:
        for total in totals:
            signed(key, place.voucher(channel, total))

    def promise_as_they_do() -> None:
        signer: Any = EthAccountSigner(wallet)
        for total in totals[:_THEIRS]:
            sign_voucher(signer, f"0x{channel.hex()}", total, place.network)

    verified, theirs = _per_second(believe, _OURS), _per_second(believe_as_they_do, _THEIRS)
    promised, promised_there = _per_second(promise, _OURS), _per_second(promise_as_they_do, _THEIRS)
    goal = f">= {VERIFIED_GOAL:,.0f}/s"
    return [
        Row("vouchers verified", verified, "/s", "x402", verified / theirs, goal, verified >= VERIFIED_GOAL),
        Row(
            "vouchers signed",
            promised,
            "/s",
            "x402",
            promised / promised_there,
            "more than x402",
            promised > promised_there,
        ),
    ]


def gas() -> list[Row]:
    """Gas of deposit, claims, settle and refund, and so of a request."""
    with running() as chain:
        found = measured(chain)
    return [*map(_transaction, ("open", "deposit"), (found["open"], found["deposit"])), *_claims(found)]


def _transaction(name: str, spent: Spent) -> Row:
    names = {"open": "deposit that opens a channel", "deposit": "a later deposit"}
    return Row(f"gas of {names.get(name, name)}", spent.gas, "gas", "itself", 1.0, "reported", True)


def _claims(found: Mapping[str, Spent]) -> Iterator[Row]:
    for channels, goal in GAS_GOALS.items():
        each = found[f"claim of {channels}"].gas / channels
        measure = "gas of a claim of 1 channel" if channels == 1 else f"gas of a claim of {channels}, each"
        yield Row(measure, each, "gas", "the goal", each / goal, f"<= {goal:,}", each <= goal)
    for name in ("settle", "refund"):
        yield _transaction(name, found[name])
    alone = found["claim of 1"].gas + found["settle"].gas
    for channels in GAS_GOALS:
        together = found[f"claim of {channels}"].gas + found["settle"].gas
        each = together / channels / REQUESTS
        measure = f"gas of a request, {REQUESTS:,} per claim of {channels}"
        yield Row(measure, each, "gas", "a claim of 1", together / channels / alone, "reported", True)


def _per_second(work: Callable[[], None], count: int) -> float:
    """Of one core: its own time, whatever else runs beside."""

    def seconds() -> float:
        begun = time.process_time()
        work()
        return time.process_time() - begun

    return count / min(seconds() for _ in range(_ROUNDS))


# What can be measured, by name; each gives its rows.
PARTS: Final[dict[str, Callable[[], Sequence[Row]]]] = {"vouchers": vouchers, "gas": gas, "overhead": overhead}


def main() -> None:
    """Measure the parts that are asked for, all by default, and report them."""
    parser = argparse.ArgumentParser(description="What paying by channels costs.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only this; may be given again")
    options = parser.parse_args()
    rows = [row for name in options.part or PARTS for row in PARTS[name]()]
    report("stablecoin", rows, options.json)


if __name__ == "__main__":
    main()
