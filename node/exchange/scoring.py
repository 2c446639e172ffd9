"""Score orders: a seller says what its weights think of a claimed answer, and the buyer reads it.

Theory of operation. The sealed request of such an order holds the prompt, the ids that somebody else answered, and
the steering; sampling, seed and start are the original's. The seller computes the steered logits of each claimed
place in one pass and answers with one signed Score and a Receipt: input alone is paid, for the prompt and the claimed
ids. The price is the same whatever the Score says.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

import numpy as np

from ledger import codec
from ledger.commitments import AnswerCommitment
from ledger.identity import Identity
from ledger.records import Order, Receipt, Score, Signed, open_record, sign
from node.engine.port import Engine, EngineFailed
from node.exchange.delivery import BrokenPromise, Delivery, Terms, misfit, opened_receipt
from node.exchange.recomputing import recomputed
from node.models.tokenizer import Tokenizer
from node.wire.frames import AnswerReader, CancelFrame, Frame, Ids, ReceiptFrame, ScoreFrame
from node.wire.messages import Request, Unreachable
from node.wire.peer import Peer
from verify.cutoffs import BadLogits
from verify.replay import OutsideVocabulary
from verify.scores import BadScore, Opinion, join, opinion_of, pack, unpack

# How long a Score may take in all: those who only seem to be at it leave an audit time for others.
SCORE_S: Final = 200.0


# The seller's side


async def opinions(
    engine: Engine, tokenizer: Tokenizer, order: Order, request: Request
) -> AsyncGenerator[Opinion, None]:
    """Score what a score order claims, block by block. Raises EngineError."""
    done = 0
    blocks = recomputed(engine, tokenizer, request.prompt, request.claimed, request.steering, order.start)
    async with contextlib.aclosing(blocks):
        async for rows in blocks:
            claimed = np.asarray(request.claimed[done : done + len(rows)], np.int64)
            first = len(request.prompt) + done
            try:
                # Off the loop: at a large vocabulary a block takes a while.
                yield await asyncio.to_thread(opinion_of, rows, claimed, order.sampling, order.seed, first)
            except (BadLogits, OutsideVocabulary) as error:
                raise EngineFailed(str(error)) from None
            done += len(rows)


def signed_score(order: Signed[Order], offered: Engine, found: list[Opinion], identity: Identity) -> Signed[Score]:
    """The Score of an order from its opinions, block by block."""
    whole = join(found)
    best, values, margins = pack(whole)
    score = Score(
        order=order.digest,
        model=offered.manifest.digest,
        engine=offered.fingerprint,
        tokens=whole.tokens,
        best=best,
        values=values,
        margins=margins,
    )
    return sign(score, identity)


# The buyer's side


def check_score(raw: bytes, terms: Terms) -> Signed[Score]:
    """A Score as it came, against its order. Raises BrokenPromise."""
    try:
        signed = open_record(raw, Score)
        unpack(signed.record, terms.request.claimed)
    except codec.Malformed as error:
        raise BrokenPromise(f"the score is not valid: {error}") from None
    except BadScore as error:
        raise BrokenPromise(str(error)) from None
    said, offer = signed.record, terms.offer.record
    if (signed.signer, said.order) != (terms.seller, terms.order.digest):
        raise BrokenPromise("the score is somebody else's, or of another order")
    if (said.model, said.engine) != (offer.model, offer.engine):
        raise BrokenPromise("the score is by another model or engine than was offered")
    return signed


class ScoreReceiving:
    """The reading of one score order's answer."""

    def __init__(self, terms: Terms, reader: AnswerReader, limit_s: float = SCORE_S) -> None:
        self._terms = terms
        self._reader = reader
        self._limit_s = limit_s
        self._started = asyncio.get_running_loop().time()
        self._broken: str | None = None
        self._score: Signed[Score] | None = None
        self.receipt: Signed[Receipt] | None = None

    @property
    def nothing(self) -> bool:
        """Whether nothing came that is worth anything."""
        return self._score is None

    async def run(self, peer: Peer, sealed: bytes, _identity: Identity) -> None:
        """Read to the end. Raises Refused, Unreachable, StreamError, BrokenPromise."""
        try:
            async with (
                asyncio.timeout(self._limit_s),
                contextlib.aclosing(peer.order(self._terms.order.raw, sealed)) as stream,
            ):
                async for chunk in stream:
                    for frame in self._reader.feed(chunk):
                        self._take(frame)
        except TimeoutError:
            raise Unreachable(f"no score came within {self._limit_s:.0f} seconds") from None
        except BrokenPromise as error:
            self._broken = str(error)
            raise
        self._reader.close()

    def _take(self, frame: Frame) -> None:
        match frame:
            case Ids(()):
                pass  # a sign of life
            case ScoreFrame(raw) if self._score is None:
                self._score = check_score(raw, self._terms)
            case ReceiptFrame(raw):
                self.receipt = opened_receipt(raw)
            case CancelFrame():
                raise BrokenPromise("the seller stopped before the score was done")
            case _:
                raise BrokenPromise("the answer to a score order is one score and a receipt")

    def delivery(self, trouble: str | None) -> Delivery:
        """What came of it: without a Score that fits, nothing is owed."""
        receipt, terms = self.receipt, self._terms
        if receipt is not None and (receipt.signer, receipt.record.order) == (terms.seller, terms.order.digest):
            objection = self._broken or self._objection(receipt)
        else:
            receipt, objection = None, trouble or "the receipt is somebody else's"
        full = terms.full_cost(0)
        scored = self._score is not None and self._broken is None and receipt is not None
        return Delivery(
            terms=terms,
            ids=(),
            receipt=receipt,
            checkpoint=None,
            owed=min(receipt.record.cost, full) if scored and receipt is not None else 0,
            objection=objection,
            cancelled=False,
            complete=objection is None,
            total_ms=round(1000 * (asyncio.get_running_loop().time() - self._started)),
            score=self._score if self._broken is None else None,
        )

    def _objection(self, receipt: Signed[Receipt]) -> str | None:
        if self._score is None:
            return "the receipt came without a score"
        none = AnswerCommitment(self._terms.request.salt, self._terms.order.digest).value()
        if receipt.record.finish != "stop":
            return f"a whole score does not end by {receipt.record.finish!r}"
        return misfit(self._terms, receipt, 0, none)
