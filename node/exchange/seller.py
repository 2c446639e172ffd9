"""The seller: makes offers, admits orders, delivers sealed answers, and keeps the account of who owes what.

Theory of operation. It implements `wire.peer.Peer`, so HTTP and a direct call reach it alike. An order is admitted in
one durable entry (nonce, order, reservation of its highest cost), or refused with a typed reason. From then on it is a
`_Sale`: ids go out as the engine gives them, a Checkpoint after every 64th, and the Receipt is on disk before it is
sent. A buyer that cancels or hangs up stops the engine at once; it owes the input and what was sent. Prekeys live in
memory only, and go soon after their offer.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Final

from attrs import field, frozen

from ledger import codec
from ledger.account import AboveWindow, Account, AccountError
from ledger.changes import Earned, Granted, Released, Reserved, VoucherReceived
from ledger.commitments import CHECKPOINT_TOKENS, AnswerCommitment, prompt_commitment
from ledger.events import AccountChanged, Event
from ledger.identity import Did, NotADid, parse_did
from ledger.journal import Nonce, NonceReused
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
    Receipt,
    Signed,
    Voucher,
    check_time,
    digest_of,
    open_record,
    sign,
)
from node.engine.port import Engine, EngineError, Job, Piece
from node.exchange import experience
from node.exchange.book import RAIL, Book, kept
from node.models.tokenizer import Tokenizer
from node.ports import Entropy
from node.wire.client import SIGN_OF_LIFE_S
from node.wire.frames import AnswerWriter, CancelFrame, CheckpointFrame, Ids, ReceiptFrame
from node.wire.messages import MAX_SEALED, Refused, Request, decode_request
from node.wire.sealing import KEY_BYTES, CannotOpen, KeyPair, RequestBinding, open_request, sellers_answer_key

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
class Ware:
    """A model for sale: the engine that runs it, its tokenizer, its name, its price."""

    engine: Engine
    tokenizer: Tokenizer
    name: str
    price: Price


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

    @property
    def buyer(self) -> Did:
        """Who ordered."""
        return self.order.signer

    def cost(self, tokens: int) -> int:
        """What it costs with so many output tokens."""
        return cost(self.stand.ware.price, len(self.request.prompt), tokens)


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
    ) -> None:
        """`credit` by unit; a unit without one gives none. `tokenizer_file` gives a file by digest or raises.

        `named` are the buyers that the owner knows: they do not share the exposure of strangers.
        """
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
        """The open offers; made anew when half of their life is over."""
        now = self._book.now()
        self._drop_stale_stands()
        fresh = {
            s.offer.record.model: s
            for s in self._stands.values()
            if s.offer.record.expires > now + OFFER_LIFETIME_S // 2
        }
        for model, ware in self._wares.items():
            if model not in fresh:
                stand = self._make_stand(ware, now)
                self._stands[stand.offer.digest] = fresh[model] = stand
        return [stand.offer.raw for stand in fresh.values()]

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
        """The receipt of this very order, sealed again for its buyer; None if the order is new."""
        if not any(order.digest in account.orders for account in self._accounts_of(order.signer)):
            return None
        receipt = await self.receipt(order.digest)
        stand = self._stands.get(order.record.offer)
        if receipt is None or stand is None:
            raise Refused("failed", "this order was taken before, and brought nothing more")
        key = sellers_answer_key(sealed, stand.prekey, order.digest)
        return AnswerWriter(key).write(ReceiptFrame(receipt))

    def _accounts_of(self, buyer: Did) -> list[Account]:
        return [self._book.debt_of(buyer, unit) for unit in self._credit]

    async def _admit(self, order: Signed[Order], sealed: bytes) -> _Sale:
        """Check the order against offer, engine and account, and reserve what it may cost. Raises Refused."""
        stand = self._stands.get(order.record.offer)
        if stand is None or self._is_over(stand):
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
        needed = len(sale.request.prompt) + order.max_tokens
        if needed > engine.context:
            raise Refused("too_long", f"{needed} tokens are needed, and the context has {engine.context}")
        if any(i >= vocabulary for i in sale.request.prompt):
            raise Refused("malformed", "the prompt has token ids that the model does not have")
        if order.max_cost < sale.cost(order.max_tokens):
            raise Refused(
                "max_cost", f"the order may cost {sale.cost(order.max_tokens)}, more than its max_cost allows"
            )

    async def _reserve(self, sale: _Sale) -> None:
        order, unit = sale.order, sale.stand.ware.price.unit
        if unit not in self._credit:
            raise Refused("credit", f"no credit is given here in {unit}")
        account = self._book.debt_of(sale.buyer, unit)
        amount = sale.cost(order.record.max_tokens)
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
        if self._is_proven(account):
            return
        unproven = sum(
            other.owed + other.reserved
            for key, other in self._book.journal.books.accounts.items()
            if key.payee == self._book.me and key.unit == account.key.unit and not self._is_proven(other)
        )
        if unproven + amount > self._credit[account.key.unit].exposure.value:
            raise Refused("exposure", "buyers that have not settled anything yet owe too much here together: try later")

    def _is_proven(self, account: Account) -> bool:
        """Whether the owner knows the buyer, or money of it has arrived; its mere promises prove nothing."""
        return account.settled > 0 or account.key.payer in self._named


class _Delivering:
    """The delivery of one sale: from the engine's ids to the frames, and the receipt at the end."""

    def __init__(self, book: Book, sale: _Sale) -> None:
        self.sale: Final = sale
        self._book = book
        self._writer = AnswerWriter(sale.key)
        self._chain = AnswerCommitment(sale.request.salt, sale.order.digest)
        self._text = sale.stand.ware.tokenizer.stream(sale.request.stop)
        self._last: int | None = None
        self._started_ms = book.now_ms()
        self._receipt: Signed[Receipt] | None = None
        self._failed = False

    async def run(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the stream, to its end."""
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
                contextlib.aclosing(_with_signs_of_life(pieces, self.sale.cancelled)) as beats,
            ):
                async for ids in beats:
                    for part in self._parts(ids):
                        if isinstance(part, Ids):
                            yield self._writer.write(part)
                        else:
                            await self._keep_checkpoint(part)
                            yield self._writer.write(CheckpointFrame(part.raw))
                    if self._stopped():
                        break
        except EngineError:
            # What was sent so far is covered by the last checkpoint; the buyer goes on elsewhere.
            self._failed = True
            cancel = sign(Cancel(self.sale.order.digest, self._chain.tokens), self._book.identity)
            yield self._writer.write(CancelFrame(cancel.raw))
            return
        receipt = await self._finish()
        yield self._writer.write(ReceiptFrame(receipt.raw))

    def _parts(self, ids: Sequence[int]) -> list[Ids | Signed[Checkpoint]]:
        """The next ids, cut where a stop string is complete, with the checkpoints that fall due."""
        if not ids:
            return [Ids(())]
        parts: list[Ids | Signed[Checkpoint]] = []
        while ids and not self._stopped():
            room = CHECKPOINT_TOKENS - self._chain.tokens % CHECKPOINT_TOKENS
            part, ids = tuple(ids[:room]), ids[room:]
            before = self._text.tokens
            self._text.feed(part)
            part = part[: self._text.tokens - before]
            self._chain.add(part)
            self._last = part[-1]
            parts.append(Ids(part))
            if self._chain.tokens % CHECKPOINT_TOKENS == 0:
                parts.append(self._checkpoint())
        return parts

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

    async def _finish(self) -> Signed[Receipt]:
        """Make the receipt and put it on disk, together with what was earned."""
        sale, tokens = self.sale, self._chain.tokens
        record = Receipt(
            order=sale.order.digest,
            model=sale.stand.offer.record.model,
            prompt_tokens=len(sale.request.prompt),
            output_tokens=tokens,
            prompt_commitment=prompt_commitment(sale.request.salt, sale.request.prompt),
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
            records=(kept(receipt, sale.order.digest),),
        )
        self._receipt = receipt
        return receipt

    def _finish_reason(self) -> Finish:
        if self._stopped() or self._last in self.sale.stand.ware.tokenizer.eog:
            return "stop"
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


def _received(voucher: Signed[Voucher], account: Account) -> VoucherReceived:
    """What a voucher brings; one that came late, after one for more, brings nothing and takes nothing back."""
    try:
        return check_voucher(voucher, account)
    except TotalTooLow:
        return VoucherReceived(voucher.record.total)


async def _with_signs_of_life(
    pieces: AsyncGenerator[Piece, None], cancelled: asyncio.Event
) -> AsyncGenerator[Sequence[int], None]:
    """The ids as they come, none when nothing came for a while; ends early when cancelled."""
    stop = asyncio.ensure_future(cancelled.wait())
    following: asyncio.Future[Piece | None] | None = None
    try:
        while not cancelled.is_set():
            following = following or asyncio.ensure_future(anext(pieces, None))
            await asyncio.wait((following, stop), timeout=SIGN_OF_LIFE_S, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                yield ()
                continue
            piece, following = following.result(), None
            if piece is None:
                return
            yield piece.ids
    finally:
        stop.cancel()
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await following
