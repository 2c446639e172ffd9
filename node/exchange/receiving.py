"""The reading of one answer: every frame is checked as it comes, and in the end what came of it all."""

import asyncio
import contextlib
from typing import Final

from attrs import frozen

from ledger.commitments import CHECKPOINT_TOKENS
from ledger.identity import Identity
from ledger.records import Cancel, Receipt, Signed, sign
from node.exchange.delivery import BrokenPromise, Delivery, Incoming, Terms, opened_receipt
from node.exchange.purchase import Paying, Purchase
from node.models.grammar import ForbiddenToken, GrammarGaveUp, Matcher
from node.models.tokenizer import Tokenizer
from node.wire.frames import AnswerReader, CancelFrame, CheckpointFrame, Frame, Ids, ReceiptFrame, ScoreFrame
from node.wire.messages import Refused, Unreachable
from node.wire.peer import Peer

# How long a cancelled order may take to end properly before the line is cut.
DRAIN_S: Final = 5.0
# So many tokens may still come after a Cancel and are paid: it takes its time to get there.
STOPPING_TOKENS: Final = 4 * CHECKPOINT_TOKENS
# How long an answer may take in all, however it drips.
ANSWER_S: Final = 3600.0
# How soon a seller that does not know the order yet is asked again to cancel it.
_CANCEL_AGAIN_S: Final = 0.1
# How long the end of the stream may take after its last frame.
_END_S: Final = 1.0


@frozen
class Patience:
    """Seconds: how long a seller may go on without a token, and how long it has to wait for pay."""

    token_s: float
    unpaid_s: float


class Receiving:
    """The reading of one answer."""

    def __init__(
        self,
        terms: Terms,
        reader: AnswerReader,
        tokenizer: Tokenizer,
        matcher: Matcher | None,
        purchase: Purchase,
        patience: Patience,
        paying: Paying | None,
    ) -> None:
        """`matcher` follows the order's grammar, if it has one."""
        self._paying = paying
        self._unpaid_s = patience.unpaid_s
        self._checkpoint_at = 0.0  # when the last one came
        self._kept_waiting = False  # whether the seller had to wait too long for what follows it
        self._terms = terms
        self._matcher = matcher
        self._reader = reader
        self._text = tokenizer.stream(terms.request.stop, terms.so_far)  # a stop string may begin in the part before
        self._purchase = purchase
        self._patience_s = patience.token_s
        self._started = self._first = asyncio.get_running_loop().time()
        self._cancelled_at: int | None = None  # how many tokens had come when the reader asked to stop
        self._broken: str | None = None  # a promise that was broken, whatever a receipt says later
        self.incoming: Final = Incoming(terms, tokenizer.eog, tokenizer.size)
        self.receipt: Signed[Receipt] | None = None

    @property
    def nothing(self) -> bool:
        """Whether nothing came that is worth anything."""
        return not self.incoming.ids

    async def run(self, peer: Peer, sealed: bytes, identity: Identity) -> None:
        """Read to the end. Raises Refused, Unreachable, StreamError, BrokenPromise."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._patience_s) as deadline:
                watcher = asyncio.create_task(self._cancel_when_asked(peer, identity, deadline))
                try:
                    async with contextlib.aclosing(peer.order(self._terms.order.raw, sealed)) as stream:
                        async for chunk in stream:
                            before = len(self.incoming.ids)
                            for frame in self._reader.feed(chunk):
                                self._take(frame)
                            if len(self.incoming.ids) > before and not self._purchase.cancelled:
                                deadline.reschedule(min(loop.time() + self._patience_s, self._started + ANSWER_S))
                            if self._reader.finished:
                                # Only the end of the HTTP body is still to come; with it, the connection can be reused.
                                deadline.reschedule(loop.time() + _END_S)
                finally:
                    watcher.cancel()
        except TimeoutError:
            if self._reader.finished:
                return
            raise Unreachable(f"no token came for {self._patience_s:.0f} seconds") from None
        except BrokenPromise as error:
            self._broken = str(error)
            raise
        self._reader.close()

    async def _cancel_when_asked(self, peer: Peer, identity: Identity, deadline: asyncio.Timeout) -> None:
        await self._purchase.wait_cancelled()
        self._cancelled_at = len(self.incoming.ids)
        cancel = sign(Cancel(self._terms.order.digest, self._cancelled_at), identity).raw
        deadline.reschedule(asyncio.get_running_loop().time() + DRAIN_S)
        while True:
            try:
                await peer.cancel(cancel)
            except (Refused, Unreachable):
                # The order may still be on its way there. Whoever waits for the stream's end ends this, too.
                await asyncio.sleep(_CANCEL_AGAIN_S)
            else:
                return

    def _take(self, frame: Frame) -> None:
        match frame:
            case Ids(ids) if ids:
                self._kept_waiting = False
                if not self.incoming.ids:
                    self._first = asyncio.get_running_loop().time()
                before = self._due
                self._follow(ids)
                self.incoming.take(ids)
                self._text.feed(ids)
                if due := ids[: self._due - before]:
                    self._purchase.arrived(due)
                if due != ids:
                    raise BrokenPromise("the seller goes on after a complete stop string")
            case Ids():  # a sign of life
                if self.incoming.at_checkpoint:
                    self._kept_waiting = self._was_unpaid()
                    self._pay(awaited=True)
            case CheckpointFrame(raw):
                self.incoming.check(raw)
                self._checkpoint_at = asyncio.get_running_loop().time()
                self._pay(awaited=False)
            case ReceiptFrame(raw):
                self.receipt = opened_receipt(raw)
            case CancelFrame():
                raise BrokenPromise("the seller stopped before the end of the answer")
            case ScoreFrame():
                raise BrokenPromise("the seller sends a score, where an answer was ordered")

    def _pay(self, awaited: bool) -> None:
        """See that what came up to the last checkpoint is paid, unless the whole answer soon is."""
        checkpoint, ended = self.incoming.checkpoint, self.incoming.complete(self._text.stopped_at is not None)
        if self._paying is not None and checkpoint is not None and not ended and not self._purchase.cancelled:
            self._paying.pay(self._terms, checkpoint, awaited)

    def _was_unpaid(self) -> bool:
        """Whether the seller has waited for pay at the last checkpoint, and long enough, even if it has come since."""
        if self._kept_waiting:
            return True
        waited_s = asyncio.get_running_loop().time() - self._checkpoint_at
        paid_up = self._paying is not None and self._paying.paid_up(self._terms, len(self.incoming.ids))
        return waited_s >= self._unpaid_s and not paid_up

    def _follow(self, ids: tuple[int, ...]) -> None:
        """Check the next ids against the grammar, for behind a forbidden one nobody else could go on.

        Raises BrokenPromise.
        """
        matcher = self._matcher
        if matcher is None:
            return
        try:
            for token in ids:
                matcher.take(token)
        except ForbiddenToken:
            raise BrokenPromise("the seller sends what the order's grammar does not allow") from None
        except GrammarGaveUp:
            self._matcher = None  # from here on nobody can tell

    @property
    def _due(self) -> int:
        """How many tokens count: those after a complete stop string do not."""
        stopped_at = self._text.stopped_at
        return len(self.incoming.ids) if stopped_at is None else stopped_at

    def _overrun(self) -> str | None:
        """Why an order that was cancelled brought too much; a few tokens may be on their way when it is."""
        if self._due <= self._welcome():
            return None
        return "the seller went on after it was told to stop"

    def _welcome(self) -> int:
        """How many tokens are to be paid for at most."""
        if self._cancelled_at is None:
            return self._due
        return min(self._due, self._cancelled_at + STOPPING_TOKENS)

    def _undisputed(self, receipt: Signed[Receipt], stopped: bool) -> int:
        """What is owed in any case: a seller that ended too early on its own owes itself no more than a cut."""
        if self._cancelled_at is None and not self.incoming.complete(stopped):
            return min(receipt.record.cost, self.incoming.owed_if_cut())
        return self.incoming.undisputed(receipt, self._welcome())

    def delivery(self, trouble: str | None) -> Delivery:
        """What came of it all."""
        receipt, incoming, stopped = self.receipt, self.incoming, self._text.stopped_at is not None
        if (
            receipt is not None
            and receipt.signer == self._terms.seller
            and receipt.record.order == self._terms.order.digest
        ):
            cancelled, unpaid = self._purchase.cancelled, receipt.record.finish == "unpaid" and self._was_unpaid()
            objection = self._broken or incoming.objection(receipt, cancelled, stopped, unpaid)
            objection = objection or self._overrun()
            owed = self._undisputed(receipt, stopped) if objection else receipt.record.cost
        else:
            receipt, objection, owed = None, trouble or "the receipt is somebody else's", incoming.owed_if_cut()
        return Delivery(
            terms=self._terms,
            ids=tuple(incoming.ids[: self._due]),
            receipt=receipt,
            checkpoint=incoming.checkpoint,
            owed=owed,
            objection=objection,
            cancelled=self._purchase.cancelled,
            complete=incoming.complete(stopped),
            first_token_ms=round(1000 * (self._first - self._started)),
            total_ms=round(1000 * (asyncio.get_running_loop().time() - self._started)),
        )
