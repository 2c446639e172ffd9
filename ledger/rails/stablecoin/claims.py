"""Claims go together: rows that come within a moment of each other are one transaction, and one more pays them out.

Theory of operation. Most of what a claim costs is paid once for all its rows. A claim names totals, so one that is sent
twice claims nothing twice; what became of a row is read from its channel, not from its transaction. Where the chain
would refuse a claim because of one row, its halves go apart, and so on: nobody's bad channel holds up another's money.
"""

import asyncio
import contextlib
import hashlib
import logging
from typing import Final

from attrs import evolve, frozen

from ledger.rails.stablecoin.chain import Chain, Outcome
from ledger.rails.stablecoin.contracts import MAX_ROWS, Row, claim, settle
from ledger.rails.stablecoin.errors import ChainError, Refused, Unreachable
from ledger.rails.stablecoin.sending import REVERTED_OR_LOST, TriedOften, sent

GATHER_S: Final = 0.2
_GATHERINGS: Final = 20  # while more come, but not for ever
# A payout is sent with its claim, before that is mined: simulated then, it would move nothing and need less. USDC is
# behind a proxy, and a receiver's first payout writes two new words.
_SETTLE_GAS: Final = 150_000
# Of so many effects it is known which transaction they went with; a row that is sent twice claims nothing twice.
_REMEMBERED: Final = 4096

_log = logging.getLogger(__name__)


@frozen
class _Waiting:
    effect: bytes
    row: Row
    outcome: asyncio.Future[Outcome]


class Claims:
    """Claims of one receiver, who is the chain's wallet."""

    def __init__(self, chain: Chain, gather_s: float = GATHER_S) -> None:
        """`gather_s`: for how long rows wait for more of them."""
        self._chain = chain
        self._gather_s = gather_s
        self._waiting: list[_Waiting] = []
        self._transactions: dict[bytes, bytes] = {}  # by the key of an effect, that of its claim in the outbox
        self._task: asyncio.Task[None] | None = None
        self._payout: bytes | None = None  # the key of the last one in the outbox
        self._paying_out = asyncio.Lock()

    async def join(self, effect: bytes, row: Row) -> Outcome:
        """Claim a row along with others; what became of the transaction so far. Raises ChainError.

        Whoever stops waiting does not stop the claim.
        """
        waiting = _Waiting(effect, row, asyncio.get_running_loop().create_future())
        # Who asked before for this row has stopped waiting, or it would not be asked for again.
        self._waiting = [other for other in self._waiting if other.effect != effect]
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all())
        return await waiting.outcome

    async def outcome(self, effect: bytes) -> Outcome:
        """What became of the claim that an effect's row went with; absent too if this run does not know."""
        key = self._transactions.get(effect)
        return Outcome("absent") if key is None else await self._chain.outcome(key)

    def forget(self, effect: bytes) -> None:
        """The effect's row is claimed for good."""
        self._transactions.pop(effect, None)

    async def close(self) -> None:
        """Send no more; what was sent is on its way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        _tell(self._waiting, Unreachable("this node is stopping"))

    async def pay_out(self) -> None:
        """Have paid out what was claimed, if any of it still waits for that."""
        async with self._paying_out:
            try:
                if not await self._is_paying_out() and await self._chain.unsettled():
                    network, place = self._chain.network, self._chain.place
                    receiver, token = self._chain.address, network.token.address
                    totals = await self._chain.read(place.contract, "receivers", receiver, token)
                    await self._settle(hashlib.sha256(repr(totals).encode()).digest())
            except (ChainError, TriedOften) as error:
                _log.info("what was claimed is not paid out yet: %s", error)

    async def _send_all(self) -> None:
        while self._waiting:
            await self._gather()
            rows, self._waiting = self._waiting[:MAX_ROWS], self._waiting[MAX_ROWS:]
            try:
                await self._send(rows)
            finally:
                _tell(rows, Unreachable("this node is stopping"))

    async def _gather(self) -> None:
        """Wait until no more come: each looks at the chain first, and endpoints answer one sooner than another."""
        for _ in range(_GATHERINGS):
            before = len(self._waiting)
            await asyncio.sleep(self._gather_s)
            if len(self._waiting) == before or before >= MAX_ROWS:
                return

    async def _send(self, rows: list[_Waiting]) -> None:
        try:
            outcome = await self._claim(rows)
        except Refused as error:
            if len(rows) == 1:
                _tell(rows, error)
            else:
                half = len(rows) // 2
                await self._send(rows[:half])
                await self._send(rows[half:])
        except Exception as error:  # noqa: BLE001 - those who wait hear of it, whatever it is
            _tell(rows, error)
        else:
            for waiting in rows:
                if not waiting.outcome.done():
                    waiting.outcome.set_result(outcome)

    async def _claim(self, rows: list[_Waiting]) -> Outcome:
        about = hashlib.sha256(b"".join(sorted(waiting.effect for waiting in rows))).digest()
        transaction = await sent(self._chain, about, "claim", REVERTED_OR_LOST)
        for waiting in rows:
            self._transactions[waiting.effect] = transaction.key
        for old in list(self._transactions)[:-_REMEMBERED]:
            del self._transactions[old]
        outcome = await self._chain.submit(transaction.key, claim(self._chain.place.contract, [w.row for w in rows]))
        with contextlib.suppress(ChainError, TriedOften):  # it is paid out with a later one
            await self._settle(transaction.key)
        return outcome

    async def _settle(self, about: bytes) -> None:
        receiver, token = self._chain.address, self._chain.network.token.address
        call = evolve(settle(self._chain.place.contract, receiver, token), gas=_SETTLE_GAS)
        self._payout = (await sent(self._chain, about, "payout", REVERTED_OR_LOST)).key
        await self._chain.submit(self._payout, call)

    async def _is_paying_out(self) -> bool:
        return self._payout is not None and (await self._chain.outcome(self._payout)).state in ("waiting", "mined")


def _tell(rows: list[_Waiting], error: Exception) -> None:
    for waiting in rows:
        if not waiting.outcome.done():
            waiting.outcome.set_exception(error)
