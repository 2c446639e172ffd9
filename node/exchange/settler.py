"""The settler: decides on audit and payment of each delivery, acknowledges it, and sees that the seller gets that.

Theory of operation. A delivery on disk is first audited, if its plan says so before payment. Then one durable entry
closes it: what is owed counts as earned, the rest of the reservation goes, and the signed acknowledgement with its
voucher is kept. Only then is it handed to the seller, and again with backoff until the seller has it. A restart picks
up what was still on the way: deliveries without an acknowledgement, and the latest acknowledgements for each seller.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from attrs import define, evolve, frozen

from ledger import codec
from ledger.account import Account, AccountKey, apply
from ledger.changes import Acknowledged, Authorized, Earned, Released
from ledger.events import AccountChanged
from ledger.identity import Did, parse_did
from ledger.rails.credit import make_voucher
from ledger.records import CLOCK_SKEW_S, Acknowledgement, Receipt, Signed, Voucher, open_record, sign
from ledger.waivers import Dispute
from node.exchange import experience
from node.exchange.auditor import Audit, Auditor
from node.exchange.book import Book, kept
from node.exchange.bought import load_bought
from node.exchange.delivery import Delivery, Terms
from node.exchange.experience import Due
from node.ports import Entropy
from node.wire.messages import Refused, Unreachable
from node.wire.peer import Peer
from verify.audits import ENTROPY_BYTES, AuditPlan, plan

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


class Settler:
    """Settles deliveries in the background, in order for each seller."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        auditor: Auditor,
        policy: AuditPolicy,
        dial: Callable[[Did], Peer | None],
    ) -> None:
        self._book = book
        self._entropy = entropy
        self._auditor = auditor
        self._policy = policy
        self._dial = dial
        self._locks: dict[Did, asyncio.Lock] = {}
        self._unsent: dict[Did, list[Signed[Acknowledgement]]] = {}
        self._latest: dict[tuple[str, str], bytes] = {}  # by (payee, unit): the acknowledgement before the next one
        self._sending: set[Did] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(self, delivery: Delivery) -> None:
        """Audit (if the plan says so), acknowledge and pay one delivery. Durable on return; sent soon after."""
        await self._settle(delivery, audited=delivery.terms.order.record.work == "generate")

    async def settle_help(self, delivery: Delivery) -> None:
        """The same for what was bought to audit somebody else: audits of audits would never end."""
        await self._settle(delivery, audited=False)

    async def _settle(self, delivery: Delivery, audited: bool) -> None:
        seller = delivery.terms.seller
        async with self._locks.setdefault(seller, asyncio.Lock()):
            chosen = self._plan(seller) if audited else _NO_AUDIT
            verdict = await self._audit(delivery) if chosen.audit and chosen.before_payment else None
            await self._acknowledge(delivery, verdict)
        self._hand_over(seller)
        if chosen.audit and not chosen.before_payment:
            self._start(self._audit_later(delivery))

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

    def _plan(self, seller: Did) -> AuditPlan:
        # Only what was really checked counts: a seller whom no audit can judge stays new.
        earlier = self._book.experience.standing(seller).audits
        return plan(self._policy.rate, earlier, self._policy.first, self._entropy.bytes(ENTROPY_BYTES))

    async def _audit(self, delivery: Delivery) -> Audit:
        # What was cut before its first checkpoint costs nothing, but it was read: it is evidence like any other.
        of = delivery.receipt or delivery.checkpoint or delivery.terms.order
        return await self._auditor.audit(delivery.terms, of.digest, delivery.ids)

    async def _audit_later(self, delivery: Delivery) -> None:
        await self._audit(delivery)

    async def _acknowledge(self, delivery: Delivery, audit: Audit | None) -> None:
        """Close the order in one entry: earned, released, authorized, acknowledged."""
        terms = delivery.terms
        of = delivery.receipt or delivery.checkpoint
        account = self._book.debt_to(terms.seller, terms.offer.record.price.unit)
        order = terms.order.digest
        if of is None:
            await self._book.post(AccountChanged(account.key, Released(order)))
            return
        condemned = audit is not None and audit.outcome == "dishonest"
        objection = audit.reason if condemned and audit is not None else delivery.objection
        if delivery.receipt is None and not condemned:
            objection = None  # a cut answer is paid up to its checkpoint; there is no claim to dispute
        amount = 0 if condemned else delivery.owed
        earned = Earned(order, amount)
        after = apply(account, earned)
        # What was forgiven after it was promised stays promised: that covers work to come.
        total = max(after.owed, after.authorized)
        voucher = make_voucher(self._book.identity, after, total)
        acknowledgement = sign(
            Acknowledgement(
                order=order,
                of=of.digest,
                accepted=objection is None,
                reason=(objection or "")[:256],
                amount=amount,
                previous=self._latest.get((account.key.payee, account.key.unit)),
                voucher=voucher.raw,
            ),
            self._book.identity,
        )
        await self._book.post(
            AccountChanged(account.key, earned),
            AccountChanged(account.key, Released(order)),
            *_authorized(after, total),
            records=(kept(acknowledgement, order),),
        )
        self._latest[account.key.payee, account.key.unit] = acknowledgement.digest
        self._unsent.setdefault(terms.seller, []).append(acknowledgement)

    async def give_way(self, dispute: Dispute, amount: int) -> None:
        """Acknowledge `amount` in all for a disputed order of ours. Durable on return, sent soon after.

        Raises AccountError, Unpayable.
        """
        key, order, seller = dispute.key, dispute.order, parse_did(dispute.key.payee)
        async with self._locks.setdefault(seller, asyncio.Lock()):
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
                previous=self._latest.get((key.payee, key.unit)),
                voucher=make_voucher(self._book.identity, after, total).raw,
            )
            acknowledgement = sign(said, self._book.identity)
            await self._book.post(
                AccountChanged(key, granted), *_authorized(after, total), records=(kept(acknowledgement, order),)
            )
            self._latest[key.payee, key.unit] = acknowledgement.digest
            self._unsent.setdefault(seller, []).append(acknowledgement)
        self._hand_over(seller)

    async def _last_word(self, order: bytes) -> Acknowledgement:
        """What this node said last of an order. Raises Unpayable."""
        for record in reversed(await self._book.journal.records_of(order)):
            if record.kind == Acknowledgement.kind:
                return open_record(record.raw, Acknowledgement).record
        raise Unpayable(order)

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

    async def recover(self) -> None:
        """Pick up what an earlier run left: open orders, and acknowledgements that may not have arrived."""
        for acknowledgement, voucher in await self._latest_acknowledgements():
            self._latest[voucher.payee, voucher.unit] = acknowledgement.digest
            self._unsent.setdefault(parse_did(voucher.payee), []).append(acknowledgement)
        for key, order in self._open_orders(before=None):
            await self._recover_order(key, order)
        for seller in list(self._unsent):
            self._hand_over(seller)

    async def sweep(self) -> None:
        """Close the orders that have expired and of which nothing ever came."""
        for key, order in self._open_orders(before=self._book.now() - 2 * CLOCK_SKEW_S):
            if self._book.experience.due(order) is None:
                await self._recover_order(key, order)

    def _open_orders(self, before: int | None) -> list[tuple[AccountKey, bytes]]:
        return [
            (key, order)
            for key, account in self._book.journal.books.accounts.items()
            if key.payer == self._book.me
            for order, reservation in account.orders.items()
            if reservation.open
            and order not in self._book.under_way
            and (before is None or reservation.expires < before)
        ]

    async def _recover_order(self, key: AccountKey, digest: bytes) -> None:
        delivery = await self._left_behind(digest)
        if delivery is not None:
            await self.settle(delivery)
        elif self._is_over(key, digest):
            await self._book.post(AccountChanged(key, Released(digest)))

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
        if receipt is None or receipt.signer != terms.seller or receipt.record.order != terms.order.digest:
            return None
        said = receipt.record
        sums = said.prompt_tokens == terms.prompt_tokens and said.cost == terms.full_cost(said.output_tokens)
        # A Score that was lost is worth nothing, and is not paid: its receipt says too much.
        fits = terms.order.record.work == "generate" and said.output_tokens <= terms.order.record.max_tokens
        return receipt if sums and fits else None

    async def _latest_acknowledgements(self) -> list[tuple[Signed[Acknowledgement], Voucher]]:
        """The latest few for each seller, oldest first; one that it has already does no harm."""
        latest: dict[tuple[str, str], list[tuple[Signed[Acknowledgement], Voucher]]] = {
            (key.payee, key.unit): []
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
                ours = latest.get((voucher.payee, voucher.unit), [])
                if acknowledgement.signer == self._book.me and len(ours) < _SENT_AGAIN:
                    ours.append((acknowledgement, voucher))
        return [one for ours in latest.values() for one in reversed(ours)]


def _authorized(account: Account, total: int) -> list[AccountChanged]:
    """The change of a voucher for this total; none where as much was promised before."""
    return [AccountChanged(account.key, Authorized(total))] if total > account.authorized else []
