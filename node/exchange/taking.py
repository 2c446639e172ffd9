"""Records that a counterparty hands back: what this node has lost of them counts again, each once.

Nothing is believed but signatures. An acknowledgement of ours that the journal does not know is our promise all the
same; so is a receipt of ours, to which the payer's acknowledgement belongs. Settlements and nettings count with both
signatures, nettings once both owe what they set off. What is known already changes nothing, and what proves nothing is
passed over: a payer can sign any number of promises for orders that never were, so one that no order of ours bears out
is kept only as it covers a debt.

A payee's receipts and checkpoints that come with no acknowledgement are what it claims: they are answered.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise
from typing import Any, Final, TypeVar

from attrs import evolve, field, frozen

from ledger.account import AccountError, AccountKey
from ledger.agreements import AboveMutual, AgreementRefused, check_borne, net, netting_keys, settle, settlement_key
from ledger.changes import Change, InvalidChange
from ledger.codec import Malformed
from ledger.events import AccountChanged
from ledger.identity import Did
from ledger.journal import Kept
from ledger.rails.port import VoucherRefused
from ledger.reconcile import (
    Claim,
    NotOurs,
    Proof,
    account_of,
    opened_voucher,
    recovered_by_payee,
    recovered_by_payer,
)
from ledger.records import (
    KINDS,
    Acknowledgement,
    Checkpoint,
    Netting,
    Offer,
    Order,
    Receipt,
    Record,
    Settlement,
    Signed,
    open_record,
)
from node.exchange.book import REMEMBERED_S, Book, kept
from node.exchange.delivery import Claimed
from node.exchange.promised import promised
from node.wire.messages import Handed, Refused

# Checking a signature takes a fraction of a millisecond; after so many of them others have their turn.
_AT_ONCE: Final = 16
# Of what is owed and not promised, a promise without its order covers at least one in so many parts: each is kept.
_PARTS: Final = 256

_log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


@frozen
class _Opened:
    """What came, sorted; each record's signature is good."""

    orders: dict[bytes, Signed[Order]] = field(factory=dict)
    offers: dict[bytes, Signed[Offer]] = field(factory=dict)
    claims: dict[bytes, Claim] = field(factory=dict)  # by order; a receipt before any checkpoint
    acknowledgements: list[Signed[Acknowledgement]] = field(factory=list)
    claimed: dict[bytes, Claimed] = field(factory=dict)  # by order; as all that came for it
    settlements: list[Signed[Settlement]] = field(factory=list)
    nettings: list[Signed[Netting]] = field(factory=list)

    def add(self, signed: Signed[Any]) -> None:
        """Take one in; of a kind that is not handed back it is passed over."""
        match signed.record:
            case Order():
                self.orders[signed.digest] = signed
            case Offer():
                self.offers[signed.digest] = signed
            case Receipt(order=order):
                self.claims[order] = signed
                self.claimed[order] = evolve(self.claimed.get(order, Claimed()), receipt=signed)
            case Checkpoint(order=order):
                self.claims.setdefault(order, signed)
                self.claimed[order] = evolve(self.claimed.get(order, Claimed()), checkpoint=signed)
            case Acknowledgement():
                self.acknowledgements.append(signed)
            case Settlement():
                self.settlements.append(signed)
            case Netting():
                self.nettings.append(signed)

    def proof(self, acknowledgement: Signed[Acknowledgement]) -> Proof:
        """An acknowledgement with all that came for it."""
        order = self.orders.get(acknowledgement.record.order)
        offer = self.offers.get(order.record.offer) if order is not None else None
        return Proof(acknowledgement, order, offer, self.claims.get(acknowledgement.record.order))


class Taking:
    """Takes records that come back."""

    def __init__(self, book: Book, promised: Callable[[AccountKey, bytes], None]) -> None:
        """`promised` is told of each acknowledgement of ours that was lost, by its account and digest."""
        self._book = book
        self._promised = promised
        # Takes a buyer's acknowledgement, if this node sells; it raises Refused.
        self.paid: Callable[[bytes], Awaitable[None]] | None = None
        # Answers what a payee claims for an order, if this node buys; whether that was news.
        self.claimed: Callable[[Did, bytes, Claimed], Awaitable[bool]] | None = None

    async def take(self, peer: Did, handed: Handed, said_earned: Mapping[AccountKey, int]) -> int:
        """Take what a peer hands back; how many of them were news.

        `said_earned`: what this node has earned in all by what the peer says, for each account that it pays.
        """
        news, bare = 0, list[Signed[Acknowledgement]]()
        opened, worthless = await _opened(handed)
        for acknowledgement in opened.acknowledgements:
            try:
                if await self._book.journal.record(acknowledgement.digest) is not None:
                    continue
                proof = opened.proof(acknowledgement)
                if acknowledgement.signer == self._book.me:
                    news += await self._as_payer(peer, proof)
                elif acknowledgement.signer == peer:
                    news += await self._as_payee(peer, proof, said_earned, bare)
            except (NotOurs, InvalidChange, AccountError, VoucherRefused) as error:
                worthless.append(error)
        news += await self._promises(bare, worthless)
        if worthless:
            # One line, however many there are: a peer must not fill the log either.
            _log.warning("%s handed back %d records that count for nothing: %s", peer, len(worthless), worthless[0])
        return news + await self._agreements(peer, opened) + await self._claims(peer, opened)

    async def _claims(self, peer: Did, opened: _Opened) -> int:
        acknowledged = {one.record.order for one in opened.acknowledgements}
        if self.claimed is None:
            return 0
        return sum([await self.claimed(peer, *one) for one in opened.claimed.items() if one[0] not in acknowledged])

    async def _as_payer(self, peer: Did, proof: Proof) -> int:
        voucher = opened_voucher(proof.acknowledgement)
        key = account_of(voucher)
        if (key.payer, key.payee) != (self._book.me, peer) or self._book.trails.was_dropped(key, voucher.record.total):
            return 0
        changes = recovered_by_payer(proof, self._book.journal.books.account(key))
        await self._post(key, changes, _records_of(proof, key, with_acknowledgement=True))
        self._promised(key, proof.acknowledgement.digest)
        return 1

    async def _as_payee(
        self, peer: Did, proof: Proof, said_earned: Mapping[AccountKey, int], bare: list[Signed[Acknowledgement]]
    ) -> int:
        """What is refused with its order is added to `bare`."""
        if self.paid is None:
            return 0
        key = account_of(opened_voucher(proof.acknowledgement))
        if (key.payer, key.payee) != (peer, self._book.me):
            return 0
        if proof.claim is not None and await self._book.journal.record(proof.claim.digest) is None:
            forgotten = proof.order is not None and proof.order.record.expires < self._book.now() - REMEMBERED_S
            at_most = said_earned.get(key, 0) if forgotten else None
            changes = recovered_by_payee(proof, self._book.journal.books.account(key), at_most)
            await self._post(key, changes, _records_of(proof, key, with_acknowledgement=False))
        try:
            await self.paid(proof.acknowledgement.raw)
        except Refused as refusal:
            if refusal.code != "busy":  # then it is taken with its order, later
                bare.append(proof.acknowledgement)
            return 0
        return 1

    async def _promises(self, bare: list[Signed[Acknowledgement]], worthless: list[Exception]) -> int:
        """The highest promise of each account, where its order is gone for good, and it covers what is owed."""
        highest: dict[AccountKey, tuple[int, Signed[Acknowledgement]]] = {}
        for acknowledgement in bare:
            voucher = opened_voucher(acknowledgement)
            key, total = account_of(voucher), voucher.record.total
            if key not in highest or total > highest[key][0]:
                highest[key] = total, acknowledgement
        news = 0
        for key, (total, acknowledgement) in highest.items():
            account = self._book.journal.books.account(key)
            covered = min(total, account.owed) - account.authorized
            if covered <= 0 or covered * _PARTS < account.unpaid:
                continue
            try:
                received = self._book.rails.check_voucher(opened_voucher(acknowledgement), account)
            except VoucherRefused as error:
                worthless.append(error)
                continue
            await self._book.post(
                AccountChanged(key, received),
                *promised(acknowledgement, account, received.total),
                records=[kept(acknowledgement, acknowledgement.record.order)],
            )
            news += 1
        return news

    async def _post(self, key: AccountKey, changes: list[Change], records: list[Kept]) -> None:
        await self._book.post(*(AccountChanged(key, change) for change in changes), records=records)

    async def _agreements(self, peer: Did, opened: _Opened) -> int:
        parties, news = {peer, self._book.me}, 0
        for one, other in _pairs(opened.settlements, settle):
            key = settlement_key(one.record)
            if {key.payer, key.payee} == parties and self._book.journal.books.account(key).settled < one.record.total:
                await self._book.post(settle(one, other), records=(kept(one), kept(other)))
                news += 1
        for first, second in _pairs(opened.nettings, net):
            books, (there, back) = self._book.journal.books, netting_keys(first.record)
            accounts = books.account(there), books.account(back)
            if {there.payer, there.payee} != parties or accounts[0].netted >= first.record.total:
                continue
            try:
                check_borne(first.record, accounts)
            except AboveMutual as error:
                _log.warning("a netting with %s waits: %s", peer, error)
                continue
            await self._book.post(*net(first, second), records=(kept(first), kept(second)))
            news += 1
        return news


Agreed = TypeVar("Agreed", Settlement, Netting)


def _pairs(
    signed: list[Signed[Agreed]], agree: Callable[[Signed[Agreed], Signed[Agreed]], object]
) -> list[tuple[Signed[Agreed], Signed[Agreed]]]:
    """Those that both parties have signed."""
    found = []
    for one, other in pairwise(signed):
        with contextlib.suppress(AgreementRefused):
            agree(one, other)
            found.append((one, other))
    return found


async def _opened(handed: Handed) -> tuple[_Opened, list[Exception]]:
    """What came, sorted, and why what is left of it counts for nothing."""
    opened, worthless = _Opened(), list[Exception]()
    for number, (kind, raw) in enumerate(handed, 1):
        try:
            opened.add(open_record(raw, KINDS[kind]))
        except Malformed as error:
            worthless.append(error)
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return opened, worthless


def _records_of(proof: Proof, key: AccountKey, *, with_acknowledgement: bool) -> list[Kept]:
    """What is kept of a proof: the records that belong together, and no others."""
    order = proof.order
    records: list[Kept] = []
    if order is not None and (order.digest, order.signer) == (proof.acknowledgement.record.order, key.payer):
        if proof.offer is not None and (proof.offer.signer, proof.offer.digest) == (key.payee, order.record.offer):
            records.append(kept(proof.offer))
        records.append(kept(order, order.digest))
        if proof.claim is not None and proof.claim.signer == key.payee:
            records.append(kept(proof.claim, order.digest))
    if with_acknowledgement:
        records.append(kept(proof.acknowledgement, proof.acknowledgement.record.order))
    return records
