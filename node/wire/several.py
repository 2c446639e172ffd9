"""A peer of which several processes run, each at its own URL, that share one ledger: one line to all of them.

An order goes to the process that made its offer, and what is about the order follows it there; what any of them can
answer is asked of the next one where the first is not there.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

from ledger.records import Acknowledgement, Cancel, Order, digest_of, open_record
from node.wire.client import HttpPeer
from node.wire.messages import Refused, Unreachable

# Which process has an order is remembered for so many of them; about others all are asked.
_ORDERS: Final = 4_096

T = TypeVar("T")


class SeveralLines:
    """The processes of one node, as one peer."""

    def __init__(self, lines: Sequence[HttpPeer]) -> None:
        self._lines = tuple(lines)
        self._offers: dict[bytes, HttpPeer] = {}
        self._orders: OrderedDict[bytes, HttpPeer] = OrderedDict()
        self._meeting = self._lines[0]
        self.url: Final = " and ".join(line.url for line in lines)

    async def offers(self) -> Sequence[bytes]:
        """Those of all that answer. Raises what the last one does where none answers."""
        answers = await asyncio.gather(*(line.offers() for line in self._lines), return_exceptions=True)
        found: dict[bytes, HttpPeer] = {}
        for line, answer in zip(self._lines, answers, strict=True):
            if not isinstance(answer, BaseException):
                found |= dict.fromkeys(answer, line)
            elif not isinstance(answer, Refused | Unreachable):
                raise answer
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(answers):
            raise errors[-1]
        self._offers = {digest_of(raw): line for raw, line in found.items()}
        return list(found)

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        return await self._any(lambda line: line.grant(buyer, unit, rail))

    async def manifest(self, model: bytes) -> bytes:
        return await self._any(lambda line: line.manifest(model))

    async def tokenizer(self, digest: bytes) -> bytes:
        return await self._any(lambda line: line.tokenizer(digest))

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        signed = open_record(order, Order)
        line = self._orders[signed.digest] = self._offers.get(signed.record.offer, self._lines[0])
        if len(self._orders) > _ORDERS:
            self._orders.popitem(last=False)
        answer = line.order(order, sealed)
        try:
            async for chunk in answer:
                yield chunk
        finally:
            await answer.aclose()

    async def receipt(self, order: bytes) -> bytes | None:
        return await self._any(lambda line: line.receipt(order), order)

    async def resolution(self, order: bytes) -> bytes | None:
        return await self._any(lambda line: line.resolution(order), order)

    async def acknowledge(self, raw: bytes) -> None:
        await self._any(lambda line: line.acknowledge(raw), open_record(raw, Acknowledgement).record.order)

    async def cancel(self, raw: bytes) -> None:
        await self._any(lambda line: line.cancel(raw), open_record(raw, Cancel).record.order)

    async def settlement(self, raw: bytes) -> bytes:
        return await self._any(lambda line: line.settlement(raw))

    async def netting(self, raw: bytes) -> bytes:
        return await self._any(lambda line: line.netting(raw))

    async def forgiveness(self, raw: bytes) -> bytes:
        return await self._any(lambda line: line.forgiveness(raw))

    async def channel_terms(self) -> bytes:
        return await self._any(lambda line: line.channel_terms())

    async def channel(self, raw: bytes) -> None:
        await self._any(lambda line: line.channel(raw))

    async def deposit(self, raw: bytes) -> None:
        await self._any(lambda line: line.deposit(raw))

    async def challenge(self) -> bytes:
        async def ask(line: HttpPeer) -> bytes:
            self._meeting = line  # it alone knows the nonce that it gives
            return await line.challenge()

        return await self._any(ask)

    async def state(self, raw: bytes) -> bytes:
        return await self._meeting.state(raw)

    async def hand_back(self, raw: bytes) -> None:
        await self._meeting.hand_back(raw)

    async def _any(self, ask: Callable[[HttpPeer], Awaitable[T]], order: bytes = b"") -> T:
        """The answer of the process that has the order, else of the first that gives one. Raises as the last does."""
        first = self._orders.get(order)
        *others, last = sorted(self._lines, key=lambda line: line is not first)
        for line in others:
            try:
                return await ask(line)
            except Unreachable:
                continue
            except Refused:
                if line is first:
                    raise  # of its own orders it knows best
        return await ask(last)
