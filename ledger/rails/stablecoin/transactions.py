"""Transactions of one wallet that arrive, once each.

Theory of operation. A transaction has a key of its caller's. It is simulated, gets the next nonce, is signed, is
written to the outbox, and only then sent, to every endpoint: so a key moves money once at most, through crashes and
time-outs alike, and an error of `submit` says that nothing was sent. From then on it is tended:

    in a block deep enough, as every endpoint that answers says    it is through: settled, or failed if it reverted
    so too as some say, and all say that its nonce is used         the same: others may keep no receipts
    in a block                                                     wait
    in none (never, or its block was replaced)                     send it again, the same bytes
    in none for too long                                           replace it: same nonce, 12.5% more
    so too, and deep down its nonce is used by something else      none of its forms can be mined: sign it anew

What has one nonce happens once, so forms of one transaction never both count; and it gets another nonce only when the
former is used up for good, as every endpoint says. Nonces count on from what is mined and what waits here, so what
follows each other closely never collides; another program with the same key may, and costs a while.
"""

import asyncio
import logging
import time
from typing import Any, Final, Literal, TypeAlias

from attrs import evolve, frozen

from ledger.rails.stablecoin.contracts import Call, Malformed
from ledger.rails.stablecoin.errors import NoEther, OutboxFull, Refused, TooDear, Unreachable
from ledger.rails.stablecoin.fees import raised, shown, signed_transaction, transaction
from ledger.rails.stablecoin.keys import Signer
from ledger.rails.stablecoin.networks import Network, checksummed
from ledger.rails.stablecoin.outbox import MAX_WAITING, Outbox, Outcome, Sent
from ledger.rails.stablecoin.prices import Prices
from ledger.rails.stablecoin.reverts import reason
from ledger.rails.stablecoin.rpc import Endpoints, Said, digest, hexed, quantity

STUCK_S: Final = 45.0
_MAX_FORMS: Final = 32  # of one transaction: each offers 12.5% more, so the last 40 times as much as the first
# Between estimate and block the state may change: a first claim of a receiver writes words that later ones do not.
_MAX_GAS: Final = 10_000_000  # a claim of 50 takes less than a million
_SPARE_NUMERATOR, _SPARE_DENOMINATOR, _SPARE_GAS = 5, 4, 20_000

# Who has a transaction's receipt; `several` have different ones.
_Word: TypeAlias = Literal["all", "some", "several", "none"]

_log = logging.getLogger(__name__)


@frozen
class _Receipt:
    hash: bytes
    block: int
    block_hash: bytes
    succeeded: bool
    gas: int
    fee: int


def _receipt(found: Any) -> _Receipt | None:
    if found is None:
        return None
    if not isinstance(found, dict):
        raise Malformed("not a receipt")
    gas = quantity(found.get("gasUsed"))
    fee = gas * quantity(found.get("effectiveGasPrice", "0x0")) + quantity(found.get("l1Fee") or "0x0")
    return _Receipt(
        digest(found.get("transactionHash")),
        quantity(found.get("blockNumber")),
        digest(found.get("blockHash")),
        quantity(found.get("status")) == 1,
        gas,
        fee,
    )


class Transactions:
    """One wallet's on one chain. `prices` says what is offered, `stuck_s` how long one waits before it is replaced."""

    def __init__(
        self,
        endpoints: Endpoints,
        network: Network,
        signer: Signer,
        outbox: Outbox,
        prices: Prices,
        stuck_s: float = STUCK_S,
    ) -> None:
        self._endpoints = endpoints
        self._network = network
        self._signer = signer
        self._outbox = outbox
        self._prices = prices
        self._stuck_s = stuck_s
        self._sent_at: dict[bytes, float] = {}
        self._submitting = asyncio.Lock()
        self._submissions: dict[bytes, asyncio.Task[Outcome]] = {}
        self._tending = asyncio.Lock()
        self._tended = asyncio.Condition()

    @property
    def waiting(self) -> bool:
        """Whether anything is to be tended."""
        return bool(self._outbox.waiting)

    @property
    def over(self) -> list[Outcome]:
        """What became of those that are through, the latest of them."""
        return list(self._outbox.through.values())

    def outcome(self, key: bytes) -> Outcome:
        """As it was when it was tended last."""
        return self._outbox.outcome(key)

    async def settled(self, key: bytes) -> Outcome:
        """Wait for the end of it."""
        async with self._tended:
            await self._tended.wait_for(lambda: self.outcome(key).over or self.outcome(key).state == "absent")
            return self.outcome(key)

    async def submit(self, key: bytes, call: Call) -> Outcome:
        """Send it, if its key was not sent before. What is raised says that it was not and will not be sent.

        Who stops waiting stops nothing: someone may have to press a button at the signer. Raises Refused, TooDear,
        NoEther, SignerFailed, OutboxFull, Unreachable.
        """
        task = self._submissions.get(key)
        if task is None:
            task = asyncio.create_task(self._submit(key, call))
            self._submissions[key] = task
            task.add_done_callback(lambda done: self._is_submitted(key, done))
        return await asyncio.shield(task)

    def _is_submitted(self, key: bytes, done: asyncio.Task[Outcome]) -> None:
        del self._submissions[key]
        if not done.cancelled() and done.exception() is not None:
            _log.debug("a transaction was not sent: %s", done.exception())

    async def close(self) -> None:
        """Sign nothing more; what is in the outbox is sent after the next start."""
        for task in (under_way := list(self._submissions.values())):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _submit(self, key: bytes, call: Call) -> Outcome:
        async with self._submitting:
            if self.outcome(key).state != "absent":
                return self.outcome(key)
            if len(self._outbox.waiting) >= MAX_WAITING:
                raise OutboxFull(len(self._outbox.waiting))
            gas = await self._gas(call)
            price = await self._prices.offer()
            await self._afford(call, gas * price.most)
            nonce = await self._next_nonce()
            sent = await self._signed(Sent(key, call, nonce, gas, price.most, price.tip, b"", ()))
            self._outbox.write(sent)
            self._sent_at[key] = time.monotonic()
        await self._send(sent)
        return self.outcome(key)

    # Before it is sent

    async def _gas(self, call: Call) -> int:
        question = {"from": hexed(self._signer.address), "to": hexed(call.to), "data": hexed(call.data)}
        if call.value:
            question["value"] = hexed(call.value)
        said = await self._endpoints.ask_all("eth_estimateGas", question, parse=quantity)
        estimates = [each for _, each in said if not isinstance(each, Said) and each <= _MAX_GAS]
        if not estimates:
            refusals = [each for _, each in said if isinstance(each, Said)]
            if by_contract := next(filter(None, (reason(each.data) for each in refusals)), None):
                raise Refused(by_contract, by_contract=True)
            raise Refused(next((each.message for each in refusals), "it takes too much gas"))
        estimate = max(estimates) * _SPARE_NUMERATOR // _SPARE_DENOMINATOR + _SPARE_GAS
        return max(estimate, call.gas)

    async def _afford(self, call: Call, fee: int) -> None:
        said = await self._endpoints.ask_all("eth_getBalance", hexed(self._signer.address), "latest", parse=quantity)
        has = max((each for _, each in said if not isinstance(each, Said)), default=None)
        if has is not None and has < fee + call.value:
            raise NoEther(checksummed(self._signer.address), fee + call.value, has)

    async def _next_nonce(self) -> int:
        """After all that is mined and all that waits; of what endpoints say the least, so that no gap can come."""
        counts = await self._nonces("latest")
        if not counts:
            raise Unreachable("none tells the wallet's nonce")
        return max([min(counts), *(sent.nonce + 1 for sent in self._outbox.waiting.values())])

    async def _is_used(self, nonce: int, block: int) -> bool:
        return block >= 0 and min(await self._nonces(hexed(block)), default=0) > nonce

    async def _nonces(self, block: str) -> list[int]:
        """The nonce after a block, as every endpoint that answers has it."""
        address = hexed(self._signer.address)
        said = await self._endpoints.ask_all("eth_getTransactionCount", address, block, parse=quantity)
        return [each for _, each in said if not isinstance(each, Said)]

    async def _signed(self, sent: Sent) -> Sent:
        fields, what = transaction(self._network.chain_id, sent.nonce, sent.call, sent.gas, sent.most, sent.tip)
        raw, hash_ = signed_transaction(fields, await self._signer.sign(what, shown(fields)))
        return evolve(sent, raw=raw, hashes=(*sent.hashes, hash_), mined=False)

    async def _send(self, sent: Sent) -> None:
        """To everyone. It is in the outbox: what goes wrong here is put right by tending."""
        try:
            said = await self._endpoints.ask_all("eth_sendRawTransaction", hexed(sent.raw), parse=digest)
        except Unreachable as error:
            _log.info("transaction %s is sent again later: %s", sent.hashes[-1].hex(), error)
            return
        refused = [each.message for _, each in said if isinstance(each, Said)]
        if len(refused) == len(said):
            _log.debug("no endpoint takes transaction %s now: %s", sent.hashes[-1].hex(), refused[0])

    # Afterwards

    async def tend(self, only: bytes | None = None) -> None:
        """Bring everything that waits one step further, or the one of a key. Raises Unreachable."""
        heads = [each for _, each in await self._endpoints.ask_all("eth_blockNumber", parse=quantity)]
        deep = min((each for each in heads if not isinstance(each, Said)), default=0) - self._network.confirmations
        async with self._tending:
            waiting = [each for each in self._outbox.waiting.values() if only in (None, each.key)]
            for sent in sorted(waiting, key=lambda each: each.nonce):
                self._sent_at.setdefault(sent.key, time.monotonic())
                await self._tend(sent, deep)
        async with self._tended:
            self._tended.notify_all()

    async def _tend(self, sent: Sent, deep: int) -> None:
        found, word = await self._receipts(sent)
        is_stuck = time.monotonic() - self._sent_at[sent.key] >= self._stuck_s
        is_used = word != "all" and (word != "none" or is_stuck) and await self._is_used(sent.nonce, deep)
        if found is not None and found.block <= deep and (word == "all" or (word == "some" and is_used)):
            state: Any = "settled" if found.succeeded else "failed"
            self._through(sent, Outcome(state, found.hash, found.block, found.gas, found.fee, sent.nonce))
        elif word == "all" or (word != "none" and (is_used or not is_stuck)):
            self._outbox.mark(sent.key, True)
        else:
            self._outbox.mark(sent.key, False)
            if not is_stuck:
                await self._send(sent)
            elif is_used:
                await self._anew(sent)
            else:
                await self._replace(sent)

    async def _receipts(self, sent: Sent) -> tuple[_Receipt | None, _Word]:
        """The receipt of whichever form was mined, and who says so."""
        everyone: dict[Any, set[_Receipt]] = {}
        for hash_ in sent.hashes:
            for endpoint, each in await self._endpoints.ask_all(
                "eth_getTransactionReceipt", hexed(hash_), parse=_receipt
            ):
                heard = everyone.setdefault(endpoint, set())
                if isinstance(each, _Receipt) and each.hash == hash_:
                    heard.add(each)
        places = {(each.hash, each.block_hash, each.succeeded) for heard in everyone.values() for each in heard}
        if not places:
            return None, "none"
        found = next(each for heard in everyone.values() for each in heard)
        if len(places) > 1:
            return found, "several"
        return found, "all" if all(everyone.values()) else "some"

    async def _anew(self, sent: Sent) -> None:
        """Its nonce went to something else. The receipt is asked once more, for it may just have come."""
        if (await self._receipts(sent))[0] is not None:
            return
        async with self._submitting:
            try:
                gas, price = await self._gas(sent.call), await self._prices.offer()
                fresh = await self._signed(
                    evolve(sent, nonce=await self._next_nonce(), gas=gas, most=price.most, tip=price.tip)
                )
            except Refused as error:
                _log.warning("a transaction is given up, its nonce was used by another: %s", error)
                self._through(sent, Outcome("failed", sent.hashes[-1]))
                return
            except TooDear as error:
                _log.info("a transaction waits: %s", error)
                return
            self._outbox.write(fresh)
            self._sent_at[sent.key] = time.monotonic()
        await self._send(fresh)

    async def _replace(self, sent: Sent) -> None:
        if raised(sent.most) > self._prices.most or len(sent.hashes) >= _MAX_FORMS:
            await self._send(sent)
            return
        most, tip = await self._prices.offer_again(raised(sent.most), raised(sent.tip))
        async with self._submitting:
            fresh = await self._signed(evolve(sent, most=most, tip=tip))
            self._outbox.write(fresh)
            self._sent_at[sent.key] = time.monotonic()
        await self._send(fresh)

    def _through(self, sent: Sent, outcome: Outcome) -> None:
        self._outbox.close(sent.key, outcome)
        self._sent_at.pop(sent.key, None)
