"""The settler: decides on audit and payment of each delivery, acknowledges it, and sees that the seller gets that.

Theory of operation. A delivery on disk is first audited, if its plan says so before payment. Then one durable entry
closes it: what is granted counts as earned, what is asked beyond it as disputed, the rest of the reservation goes, and
the signed acknowledgement with its voucher is kept. Only then is it handed to the seller, and again with backoff until
the seller has it. Where the window does not bear all that is under way, checkpoints are acknowledged in the same way
while the answer goes on. A restart picks up what was still on the way: deliveries without an acknowledgement, and the
latest acknowledgements for each seller.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from attrs import frozen

from ledger.account import Account, AccountKey
from ledger.changes import Acknowledged, Change, Disputed, Released
from ledger.commitments import CHECKPOINT_TOKENS
from ledger.events import AccountChanged
from ledger.identity import Did, parse_did
from ledger.records import CLOCK_SKEW_S, Checkpoint, Receipt, Signed
from ledger.waivers import Dispute
from node.exchange.auditor import Audit, Auditor
from node.exchange.background import Background
from node.exchange.book import Book, kept
from node.exchange.delivery import Delivery, Terms
from node.exchange.left_behind import delivery_left, latest_acknowledgements
from node.exchange.outbox import Outbox
from node.exchange.promising import Answer, Promising
from node.exchange.strangers import is_stranger
from node.ports import Entropy
from node.wire.peer import Peer
from verify.audits import ENTROPY_BYTES, AuditPlan, plan, rate_with_stake

_NO_AUDIT: Final = AuditPlan(audit=False, before_payment=False)


@frozen
class AuditPolicy:
    """How often to audit: each of a seller's first receipts, and before it is paid; later ones at a rate in 0..1."""

    rate: float = 0.05
    first: int = 8


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
        self._background = Background("settling failed; a restart goes on with it")
        self._outbox = Outbox(dial, self._background)
        self._promising = Promising(book, self._outbox)
        self._turns: dict[Did, asyncio.Lock] = {}  # of sellers; held while a delivery is audited, too
        self._to_pay: dict[bytes, tuple[Terms, Signed[Checkpoint]]] = {}  # the last checkpoint, by order
        self._paying: set[bytes] = set()  # orders
        self._settling: set[bytes] = set()  # orders

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
            async with self._turn(seller):
                chosen = self._plan(seller, delivery) if audited else _NO_AUDIT
                verdict = await self._audit(delivery) if chosen.audit and chosen.before_payment else None
                async with self._promising.turn(seller):
                    await self._acknowledge(delivery, verdict)
        finally:
            self._settling.discard(order)
        self._outbox.hand_over(seller)
        if chosen.audit and not chosen.before_payment:
            self._background.start(self._audit_later(delivery))

    def pays_on_the_way(self, seller: Did) -> bool:
        """Whether a seller is paid before its answers are over: once its first ones are behind it."""
        # Where nothing can be audited, what was delivered must do.
        standing = self._book.experience.standing(seller)
        return max(standing.audits, standing.history.delivered) >= self._policy.first

    def pay(self, terms: Terms, checkpoint: Signed[Checkpoint], awaited: bool) -> None:
        """Acknowledge what came up to a checkpoint, in the background. See `purchase.Paying`."""
        order, account = terms.order.digest, self._promising.account_of(terms)
        # A window that bears all that is under way needs no pay before the end.
        under_way = account.owed + account.reserved + account.disputed - account.due
        if not self.pays_on_the_way(terms.seller) or (under_way <= account.window and not awaited):
            return
        if not self._is_new(account, order, checkpoint):
            return
        self._to_pay[order] = terms, checkpoint
        if order not in self._paying:
            self._paying.add(order)
            self._background.start(self._pay(order))

    def paid_up(self, terms: Terms, tokens: int) -> bool:
        """Whether by these books the window bears what follows so many tokens. See `purchase.Paying`."""
        account = self._promising.account_of(terms)
        order = account.orders[terms.order.digest]
        if self._outbox.holds_for(terms.seller) or order.granted < terms.output_cost(tokens):
            return False
        most = terms.order.record.max_tokens
        next_part = terms.full_cost(min(tokens + CHECKPOINT_TOKENS, most)) - order.granted
        return next_part + account.reserved - order.rest + account.disputed <= account.window

    async def _pay(self, order: bytes) -> None:
        try:
            while due := self._to_pay.pop(order, None):
                terms, checkpoint = due
                async with self._promising.turn(terms.seller):
                    await self._acknowledge_checkpoint(terms, checkpoint)
                self._outbox.hand_over(terms.seller)
        finally:
            self._paying.discard(order)

    async def close(self) -> None:
        """Stop; what could not be handed over is handed over after the next start."""
        await self._background.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting to be audited or handed over."""
        return self._background.idle

    def _turn(self, seller: Did) -> asyncio.Lock:
        return self._turns.setdefault(seller, asyncio.Lock())

    def _plan(self, seller: Did, delivery: Delivery) -> AuditPlan:
        # Only what was really checked counts: a seller whom no audit can judge stays new.
        earlier = self._book.experience.standing(seller).audits
        unit = self._promising.account_of(delivery.terms).key.unit
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
        if self._is_new(self._promising.account_of(terms), order, checkpoint):
            accepted = Answer(checkpoint.digest, granted, None)
            await self._promising.promise(terms, accepted, [Acknowledged(order, granted)], kept(checkpoint, order))

    def _is_new(self, account: Account, order: bytes, checkpoint: Signed[Checkpoint]) -> bool:
        reservation = account.orders.get(order)
        return reservation is not None and reservation.open and reservation.granted < checkpoint.record.cost

    async def _acknowledge(self, delivery: Delivery, audit: Audit | None) -> None:
        """Close the order in one entry: released, acknowledged or disputed, authorized."""
        terms, order = delivery.terms, delivery.terms.order.digest
        of = delivery.receipt or delivery.checkpoint
        if of is None:
            await self._book.post(AccountChanged(self._promising.account_of(terms).key, Released(order)))
            return
        condemned = audit is not None and audit.outcome == "dishonest"
        objection = audit.reason if condemned and audit is not None else delivery.objection
        if delivery.receipt is None and not condemned:
            objection = None  # a cut answer is paid up to its checkpoint; there is no claim to dispute
        reservation = self._promising.account_of(terms).orders[order]
        # What was granted on the way stays granted.
        granted = max(0 if condemned else delivery.owed, reservation.granted)
        asked = min(of.record.cost, reservation.amount)
        changes: list[Change] = [Released(order), Acknowledged(order, granted)]
        if objection is not None and asked > granted:
            changes.append(Disputed(order, asked, granted))
        await self._promising.promise(terms, Answer(of.digest, granted, objection), changes)

    async def answer(
        self, terms: Terms, claim: Signed[Receipt] | Signed[Checkpoint], owed: int, objection: str | None
    ) -> bool:
        """Acknowledge, or dispute down to `owed`, what a seller claims for an order that is over; whether it was news.

        Durable on return, sent soon after. What was granted before stays granted. It is not cut short: what is on
        disk and was signed is remembered, and goes out, also where whoever asked goes away.
        """
        return await asyncio.shield(asyncio.ensure_future(self._answer(terms, claim, owed, objection)))

    async def _answer(
        self, terms: Terms, claim: Signed[Receipt] | Signed[Checkpoint], owed: int, objection: str | None
    ) -> bool:
        order, asked = terms.order.digest, claim.record.cost
        async with self._promising.turn(terms.seller):
            reservation = self._promising.account_of(terms).orders.get(order)
            if reservation is None or reservation.open or reservation.asked is not None:
                return False
            if not reservation.granted < asked <= reservation.amount:
                return False
            granted = max(owed, reservation.granted)
            changes: list[Change] = [Acknowledged(order, granted)]
            if objection is not None:
                changes.append(Disputed(order, asked, granted))
            await self._promising.promise(terms, Answer(claim.digest, granted, objection), changes, kept(claim, order))
        self._outbox.hand_over(terms.seller)
        return True

    def pick_up(self, key: AccountKey, order: bytes) -> None:
        """Settle, in the background, an order of which it became known after a restart what is due."""
        self._background.start(self._recover_orders([(key, order)]))

    def is_settling(self, order: bytes) -> bool:
        """Whether an order is being settled just now."""
        return order in self._settling

    async def give_way(self, dispute: Dispute, amount: int) -> None:
        """Acknowledge `amount` in all for a disputed order of ours, cut short as little as `answer`.

        Durable on return, sent soon after. Raises AccountError, Unpayable.
        """
        await asyncio.shield(asyncio.ensure_future(self._give_way(dispute, amount)))

    async def _give_way(self, dispute: Dispute, amount: int) -> None:
        seller = parse_did(dispute.key.payee)
        async with self._turn(seller), self._promising.turn(seller):
            await self._promising.give_way(dispute, amount)
        self._outbox.hand_over(seller)

    # After a restart

    def promised(self, key: AccountKey, acknowledgement: bytes) -> None:
        """An acknowledgement of ours came back that the journal had lost, by its digest: the next one names it."""
        self._promising.follow(key, acknowledgement)

    async def recover(self, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        """Pick up what an earlier run left: open orders, and acknowledgements that may not have arrived.

        With `ready`, orders are settled in the background once it is done: those who help in audits must be known.
        """
        for acknowledgement, key in await latest_acknowledgements(self._book):
            self._promising.follow(key, acknowledgement.digest)
            self._outbox.add(parse_did(key.payee), acknowledgement)
        left = await self._ours(self._open_orders(before=None))  # those of this run are not among them
        for seller in self._outbox.sellers:
            self._outbox.hand_over(seller)
        if ready is None:
            await self._recover_orders(left)
        elif left:
            self._background.start(self._recover_when(ready, left))

    async def _recover_when(self, ready: Callable[[], Awaitable[None]], left: list[tuple[AccountKey, bytes]]) -> None:
        await ready()
        await self._recover_orders(left)

    async def sweep(self) -> None:
        """Settle what was delivered and could not be settled, and close expired orders of which nothing ever came.

        What was signed and is with nobody yet goes on its way again, whatever kept it.
        """
        for seller in self._outbox.sellers:
            if self._outbox.holds_for(seller):
                self._outbox.hand_over(seller)
        expired = set(self._open_orders(before=self._book.now() - 2 * CLOCK_SKEW_S))
        due = self._book.experience.due
        left = self._open_orders(before=None)
        ended = [one for one in left if due(one[1]) is not None or one in expired or self._book.is_others(one[1])]
        await self._recover_orders(await self._ours(ended))

    async def _ours(self, orders: list[tuple[AccountKey, bytes]]) -> list[tuple[AccountKey, bytes]]:
        """Those that no other process is at work on."""
        endable = await self._book.endable(orders) if orders else set()
        return [one for one in orders if one[1] in endable]

    def _open_orders(self, before: int | None) -> list[tuple[AccountKey, bytes]]:
        return [
            (key, order)
            for key, account in self._book.journal.books.accounts.items()
            if key.payer == self._book.me and not is_stranger(key.payee)
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
            delivery = await delivery_left(self._book, self._dial, order) if self._is_open(key, order) else None
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
