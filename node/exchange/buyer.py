"""The buyer: places an order with one seller, checks everything that comes back, and hands it on to be settled.

Theory of operation. A purchase runs as a task of its own, apart from whoever reads its tokens: when the reader goes
away, the order is cancelled at the seller, the last frames are still drained, and what is owed is settled as agreed.
The order's highest cost is reserved on disk before the order leaves. What comes back is on disk before the settler may
judge it and let the rest of the reservation go.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ledger import codec
from ledger.account import AccountError, AccountKey
from ledger.changes import Granted, Released, Reserved
from ledger.commitments import CHECKPOINT_TOKENS, SALT_BYTES
from ledger.events import AccountChanged, Observed
from ledger.identity import Did, Identity
from ledger.journal import Material
from ledger.money import cost
from ledger.records import (
    NONCE_BYTES,
    ORDER_LIFETIME_S,
    Cancel,
    Grant,
    Offer,
    Order,
    Receipt,
    Signed,
    digest_of,
    open_record,
    sign,
)
from node.exchange import experience
from node.exchange.book import RAIL, Book, kept
from node.exchange.delivery import BrokenPromise, Delivery, Incoming, Terms, opened_receipt
from node.exchange.purchase import Ask, NotPlaced, Purchase
from node.exchange.recomputing import follow
from node.exchange.scoring import ScoreReceiving
from node.models.grammar import BadGrammar, ForbiddenToken, GrammarGaveUp, Matcher
from node.models.tokenizer import Tokenizer
from node.ports import Entropy
from node.wire.frames import (
    AnswerReader,
    CancelFrame,
    CheckpointFrame,
    Frame,
    Ids,
    ReceiptFrame,
    ScoreFrame,
    StreamError,
)
from node.wire.messages import Refused, Request, Unreachable, encode_request
from node.wire.peer import Peer
from node.wire.sealing import KEY_BYTES, CannotOpen, KeyPair, RequestBinding, buyers_answer_key, seal_request

# How long a cancelled order may take to end properly before the line is cut.
DRAIN_S: Final = 5.0
# So many tokens may still come after a Cancel and are paid: it takes its time to get there.
STOPPING_TOKENS: Final = 4 * CHECKPOINT_TOKENS
# How long a seller may go on without a single token, signs of life or not.
PATIENCE_S: Final = 60.0
# How long an answer may take in all, however it drips.
ANSWER_S: Final = 3600.0
# How soon a seller that does not know the order yet is asked again to cancel it.
_CANCEL_AGAIN_S: Final = 0.1
# How long a seller whose line broke is asked for a receipt: the client waits for the answer to go on elsewhere.
_ASK_AGAIN_S: Final = 3.0
# How long the end of the stream may take after its last frame.
_END_S: Final = 1.0

_log = logging.getLogger(__name__)


class Buyer:
    """Places orders. `settle` takes each Delivery once it is on disk; it decides on audit and payment."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        settle: Callable[[Delivery], Awaitable[None]],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._book = book
        self._entropy = entropy
        self._settle = settle
        self._patience_s = patience_s
        self._running: set[asyncio.Task[None]] = set()

    def buy(self, peer: Peer, offer: Signed[Offer], ask: Ask, tokenizer: Tokenizer) -> Purchase:
        """Start an order with one seller."""
        purchase = Purchase()
        task = asyncio.create_task(self._run(purchase, peer, offer, ask, tokenizer))
        self._running.add(task)
        task.add_done_callback(self._done)
        return purchase

    async def take_grant(self, seller: Did, grant: Grant) -> None:
        """A seller says how much credit it gives this node; what was known before is no news."""
        account = self._book.debt_to(seller, grant.unit)
        new = (grant.credit, grant.window) != (account.limit, account.window)
        if new and grant.sequence > account.grant_sequence:
            granted = Granted(grant.credit, grant.window, grant.sequence)
            await self._book.post(AccountChanged(account.key, granted))

    async def close(self) -> None:
        """Let running purchases end, within bounds; what they leave open is picked up at the next start."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=2 * DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, purchase: Purchase, peer: Peer, offer: Signed[Offer], ask: Ask, tokenizer: Tokenizer) -> None:
        try:
            matcher = await _matcher(ask, tokenizer)
            terms, sealed, answer_key = self._prepare(offer, ask)
            await self._reserve(terms)
            receiving: _Receiving | ScoreReceiving
            if ask.claimed:
                receiving = ScoreReceiving(terms, AnswerReader(answer_key))
            else:
                receiving = _Receiving(terms, AnswerReader(answer_key), tokenizer, matcher, purchase, self._patience_s)
            self._book.under_way.add(terms.order.digest)
            try:
                delivery = await self._deliver(receiving, peer, terms, sealed)
            finally:
                self._book.under_way.discard(terms.order.digest)
        except NotPlaced as error:
            purchase.failed(error)
            return
        except BaseException as error:
            purchase.failed(NotPlaced(f"the purchase failed here: {type(error).__name__}"))
            raise
        purchase.delivered(delivery)
        await self._settle(delivery)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a purchase failed here; a restart goes on with it", exc_info=task.exception())

    def _prepare(self, offer: Signed[Offer], ask: Ask) -> tuple[Terms, bytes, bytes]:
        """The signed order, its sealed request, and the key of the answer."""
        now, draw = self._book.now(), self._entropy.bytes
        request = Request(draw(SALT_BYTES), ask.prompt, ask.stop, ask.steering, ask.earlier, ask.claimed)
        nonce, ephemeral = draw(NONCE_BYTES), KeyPair.from_seed(draw(KEY_BYTES))
        try:
            binding = RequestBinding(offer.digest, nonce, self._book.me)
            sealed = seal_request(encode_request(request), offer.record.prekey, ephemeral, binding)
        except CannotOpen:
            raise NotPlaced("the offer's prekey is no usable key", "malformed") from None
        order = Order(
            work="score" if ask.claimed else "generate",
            seller=offer.signer,
            offer=offer.digest,
            nonce=nonce,
            request=digest_of(sealed),
            sampling=ask.sampling,
            seed=ask.seed,
            start=ask.start,
            max_tokens=ask.max_tokens,
            max_cost=cost(offer.record.price, len(ask.prompt) + len(ask.claimed), 0 if ask.claimed else ask.max_tokens),
            privacy=ask.privacy,
            hops=0,
            rail=RAIL,
            trace=open_record(ask.earlier.order, Order).record.trace if ask.earlier is not None else draw(16),
            issued=now,
            expires=now + ORDER_LIFETIME_S,
            part_of=digest_of(ask.earlier.order) if ask.earlier is not None else None,
        )
        signed = sign(order, self._book.identity)
        answer_key = buyers_answer_key(ephemeral, offer.record.prekey, signed.digest)
        return Terms(signed, offer, request), sealed, answer_key

    async def _reserve(self, terms: Terms) -> None:
        order = terms.order
        reserved = Reserved(order.digest, order.record.max_cost, order.record.expires)
        try:
            await self._book.post(
                AccountChanged(self._account(terms), reserved),
                records=(kept(terms.offer), kept(order, order.digest)),
                materials=(self._material(terms, ()),),
            )
        except AccountError as error:
            raise NotPlaced(f"its credit does not bear the order: {error}", "credit") from None

    async def _deliver(
        self, receiving: "_Receiving | ScoreReceiving", peer: Peer, terms: Terms, sealed: bytes
    ) -> Delivery:
        trouble = None
        try:
            await receiving.run(peer, sealed, self._book.identity)
        except Refused as refusal:
            await self._give_up(terms, experience.refused(terms.seller, refusal.code))
            raise NotPlaced(f"refused the order: {refusal.message}", refusal.code) from None
        except (Unreachable, StreamError, BrokenPromise) as error:
            trouble = str(error)
        if receiving.receipt is None:
            receiving.receipt = await self._ask_for_receipt(peer, terms)
        if receiving.receipt is None and receiving.nothing:
            trouble = trouble or "the seller stopped before the first token"
            await self._give_up(terms, experience.failed(terms.seller, trouble))
            raise NotPlaced(trouble, "unreachable")
        delivery = receiving.delivery(trouble)
        await self._record(delivery)
        return delivery

    async def _ask_for_receipt(self, peer: Peer, terms: Terms) -> Signed[Receipt] | None:
        """The receipt of an answer that broke off: the seller may have made one that did not get through."""
        with contextlib.suppress(Refused, Unreachable, codec.Malformed, TimeoutError):
            async with asyncio.timeout(_ASK_AGAIN_S):
                raw = await peer.receipt(terms.order.digest)
            if raw is not None:
                return open_record(raw, Receipt)
        return None

    async def _give_up(self, terms: Terms, observed: Observed) -> None:
        await self._book.post(AccountChanged(self._account(terms), Released(terms.order.digest)), observed)

    async def _record(self, delivery: Delivery) -> None:
        terms, order = delivery.terms, delivery.terms.order.digest
        signed = (delivery.checkpoint, delivery.score, delivery.receipt)
        records = [kept(record, order) for record in signed if record is not None]
        due = experience.due(terms.seller, order, delivery.owed, delivery.objection)
        await self._book.post(
            delivery.observed(), due, records=records, materials=(self._material(terms, delivery.ids),)
        )

    def _account(self, terms: Terms) -> AccountKey:
        return self._book.debt_to(terms.seller, terms.offer.record.price.unit).key

    def _material(self, terms: Terms, ids: tuple[int, ...]) -> Material:
        return self._book.sealed_material(terms.order.digest, terms.request, ids)


async def _matcher(ask: Ask, tokenizer: Tokenizer) -> Matcher | None:
    """What follows the grammar of an answer, if it has one. Raises NotPlaced."""
    if not ask.steering.grammar or ask.claimed:
        return None
    earlier = ask.prompt[len(ask.prompt) - ask.start :]
    try:
        return await asyncio.to_thread(follow, tokenizer, ask.steering.grammar, earlier)
    except (BadGrammar, ForbiddenToken, GrammarGaveUp) as error:
        raise NotPlaced(str(error), "malformed") from None


class _Receiving:
    """The reading of one answer."""

    def __init__(
        self,
        terms: Terms,
        reader: AnswerReader,
        tokenizer: Tokenizer,
        matcher: Matcher | None,
        purchase: Purchase,
        patience_s: float,
    ) -> None:
        """`matcher` follows the order's grammar, if it has one."""
        self._terms = terms
        self._matcher = matcher
        self._reader = reader
        self._text = tokenizer.stream(terms.request.stop, terms.so_far)  # a stop string may begin in the part before
        self._purchase = purchase
        self._patience_s = patience_s
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
            case Ids():
                pass  # a sign of life
            case CheckpointFrame(raw):
                self.incoming.check(raw)
            case ReceiptFrame(raw):
                self.receipt = opened_receipt(raw)
            case CancelFrame():
                raise BrokenPromise("the seller stopped before the end of the answer")
            case ScoreFrame():
                raise BrokenPromise("the seller sends a score, where an answer was ordered")

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
            objection = self._broken or incoming.objection(receipt, self._purchase.cancelled, stopped)
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
