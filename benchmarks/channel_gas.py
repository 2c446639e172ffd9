"""What a channel's life costs in gas, measured on a chain of its own, and what that is of the turnover.

    python -m benchmarks.channel_gas [--json | --table]

`--table` measures nothing: it writes the tables in docs/stablecoin.md anew, from the figures that are kept in
`ledger/rails/stablecoin/gas.py`. A test holds those against what is measured, and the tables against them.
"""

import argparse
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from coincurve import PrivateKey
from eth_account.signers.local import LocalAccount
from eth_typing import Hash32

from benchmarks.report import Row, report
from ledger.rails.stablecoin import contracts, gas
from ledger.rails.stablecoin.contracts import Call
from ledger.rails.stablecoin.digests import ChannelConfig, Place, authorization, deposit_nonce, domain, keccak
from ledger.rails.stablecoin.gas import Spent
from tests.chain import CHAIN_ID, Anvil, running

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "stablecoin.md"

_FOREVER: Final = 2**40
_DEPOSIT: Final = 5_000_000
# As many small orders add up to: no round numbers, whose zero bytes are cheaper.
_PART: Final = 312_345
_ENVELOPE: Final = 115  # nonce, fees, gas, address and signature of a transaction (EIP-1559)

# What the tables range over.
_ROWS: Final = (1, 10, 50)  # channels in one claim
_ORDERS: Final = (10, 100, 1_000, 10_000)  # per claim and channel
_PRICE: Final = 100  # of an order, in millionths of a dollar
_CLAIMS: Final = 10  # in a channel's life
_GWEI: Final = ("0.005", "0.02", "0.1", "0.5")
_ETHER: Final = (1_500, 3_000, 6_000)
_SHARE_PPM: Final = 20_000
# Goals of gas for each channel of a claim; and for an order, where a claim is for a thousand.
_GOALS: Final = {1: 43_900, 10: 19_300, 50: 17_200}


class Channels:
    """Channels of one seller on a chain: opened and claimed from like those of a node."""

    def __init__(self, chain: Anvil) -> None:
        self._chain = chain
        there = chain.deployed
        self._contract, self._token = _raw(there.channels), _raw(there.dollar)
        self._collector = _raw(there.erc3009_collector)
        self._place = Place(CHAIN_ID, self._contract)
        self._domain = domain("USD Coin", "2", CHAIN_ID, self._token)
        self._key = PrivateKey(hashlib.sha256(b"voucher key").digest())
        self._seller = chain.wallet()
        self._payer = chain.wallet(dollars=1_000 * _DEPOSIT)
        self._salts = 0

    def open(self) -> tuple[ChannelConfig, Spent]:
        """A new channel with a deposit, signed by its payer and relayed by the seller."""
        self._salts += 1
        config = ChannelConfig(
            payer=_raw(self._payer.address),
            payer_authorizer=keccak(self._key.public_key.format(compressed=False)[1:])[12:],
            receiver=_raw(self._seller.address),
            receiver_authorizer=_raw(self._seller.address),
            token=self._token,
            withdraw_delay=86_400,
            salt=hashlib.sha256(b"channel %d" % self._salts).digest(),
        )
        return config, self.deposit(config)

    def deposit(self, config: ChannelConfig) -> Spent:
        """More into a channel."""
        self._salts += 1
        salt = hashlib.sha256(b"deposit %d" % self._salts).digest()
        nonce = deposit_nonce(self._place.channel_id(config), salt)
        digest = authorization(self._domain, config.payer, self._collector, _DEPOSIT, 0, _FOREVER, nonce)
        signature = bytes(self._payer.unsafe_sign_hash(Hash32(digest)).signature)
        data = contracts.collector_data(0, _FOREVER, salt, signature)
        return self._send(contracts.deposit(self._contract, config, _DEPOSIT, self._collector, data))

    def claim(self, configs: Sequence[ChannelConfig], total: int) -> Spent:
        """Up to a total from each."""
        return self._send(contracts.claim(self._contract, [self._row(config, total) for config in configs]))

    def _row(self, config: ChannelConfig, total: int) -> contracts.Row:
        digest = self._place.voucher(self._place.channel_id(config), total)
        signed = self._key.sign_recoverable(digest, hasher=None)
        return contracts.Row(config, total, signed[:64] + bytes([27 + signed[64]]), total)

    def settle(self) -> Spent:
        """What was claimed goes to the seller."""
        return self._send(contracts.settle(self._contract, _raw(self._seller.address), self._token))

    def refund(self, config: ChannelConfig, amount: int) -> Spent:
        """Some of what is unclaimed goes back, as the seller signs it."""
        channel = self._place.channel_id(config)
        nonce = self._chain.call(self._chain.deployed.channels, "refundNonce(bytes32)", channel)
        digest = self._place.refund(channel, nonce, amount)
        signature = bytes(self._seller.unsafe_sign_hash(Hash32(digest)).signature)
        return self._send(contracts.refund_with_signature(self._contract, config, amount, nonce, signature))

    def withdraw(self, config: ChannelConfig, amount: int) -> Spent:
        """Some of what is unclaimed goes back without the seller: a notice, and when it is over, its end."""
        began = self._send(contracts.initiate_withdraw(self._contract, config, amount), self._payer)
        self._chain.pass_time(config.withdraw_delay)
        return began + self._send(contracts.finalize_withdraw(self._contract, config), self._payer)

    def _send(self, call: Call, sender: LocalAccount | None = None) -> Spent:
        address = (sender or self._seller).address
        self._chain.rpc("anvil_impersonateAccount", address)
        asked = {"from": address, "to": "0x" + call.to.hex(), "data": "0x" + call.data.hex()}
        receipt = self._chain.rpc("eth_sendTransactionSync", asked)
        assert receipt["status"] == "0x1", receipt
        return Spent(int(receipt["gasUsed"], 16), len(call.data) + _ENVELOPE)


def measured(chain: Anvil) -> dict[str, Spent]:
    """What each transaction of a channel's life costs a seller that has claimed before."""
    channels = Channels(chain)
    opened = [channels.open() for _ in range(max(_ROWS))]
    configs, found = [config for config, _ in opened], {"open": opened[-1][1]}
    found["deposit"] = channels.deposit(configs[0])
    channels.claim(configs, _PART)
    channels.settle()
    for rows in _ROWS:
        found[f"claim of {rows}"] = channels.claim(configs[:rows], (1 + len(found)) * _PART)
    found["settle"] = channels.settle()
    channels.refund(configs[1], _PART)
    found["refund"] = channels.refund(configs[1], _PART)
    found["withdrawal"] = channels.withdraw(configs[2], _PART)
    return found


def kept() -> dict[str, Spent]:
    """The same by the figures that the rail reckons with."""
    claims = {f"claim of {rows}": gas.claim(rows) for rows in _ROWS}
    ends = {"settle": gas.SETTLE, "refund": gas.REFUND, "withdrawal": gas.WITHDRAWAL}
    return {"open": gas.OPEN, "deposit": gas.DEPOSIT, **claims, **ends}


def tables() -> dict[str, str]:
    """The tables of the document, by name."""
    return {"gas": _gas_table(), "orders": _orders_table(), "shares": _shares_table(), "least": _least_table()}


def _gas_table() -> str:
    names = {
        "open": "deposit that opens a channel",
        "deposit": "a later deposit",
        "withdrawal": "withdrawal: its notice, and its end",
    }
    rows = []
    for name, spent in kept().items():
        count = int(name.split()[-1]) if name.startswith("claim") else 1
        said = names.get(name, f"{name} channels" if count > 1 else f"{name} channel" if "claim" in name else name)
        rows.append([said, f"{spent.gas:,}", f"{spent.gas // count:,}" if count > 1 else "", f"{spent.size:,}"])
    return _table(["transaction", "gas", "each", "bytes"], rows)


def _orders_table() -> str:
    heads = [
        "orders per claim",
        *(f"claimed with {rows - 1} others" if rows > 1 else "claimed alone" for rows in _ROWS),
    ]
    return _table(heads, [[f"{orders:,}", *(f"{_per_order(orders, n):,.1f}" for n in _ROWS)] for orders in _ORDERS])


def _shares_table() -> str:
    heads = ["gas price", *(f"ether at ${price:,}" for price in _ETHER)]
    return _table(heads, [[f"{gwei} gwei", *(_share(gwei, ether) for ether in _ETHER)] for gwei in _GWEI])


def _least_table() -> str:
    heads = ["gas price", *(f"{n} together, each" if n > 1 else "one alone" for n in _ROWS)]
    return _table(heads, [[f"{gwei} gwei", *(_least(gwei, n) for n in _ROWS)] for gwei in _GWEI])


def _per_order(orders: int, rows: int) -> float:
    """Gas per order of a life: opened, claimed from and settled ten times among so many, refunded."""
    life = gas.OPEN.gas + gas.REFUND.gas + _CLAIMS * (gas.claim(rows).gas + gas.SETTLE.gas) / rows
    return life / (_CLAIMS * orders)


def _share(gwei: str, ether: int) -> str:
    """What of the turnover gas takes, of a thousand orders per claim, ten channels claimed together."""
    cost = _per_order(1_000, 10) * float(gwei) * 1e-9 * ether * 1e6
    return f"{100 * cost / _PRICE:.2f}%"


def _least(gwei: str, rows: int) -> str:
    """The least sum that is claimed, with ether at 3,000 dollars and the usual bound."""
    fee = gas.in_uusd((gas.claim(rows) + gas.SETTLE).gas * round(float(gwei) * 10**9), 3_000 * 10**6)
    return f"${fee / rows / _SHARE_PPM:.3f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def written(document: str) -> str:
    """A document with its tables as they should be, each after a comment that names it."""
    for name, table in tables().items():
        document = re.sub(rf"(?<=<!-- table: {name} -->\n)(\|.*\n)*", f"{table}\n", document)
    return document


def _rows(chain: Anvil) -> Iterator[Row]:
    found = measured(chain)
    for name, spent in found.items():
        rows = int(name.split()[-1]) if name.startswith("claim") else 1
        each, reckoned = spent.gas / rows, kept()[name].gas / rows
        goal = _GOALS.get(rows, 0) if name.startswith("claim") else round(1.01 * reckoned)
        yield Row(
            f"gas of {name}, each", each, "gas", "what is reckoned with", each / reckoned, f"<= {goal:,}", each <= goal
        )


def main() -> None:
    """Measure and print, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
        return
    with running() as chain:
        rows = list(_rows(chain))
    report("channel gas", rows, asked.json)


def _raw(address: str) -> bytes:
    return bytes.fromhex(address.removeprefix("0x"))


if __name__ == "__main__":
    main()
