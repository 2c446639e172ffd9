"""The buyer: places an order with one seller, checks everything that comes back, and hands it on to be settled.

Theory of operation. A purchase runs as a task of its own, apart from whoever reads its tokens: when the reader goes
away, the order is cancelled at the seller, the last frames are still drained, and what is owed is settled as agreed.
The order's highest cost is reserved on disk before the order leaves. What comes back is on disk before the settler may
judge it and let the rest of the reservation go. Of a long answer the checkpoints are paid on the way, in the
background: no reader waits for that.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ledger import codec
from ledger.account import AccountError, AccountKey
from ledger.changes import Admitted, Granted, Released
from ledger.commitments import CHECKPOINT_TOKENS, SALT_BYTES
from ledger.database import LedgerError
from ledger.events import AccountChanged, Books, Observed
from ledger.identity import Did
from ledger.journal import Material
from ledger.money import cost
from ledger.records import (
    NONCE_BYTES,
    ORDER_LIFETIME_S,
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
from node.exchange.allowance import AboveAllowance, Allowance
from node.exchange.book import Book, kept
from node.exchange.delivery import BrokenPromise, Delivery, Terms
from node.exchange.purchase import Ask, NotPlaced, Paying, Purchase
from node.exchange.rails import CREDIT
from node.exchange.receiving import DRAIN_S, Patience, Receiving
from node.exchange.recomputing import follow
from node.exchange.scoring import ScoreReceiving
from node.market.candidates import choose_way
from node.models.grammar import BadGrammar, ForbiddenToken, GrammarGaveUp, Matcher
from node.models.tokenizer import Tokenizer
from node.ports import Entropy
from node.wire.client import UNPAID_S
from node.wire.frames import AnswerReader, StreamError
from node.wire.messages import Refused, Request, Unreachable, encode_request
from node.wire.peer import Peer
from node.wire.sealing import KEY_BYTES, CannotOpen, KeyPair, RequestBinding, buyers_answer_key, seal_request

# How long a seller may go on without a single token, signs of life or not.
PATIENCE_S: Final = 60.0
# How long a seller whose line broke is asked for a receipt: the client waits for the answer to go on elsewhere.
_ASK_AGAIN_S: Final = 3.0

_log = logging.getLogger(__name__)


class Buyer:
    """Places orders. `settle` takes each Delivery once it is on disk; it decides on audit and payment."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        settle: Callable[[Delivery], Awaitable[None]],
        patience_s: float = PATIENCE_S,
        paying: Paying | None = None,
        unpaid_s: float = UNPAID_S,
        allowance: Allowance | None = None,
    ) -> None:
        """`paying` pays for long answers as they go; without it they are paid when they are over.

        `allowance` bounds a day's orders, however many are placed at a time; without it nothing does.

        `unpaid_s`: how long a seller has to wait for pay before it may end an answer as unpaid.
        """
        self._paying = paying
        self._allowance = allowance
        self._unpaid_s = unpaid_s
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

    def pays_on_the_way(self, seller: Did) -> bool:
        """Whether a long answer of this seller is paid as it goes, so that its window need not bear all of it."""
        return self._paying is not None and self._paying.pays_on_the_way(seller)

    async def take_grant(self, seller: Did, grant: Grant) -> None:
        """A seller says how much credit it gives this node; what was known before is no news."""
        account = self._book.debt_to(seller, grant.unit, grant.rail)
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
            receiving: Receiving | ScoreReceiving
            if ask.claimed:
                receiving = ScoreReceiving(terms, AnswerReader(answer_key))
            else:
                reader = AnswerReader(answer_key)
                patience = Patience(self._patience_s, self._unpaid_s)
                receiving = Receiving(terms, reader, tokenizer, matcher, purchase, patience, self._paying)
            self._book.under_way.add(terms.order.digest)
            try:
                delivery = await self._deliver(receiving, peer, terms, sealed)
            finally:
                self._book.under_way.discard(terms.order.digest)
        except NotPlaced as error:
            purchase.failed(error)
            return
        except LedgerError:
            purchase.failed(NotPlaced("this node's ledger cannot be used now: `idlemesh status` says why"))
            raise
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
        most = _cost(offer.record, ask, ask.max_tokens)
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
            max_cost=most,
            privacy=ask.privacy,
            hops=0,
            rail=self._rail(offer, ask, most),
            trace=open_record(ask.earlier.order, Order).record.trace if ask.earlier is not None else draw(16),
            issued=now,
            expires=now + ORDER_LIFETIME_S,
            part_of=digest_of(ask.earlier.order) if ask.earlier is not None else None,
        )
        signed = sign(order, self._book.identity)
        answer_key = buyers_answer_key(ephemeral, offer.record.prekey, signed.digest)
        return Terms(signed, offer, request), sealed, answer_key

    def _rail(self, offer: Signed[Offer], ask: Ask, most: int) -> str:
        """How an order is paid. Raises NotPlaced where its seller takes nothing that this node has."""
        said = offer.record
        first = _cost(said, ask, min(ask.max_tokens, CHECKPOINT_TOKENS)) if self.pays_on_the_way(offer.signer) else most
        way = choose_way(self._book.ways_to_pay(offer.signer, said.rails, said.price.unit), most, first)
        if way is None:
            raise NotPlaced(f"it is paid by {' or '.join(said.rails)}, and this node has no money there", "rail")
        return way.rail

    async def _reserve(self, terms: Terms) -> None:
        order = terms.order
        most = order.record.max_cost
        first = terms.first_cost if self.pays_on_the_way(terms.seller) else most
        reserved = Admitted(order.digest, most, first, order.record.expires)
        account = self._account(terms)

        def check(books: Books) -> None:
            if self._allowance is not None:
                spent = self._book.spent_today(books).get(account.unit, 0)
                self._allowance.check(spent + most, account.unit)

        try:
            await self._book.post(
                AccountChanged(account, reserved),
                records=(kept(terms.offer), kept(order, order.digest)),
                materials=(self._material(terms, ()),),
                check=check,
            )
        except AboveAllowance as error:
            raise NotPlaced(str(error), "credit") from None
        except AccountError as error:
            what = "credit" if order.record.rail == CREDIT else "channel"
            raise NotPlaced(f"its {what} does not bear the order: {error}", "credit") from None

    async def _deliver(
        self, receiving: "Receiving | ScoreReceiving", peer: Peer, terms: Terms, sealed: bytes
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
        return terms.account(self._book.me)

    def _material(self, terms: Terms, ids: tuple[int, ...]) -> Material:
        return self._book.sealed_material(terms.order.digest, terms.request, ids)


def _cost(offer: Offer, ask: Ask, tokens: int) -> int:
    """What an order costs with so many output tokens; one to score has none."""
    return cost(offer.price, len(ask.prompt) + len(ask.claimed), 0 if ask.claimed else tokens)


async def _matcher(ask: Ask, tokenizer: Tokenizer) -> Matcher | None:
    """What follows the grammar of an answer, if it has one. Raises NotPlaced."""
    if not ask.steering.grammar or ask.claimed:
        return None
    earlier = ask.prompt[len(ask.prompt) - ask.start :]
    try:
        return await asyncio.to_thread(follow, tokenizer, ask.steering.grammar, earlier)
    except (BadGrammar, ForbiddenToken, GrammarGaveUp) as error:
        raise NotPlaced(str(error), "malformed") from None
