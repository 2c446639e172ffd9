"""The seller: makes offers, admits orders, delivers sealed answers, and keeps the account of who owes what.

Theory of operation. It implements `wire.peer.Peer`, so HTTP and a direct call reach it alike. An order is admitted in
one durable entry (nonce, order, reservation of its highest cost), or refused with a typed reason. From then on it is a
`_Sale`: ids go out as the engine gives them, a Checkpoint after every 64th, and the Receipt is on disk before it is
sent. A buyer that cancels or hangs up stops the engine at once; it owes the input and what was sent. Prekeys live in
memory only, and go soon after their offer.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from attrs import field, frozen

from ledger import codec
from ledger.account import AboveWindow, Account, AccountError
from ledger.changes import Earned, Granted, Released, Reserved, VoucherReceived
from ledger.commitments import CHECKPOINT_TOKENS, AnswerCommitment, prompt_commitment
from ledger.events import AccountChanged, Event
from ledger.exposure import AboveExposure, check_exposure
from ledger.identity import Did, NotADid, parse_did
from ledger.journal import Kept, Nonce, NonceReused
from ledger.money import Amount, Price, Unit, cost
from ledger.rails.credit import check_voucher
from ledger.rails.port import TotalTooLow, VoucherRefused
from ledger.records import (
    CLOCK_SKEW_S,
    Acknowledgement,
    Cancel,
    Checkpoint,
    Expired,
    Finish,
    Grant,
    Offer,
    Order,
    Privacy,
    Receipt,
    Score,
    Signed,
    Voucher,
    check_time,
    digest_of,
    open_record,
    sign,
)
from node.engine.port import Engine, EngineError, Job
from node.exchange import experience
from node.exchange.book import RAIL, Book, kept
from node.exchange.continuing import ForgedPart, check_part
from node.exchange.recomputing import follow
from node.exchange.scoring import opinions, signed_score
from node.market.privacy import within
from node.models.grammar import BadGrammar, ForbiddenToken, GrammarGaveUp
from node.models.tokenizer import Tokenizer
from node.ports import Entropy
from node.wire.client import SIGN_OF_LIFE_S
from node.wire.frames import AnswerWriter, CancelFrame, CheckpointFrame, Ids, ReceiptFrame, ScoreFrame
from node.wire.messages import MAX_SEALED, Refused, Request, decode_request
from node.wire.sealing import KEY_BYTES, CannotOpen, KeyPair, RequestBinding, open_request, sellers_answer_key
from verify.sampler import SAMPLER
from verify.scores import Opinion

T = TypeVar("T")

# Short enough that a stolen prekey opens little, long enough that buyers need not ask all the time.
OFFER_LIFETIME_S: Final = 3600
GRANT_LIFETIME_S: Final = 24 * 3600
RETRY_AFTER_BUSY_S: Final = 2
_SLOT_WAIT_S: Final = 0.25
_SLOT_POLL_S: Final = 0.005
# Each one is kept for good, so one order must not bring any number of them.
MAX_ACKNOWLEDGEMENTS: Final = 16


@frozen
class Credit:
    """What the seller trusts a buyer with: a limit in all, and so much unpaid work at a time.

    `exposure` bounds what all buyers owe together that the owner did not name and that never settled anything, so that
    making up fresh identities wins nothing.
    """

    limit: Amount
    window: Amount
    exposure: Amount


@frozen
class Elsewhere:
    """Of a ware that another server computes: how private its prompts may be, and, where that server is somebody
    else's, the law it is under and how long it keeps prompts.
    """

    ceiling: Privacy
    jurisdiction: str | None = None
    retention: str | None = None


@frozen
class Ware:
    """A model for sale: the engine that runs it, its tokenizer, its name, its price."""

    engine: Engine
    tokenizer: Tokenizer
    name: str
    price: Price
    is_unchanged: Callable[[], bool] = lambda: True  # whether its weights are still those that the manifest names
    elsewhere: Elsewhere | None = None


@frozen
class _Stand:
    """An offer that can be ordered from, with the prekey that opens its requests."""

    offer: Signed[Offer]
    ware: Ware
    prekey: KeyPair


@frozen(eq=False)
class _Sale:
    """One admitted order."""

    order: Signed[Order]
    stand: _Stand
    request: Request = field(repr=False)
    key: bytes = field(repr=False)
    cancelled: asyncio.Event = field(factory=asyncio.Event)
    handed_back: asyncio.Event = field(factory=asyncio.Event)  # to be cut at its next checkpoint

    @property
    def buyer(self) -> Did:
        """Who ordered."""
        return self.order.signer

    @property
    def so_far(self) -> tuple[int, ...]:
        """The answer's earlier part, which the prompt of a continued order ends with."""
        return self.request.prompt[len(self.request.prompt) - self.order.record.start :]

    @property
    def scores(self) -> bool:
        """Whether a claimed answer is to be scored, and none to be generated."""
        return self.order.record.work == "score"

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What is paid at the input price: the prompt, and what a score order claims."""
        return self.request.prompt + self.request.claimed

    @property
    def most_tokens(self) -> int:
        """How many output tokens it may bring."""
        return 0 if self.scores else self.order.record.max_tokens

    def cost(self, tokens: int) -> int:
        """What it costs with so many output tokens."""
        return cost(self.stand.ware.price, len(self.input_ids), tokens)


class Seller:
    """The selling side of a node; `url` is where buyers reach it, known once the server listens."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        wares: Sequence[Ware],
        credit: Mapping[Unit, Credit],
        tokenizer_file: Callable[[bytes], bytes],
        named: Collection[str] = (),
        may_sell: Callable[[], Refused | None] = lambda: None,
        may_work_with: Callable[[Did], Refused | None] = lambda _: None,
    ) -> None:
        """`credit` by unit; a unit without one gives none. `tokenizer_file` gives a file by digest or raises.

        `named` are the buyers that the owner knows: they do not share the exposure of strangers. `may_sell` says why
        no new order may begin now, if none may; nothing is offered meanwhile. `may_work_with` says the same of one
        buyer.
        """
        self._may_sell = may_sell
        self._may_work_with = may_work_with
        self._named = frozenset(named)
        self._book = book
        self._entropy = entropy
        self._wares = {ware.engine.manifest.digest: ware for ware in wares}
        self._credit = credit
        self._tokenizer_file = tokenizer_file
        self._stands: dict[bytes, _Stand] = {}
        self._running: dict[bytes, _Sale] = {}
        self._sweeping: set[asyncio.Future[None]] = set()
        self.url = ""

    async def sweep(self) -> None:
        """Close the orders that are open and not being answered: what an earlier run left, or a failure here.

        Prekeys of offers that are over go, too.
        """
        self._drop_stale_stands()
        for key, account in self._book.journal.books.accounts.items():
            if key.payee == self._book.me:
                left = [d for d, r in account.orders.items() if r.open and d not in self._running]
                if left:
                    await self._book.post(*(AccountChanged(key, Released(order)) for order in left))

    # What a peer may ask for

    async def offers(self) -> list[bytes]:
        """The open offers; made anew when half of their life is over. None while nothing may be sold."""
        if self._may_sell() is not None:
            return []
        now = self._book.now()
        self._drop_stale_stands()
        fresh = {
            s.offer.record.model: s
            for s in self._stands.values()
            if s.offer.record.expires > now + OFFER_LIFETIME_S // 2
        }
        for model, ware in self._wares.items():
            if model not in fresh and ware.is_unchanged():
                stand = self._make_stand(ware, now)
                self._stands[stand.offer.digest] = fresh[model] = stand
        return [stand.offer.raw for stand in fresh.values() if stand.ware.is_unchanged()]

    def _drop_stale_stands(self) -> None:
        """Offers that are over go, and their prekeys with them."""
        self._stands = {digest: stand for digest, stand in self._stands.items() if not self._is_over(stand)}

    def _is_over(self, stand: _Stand) -> bool:
        return stand.offer.record.expires + CLOCK_SKEW_S < self._book.now()

    def _make_stand(self, ware: Ware, now: int) -> _Stand:
        prekey = KeyPair.from_seed(self._entropy.bytes(KEY_BYTES))
        manifest = ware.engine.manifest
        offer = Offer(
            endpoints=(self.url,) if self.url else (),
            model=manifest.digest,
            tokenizer=manifest.tokenizer,
            name=ware.name,
            architecture=manifest.architecture,
            parameters=manifest.parameters,
            quantization=manifest.quantization,
            context=ware.engine.context,
            engine=ware.engine.fingerprint,
            price=ware.price,
            rails=(RAIL,),
            slots=ware.engine.slots,
            speed=0,
            first_token_ms=0,
            prekey=prekey.public,
            sequence=self._book.now_ms(),
            issued=now,
            expires=now + OFFER_LIFETIME_S,
            jurisdiction=ware.elsewhere.jurisdiction if ware.elsewhere else None,
            retention=ware.elsewhere.retention if ware.elsewhere else None,
        )
        return _Stand(sign(offer, self._book.identity), ware, prekey)

    async def grant(self, buyer: str, unit: str) -> bytes:
        """How much credit a buyer has here. Asking changes nothing."""
        try:
            parse_did(buyer)
        except NotADid as error:
            raise Refused("malformed", str(error)) from None
        known: Unit | None = next((given for given in self._credit if given == unit), None)
        if known is None:
            raise Refused("credit", f"no credit is given here in {unit[:32]!r}")
        granted, now = self._terms(self._book.debt_of(buyer, known)), self._book.now()
        grant = Grant(
            buyer=buyer,
            rail=RAIL,
            unit=known,
            credit=granted.limit,
            window=granted.window,
            sequence=granted.sequence,
            issued=now,
            expires=now + GRANT_LIFETIME_S,
        )
        return sign(grant, self._book.identity).raw

    def _terms(self, account: Account) -> Granted:
        """The owner's terms for an account. Their sequence is the time: of two that a buyer hears, the later counts."""
        terms = self._credit[account.key.unit]
        sequence = max(self._book.now_ms(), account.grant_sequence + 1)
        return Granted(terms.limit.value, terms.window.value, sequence)

    async def manifest(self, model: bytes) -> bytes:
        """The manifest of a model that is sold here: it proves what the offer says of it."""
        ware = self._wares.get(model)
        if ware is None:
            raise Refused("unknown_offer", "this model is not sold here")
        return ware.engine.manifest.raw

    async def tokenizer(self, digest: bytes) -> bytes:
        """A tokenizer file by its digest."""
        if digest not in {ware.engine.manifest.tokenizer for ware in self._wares.values()}:
            raise Refused("unknown_offer", "no model here has this tokenizer")
        return self._tokenizer_file(digest)

    async def receipt(self, order: bytes) -> bytes | None:
        """The receipt of a finished order."""
        for record in await self._book.journal.records_of(order):
            if record.kind == Receipt.kind:
                return record.raw
        return None

    async def cancel(self, raw: bytes) -> None:
        """Stop a running order, if it is its buyer who says so."""
        try:
            signed = open_record(raw, Cancel)
        except codec.Malformed as error:
            raise Refused("malformed", str(error)) from None
        sale = self._running.get(signed.record.order)
        if sale is None or sale.buyer != signed.signer:
            raise Refused("unknown_order", "no such order of yours is running here")
        sale.cancelled.set()

    def hand_back(self) -> None:
        """Cut every running order at its next checkpoint, so that what was delivered is paid; scores at once."""
        for sale in self._running.values():
            sale.handed_back.set()

    async def acknowledge(self, raw: bytes) -> None:
        """Take a buyer's acknowledgement and the voucher in it; durable on return, and once only."""
        try:
            ack = open_record(raw, Acknowledgement)
        except codec.Malformed as error:
            raise Refused("malformed", str(error)) from None
        said = ack.record
        if await self._book.journal.record(ack.digest) is not None:
            return
        order = await self._order_of(said.order)
        if order is None or order.signer != ack.signer:
            raise Refused("unknown_order", "no such order of yours is known here")
        kept_already = await self._book.journal.records_of(said.order)
        if sum(1 for record in kept_already if record.kind == Acknowledgement.kind) >= MAX_ACKNOWLEDGEMENTS:
            raise Refused("malformed", "this order has been acknowledged often enough")
        unit = await self._unit_of(order)
        account = self._book.debt_of(ack.signer, unit)
        try:
            received = _received(open_record(said.voucher, Voucher), account)
        except (VoucherRefused, codec.Malformed) as error:
            raise Refused("malformed", str(error)) from None
        reservation = account.orders.get(said.order)
        if reservation is not None and said.amount > reservation.earned:
            raise Refused("malformed", "the acknowledgement is for more than was delivered by now")
        events: list[Event] = [AccountChanged(account.key, received)]
        if not said.accepted:
            events.append(experience.disputed(ack.signer, said.order, said.amount))
        try:
            await self._book.post(*events, records=(kept(ack, said.order),))
        except AccountError as error:
            raise Refused("malformed", f"the acknowledgement does not fit the account: {error}") from None

    async def _order_of(self, digest: bytes) -> Signed[Order] | None:
        record = await self._book.journal.record(digest)
        return open_record(record.raw, Order) if record is not None and record.kind == Order.kind else None

    async def _unit_of(self, order: Signed[Order]) -> Unit:
        record = await self._book.journal.record(order.record.offer)
        if record is None:
            raise Refused("unknown_order", "the offer of this order is not known here any more")
        return open_record(record.raw, Offer).record.price.unit

    # An order

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        """Admit an order and deliver; see `wire.peer.Peer.order`."""
        signed = self._opened(order, sealed)
        if signed.digest in self._running:
            raise Refused("running", "this very order is being answered")
        earlier = await self._earlier_outcome(signed, sealed)
        if earlier is not None:
            yield earlier
            return
        sale = await self._admit(signed, sealed)
        delivering = _Delivering(self._book, sale)
        try:
            async with contextlib.aclosing(delivering.run()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            # The buyer may be gone and this task cancelled: the account is settled all the same.
            await asyncio.shield(asyncio.ensure_future(self._close(delivering)))

    async def _close(self, delivering: "_Delivering") -> None:
        try:
            await delivering.close()
        finally:
            self._running.pop(delivering.sale.order.digest, None)

    def _opened(self, raw: bytes, sealed: bytes) -> Signed[Order]:
        """The order, checked for everything that it says by itself."""
        try:
            signed = open_record(raw, Order)
            check_time(signed.record, self._book.now())
        except Expired as error:
            raise Refused("expired", str(error)) from None
        except codec.Forged as error:
            raise Refused("forged", str(error)) from None
        except codec.Malformed as error:
            raise Refused("malformed", str(error)) from None
        order = signed.record
        if order.seller != self._book.me:
            raise Refused("wrong_seller", "the order is for another seller")
        if len(sealed) > MAX_SEALED or digest_of(sealed) != order.request:
            raise Refused("malformed", "the sealed request is not the one that the order names")
        if order.privacy == "restricted":
            raise Refused("privacy", "a restricted prompt must not leave its owner's machine")
        if order.rail != RAIL:
            raise Refused("rail", f"payment by {order.rail!r} is not taken here")
        if order.hops:
            raise Refused("hops", "orders are not passed on here: allow 0 hops")
        return signed

    async def _earlier_outcome(self, order: Signed[Order], sealed: bytes) -> bytes | None:
        """The receipt of this very order, and its Score, sealed again for its buyer; None if the order is new."""
        if not any(order.digest in account.orders for account in self._accounts_of(order.signer)):
            return None
        receipt = await self.receipt(order.digest)
        stand = self._stands.get(order.record.offer)
        if receipt is None or stand is None:
            raise Refused("failed", "this order was taken before, and brought nothing more")
        key = sellers_answer_key(sealed, stand.prekey, order.digest)
        writer = AnswerWriter(key)
        kept = await self._book.journal.records_of(order.digest)
        scores = [writer.write(ScoreFrame(record.raw)) for record in kept if record.kind == Score.kind]
        return b"".join((*scores, writer.write(ReceiptFrame(receipt))))

    def _accounts_of(self, buyer: Did) -> list[Account]:
        return [self._book.debt_of(buyer, unit) for unit in self._credit]

    async def _admit(self, order: Signed[Order], sealed: bytes) -> _Sale:
        """Check the order against offer, engine and account, and reserve what it may cost. Raises Refused."""
        if (refusal := self._may_sell() or self._may_work_with(order.signer)) is not None:
            raise refusal
        stand = self._stands.get(order.record.offer)
        if stand is None or self._is_over(stand) or not stand.ware.is_unchanged():
            raise Refused("unknown_offer", "this offer is not open any more: ask for the offers again")
        try:
            request = decode_request(
                open_request(sealed, stand.prekey, RequestBinding(order.record.offer, order.record.nonce, order.signer))
            )
            key = sellers_answer_key(sealed, stand.prekey, order.digest)
        except CannotOpen as error:
            raise Refused("cannot_open", str(error)) from None
        except codec.Malformed as error:
            raise Refused("malformed", str(error)) from None
        sale = _Sale(order, stand, request, key)
        self._check_fit(sale)
        await self._wait_for_slot(sale)
        if order.digest in self._running:
            raise Refused("running", "this very order is being answered")
        self._running[order.digest] = sale
        reserving = asyncio.ensure_future(self._reserve(sale))
        try:
            await asyncio.shield(reserving)
        except asyncio.CancelledError:
            # The buyer hung up meanwhile; what is being written will be on disk all the same.
            reserving.add_done_callback(lambda done: self._abandon(sale, done))
            raise
        except BaseException:
            del self._running[order.digest]
            raise
        return sale

    def _abandon(self, sale: _Sale, reserving: "asyncio.Future[None]") -> None:
        """Let go of an order whose buyer hung up before it began."""
        self._running.pop(sale.order.digest, None)
        if not reserving.cancelled() and reserving.exception() is None:
            task = asyncio.ensure_future(self.sweep())
            self._sweeping.add(task)
            task.add_done_callback(self._sweeping.discard)

    async def _wait_for_slot(self, sale: _Sale) -> None:
        """Return when the engine can begin; an answer that has just ended may still be clearing up."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + _SLOT_WAIT_S
        while not self._has_slot(sale.stand.ware):
            if loop.time() >= patience:
                raise Refused("busy", "all slots are taken: try again, or elsewhere", RETRY_AFTER_BUSY_S)
            await asyncio.sleep(_SLOT_POLL_S)

    def _has_slot(self, ware: Ware) -> bool:
        at_work = sum(1 for other in self._running.values() if other.stand.ware is ware)
        return at_work < ware.engine.slots and ware.engine.free_slots() > 0

    def _check_fit(self, sale: _Sale) -> None:
        order, engine, vocabulary = sale.order.record, sale.stand.ware.engine, sale.stand.ware.tokenizer.size
        if sale.stand.ware.elsewhere is not None:
            _check_elsewhere(sale, sale.stand.ware.elsewhere)
        needed = len(sale.input_ids) + sale.most_tokens
        if needed > engine.context:
            raise Refused("too_long", f"{needed} tokens are needed, and the context has {engine.context}")
        if any(i >= vocabulary for i in sale.input_ids):
            raise Refused("malformed", "the prompt has token ids that the model does not have")
        if sale.scores != bool(sale.request.claimed):
            raise Refused("malformed", "an order to score claims token ids, and no other order does")
        if sale.scores:
            _check_scored(sale)
        else:
            _check_continued(sale)
        most = sale.cost(sale.most_tokens)
        if order.max_cost < most:
            raise Refused("max_cost", f"the order may cost {most}, more than its max_cost allows")

    async def _reserve(self, sale: _Sale) -> None:
        order, unit = sale.order, sale.stand.ware.price.unit
        if unit not in self._credit:
            raise Refused("credit", f"no credit is given here in {unit}")
        await _check_grammar(sale)
        account = self._book.debt_of(sale.buyer, unit)
        amount = sale.cost(sale.most_tokens)
        self._check_exposure(account, amount)
        events: list[Event] = []
        granted = self._terms(account)
        if (granted.limit, granted.window) != (account.limit, account.window):
            events.append(AccountChanged(account.key, granted))
        events.append(AccountChanged(account.key, Reserved(order.digest, amount, order.record.expires)))
        remembered = order.record.expires + 2 * CLOCK_SKEW_S
        try:
            await self._book.post(
                *events,
                records=(kept(sale.stand.offer), kept(order, order.digest)),
                nonces=(Nonce(sale.buyer, order.record.nonce, order.digest, remembered),),
            )
        except NonceReused:
            raise Refused("replayed", "this nonce has been used before") from None
        except AboveWindow as error:
            raise Refused("window", f"too much of your work here is unpaid: {error}") from None
        except AccountError as error:
            raise Refused("credit", f"your credit here does not bear the order: {error}") from None

    def _check_exposure(self, account: Account, amount: int) -> None:
        bound, accounts = self._credit[account.key.unit].exposure.value, self._book.journal.books.accounts.values()
        try:
            check_exposure(accounts, account, amount, bound, self._named)
        except AboveExposure:
            # How much is left is nobody else's business: it tells what others owe.
            why = "buyers that have not settled anything yet owe too much here together: try later"
            raise Refused("exposure", why) from None


class _HandedBack(Exception):
    """The owner of the machine needs it: the order is cut, and what was delivered is paid."""


class _Delivering:
    """The delivery of one sale: from the engine's ids to the frames, and the receipt at the end."""

    def __init__(self, book: Book, sale: _Sale) -> None:
        self.sale: Final = sale
        self._book = book
        self._writer = AnswerWriter(sale.key)
        self._chain = AnswerCommitment(sale.request.salt, sale.order.digest)
        # A stop string may begin in the part before.
        self._text = sale.stand.ware.tokenizer.stream(sale.request.stop, sale.so_far)
        self._last: int | None = None
        self._started_ms = book.now_ms()
        self._receipt: Signed[Receipt] | None = None
        self._failed = False
        self._scored = False

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
                        raise _HandedBack
                    if block is None:
                        yield self._writer.write(Ids(()))
                    else:
                        found.append(block)
        except (EngineError, _HandedBack) as error:
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
        try:
            async with (
                contextlib.aclosing(self.sale.stand.ware.engine.generate(job)) as pieces,
                contextlib.aclosing(_with_signs_of_life(pieces, self.sale)) as beats,
            ):
                async for piece in beats:
                    for part in self._parts(piece.ids if piece is not None else ()):
                        if isinstance(part, Ids):
                            yield self._writer.write(part)
                        else:
                            await self._keep_checkpoint(part)
                            yield self._writer.write(CheckpointFrame(part.raw))
                            self._hand_back_if_told()
                    if self._stopped():
                        break
                    self._hand_back_if_told()
        except (EngineError, _HandedBack) as error:
            if not _asked_too_much(error):
                # What was sent so far is covered by the last checkpoint; the buyer goes on elsewhere.
                yield self._cut()
                return
        receipt = await self._finish()
        yield self._writer.write(ReceiptFrame(receipt.raw))

    def _hand_back_if_told(self) -> None:
        """Raises _HandedBack where nothing is out that no checkpoint covers, unless the answer is at its end."""
        at_checkpoint = self._chain.tokens % CHECKPOINT_TOKENS == 0
        if self.sale.handed_back.is_set() and at_checkpoint and self._finish_reason() == "cancelled":
            raise _HandedBack

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

    async def _keep_checkpoint(self, checkpoint: Signed[Checkpoint]) -> None:
        """What a checkpoint says is earned before the buyer sees it, so that a crash takes nothing from either."""
        key = self._book.debt_of(self.sale.buyer, self.sale.stand.ware.price.unit).key
        await self._book.post(
            AccountChanged(key, Earned(self.sale.order.digest, checkpoint.record.cost)),
            records=(kept(checkpoint, self.sale.order.digest),),
        )

    def _stopped(self) -> bool:
        return self._text.stopped_at is not None

    def _checkpoint(self) -> Signed[Checkpoint]:
        tokens = self._chain.tokens
        output_cost = cost(self.sale.stand.ware.price, 0, tokens)
        record = Checkpoint(self.sale.order.digest, tokens, self._chain.value(), output_cost)
        return sign(record, self._book.identity)

    async def _finish(self, *with_it: Kept) -> Signed[Receipt]:
        """Make the receipt and put it on disk, together with what was earned."""
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
        key = self._book.debt_of(sale.buyer, record.unit).key
        await self._book.post(
            AccountChanged(key, Earned(sale.order.digest, record.cost)),
            AccountChanged(key, Released(sale.order.digest)),
            records=(*with_it, kept(receipt, sale.order.digest)),
        )
        self._receipt = receipt
        return receipt

    def _finish_reason(self) -> Finish:
        if self._scored or self._stopped() or self._last in self.sale.stand.ware.tokenizer.eog:
            return "stop"
        if self.sale.scores:
            return "cancelled"
        return "length" if self._chain.tokens == self.sale.order.record.max_tokens else "cancelled"

    async def close(self) -> None:
        """Settle what is not settled: a buyer that hung up owes the input and what was sent."""
        if self._receipt is not None:
            return
        if not self._failed:
            await self._finish()
            return
        # The last checkpoint has been earned already, and a cut answer brings no more.
        key = self._book.debt_of(self.sale.buyer, self.sale.stand.ware.price.unit).key
        await self._book.post(AccountChanged(key, Released(self.sale.order.digest)))


def _check_scored(sale: _Sale) -> None:
    """Check what is said of the answer to score. Raises Refused."""
    if sale.stand.ware.engine.fingerprint.sampler != SAMPLER:
        raise Refused("failed", "nothing is scored here: the sampler of this model is another one's own")
    if sale.order.record.part_of is not None or sale.request.earlier is not None:
        raise Refused("malformed", "a claimed answer is scored by itself, whatever was before it")
    if sale.order.record.start >= len(sale.request.prompt):
        raise Refused("malformed", "the claimed answer's earlier part leaves no prompt")


def _check_elsewhere(sale: _Sale, elsewhere: Elsewhere) -> None:
    """Check that an order may go to the server that computes, and is for what that can do. Raises Refused."""
    if not within(elsewhere.ceiling, sale.order.record.privacy):
        raise Refused("privacy", f"this model is computed elsewhere, and takes prompts up to {elsewhere.ceiling}")
    if sale.scores:
        raise Refused("not_selling", "this model is computed elsewhere, and scores nothing")
    if sale.request.steering.grammar:
        raise Refused("not_selling", "this model is computed elsewhere, and is sold without grammars")


def _check_continued(sale: _Sale) -> None:
    """Check what a continued order says of the part before it. Raises Refused."""
    try:
        check_part(sale.order, sale.request)
    except ForgedPart as error:
        raise Refused("forged", f"the order continues no answer: {error}") from None
    if sale.stand.ware.tokenizer.eog.intersection(sale.so_far):
        raise Refused("forged", "the order continues no answer: it was over before")


async def _check_grammar(sale: _Sale) -> None:
    """Check that the order's grammar can be followed from where the answer stands. Raises Refused."""
    grammar, earlier = sale.request.steering.grammar, () if sale.scores else sale.so_far
    if not grammar:
        return
    try:
        await asyncio.to_thread(follow, sale.stand.ware.tokenizer, grammar, earlier)
    except ForbiddenToken:
        raise Refused("malformed", "the answer's earlier part is none that the grammar allows") from None
    except (BadGrammar, GrammarGaveUp) as error:
        raise Refused("malformed", str(error)) from None


def _asked_too_much(error: Exception) -> bool:
    """Whether an order failed by its grammar: what was done for it is owed, or such orders were a way to free work."""
    return isinstance(error.__cause__, GrammarGaveUp)


def _received(voucher: Signed[Voucher], account: Account) -> VoucherReceived:
    """What a voucher brings; one that came late, after one for more, brings nothing and takes nothing back."""
    try:
        return check_voucher(voucher, account)
    except TotalTooLow:
        return VoucherReceived(voucher.record.total)


async def _with_signs_of_life(pieces: AsyncGenerator[T, None], sale: _Sale) -> AsyncGenerator[T | None, None]:
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
