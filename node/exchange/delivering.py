"""The delivery of one sale: from the engine's ids to the frames of the answer, and the receipt at its end.

Theory of operation. At each checkpoint the next tokens are drawn from the buyer's window. While it is empty the answer
stands still, with signs of life; the engine's slot is given back soon, and the work goes on from where it stands. A
buyer that pays too little to go on for too long ends it: it owes the input and what was sent. So does one that has kept
the answer waiting so long that it might have been ended, where no slot is left for it when the pay comes. If the pay
came sooner, to give the slot back was the seller's own risk: then the answer is cut.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, Final, TypeVar

from ledger.changes import Earned, Released
from ledger.commitments import CHECKPOINT_TOKENS, AnswerCommitment, prompt_commitment
from ledger.events import AccountChanged
from ledger.journal import Kept
from ledger.money import cost
from ledger.records import Cancel, Checkpoint, Finish, Receipt, Signed, sign
from node.engine.port import EngineError, Job
from node.exchange.book import Book, kept
from node.exchange.sale import Sale
from node.exchange.scoring import opinions, signed_score
from node.exchange.windows import Windows
from node.exchange.work import NoSlotLeft, Work
from node.models.grammar import GrammarGaveUp
from node.wire.client import LEAST_PATIENCE_S, SIGN_OF_LIFE_S
from node.wire.frames import AnswerWriter, CancelFrame, CheckpointFrame, Ids, ReceiptFrame, ScoreFrame
from verify.scores import Opinion

T = TypeVar("T")


# How long a slot is kept for an answer that waits: most buyers have paid by then, and starting again costs a little.
_HOLD_S: Final = 1.0
# Behind a checkpoint that long, an answer may be ended as unpaid, and every buyer knows.
_LATE_S: Final = LEAST_PATIENCE_S
# How long an answer stands still in all, for pay and then for a slot: buyers give up after a minute without a token.
_STANDSTILL_S: Final = 45.0
_LEAST_SLOT_WAIT_S: Final = 15.0


class Unpaid(Exception):
    """The buyer has paid too little to go on for too long."""


class HandedBack(Exception):
    """The owner of the machine needs it: the order is cut, and what was delivered is paid."""


class Delivering:
    """The delivery of one sale: from the engine's ids to the frames, and the receipt at the end."""

    def __init__(self, book: Book, sale: Sale, windows: Windows, patience_s: float) -> None:
        """`patience_s`: how long to wait while no answer on the account can draw."""
        self.sale: Final = sale
        self._book = book
        self._windows = windows
        self._patience_s = patience_s
        self.key: Final = sale.account
        self._writer = AnswerWriter(sale.key)
        self._chain = AnswerCommitment(sale.request.salt, sale.order.digest)
        # A stop string may begin in the part before.
        self._text = sale.stand.ware.tokenizer.stream(sale.request.stop, sale.so_far)
        self._last: int | None = None
        self._started_ms = book.now_ms()
        self._ending: asyncio.Future[Signed[Receipt]] | None = None
        self._failed = False
        self._scored = False
        self._unpaid = False
        self._late = False  # whether the pay for what comes next was late

    async def run(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the stream, to its end."""
        async with contextlib.aclosing(self._score() if self.sale.scores else self._answer()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _score(self) -> AsyncGenerator[bytes, None]:
        order, request, ware = self.sale.order.record, self.sale.request, self.sale.stand.ware
        found: list[Opinion] = []
        try:
            async with (
                contextlib.aclosing(opinions(ware.engine, ware.tokenizer, order, request)) as blocks,
                contextlib.aclosing(_with_signs_of_life(blocks, self.sale)) as beats,
            ):
                async for block in beats:
                    if self.sale.handed_back.is_set():
                        raise HandedBack
                    if block is None:
                        yield self._writer.write(Ids(()))
                    else:
                        found.append(block)
        except (EngineError, HandedBack) as error:
            if not _asked_too_much(error):
                yield self._cut()
                return
            self.sale.cancelled.set()
        if self.sale.cancelled.is_set():
            yield self._writer.write(ReceiptFrame((await self._finish()).raw))
            return
        score = signed_score(self.sale.order, ware.engine, found, self._book.identity)
        self._scored = True
        receipt = await self._finish(kept(score, self.sale.order.digest))
        yield self._writer.write(ScoreFrame(score.raw))
        yield self._writer.write(ReceiptFrame(receipt.raw))

    def _cut(self) -> bytes:
        """The last frame of an answer that does not go on here."""
        self._failed = True
        cancel = sign(Cancel(self.sale.order.digest, self._chain.tokens), self._book.identity)
        return self._writer.write(CancelFrame(cancel.raw))

    async def _answer(self) -> AsyncGenerator[bytes, None]:
        order, request = self.sale.order.record, self.sale.request
        job = Job(
            request.prompt,
            order.sampling,
            order.seed,
            order.max_tokens,
            steering=request.steering,
            earlier=order.start,
            client=self.sale.buyer,
            sold=True,
        )
        ware = self.sale.stand.ware
        work = Work(ware.engine, job, ware.tokenizer.eog, ware.miss)
        try:
            async with (
                contextlib.aclosing(work.pieces()) as pieces,
                contextlib.aclosing(_with_signs_of_life(pieces, self.sale)) as beats,
            ):
                async for piece in beats:
                    async with contextlib.aclosing(self._send(piece.ids if piece else (), work)) as frames:
                        async for frame in frames:
                            yield frame
                    if self._stopped():
                        break
                    self._hand_back_if_told()
        except Unpaid:
            self._unpaid = True
        except NoSlotLeft:
            if not self._late:
                yield self._cut()
                return
            self._unpaid = True
        except (EngineError, HandedBack) as error:
            if not _asked_too_much(error):
                # What was sent so far is covered by the last checkpoint; the buyer goes on elsewhere.
                yield self._cut()
                return
        receipt = await self._finish()
        yield self._writer.write(ReceiptFrame(receipt.raw))

    async def _send(self, ids: Sequence[int], work: Work) -> AsyncGenerator[bytes, None]:
        """The frames of the next ids, as far as they are drawn; the others wait. Raises Unpaid, HandedBack."""
        for part in self._parts(ids):
            if isinstance(part, Ids):
                yield self._writer.write(part)
                continue
            drawn = await self._keep_checkpoint(part)
            yield self._writer.write(CheckpointFrame(part.raw))
            self._hand_back_if_told()
            if not drawn:
                async with contextlib.aclosing(self._wait_for_pay(work)) as signs:
                    async for sign_of_life in signs:
                        yield sign_of_life
            if self.sale.cancelled.is_set():
                return

    async def _wait_for_pay(self, work: Work) -> AsyncGenerator[bytes, None]:
        """Signs of life until the next tokens are drawn, or the buyer cancels. Raises Unpaid, HandedBack."""
        loop, sale = asyncio.get_running_loop(), self.sale
        began = told = loop.time()
        with self._windows.line_up(self.key) as place:
            while not await self._windows.draw_in_turn(place, sale.order.digest, self._next_total()):
                patience = max(began, self._windows.drawn_at(self.key)) + self._patience_s
                if loop.time() >= patience:
                    raise Unpaid
                if loop.time() >= began + _HOLD_S and not sale.resting.is_set():
                    sale.resting.set()
                    await work.aclose()
                hold = patience if sale.resting.is_set() else began + _HOLD_S
                await _any_of(
                    (place.turn, sale.cancelled, sale.handed_back), min(patience, hold, told + SIGN_OF_LIFE_S)
                )
                place.turn.clear()
                if sale.cancelled.is_set():
                    return
                self._hand_back_if_told()
                if loop.time() >= told + SIGN_OF_LIFE_S:
                    told = loop.time()
                    yield self._writer.write(Ids(()))
        sale.resting.clear()
        waited = loop.time() - began
        self._late = waited >= _LATE_S
        work.patience_s = max(_STANDSTILL_S - waited, _LEAST_SLOT_WAIT_S)

    def _next_total(self) -> int:
        """What is drawn to go on from here."""
        return self.sale.cost_to_next(self._chain.tokens)

    def _hand_back_if_told(self) -> None:
        """Raises HandedBack where nothing is out that no checkpoint covers, unless the answer is at its end."""
        at_checkpoint = self._chain.tokens % CHECKPOINT_TOKENS == 0
        if self.sale.handed_back.is_set() and at_checkpoint and not self._at_end():
            raise HandedBack

    def _parts(self, ids: Sequence[int]) -> Iterator[Ids | Signed[Checkpoint]]:
        """The next ids, cut where a stop string is complete, with the checkpoints that fall due."""
        if not ids:
            yield Ids(())
        while ids and not self._stopped():
            room = CHECKPOINT_TOKENS - self._chain.tokens % CHECKPOINT_TOKENS
            part, ids = tuple(ids[:room]), ids[room:]
            before = self._text.tokens
            self._text.feed(part)
            part = part[: self._text.tokens - before]
            self._chain.add(part)
            self._last = part[-1]
            yield Ids(part)
            if self._chain.tokens % CHECKPOINT_TOKENS == 0:
                yield self._checkpoint()

    async def _keep_checkpoint(self, checkpoint: Signed[Checkpoint]) -> bool:
        """What a checkpoint says is earned before the buyer sees it, so that a crash takes nothing from either.

        The tokens behind it are drawn with it, if the window bears them; whether it does.
        """
        order, records = self.sale.order.digest, (kept(checkpoint, self.sale.order.digest),)
        earned = AccountChanged(self.key, Earned(order, checkpoint.record.cost))
        if not self._at_end() and await self._windows.draw(
            self.key, order, self._next_total(), earned, records=records
        ):
            return True
        await self._book.post(earned, records=records)
        return self._at_end()

    def _stopped(self) -> bool:
        return self._text.stopped_at is not None

    def _checkpoint(self) -> Signed[Checkpoint]:
        tokens = self._chain.tokens
        output_cost = cost(self.sale.stand.ware.price, 0, tokens)
        record = Checkpoint(self.sale.order.digest, tokens, self._chain.value(), output_cost)
        return sign(record, self._book.identity)

    async def _finish(self, *with_it: Kept) -> Signed[Receipt]:
        """Make the receipt and put it on disk; once, also where the buyer hangs up while it is being written."""
        if self._ending is None or (self._ending.done() and self._has_failed(self._ending)):
            self._ending = asyncio.ensure_future(self._write_receipt(with_it))
        return await asyncio.shield(self._ending)

    @staticmethod
    def _has_failed(ending: "asyncio.Future[Signed[Receipt]]") -> bool:
        return ending.cancelled() or ending.exception() is not None

    async def _write_receipt(self, with_it: Sequence[Kept]) -> Signed[Receipt]:
        sale, tokens = self.sale, self._chain.tokens
        record = Receipt(
            order=sale.order.digest,
            model=sale.stand.offer.record.model,
            prompt_tokens=len(sale.input_ids),
            output_tokens=tokens,
            prompt_commitment=prompt_commitment(sale.request.salt, sale.input_ids),
            output_commitment=self._chain.value(),
            finish=self._finish_reason(),
            cost=sale.cost(tokens),
            unit=sale.stand.ware.price.unit,
            started_ms=self._started_ms,
            finished_ms=self._book.now_ms(),
        )
        receipt = sign(record, self._book.identity)
        await self._book.post(
            AccountChanged(self.key, Earned(sale.order.digest, record.cost)),
            AccountChanged(self.key, Released(sale.order.digest)),
            records=(*with_it, kept(receipt, sale.order.digest)),
        )
        return receipt

    def _finish_reason(self) -> Finish:
        if self._scored or self._stopped() or self._last in self.sale.stand.ware.tokenizer.eog:
            return "stop"
        if self._at_end():
            return "length"
        return "unpaid" if self._unpaid else "cancelled"

    def _at_end(self) -> bool:
        """Whether nothing more is to come of an answer."""
        ended = self._stopped() or self._last in self.sale.stand.ware.tokenizer.eog
        return ended or (not self.sale.scores and self._chain.tokens == self.sale.most_tokens)

    async def close(self) -> None:
        """Settle what is not settled: a buyer that hung up owes the input and what was sent."""
        if not self._failed:
            await self._finish()
            return
        # The last checkpoint has been earned already, and a cut answer brings no more.
        await self._book.post(AccountChanged(self.key, Released(self.sale.order.digest)))


async def _any_of(events: Sequence[asyncio.Event], until: float) -> None:
    """Return when one of them is set, or at a time of the event loop's clock."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        left = max(until - asyncio.get_running_loop().time(), 0)
        await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()


def _asked_too_much(error: Exception) -> bool:
    """Whether an order failed by its grammar: what was done for it is owed, or such orders were a way to free work."""
    return isinstance(error.__cause__, GrammarGaveUp)


async def _with_signs_of_life(pieces: AsyncGenerator[T, None], sale: Sale) -> AsyncGenerator[T | None, None]:
    """The pieces as they come, None when none came for a while or the sale is handed back; ends when cancelled."""
    cancelled = sale.cancelled
    stop, told = (asyncio.ensure_future(event.wait()) for event in (cancelled, sale.handed_back))
    following: asyncio.Future[T | None] | None = None
    try:
        while not cancelled.is_set():
            following = following or asyncio.ensure_future(anext(pieces, None))
            awaited: set[asyncio.Future[Any]] = {following, stop} if told.done() else {following, stop, told}
            await asyncio.wait(awaited, timeout=SIGN_OF_LIFE_S, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                yield None
                continue
            piece, following = following.result(), None
            if piece is None:
                return
            yield piece
    finally:
        stop.cancel()
        told.cancel()
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await following
