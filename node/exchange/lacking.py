"""What a counterparty lacks, found in the journal: acknowledged orders with all their records, agreements, and claims.

Theory of operation. Acknowledgements of one account name each other, so the last one that a party has says which ones
it lacks: those after it, oldest first, each with the order, offer and receipt that it is about. A party that names none
lacks all of them. Every search looks back over so many records at most, and one answer holds so many bytes at most;
what does not fit goes with the next one, since the party then names a later acknowledgement.

Peers may ask often, and make no account move by that: what was found of an account is known until it moves, and of each
acknowledgement how it hangs together with the others, so that no signature is checked again and again.

A payer that was cut off may never have seen what its payee has signed last. So whoever is owed more than is promised or
disputed hands over its receipts and checkpoints of orders that are over and not answered.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Final

from attrs import frozen

from ledger.account import Account, AccountKey
from ledger.agreements import RAIL, netting_keys, settlement_key
from ledger.reconcile import account_of, opened_voucher
from ledger.records import (
    Acknowledgement,
    Checkpoint,
    Netting,
    Order,
    Receipt,
    Settlement,
    Totals,
    open_record,
)
from node.exchange.book import Book
from node.exchange.pairs import LOOK_THROUGH, find_pair, records_between
from node.wire.messages import MAX_HANDED, MAX_HANDED_BYTES, Handed

# Of an account's acknowledgements.
_LOOK_BACK: Final = 4_000
# So many of the newest of all acknowledgements are looked through for a place where one is missing.
_LATELY: Final = 400
# More than one search sees: or each would find that the one before it has pushed out what it needs.
_REMEMBERED: Final = 2 * _LOOK_BACK
_ACCOUNTS: Final = 4_096
# So many orders are claimed at a time.
_CLAIMED: Final = MAX_HANDED // 2
# Checking signatures takes a moment; after so many others have their turn.
_AT_ONCE: Final = 16
# Of one answer; the rest is for what stands around the records.
_MOST_BYTES: Final = MAX_HANDED_BYTES - 16 * MAX_HANDED - 64


class Parcel:
    """Records to be handed back, each once, as far as they fit."""

    def __init__(self) -> None:
        self._records: dict[bytes, tuple[str, bytes]] = {}
        self._bytes = 0
        self.walked = 0  # records, whosever, that were looked through for it

    def add(self, records: Sequence[tuple[str, bytes]]) -> bool:
        """All of these or none; whether they fit."""
        new = {raw: (kind, raw) for kind, raw in records if raw not in self._records}
        size = self._bytes + sum(map(len, new))
        if len(self._records) + len(new) > MAX_HANDED or size > _MOST_BYTES:
            return False
        self._records |= new
        self._bytes = size
        return True

    def walk(self, records: int) -> None:
        """So many records were looked through for it."""
        self.walked += records

    @property
    def records(self) -> Handed:
        """What is in it."""
        return tuple(self._records.values())


@frozen
class _Link:
    """Which account and order an acknowledgement of ours or for us is about, and the one before it."""

    digest: bytes
    key: AccountKey
    order: bytes
    previous: bytes | None


class Lacking:
    """Finds what others lack."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._read: OrderedDict[bytes, _Link] = OrderedDict()
        self._last: OrderedDict[AccountKey, tuple[Account, bytes]] = OrderedDict()

    async def last_of(self, account: Account) -> bytes:
        """The digest of the last acknowledgement up to which all of an account are here; empty if there is none."""
        if not account.authorized:
            return b""
        known = self._last.get(account.key)
        if known is None or known[0] is not account:
            known = account, await self._find_last(account.key)
            self._last[account.key] = known
            self._last.move_to_end(account.key)
            if len(self._last) > _ACCOUNTS:
                self._last.popitem(last=False)
        return known[1]

    async def _find_last(self, key: AccountKey) -> bytes:
        newest = [link async for link in self._trail(key, through=_LATELY)]
        if not newest:
            # No further: nobody is charged for this look.
            newest = [link async for link in self._trail(key, through=_LOOK_BACK, most=1)]
        known = {link.digest for link in newest}
        for older, newer in pairwise(reversed(newest)):
            if newer.previous is not None and newer.previous not in known:
                return older.digest
        return newest[0].digest if newest else b""

    async def collect(self, account: Account, last: bytes, said: Totals, parcel: Parcel) -> None:
        """What the other party of an account lacks, by what it says of it, as far as it fits into the parcel.

        `last` is our own last acknowledgement, as `last_of` gives it.
        """
        if said.authorized < account.authorized or (said.acknowledged and said.acknowledged != last):
            for link in await self._after(account, said, parcel):
                if not parcel.add(await self._with_its_order(link)):
                    break
        if account.key.rail == RAIL:
            await self._agreements(account, said, parcel)
        if account.key.payee == self._book.me and account.forgivable:
            await self._claims(account, parcel)

    async def _agreements(self, account: Account, said: Totals, parcel: Parcel) -> None:
        key, settled, netted = account.key, account.settled, account.netted
        if said.settled < settled:
            pair = await find_pair(
                self._book,
                Settlement,
                (key.payer, key.payee),
                lambda one: settlement_key(one) == key and one.total == settled,
                told=parcel.walk,
            )
            parcel.add([(Settlement.kind, raw) for raw in pair or ()])
        if said.netted < netted:
            pair = await find_pair(
                self._book,
                Netting,
                (key.payer, key.payee),
                lambda one: key in netting_keys(one) and one.total == netted,
                told=parcel.walk,
            )
            parcel.add([(Netting.kind, raw) for raw in pair or ()])

    async def _claims(self, account: Account, parcel: Parcel) -> None:
        """The receipt and last checkpoint of each order of which the payer has not answered all, the newest first."""
        unanswered = [(one.expires, order) for order, one in account.orders.items() if one.unanswered]
        for _, order in sorted(unanswered, reverse=True)[:_CLAIMED]:
            parcel.walked += 1
            kept = await self._book.journal.records_of(order)
            claims = [record for record in kept if record.kind == Checkpoint.kind][-1:]
            claims += [record for record in kept if record.kind == Receipt.kind]
            if not parcel.add([(record.kind, record.raw) for record in claims]):
                return

    async def _after(self, account: Account, said: Totals, parcel: Parcel) -> list[_Link]:
        """Those after the one that the other party names, oldest first."""
        found: list[_Link] = []
        async for link in self._trail(account.key, parcel=parcel):
            if link.digest == said.acknowledged:
                return found[::-1]
            found.append(link)
        # It names none that is here.
        if said.authorized >= account.authorized:
            return []
        # What has been promised something has most of them, and lacks the newest; another one lacks all.
        return found[: MAX_HANDED // 4][::-1] if said.authorized else found[::-1]

    async def _trail(
        self, key: AccountKey, through: int = LOOK_THROUGH, most: int = _LOOK_BACK, parcel: Parcel | None = None
    ) -> AsyncIterator[_Link]:
        """The acknowledgements of an account, newest first, at most so many, among the newest of all."""
        number, found, parties = 0, 0, (key.payer, key.payee)
        told = None if parcel is None else parcel.walk
        async for record in records_between(self._book, Acknowledgement.kind, parties, through, told):
            link = self._opened(record.digest, record.raw)
            number += 1
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            if link.key == key:
                found += 1
                yield link
            if found == most:
                return

    def _opened(self, digest: bytes, raw: bytes) -> _Link:
        if digest not in self._read:
            acknowledgement = open_record(raw, Acknowledgement)
            said, key = acknowledgement.record, account_of(opened_voucher(acknowledgement))
            self._read[digest] = _Link(digest, key, said.order, said.previous)
            if len(self._read) > _REMEMBERED:
                self._read.popitem(last=False)
        return self._read[digest]

    async def _with_its_order(self, link: _Link) -> list[tuple[str, bytes]]:
        """An acknowledgement, and before it what it is about, as far as it is kept."""
        kept = await self._book.journal.records_of(link.order)
        orders = [record for record in kept if record.kind == Order.kind]
        claims = [record for record in kept if record.kind == Receipt.kind]
        claims = claims or [record for record in kept if record.kind == Checkpoint.kind][-1:]
        records = [(record.kind, record.raw) for record in (*orders, *claims)]
        if orders:
            offer = await self._book.journal.record(open_record(orders[0].raw, Order).record.offer)
            records = [(offer.kind, offer.raw), *records] if offer is not None else records
        said = await self._book.journal.record(link.digest)
        return [*records, (said.kind, said.raw)] if said is not None else []
