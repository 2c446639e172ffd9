"""The chain's state at one block, as several endpoints have it."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from attrs import frozen

from ledger.rails.stablecoin.contracts import Malformed, answered, encoded
from ledger.rails.stablecoin.errors import Disagreement, NoContract, Unreachable
from ledger.rails.stablecoin.networks import Network, checksummed
from ledger.rails.stablecoin.rpc import Endpoint, Endpoints, Head, Said, head, hexed, octets

# An endpoint whose head is that old has stopped, if another's is not.
_STOPPED_S: Final = 900

# It makes several calls at one block, and is at this address on every chain (Multicall3).
MULTICALL: Final = bytes.fromhex("ca11bde05977b3631167028862be2a173976ca11")
_STATE: Final = ("channels", "pendingWithdrawals", "refundNonce")

_log = logging.getLogger(__name__)
T = TypeVar("T")


@frozen
class ChannelState:
    """A channel as the contract has it after a block; `began` is in seconds since 1970."""

    balance: int
    claimed: int
    withdrawing: int = 0
    began: int = 0
    nonce: int = 0


class Reading:
    """Questions about one block, put to every endpoint."""

    def __init__(self, endpoints: Endpoints, network: Network) -> None:
        self.endpoints: Final = endpoints
        self._network = network

    async def head(self) -> Head:
        """The lowest head of all endpoints that have not stopped. Raises Unreachable."""
        said = await self.endpoints.ask_all("eth_getBlockByNumber", "latest", False, parse=head)
        heads = [each for _, each in said if not isinstance(each, Said)]
        if not heads:
            raise Unreachable("none gives the last block")
        fresh = [each for each in heads if each.time >= time.time() - _STOPPED_S]
        return min(fresh or heads, key=lambda each: each.number)

    def deep(self, number: int) -> int:
        """The last block that has enough confirmations under a head."""
        return max(number - self._network.confirmations, 0)

    async def hashes(self, block: int) -> list[bytes]:
        """A block's hash, as each endpoint has it. Raises Unreachable."""
        said = await self.endpoints.ask_all("eth_getBlockByNumber", hexed(block), False, parse=head)
        found = [each.hash for _, each in said if not isinstance(each, Said)]
        if not found:
            raise Unreachable(f"none gives block {block}")
        return found

    async def agreed(
        self, method: str, *parameters: Any, parse: Callable[[Any], T], what: str, deep: bool = False
    ) -> T:
        """What all say of the head, or of the last block that is deep. Raises Unreachable, Disagreement."""
        number = (await self.head()).number
        block = hexed(self.deep(number) if deep else number)
        said = await self.endpoints.ask_all(method, *parameters, block, parse=parse)
        found = [(endpoint.host, each) for endpoint, each in said if not isinstance(each, Said)]
        if not found:
            raise Unreachable(f"none tells {what}")
        if any(each != found[0][1] for _, each in found):
            _log.warning("RPC endpoints differ on %s: %s", what, ", ".join(host for host, _ in found))
            raise Disagreement(what)
        return found[0][1]

    async def read(self, to: bytes, name: str, *values: Any, deep: bool = False) -> tuple[Any, ...]:
        """A function of `contracts.FUNCTIONS`. Raises Unreachable, Disagreement, NoContract (none that has it)."""
        question = _call(to, encoded(name, *values))
        found = await self.agreed("eth_call", question, parse=octets, what=name, deep=deep)
        try:
            return answered(name, found)
        except Malformed:  # which is the contract's fault, whoever chose it, and no endpoint's
            raise NoContract(f"contract with {name}", checksummed(to)) from None

    async def states(self, contract: bytes, channel: bytes, block: int) -> list[ChannelState]:
        """A channel after a block, as each endpoint has it. Raises Unreachable."""
        said = await self.endpoints.each(lambda endpoint: _state(endpoint, contract, channel, block))
        found = [each for _, each in said if isinstance(each, ChannelState)]
        if not found and any(each is None for _, each in said):
            raise NoContract("channels contract", checksummed(contract))
        if not found:
            raise Unreachable(f"none gives the state at block {block}")
        return found


async def _state(endpoint: Endpoint, contract: bytes, channel: bytes, block: int) -> ChannelState | None:
    """In one question where there is a contract for that, in three elsewhere. None: there are no channels."""
    questions = [encoded(name, channel) for name in _STATE]
    together = encoded("tryAggregate", False, [(contract, question) for question in questions])
    answers = await endpoint.ask("eth_call", _call(MULTICALL, together), hexed(block), parse=_apart)
    if answers is None:
        asked = (endpoint.ask("eth_call", _call(contract, each), hexed(block), parse=octets) for each in questions)
        answers = await asyncio.gather(*asked)
    if not all(answers):
        return None
    try:
        money, withdrawal, nonce = (answered(name, raw) for name, raw in zip(_STATE, answers, strict=True))
    except Malformed:
        return None
    return ChannelState(money[0], money[1], withdrawal[0], withdrawal[1], nonce[0])


def _call(to: bytes, data: bytes) -> dict[str, str]:
    return {"to": hexed(to), "data": hexed(data)}


def _apart(found: Any) -> list[bytes] | None:
    """What each of several calls returned, empty if it reverted; None: there is nobody to make them."""
    raw = octets(found)
    if not raw:
        return None
    (results,) = answered("tryAggregate", raw)
    if len(results) != len(_STATE):
        raise Malformed("not an answer to each call")
    return [each if succeeded else b"" for succeeded, each in results]
