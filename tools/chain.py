"""A chain of one's own, to try money on: `make chain ARGS="0xADDRESS 0xADDRESS"`.

It is anvil, as `contracts/package-lock.json` brings it, with the contracts at the addresses that the network `anvil` of
a node has, and a dollar of which each given address gets some, with ether for gas. All of it is gone when it ends.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from attrs import define, field, frozen
from eth_abi.abi import encode
from eth_utils.address import is_address, to_checksum_address
from eth_utils.crypto import keccak

from tools.commands import SetUpError
from tools.contracts import Contracts, NotAvailable
from tools.watchdog import Watchdog

CHAIN_ID: Final = 31337
ETHER: Final = 10**18
DOLLAR: Final = 10**6
# Where x402 expects its contracts on every chain, and the one that facilitators read with.
X402_CHANNELS: Final = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"
X402_ERC3009_COLLECTOR: Final = "0x4020806089470a89826cB9fB1f4059150b550004"
MULTICALL: Final = "0xcA11bde05977b3631167028862bE2a173976CA11"

_ROOT: Final = Path(__file__).parent.parent
_PORT: Final = 8545  # anvil's own, and where the network `anvil` is looked for
_RICH: Final = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"  # anvil's first own account: deploys and hands out ether
_START_S: Final = 20


class RpcError(AssertionError):
    """The chain refused what it was asked."""


def kept(name: str) -> bytes:
    """A contract's bytecode, as it is committed."""
    for folder in (_ROOT / "contracts" / "abi", _ROOT / "contracts" / "test" / "abi"):
        if (folder / f"{name}.json").exists():
            return bytes.fromhex(json.loads((folder / f"{name}.json").read_text())["bytecode"].removeprefix("0x"))
    raise FileNotFoundError(name)


def encoded(signature: str, values: Sequence[Any]) -> bytes:
    """A call's data, by a signature like `transfer(address,uint256)`; tuples in their own brackets."""
    types = split(signature[signature.index("(") + 1 : -1])
    return keccak(text=signature)[:4] + encode(types, list(values))


def split(types: str) -> list[str]:
    """The types in a list of them."""
    parts, depth = [""], 0
    for letter in types:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


@frozen
class Deployed:
    """Addresses (checksummed) of what is on the chain."""

    dollar: str
    channels: str
    erc3009_collector: str
    approve_collector: str
    bonds: str


@define
class LocalChain:
    """A running chain that mines a block for each transaction, or, with `block_s`, one every so many seconds."""

    program: str
    folder: Path
    port: int = 0
    block_s: int | None = None
    deployed: Deployed = field(default=None)  # set once the contracts are there
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _watchdog: Watchdog | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Run it, on the port that it had before."""
        log = self.folder / "log"
        # --slots-in-an-epoch 1: `safe` and `finalized` follow the head closely.
        command = [self.program, "--port", str(self.port), "--chain-id", str(CHAIN_ID), "--slots-in-an-epoch", "1"]
        environment = os.environ | {"HOME": str(self.folder)}  # it writes beside itself
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.folder, env=environment)
        self._watchdog = Watchdog(self._process.pid, self.folder)
        while not (found := re.search(rb"Listening on 127\.0\.0\.1:(\d+)", log.read_bytes())):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
            if self._process.returncode is not None:
                raise SetUpError(f"The chain does not start.\n{log.read_text()}")
        self.port = int(found[1])

    def kill(self) -> None:
        """End it at once; nothing of it is left."""
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> None:
        """Until it ends."""
        if self._process is not None:
            self._process.wait()

    def rpc(self, method: str, *parameters: Any) -> Any:
        """Ask it. Raises RpcError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_START_S)
        try:
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters})
            connection.request("POST", "/", body, {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise RpcError(f"{method}: {answer['error']}")
        return answer["result"]

    def send(self, to: str, signature: str, *values: Any, sender: str = _RICH) -> dict[str, Any]:
        """A transaction from anybody's address, without its key; returns the receipt of it, mined and succeeded."""
        data = "0x" + encoded(signature, values).hex()
        if sender != _RICH:
            self.rpc("anvil_impersonateAccount", sender)
        receipt = self.rpc("eth_sendTransactionSync", {"from": sender, "to": to, "data": data})
        return self._mined(receipt)

    @staticmethod
    def _mined(receipt: dict[str, Any]) -> dict[str, Any]:
        if receipt["status"] != "0x1":
            raise RpcError(str(receipt))
        return receipt

    def fund(self, address: str, dollars: int = 0, ether: int = 0) -> None:
        """Give an address so many units of the dollar, and set its ether to so much wei."""
        if ether:
            self.rpc("anvil_setBalance", address, hex(ether))
        if dollars:
            self.send(self.deployed.dollar, "mint(address,uint256)", address, dollars)

    def deploy(self, code: bytes, *, types: Sequence[str] = (), values: Sequence[Any] = ()) -> str:
        """Put a contract there, with what its constructor takes; returns its address."""
        data = "0x" + (code + encode(list(types), list(values))).hex()
        receipt = self.rpc("eth_sendTransactionSync", {"from": _RICH, "data": data, "gas": hex(10_000_000)})
        return to_checksum_address(self._mined(receipt)["contractAddress"])

    def deploy_all(self) -> None:
        """The contracts and a dollar; the same code where x402 has it, which finds out its domain at each call."""
        # In this order, so that addresses are those of the network `anvil` in networks.json.
        dollar, channels = self.deploy(kept("Dollar")), self.deploy(kept("PaymentChannels"))
        collector, approve = kept("ERC3009Collector"), kept("ApproveCollector")
        self.deployed = Deployed(
            dollar=dollar,
            channels=channels,
            erc3009_collector=self.deploy(collector, types=["address"], values=[channels]),
            approve_collector=self.deploy(approve, types=["address"], values=[channels]),
            bonds=self.deploy(kept("Bonds")),
        )
        self._place(X402_CHANNELS, channels)
        self._place(X402_ERC3009_COLLECTOR, self.deploy(collector, types=["address"], values=[X402_CHANNELS]))
        self._place(MULTICALL, self.deploy(kept("Multicall")))
        if self.block_s is not None:
            self.rpc("evm_setIntervalMining", self.block_s)

    def _place(self, address: str, like: str) -> None:
        self.rpc("anvil_setCode", address, self.rpc("eth_getCode", like, "latest"))

    @classmethod
    @contextlib.contextmanager
    def running(cls, port: int = 0, block_s: int | None = None) -> Iterator[Self]:
        """Start a chain with everything on it, and end it. Raises SetUpError."""
        contracts = Contracts(_ROOT)
        contracts.install()
        if contracts.anvil is None:
            raise NotAvailable("npm has no anvil for this machine, and none is on the PATH")
        folder = Path(tempfile.mkdtemp(prefix="idlemesh-anvil-"))
        chain = cls(contracts.anvil, folder, port, block_s)
        try:
            chain.start()
            chain.deploy_all()
            yield chain
        finally:
            chain.kill()
            shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chain", description=str(__doc__).partition("\n")[0])
    parser.add_argument("address", nargs="*", help="a wallet that gets 100 dollars and an ether; `wallet address`")
    wallets = parser.parse_args().address
    if strange := [each for each in wallets if not is_address(each)]:
        print(f"{strange[0]!r} is no address: write 0x and 40 hexadecimal digits", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends this ends the chain
    try:
        with LocalChain.running(_PORT, block_s=1) as chain:
            for wallet in wallets:
                chain.fund(to_checksum_address(wallet), 100 * DOLLAR, ETHER)
            print(f"A chain of your own is up at {chain.url}, until Ctrl-C; then all of it is gone.")
            print(f'In config.toml: [stablecoin] with network = "anvil" and bonds = "{chain.deployed.bonds}".')
            print(*(f"{wallet} has 100 dollars and an ether." for wallet in wallets), sep="\n", flush=True)
            chain.wait()
    except KeyboardInterrupt:
        return 0
    except SetUpError as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
