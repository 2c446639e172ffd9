"""A chain for the tests: anvil from npm with the contracts, a dollar, and money; private to them, gone afterwards.

Dollars are units of a token with 6 decimals. Block times only grow, so a chain whose time was moved stays there.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen
from eth_abi.abi import decode, encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from tools.contracts import Contracts, NotAvailable

CHAIN_ID: Final = 31337
ETHER: Final = 10**18
# Where x402 expects its contracts on every chain, and the one that facilitators read with.
X402_CHANNELS: Final = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"
X402_ERC3009_COLLECTOR: Final = "0x4020806089470a89826cB9fB1f4059150b550004"
MULTICALL: Final = "0xcA11bde05977b3631167028862bE2a173976CA11"

_ROOT: Final = Path(__file__).parent.parent
_RICH: Final = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"  # anvil's first own account: deploys and hands out ether
_START_S: Final = 20
_DEEP: Final = 3  # blocks: more than the network's confirmations


class RpcError(AssertionError):
    """The chain refused what a test asked of it."""


def _kept(name: str) -> bytes:
    """A contract's bytecode, as it is committed."""
    for folder in (_ROOT / "contracts" / "abi", _ROOT / "contracts" / "test" / "abi"):
        if (folder / f"{name}.json").exists():
            return bytes.fromhex(json.loads((folder / f"{name}.json").read_text())["bytecode"].removeprefix("0x"))
    raise FileNotFoundError(name)


def _encoded(signature: str, values: Sequence[Any]) -> bytes:
    """A call's data, by a signature like `transfer(address,uint256)`; tuples in their own brackets."""
    types = _split(signature[signature.index("(") + 1 : -1])
    return keccak(text=signature)[:4] + encode(types, list(values))


def _split(types: str) -> list[str]:
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
    """Addresses (checksummed) of what is on the chain: our contracts, and the same code where x402 expects its own."""

    dollar: str
    channels: str
    erc3009_collector: str
    approve_collector: str
    bonds: str
    x402_channels: str = X402_CHANNELS
    x402_collector: str = X402_ERC3009_COLLECTOR


@define
class Anvil:
    """A running chain, mining a block for each transaction, until told otherwise; `catch_up` waits for it."""

    program: str
    folder: Path
    port: int = 0
    deployed: Deployed = field(default=None)  # set once the contracts are there
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _numbers: Iterator[int] = field(factory=lambda: count(1), repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # The process

    def start(self) -> None:
        """Run it, on the port that it had before."""
        log = self.folder / "log"
        # --slots-in-an-epoch 1: `safe` and `finalized` follow the head closely.
        command = [self.program, "--port", str(self.port), "--chain-id", str(CHAIN_ID), "--slots-in-an-epoch", "1"]
        environment = os.environ | {"HOME": str(self.folder)}  # it writes beside itself
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.folder, env=environment)
        while not (found := re.search(rb"Listening on 127\.0\.0\.1:(\d+)", log.read_bytes())):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
            assert self._process.returncode is None, log.read_text()
        self.port = int(found[1])

    def kill(self) -> None:
        """End it at once; nothing of it is left."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """It takes connections and does not answer, as an endpoint that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Without the chain: killed, and started again on its port with all that it had mined, and a block more.

        What waited to be mined is forgotten.
        """
        mines = self.rpc("anvil_getAutomine")
        self.rpc("evm_setAutomine", False)
        self.rpc("anvil_dropAllTransactions")
        self.mine()  # comes after a block that is just being made: of that the state might be kept, and not the events
        state = self.rpc("anvil_dumpState")
        self.kill()
        try:
            yield
        finally:
            self.start()
            self.rpc("anvil_loadState", state)
            self.rpc("evm_setAutomine", mines)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Undo at the end what is done to it meanwhile."""
        state, kept = self.rpc("anvil_dumpState"), self.rpc("evm_snapshot")
        try:
            yield
        finally:
            if not self.rpc("evm_revert", kept):  # it was started anew, and has no snapshot
                self.kill()
                self.start()
                self.rpc("anvil_loadState", state)
            # Of older blocks it has the state no longer: after a start none, and else of some hundred, undone ones too.
            self.mine(_DEEP)

    # Asking it

    def rpc(self, method: str, *parameters: Any) -> Any:
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

    def call(self, to: str, signature: str, *values: Any, returns: str = "uint256") -> Any:
        """Read a contract; `returns` like `uint128,uint128`. One value alone, several as a tuple."""
        data = self.rpc("eth_call", {"to": to, "data": "0x" + _encoded(signature, values).hex()}, "latest")
        found = decode(_split(returns), bytes.fromhex(data[2:]))
        return found[0] if len(found) == 1 else found

    def send(self, to: str, signature: str, *values: Any, sender: str = _RICH, ether: int = 0) -> dict[str, Any]:
        """A transaction from anybody's address, without its key; returns the receipt of it, mined and succeeded."""
        data = "0x" + _encoded(signature, values).hex() if signature else "0x"
        if sender != _RICH:
            self.rpc("anvil_impersonateAccount", sender)
        receipt = self.rpc("eth_sendTransactionSync", {"from": sender, "to": to, "data": data, "value": hex(ether)})
        return self._mined(receipt)

    @staticmethod
    def _mined(receipt: dict[str, Any]) -> dict[str, Any]:
        assert receipt["status"] == "0x1", receipt
        return receipt

    @property
    def block(self) -> int:
        """The head's number."""
        return int(self.rpc("eth_blockNumber"), 16)

    @property
    def time(self) -> int:
        """The head's time, in seconds since 1970."""
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    # Money

    def wallet(self, dollars: int = 0, ether: int = ETHER) -> LocalAccount:
        """A new key, with so many units of the dollar and so much wei."""
        number = next(self._numbers)
        made: LocalAccount = Account.from_key(hashlib.sha256(b"a test's wallet %d" % number).digest())
        self.fund(made.address, dollars, ether)
        return made

    def fund(self, address: str, dollars: int = 0, ether: int = 0) -> None:
        """Give an address so many units of the dollar, and set its ether to so much wei."""
        if ether:
            self.rpc("anvil_setBalance", address, hex(ether))
        if dollars:
            self.send(self.deployed.dollar, "mint(address,uint256)", address, dollars)

    def dollars(self, address: str) -> int:
        return int(self.call(self.deployed.dollar, "balanceOf(address)", address))

    def channel(self, channel_id: bytes, contract: str | None = None) -> tuple[int, int]:
        """A channel's balance and total claimed."""
        to = contract or self.deployed.channels
        found = self.call(to, "channels(bytes32)", channel_id, returns="uint128,uint128")
        return int(found[0]), int(found[1])

    # Blocks

    def catch_up(self) -> None:
        """Wait until what was sent to it is mined: it takes a transaction before it mines the block of it."""
        while self.pending():
            pass  # each question takes as long as a turn of its loop

    def mine(self, blocks: int = 1) -> None:
        self.rpc("anvil_mine", hex(blocks))

    def pass_time(self, seconds: int) -> None:
        """Move the chain's time on, and mine a block."""
        self.rpc("evm_increaseTime", seconds)
        self.mine()

    @contextlib.contextmanager
    def without_mining(self) -> Iterator[None]:
        """Transactions stay pending until a block is mined."""
        self.rpc("evm_setAutomine", False)
        try:
            yield
        finally:
            self.rpc("evm_setAutomine", True)

    def pending(self) -> list[str]:
        """Hashes of the transactions that wait."""
        pool = self.rpc("txpool_content")
        found = [each for kind in ("pending", "queued") for by in pool[kind].values() for each in by.values()]
        return [str(each["hash"]) for each in found]

    def drop(self, transaction: str) -> None:
        """Make the chain forget a transaction that waits."""
        self.rpc("anvil_dropTransaction", transaction)

    def reorganise(self, depth: int) -> None:
        """Replace the last blocks by as many empty ones, and one more: what was in them never happened."""
        self.rpc("anvil_reorg", depth, [])
        for transaction in self.pending():
            self.drop(transaction)
        self.mine()

    # The contracts

    def deploy(self, code: bytes, *, types: Sequence[str] = (), values: Sequence[Any] = ()) -> str:
        data = "0x" + (code + encode(list(types), list(values))).hex()
        receipt = self.rpc("eth_sendTransactionSync", {"from": _RICH, "data": data, "gas": hex(10_000_000)})
        return to_checksum_address(self._mined(receipt)["contractAddress"])

    def deploy_all(self) -> None:
        """The contracts and a dollar; the same code where x402 has it, which finds out its domain at each call."""
        # In this order, so that addresses are those of the network `anvil` in networks.json.
        dollar, channels = self.deploy(_kept("Dollar")), self.deploy(_kept("PaymentChannels"))
        collector, approve = _kept("ERC3009Collector"), _kept("ApproveCollector")
        self.deployed = Deployed(
            dollar=dollar,
            channels=channels,
            erc3009_collector=self.deploy(collector, types=["address"], values=[channels]),
            approve_collector=self.deploy(approve, types=["address"], values=[channels]),
            bonds=self.deploy(_kept("Bonds")),
        )
        self._place(X402_CHANNELS, channels)
        self._place(X402_ERC3009_COLLECTOR, self.deploy(collector, types=["address"], values=[X402_CHANNELS]))
        self._place(MULTICALL, self.deploy(_kept("Multicall")))

    def _place(self, address: str, like: str) -> None:
        self.rpc("anvil_setCode", address, self.rpc("eth_getCode", like, "latest"))


@contextlib.contextmanager
def running() -> Iterator[Anvil]:
    """Start a chain with everything on it, and end it. Raises NotAvailable."""
    contracts = Contracts(_ROOT)
    contracts.install()
    if contracts.anvil is None:
        raise NotAvailable("npm has no anvil for this machine, and none is on the PATH")
    folder = Path(tempfile.mkdtemp(prefix="idlemesh-anvil-"))
    chain = Anvil(contracts.anvil, folder)
    try:
        chain.start()
        chain.deploy_all()
        yield chain
    finally:
        if chain._process is not None:
            chain.kill()
        shutil.rmtree(folder)
