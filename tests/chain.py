"""A chain for the tests: one of `tools.chain`, private to them, with what tests do to chains.

Dollars are units of a token with 6 decimals. Block times only grow, so a chain whose time was moved stays there.
"""

import contextlib
import hashlib
import signal
from collections.abc import Iterator
from itertools import count
from typing import Any, Final

from attrs import define, field
from eth_abi.abi import decode
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tools.chain import CHAIN_ID, ETHER, MULTICALL, X402_CHANNELS, LocalChain, RpcError, encoded, split

__all__ = ["CHAIN_ID", "ETHER", "MULTICALL", "X402_CHANNELS", "Anvil", "RpcError", "running"]

_DEEP: Final = 3  # blocks: more than the network's confirmations


@define
class Anvil(LocalChain):
    """A running chain, mining a block for each transaction, until told otherwise; `catch_up` waits for it."""

    _numbers: Iterator[int] = field(factory=lambda: count(1), init=False, repr=False)

    # The process

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

    def call(self, to: str, signature: str, *values: Any, returns: str = "uint256") -> Any:
        """Read a contract; `returns` like `uint128,uint128`. One value alone, several as a tuple."""
        data = self.rpc("eth_call", {"to": to, "data": "0x" + encoded(signature, values).hex()}, "latest")
        found = decode(split(returns), bytes.fromhex(data[2:]))
        return found[0] if len(found) == 1 else found

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

    def dollars(self, address: str) -> int:
        return int(self.call(self.deployed.dollar, "balanceOf(address)", address))

    def channel(self, channel_id: bytes, contract: str | None = None) -> tuple[int, int]:
        """A channel's balance and total claimed."""
        to = contract or self.deployed.channels
        found = self.call(to, "channels(bytes32)", channel_id, returns="uint128,uint128")
        return int(found[0]), int(found[1])

    @contextlib.contextmanager
    def gas_at(self, wei: int) -> Iterator[None]:
        """The next block's gas has this base fee, and the one after the context again what it had before."""
        before = self.rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"]
        self.rpc("anvil_setNextBlockBaseFeePerGas", hex(wei))
        self.mine()
        try:
            yield
        finally:
            self.rpc("anvil_setNextBlockBaseFeePerGas", before)
            self.mine()

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


def running() -> contextlib.AbstractContextManager[Anvil]:
    """Start a chain with everything on it, and end it. Raises SetUpError."""
    return Anvil.running()
