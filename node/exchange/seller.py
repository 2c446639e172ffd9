"""The seller: makes offers, admits orders, delivers sealed answers, and keeps the account of who owes what.

Theory of operation. It implements `wire.peer.Peer`, so HTTP and a direct call reach it alike. An order is admitted in
one durable entry (nonce, order, reservation of its highest cost), or refused with a typed reason. From then on it is a
`Sale`: ids go out as the engine gives them, as far as the buyer's window bears them, a Checkpoint after every 64th, and
the Receipt is on disk before it is sent. A buyer that cancels or hangs up stops the engine at once; it owes the input
and what was sent.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from attrs import frozen

from ledger import codec
from ledger.account import AboveWindow, Account, AccountError, Reservation, apply
from ledger.changes import Acknowledged, Admitted, Disputed, Granted, VoucherReceived
from ledger.events import AccountChanged, Books, Event
from ledger.exposure import AboveExposure, check_exposure, is_proven
from ledger.identity import Did, NotADid, parse_did
from ledger.journal import Nonce, NonceReused
from ledger.money import Amount, Unit
from ledger.orders import evolve
from ledger.rails.port import TotalTooLow, VoucherRefused
from ledger.records import (
    CLOCK_SKEW_S,
    Acknowledgement,
    Bond,
    Cancel,
    Checkpoint,
    Expired,
    Grant,
    Offer,
    Order,
    Receipt,
    Score,
    Signed,
    Voucher,
    check_time,
    digest_of,
    open_record,
    sign,
)
from node.exchange import experience
from node.exchange.book import Book, kept
from node.exchange.delivering import Delivering
from node.exchange.promised import promised
from node.exchange.rails import CREDIT, Rails, counts_in
from node.exchange.sale import Sale, Ware, check_fit, check_grammar
from node.exchange.stands import Stands
from node.exchange.strangers import is_stranger
from node.exchange.windows import Windows
from node.ports import Entropy
from node.wire.frames import AnswerWriter, ReceiptFrame, ScoreFrame
from node.wire.messages import MAX_SEALED, Refused, decode_request
from node.wire.sealing import CannotOpen, RequestBinding, open_request, sellers_answer_key

GRANT_LIFETIME_S: Final = 24 * 3600
RETRY_AFTER_BUSY_S: Final = 2
_SLOT_WAIT_S: Final = 0.25
_SLOT_POLL_S: Final = 0.005
# Each one is kept for good, so one order must not bring any number of them: so many, and one for each checkpoint.
MAX_ACKNOWLEDGEMENTS: Final = 16
# How long an answer waits for pay, unless the owner says otherwise; buyers give up after a minute without a token.
PATIENCE_S: Final = 30.0


@frozen
class Credit:
    """What the seller trusts a buyer with: a limit in all, and so much unpaid work at a time.

    `exposure` bounds what all buyers owe together that the owner did not name and that never settled anything, so that
    making up fresh identities wins nothing.
    """

    limit: Amount
    window: Amount
    exposure: Amount


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
        patience_s: float = PATIENCE_S,
        pledged: Callable[[], Bond | None] = lambda: None,
    ) -> None:
        """`credit` by unit; a unit without one gives none. `tokenizer_file` gives a file by digest or raises.

        `named` are the buyers that the owner knows: they do not share the exposure of strangers. `may_sell` says why
        no new order may begin now, if none may; nothing is offered meanwhile. `may_work_with` says the same of one
        buyer. `patience_s`: how long an answer waits while its buyer pays nothing. `pledged` is the stake that
        offers name.
        """
        self._windows = Windows(book)
        self._patience_s = patience_s
        self._may_sell = may_sell
        self._may_work_with = may_work_with
        self._named = frozenset(named)
        self._book = book
        self._wares = {ware.engine.manifest.digest: ware for ware in wares}
        self._credit = credit
        self._tokenizer_file = tokenizer_file
        self._stands = Stands(book, entropy, list(self._wares.values()), self.rails, pledged)
        self._running: dict[bytes, Sale] = {}
        # What waits to be written is in no book yet: acknowledgements, by their order.
        self._acknowledging: Counter[bytes] = Counter()
        self._sweeping: set[asyncio.Future[None]] = set()
        self.url = ""

    async def sweep(self) -> None:
        """Close the orders that are open and that nobody answers: what an earlier run left, or a failure here.

        Prekeys of offers that are over go, too.
        """
        self._stands.sweep()
        left = [
            (key, order)
            for key, account in self._book.journal.books.accounts.items()
            if key.payee == self._book.me and not is_stranger(key.payer)
            for order, reservation in account.orders.items()
            if reservation.open and order not in self._running
        ]
        endable = await self._book.endable(left) if left else set()
        for key in {key for key, _ in left}:
            # What began in between is not among them.
            await self._book.let_go(key, {order for of, order in left if of == key and order in endable})

    def look_again(self) -> None:
        """Another process has written something: whoever waits for pay should look."""
        self._windows.look_again()

    # What a peer may ask for

    async def offers(self) -> list[bytes]:
        """The open offers; made anew when half of their life is over. Raises Refused while nothing may be sold."""
        if (refusal := self._may_sell()) is not None:
            raise refusal
        return self._stands.offers(self.url)

    def rails(self, unit: Unit) -> tuple[str, ...]:
        """How sales in a unit may be paid; on credit only where some is given."""
        given = unit in self._credit
        able = [rail for rail in self._book.rails.names if given and counts_in(rail, unit)]
        return tuple(rail for rail in able if rail != CREDIT or self._credit[unit].limit.value) or (CREDIT,)

    async def grant(self, buyer: str, unit: str, rail: str = CREDIT) -> bytes:
        """How much credit, and how large a window, a buyer has here on a rail. Asking changes nothing."""
        try:
            parse_did(buyer)
        except NotADid as error:
            raise Refused("malformed", str(error)) from None
        known: Unit | None = next((given for given in self._credit if given == unit), None)
        if known is None:
            raise Refused("credit", f"no credit is given here in {unit[:32]!r}")
        if rail not in (CREDIT, *self.rails(known)):
            raise Refused("rail", f"payment by {rail[:64]!r} is not taken here")
        granted, now = self._terms(self._book.debt_of(buyer, known, rail)), self._book.now()
        grant = Grant(
            buyer=buyer,
            rail=rail,
            unit=known,
            credit=granted.limit,
            window=granted.window,
            sequence=granted.sequence,
            issued=now,
            expires=now + GRANT_LIFETIME_S,
        )
        return sign(grant, self._book.identity).raw

    def _terms(self, account: Account) -> Granted:
        """The owner's terms for an account. Their sequence is the time: of two that a buyer hears, the later counts.

        Where the buyer's own collateral stands behind its debts no limit is given, and a window once there is some.
        """
        terms = self._credit[account.key.unit]
        sequence = max(self._book.now_ms(), account.grant_sequence + 1)
        if account.on_deposit:
            return Granted(0, terms.window.value if account.backed else 0, sequence)
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
        """Take a buyer's acknowledgement and the voucher in it; durable on return, and once only.

        It may come while the order is still answered: then what it pays for can be drawn again.
        """
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
        with self._counted(said.order):
            await self._check_count(said.order)
            await self._take(ack, order)

    async def _take(self, ack: Signed[Acknowledgement], order: Signed[Order]) -> None:
        """Write down what an acknowledgement of a known order says. Raises Refused."""
        said, unit = ack.record, await self._unit_of(order)
        account = self._book.debt_of(ack.signer, unit, order.record.rail)
        try:
            received = _received(self._book.rails, open_record(said.voucher, Voucher), account)
        except (VoucherRefused, codec.Malformed) as error:
            raise Refused("malformed", str(error)) from None
        facts = [received, *_facts(said, account.orders.get(said.order))]
        events: list[Event] = [AccountChanged(account.key, fact) for fact in facts]
        events += promised(ack, account, received.total)
        if not said.accepted:
            events.append(experience.disputed(ack.signer, said.order, said.amount))
        try:
            await self._book.post(*events, records=(kept(ack, said.order),))
        except AccountError as error:
            raise Refused("malformed", f"the acknowledgement does not fit the account: {error}") from None
        if received.total > account.authorized:
            self._windows.moved(account.key)

    @contextlib.contextmanager
    def _counted(self, order: bytes) -> Iterator[None]:
        """An acknowledgement is on its way to the disk while the context lasts: many at once are as many in turn."""
        self._acknowledging[order] += 1
        try:
            yield
        finally:
            self._acknowledging[order] -= 1
            if not self._acknowledging[order]:
                del self._acknowledging[order]

    async def _check_count(self, order: bytes) -> None:
        """Check that an order may be acknowledged once more. Raises Refused."""
        kinds = [record.kind for record in await self._book.journal.records_of(order)]
        others = kinds.count(Acknowledgement.kind) + self._acknowledging[order] - 1
        if others >= MAX_ACKNOWLEDGEMENTS + kinds.count(Checkpoint.kind):
            raise Refused("malformed", "this order has been acknowledged often enough")

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
        delivering = Delivering(self._book, sale, self._windows, self._patience_s)
        try:
            async with contextlib.aclosing(delivering.run()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            # The buyer may be gone and this task cancelled: the account is settled all the same.
            await asyncio.shield(asyncio.ensure_future(self._close(delivering)))

    async def _close(self, delivering: "Delivering") -> None:
        try:
            await delivering.close()
        finally:
            self._running.pop(delivering.sale.order.digest, None)
            self._windows.moved(delivering.key)

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
        if order.rail not in self._book.rails.names:
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
        return [self._book.debt_of(buyer, unit, rail) for unit in self._credit for rail in self._book.rails.names]

    async def _admit(self, order: Signed[Order], sealed: bytes) -> Sale:
        """Check the order against offer, engine and account, reserve what it may cost, and draw what it begins with.

        Raises Refused.
        """
        if (refusal := self._may_sell() or self._may_work_with(order.signer)) is not None:
            raise refusal
        stand = self._stands.open_one(order.record.offer)
        if stand is None:
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
        sale = Sale(order, stand, request, key)
        check_fit(sale)
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

    def _abandon(self, sale: Sale, reserving: "asyncio.Future[None]") -> None:
        """Let go of an order whose buyer hung up before it began."""
        self._running.pop(sale.order.digest, None)
        if not reserving.cancelled() and reserving.exception() is None:
            task = asyncio.ensure_future(self.sweep())
            self._sweeping.add(task)
            task.add_done_callback(self._sweeping.discard)

    async def _wait_for_slot(self, sale: Sale) -> None:
        """Return when the engine can begin; an answer that has just ended may still be clearing up."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + _SLOT_WAIT_S
        while not self._has_slot(sale.stand.ware):
            if loop.time() >= patience:
                # Anybody can order; only who has paid before, or was named, gets other models out of memory.
                if is_proven(self._book.journal.books.account(sale.account), self._named):
                    sale.stand.ware.miss()
                raise Refused("busy", "all slots are taken: try again, or elsewhere", RETRY_AFTER_BUSY_S)
            await asyncio.sleep(_SLOT_POLL_S)

    def _has_slot(self, ware: Ware) -> bool:
        at_work = sum(1 for one in self._running.values() if one.stand.ware is ware and not one.resting.is_set())
        return at_work < ware.engine.slots and ware.engine.free_slots() > 0

    async def _reserve(self, sale: Sale) -> None:
        order, unit = sale.order, sale.stand.ware.price.unit
        if unit not in self._credit:
            raise Refused("credit", f"no credit is given here in {unit}")
        await check_grammar(sale)
        if order.record.rail not in sale.stand.offer.record.rails:
            raise Refused("rail", f"payment by {order.record.rail!r} is not taken for this")
        account = self._book.journal.books.account(sale.account)
        events: list[Event] = []
        granted = self._terms(account)
        if (granted.limit, granted.window) != (account.limit, account.window):
            events.append(AccountChanged(account.key, granted))
            account = apply(account, granted)
        amount = sale.cost(sale.most_tokens)
        self._check_sight(account)
        first = sale.cost_to_next(0)
        events.append(AccountChanged(account.key, Admitted(order.digest, amount, first, order.record.expires)))
        remembered = order.record.expires + 2 * CLOCK_SKEW_S
        try:
            await self._book.post(
                *events,
                records=(kept(sale.stand.offer), kept(order, order.digest)),
                nonces=(Nonce(sale.buyer, order.record.nonce, order.digest, remembered),),
                check=partial(self._check_exposure, account, amount),
            )
        except AboveExposure:
            # How much is left is nobody else's business: it tells what others owe.
            why = "buyers that have not settled anything yet owe too much here together: try later"
            raise Refused("exposure", why) from None
        except NonceReused:
            raise Refused("replayed", "this nonce has been used before") from None
        except AboveWindow as error:
            raise Refused("window", f"too much of your work here would be unpaid: {error}") from None
        except AccountError as error:
            what = "credit" if account.key.rail == CREDIT else "channel"
            raise Refused("credit", f"your {what} here does not bear the order: {error}") from None

    def _check_sight(self, account: Account) -> None:
        """Whether the rail still knows what stands behind the account. Raises Refused."""
        if self._book.rails.of(account.key).capacity(account) < account.capacity:
            why = "what stands behind your account could not be seen for too long: try again when its network answers"
            raise Refused("busy", why, RETRY_AFTER_BUSY_S)

    def _check_exposure(self, account: Account, amount: int, books: Books) -> None:
        """By the books that the order moves, so that of many at once each counts. Raises AboveExposure."""
        bound = self._credit[account.key.unit].exposure.value
        now = books.account(account.key)
        granted = evolve(now, limit=account.limit, window=account.window)
        check_exposure(books.accounts.values(), granted, amount, bound, self._named)


def _received(rails: Rails, voucher: Signed[Voucher], account: Account) -> VoucherReceived:
    """What a voucher brings; one that came late, after one for more, brings nothing and takes nothing back."""
    try:
        return rails.check_voucher(voucher, account)
    except TotalTooLow:
        return VoucherReceived(voucher.record.total)


def _facts(said: Acknowledgement, reservation: Reservation | None) -> list[Acknowledged | Disputed]:
    """What an acknowledgement says of its order's cost; nothing where the order is long forgotten. Raises Refused."""
    if reservation is None:
        return []
    if said.amount > reservation.earned:
        raise Refused("malformed", "the acknowledgement is for more than was delivered by now")
    if said.accepted:
        return [Acknowledged(said.order, said.amount)]
    if reservation.open:
        raise Refused("busy", "this order is still being answered: dispute it when it is over", RETRY_AFTER_BUSY_S)
    return [Disputed(said.order, reservation.earned, said.amount)]
