"""The settler: decides on audit and payment of each delivery, acknowledges it, and sees that the seller gets that.

Theory of operation. A delivery on disk is first audited, if its plan says so before payment. Then one durable entry
closes it: what is granted counts as earned, what is asked beyond it as disputed, the rest of the reservation goes, and
the signed acknowledgement with its voucher is kept. Only then is it handed to the seller, and again with backoff until
the seller has it. Where the window does not bear all that is under way, checkpoints are acknowledged in the same way
while the answer goes on. A restart picks up what was still on the way: deliveries without an acknowledgement, and the
latest acknowledgements for each seller.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from attrs import define, evolve, frozen

from ledger import codec
from ledger.account import Account, AccountKey, apply
from ledger.changes import Acknowledged, Authorized, Change, Disputed, Released
from ledger.commitments import CHECKPOINT_TOKENS
from ledger.events import AccountChanged
from ledger.identity import Did, parse_did
from ledger.journal import Kept
from ledger.records import CLOCK_SKEW_S, Acknowledgement, Checkpoint, Receipt, Signed, Voucher, open_record, sign
from ledger.waivers import Dispute
from node.exchange import experience
from node.exchange.auditor import Audit, Auditor
from node.exchange.book import Book, kept
from node.exchange.bought import load_bought
from node.exchange.delivery import Delivery, Terms, sums_fit
from node.exchange.experience import Due
from node.ports import Entropy
from node.wire.messages import Refused, Unreachable
from node.wire.peer import Peer
from verify.audits import ENTROPY_BYTES, AuditPlan, plan, rate_with_stake

_FIRST_RETRY_S: Final = 0.5
_LAST_RETRY_S: Final = 60.0
# So many of the newest acknowledgements are looked through for the latest of each seller.
_LOOK_BACK: Final = 1_000
# More cannot have been on their way when this node stopped: a seller that is not reached gets no new orders.
_SENT_AGAIN: Final = 16
# Refusals that are not meant for good.
_LATER: Final = frozenset({"busy", "too_many_requests", "not_selling", "failed"})

_NO_AUDIT: Final = AuditPlan(audit=False, before_payment=False)

_log = logging.getLogger(__name__)


@frozen
class AuditPolicy:
    """How often to audit: each of a seller's first receipts, and before it is paid; later ones at a rate in 0..1."""

    rate: float = 0.05
    first: int = 8


@define
class Unpayable(Exception):
    """What was acknowledged of the order is not kept here any more, and there is nothing to add to."""

    order: bytes

    def __str__(self) -> str:
        return f"the records of order {self.order.hex()[:16]} are not kept here any more: settle it by other means"


@frozen
class _Answer:
    """What is said of a receipt or checkpoint, named by its digest: how much is granted, and why no more."""

    of: bytes
    granted: int
    objection: str | None


class Settler:
    """Settles deliveries in the background, in order for each seller."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        auditor: Auditor,
        policy: AuditPolicy,
        dial: Callable[[Did], Peer | None],
        bonded: Callable[[Did], int] = lambda _: 0,
    ) -> None:
        """`bonded` is what of a seller's bond counts here, in uusd."""
        self._book = book
        self._entropy = entropy
        self._auditor = auditor
        self._policy = policy
        self._dial = dial
        self._bonded = bonded
        self._locks: dict[Did, asyncio.Lock] = {}
        self._promising: dict[Did, asyncio.Lock] = {}  # held for a moment only, unlike the other while it is audited
        self._unsent: dict[Did, list[Signed[Acknowledgement]]] = {}
        self._latest: dict[AccountKey, bytes] = {}  # the acknowledgement before the next one, by its account
        self._sending: set[Did] = set()
        self._to_pay: dict[bytes, tuple[Terms, Signed[Checkpoint]]] = {}  # the last checkpoint, by order
        self._paying: set[bytes] = set()  # orders
        self._settling: set[bytes] = set()  # orders
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(self, delivery: Delivery) -> None:
        """Audit (if the plan says so), acknowledge and pay one delivery. Durable on return; sent soon after."""
        await self._settle(delivery, audited=delivery.terms.order.record.work == "generate")

    async def settle_help(self, delivery: Delivery) -> None:
        """The same for what was bought to audit somebody else: audits of audits would never end."""
        await self._settle(delivery, audited=False)

    async def _settle(self, delivery: Delivery, audited: bool) -> None:
        seller, order = delivery.terms.seller, delivery.terms.order.digest
        self._settling.add(order)
        try:
            async with self._locks.setdefault(seller, asyncio.Lock()):
                chosen = self._plan(seller, delivery) if audited else _NO_AUDIT
                verdict = await self._audit(delivery) if chosen.audit and chosen.before_payment else None
                async with self._promising.setdefault(seller, asyncio.Lock()):
                    await self._acknowledge(delivery, verdict)
        finally:
            self._settling.discard(order)
        self._hand_over(seller)
        if chosen.audit and not chosen.before_payment:
            self._start(self._audit_later(delivery))

    def pays_on_the_way(self, seller: Did) -> bool:
        """Whether a seller is paid before its answers are over: once its first ones are behind it."""
        # Where nothing can be audited, what was delivered must do.
        standing = self._book.experience.standing(seller)
        return max(standing.audits, standing.history.delivered) >= self._policy.first

    def pay(self, terms: Terms, checkpoint: Signed[Checkpoint], awaited: bool) -> None:
        """Acknowledge what came up to a checkpoint, in the background. See `purchase.Paying`."""
        order, account = terms.order.digest, self._account_of(terms)
        # A window that bears all that is under way needs no pay before the end.
        under_way = account.owed + account.reserved + account.disputed - account.due
        if not self.pays_on_the_way(terms.seller) or (under_way <= account.window and not awaited):
            return
        if not self._is_new(account, order, checkpoint):
            return
        self._to_pay[order] = terms, checkpoint
        if order not in self._paying:
            self._paying.add(order)
            self._start(self._pay(order))

    def paid_up(self, terms: Terms, tokens: int) -> bool:
        """Whether by these books the window bears what follows so many tokens. See `purchase.Paying`."""
        account = self._account_of(terms)
        order = account.orders[terms.order.digest]
        if self._unsent.get(terms.seller) or order.granted < terms.output_cost(tokens):
            return False
        most = terms.order.record.max_tokens
        next_part = terms.full_cost(min(tokens + CHECKPOINT_TOKENS, most)) - order.granted
        return next_part + account.reserved - order.rest + account.disputed <= account.window

    async def _pay(self, order: bytes) -> None:
        try:
            while due := self._to_pay.pop(order, None):
                terms, checkpoint = due
                async with self._promising.setdefault(terms.seller, asyncio.Lock()):
                    await self._acknowledge_checkpoint(terms, checkpoint)
                self._hand_over(terms.seller)
        finally:
            self._paying.discard(order)

    async def close(self) -> None:
        """Stop; what could not be handed over is handed over after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting to be audited or handed over."""
        return not self._tasks

    def _hand_over(self, seller: Did) -> None:
        peer = self._dial(seller)
        if peer is not None and seller not in self._sending:
            self._sending.add(seller)
            self._start(self._send(seller, peer))

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("settling failed; a restart goes on with it", exc_info=task.exception())

    def _plan(self, seller: Did, delivery: Delivery) -> AuditPlan:
        # Only what was really checked counts: a seller whom no audit can judge stays new.
        earlier = self._book.experience.standing(seller).audits
        unit = self._account_of(delivery.terms).key.unit
        stake = self._bonded(seller) if unit == "uusd" else 0
        # All that it asked for so far, and this: what cheating can have gained. A bond is lost once for all of it.
        asked = sum(self._book.debt_to(seller, unit, rail).earned for rail in self._book.rails.names)
        rate = rate_with_stake(self._policy.rate, asked + delivery.owed, stake)
        return plan(rate, earlier, self._policy.first, self._entropy.bytes(ENTROPY_BYTES))

    async def _audit(self, delivery: Delivery) -> Audit:
        # What was cut before its first checkpoint costs nothing, but it was read: it is evidence like any other.
        of = delivery.receipt or delivery.checkpoint or delivery.terms.order
        return await self._auditor.audit(delivery.terms, of.digest, delivery.ids)

    async def _audit_later(self, delivery: Delivery) -> None:
        await self._audit(delivery)

    async def _acknowledge_checkpoint(self, terms: Terms, checkpoint: Signed[Checkpoint]) -> None:
        """Grant what came so far, unless that is done or the order is over."""
        order, granted = terms.order.digest, checkpoint.record.cost
        if self._is_new(self._account_of(terms), order, checkpoint):
            accepted = _Answer(checkpoint.digest, granted, None)
            await self._promise(terms, accepted, [Acknowledged(order, granted)], kept(checkpoint, order))

    def _is_new(self, account: Account, order: bytes, checkpoint: Signed[Checkpoint]) -> bool:
        reservation = account.orders.get(order)
        return reservation is not None and reservation.open and reservation.granted < checkpoint.record.cost

    async def _acknowledge(self, delivery: Delivery, audit: Audit | None) -> None:
        """Close the order in one entry: released, acknowledged or disputed, authorized."""
        terms, order = delivery.terms, delivery.terms.order.digest
        of = delivery.receipt or delivery.checkpoint
        if of is None:
            await self._book.post(AccountChanged(self._account_of(terms).key, Released(order)))
            return
        condemned = audit is not None and audit.outcome == "dishonest"
        objection = audit.reason if condemned and audit is not None else delivery.objection
        if delivery.receipt is None and not condemned:
            objection = None  # a cut answer is paid up to its checkpoint; there is no claim to dispute
        reservation = self._account_of(terms).orders[order]
        # What was granted on the way stays granted.
        granted = max(0 if condemned else delivery.owed, reservation.granted)
        asked = min(of.record.cost, reservation.amount)
        changes: list[Change] = [Released(order), Acknowledged(order, granted)]
        if objection is not None and asked > granted:
            changes.append(Disputed(order, asked, granted))
        await self._promise(terms, _Answer(of.digest, granted, objection), changes)

    async def _promise(self, terms: Terms, answer: "_Answer", changes: list[Change], *records: Kept) -> None:
        """Write changes of one order, with the acknowledgement that says so and its voucher, to be handed over."""
        account, order = self._account_of(terms), terms.order.digest
        after = functools.reduce(apply, changes, account)
        # More may be promised than is owed, by vouchers that a restored ledger had lost: no promise is taken back.
        total = max(after.owed, after.authorized)
        if total > after.authorized:
            changes = [*changes, Authorized(total)]
        voucher = self._book.rails.make_voucher(self._book.identity, after, total)
        acknowledgement = sign(
            Acknowledgement(
                order=order,
                of=answer.of,
                accepted=answer.objection is None,
                reason=(answer.objection or "")[:256],
                amount=answer.granted,
                previous=self._latest.get(account.key),
                voucher=voucher.raw,
            ),
            self._book.identity,
        )
        await self._book.post(
            *(AccountChanged(account.key, change) for change in changes),
            records=(*records, kept(acknowledgement, order)),
        )
        self._latest[account.key] = acknowledgement.digest
        self._unsent.setdefault(terms.seller, []).append(acknowledgement)

    async def answer(
        self, terms: Terms, claim: Signed[Receipt] | Signed[Checkpoint], owed: int, objection: str | None
    ) -> bool:
        """Acknowledge, or dispute down to `owed`, what a seller claims for an order that is over; whether it was news.

        Durable on return, sent soon after. What was granted before stays granted.
        """
        order, asked = terms.order.digest, claim.record.cost
        async with self._promising.setdefault(terms.seller, asyncio.Lock()):
            reservation = self._account_of(terms).orders.get(order)
            if reservation is None or reservation.open or reservation.asked is not None:
                return False
            if not reservation.granted < asked <= reservation.amount:
                return False
            granted = max(owed, reservation.granted)
            changes: list[Change] = [Acknowledged(order, granted)]
            if objection is not None:
                changes.append(Disputed(order, asked, granted))
            await self._promise(terms, _Answer(claim.digest, granted, objection), changes, kept(claim, order))
        self._hand_over(terms.seller)
        return True

    def pick_up(self, key: AccountKey, order: bytes) -> None:
        """Settle, in the background, an order of which it became known after a restart what is due."""
        self._start(self._recover_orders([(key, order)]))

    def is_settling(self, order: bytes) -> bool:
        """Whether an order is being settled just now."""
        return order in self._settling

    async def give_way(self, dispute: Dispute, amount: int) -> None:
        """Acknowledge `amount` in all for a disputed order of ours. Durable on return, sent soon after.

        Raises AccountError, Unpayable.
        """
        key, order, seller = dispute.key, dispute.order, parse_did(dispute.key.payee)
        async with self._locks.setdefault(seller, asyncio.Lock()), self._promising.setdefault(seller, asyncio.Lock()):
            last = await self._last_word(order)
            granted = Acknowledged(order, amount)
            after = apply(self._book.journal.books.account(key), granted)
            total = max(after.owed, after.authorized)
            whole = amount == after.orders[order].asked
            said = evolve(
                last,
                accepted=whole,
                reason="" if whole else last.reason,
                amount=amount,
                previous=self._latest.get(key),
                voucher=self._book.rails.make_voucher(self._book.identity, after, total).raw,
            )
            acknowledgement = sign(said, self._book.identity)
            changes: list[Change] = [granted, Authorized(total)] if total > after.authorized else [granted]
            await self._book.post(
                *(AccountChanged(key, change) for change in changes), records=(kept(acknowledgement, order),)
            )
            self._latest[key] = acknowledgement.digest
            self._unsent.setdefault(seller, []).append(acknowledgement)
        self._hand_over(seller)

    async def _last_word(self, order: bytes) -> Acknowledgement:
        """What this node said last of an order. Raises Unpayable."""
        for record in reversed(await self._book.journal.records_of(order)):
            if record.kind == Acknowledgement.kind:
                return open_record(record.raw, Acknowledgement).record
        raise Unpayable(order)

    def _account_of(self, terms: Terms) -> Account:
        return self._book.journal.books.account(terms.account(self._book.me))

    async def _send(self, seller: Did, peer: Peer) -> None:
        """Hand over what is unsent, oldest first, until the seller has all of it."""
        wait_s = _FIRST_RETRY_S
        try:
            while unsent := self._unsent.get(seller):
                if await self._taken(unsent[0], seller, peer):
                    unsent.pop(0)
                    wait_s = _FIRST_RETRY_S
                else:
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _LAST_RETRY_S)
        finally:
            # At once, and not when the task is over: what is settled in between must find that nobody is sending.
            self._sending.discard(seller)

    async def _taken(self, acknowledgement: Signed[Acknowledgement], seller: Did, peer: Peer) -> bool:
        """Whether a seller has an acknowledgement, or will never take it; if not, it is to be tried again."""
        try:
            await peer.acknowledge(acknowledgement.raw)
        except Unreachable:
            return False
        except Refused as refusal:
            if refusal.code in _LATER:
                return False
            # It will not take it now or later; the voucher in the next one stands for this one too.
            _log.warning("%s refused an acknowledgement: %s", seller, refusal.message)
        return True

    # After a restart

    def promised(self, key: AccountKey, acknowledgement: bytes) -> None:
        """An acknowledgement of ours came back that the journal had lost, by its digest: the next one names it."""
        self._latest[key] = acknowledgement

    async def recover(self, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        """Pick up what an earlier run left: open orders, and acknowledgements that may not have arrived.

        With `ready`, orders are settled in the background once it is done: those who help in audits must be known.
        """
        for acknowledgement, voucher in await self._latest_acknowledgements():
            self._latest[_account_of(voucher)] = acknowledgement.digest
            self._unsent.setdefault(parse_did(voucher.payee), []).append(acknowledgement)
        left = self._open_orders(before=None)  # those of this run are not among them
        for seller in list(self._unsent):
            self._hand_over(seller)
        if ready is None:
            await self._recover_orders(left)
        elif left:
            self._start(self._recover_when(ready, left))

    async def _recover_when(self, ready: Callable[[], Awaitable[None]], left: list[tuple[AccountKey, bytes]]) -> None:
        await ready()
        await self._recover_orders(left)

    async def sweep(self) -> None:
        """Settle what was delivered and could not be settled, and close expired orders of which nothing ever came."""
        expired = set(self._open_orders(before=self._book.now() - 2 * CLOCK_SKEW_S))
        due = self._book.experience.due
        left = self._open_orders(before=None)
        await self._recover_orders([one for one in left if due(one[1]) is not None or one in expired])

    def _open_orders(self, before: int | None) -> list[tuple[AccountKey, bytes]]:
        return [
            (key, order)
            for key, account in self._book.journal.books.accounts.items()
            if key.payer == self._book.me
            for order, reservation in account.orders.items()
            if reservation.open
            and order not in self._book.under_way
            and order not in self._settling
            and (before is None or reservation.expires < before)
        ]

    async def _recover_orders(self, orders: Sequence[tuple[AccountKey, bytes]]) -> None:
        """Settle what came of them; those that are over and brought nothing go."""
        nothing: dict[AccountKey, set[bytes]] = {}
        for key, order in orders:
            # Accounts may have been compared meanwhile, and the order's end found there.
            delivery = await self._left_behind(order) if self._is_open(key, order) else None
            if delivery is not None and self._is_open(key, order):
                await self.settle(delivery)
            elif self._is_open(key, order) and self._is_over(key, order):
                nothing.setdefault(key, set()).add(order)
        for key, left in nothing.items():
            await self._book.let_go(key, left)

    def _is_open(self, key: AccountKey, digest: bytes) -> bool:
        reservation = self._book.journal.books.account(key).orders.get(digest)
        return reservation is not None and reservation.open and digest not in self._settling

    def _is_over(self, key: AccountKey, digest: bytes) -> bool:
        return self._book.journal.books.account(key).orders[digest].expires < self._book.now() - CLOCK_SKEW_S

    async def _left_behind(self, digest: bytes) -> Delivery | None:
        """What had come of an order before this node stopped; the seller is asked for a receipt that is not here."""
        bought = await load_bought(self._book, digest)
        if bought is None:
            return None
        terms, answer, receipt, checkpoint = bought
        due = self._book.experience.due(digest)
        if due is None:
            receipt = await self._fetch_receipt(terms)
            if receipt is None:
                return None
            due = Due(receipt.record.cost, None)
            found = experience.due(terms.seller, digest, due.owed, due.objection)
            await self._book.post(found, records=(kept(receipt, digest),))
        return Delivery(terms, answer, receipt, checkpoint, due.owed, due.objection, cancelled=True)

    async def _fetch_receipt(self, terms: Terms) -> Signed[Receipt] | None:
        """A receipt for an answer that this node lost: its tokens cannot be checked any more, but its sums can."""
        peer = self._dial(terms.seller)
        if peer is None:
            return None
        try:
            raw = await peer.receipt(terms.order.digest)
            receipt = open_record(raw, Receipt) if raw is not None else None
        except (Refused, Unreachable, codec.Malformed):
            return None
        return receipt if receipt is not None and sums_fit(terms, receipt) else None

    async def _latest_acknowledgements(self) -> list[tuple[Signed[Acknowledgement], Voucher]]:
        """The last one of each of the latest few orders, for each seller, oldest first; again it does no harm."""
        latest: dict[AccountKey, dict[bytes, tuple[Signed[Acknowledgement], Voucher]]] = {
            key: {}
            for key, account in self._book.journal.books.accounts.items()
            if key.payer == self._book.me and account.authorized
        }
        before: int | None = None
        # Those of our own buyers lie between: it is looked on until there is one of ours for each seller.
        while not all(latest.values()):
            page = await self._book.journal.list_records(Acknowledgement.kind, _LOOK_BACK, before)
            if not page:
                break
            before = page[-1].sequence
            for record in page:
                acknowledgement = open_record(record.raw, Acknowledgement)
                voucher = open_record(acknowledgement.record.voucher, Voucher).record
                ours = latest.get(_account_of(voucher), {})
                if acknowledgement.signer == self._book.me and len(ours) < _SENT_AGAIN:
                    ours.setdefault(acknowledgement.record.order, (acknowledgement, voucher))
        return [one for ours in latest.values() for one in reversed(ours.values())]


def _account_of(voucher: Voucher) -> AccountKey:
    return AccountKey(voucher.payer, voucher.payee, voucher.rail, voucher.unit)
