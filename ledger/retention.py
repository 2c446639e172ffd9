"""Records are not kept for ever: which may go, how the journal tells of it, and what is damage all the same.

Theory of operation. The chain tells of each record by its digest, so dropping the bytes leaves it whole. But bytes that
are gone must not pass for damage, nor damage for bytes that were dropped: first an entry names the digests, and then
they go. Whoever reads the chain sets each missing record aside until a later entry accounts for it: `Gaps` does so.

What may go are the records of orders that nobody can ask for any more: their accounts have forgotten them, so they are
closed and not in dispute. What proves a balance stays: the latest vouchers, settlements, nettings and forgiveness.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from attrs import define

from ledger.account import AccountKey
from ledger.codec import Malformed
from ledger.events import Books, Event, Observed
from ledger.journal import Kept
from ledger.records import (
    DIGEST_BYTES,
    Acknowledgement,
    Cancel,
    Checkpoint,
    Offer,
    Order,
    Receipt,
    Resolution,
    Score,
    Verdict,
    Voucher,
    open_record,
)

_WHAT: Final = "dropped"
_FACT: Final = "digests"
# So many digests in one entry: far below what an entry may hold.
MOST_AT_ONCE: Final = 1_000
# An order is taken up to a day after its offer, and each is kept with its own entry.
OFFERS_LONGER_MS: Final = 2 * 86_400_000

OF_ORDERS: Final = tuple(
    kind.kind for kind in (Order, Checkpoint, Receipt, Score, Cancel, Verdict, Resolution, Acknowledgement)
)


def dropped(me: str, digests: Iterable[bytes]) -> Observed:
    """The event that names what goes; it is durable before anything does. `me` is the node's own did:key."""
    return Observed(me, _WHAT, {_FACT: b"".join(digests)})


def digests_dropped(events: Iterable[Event]) -> Iterator[bytes]:
    """The digests that an entry names as dropped."""
    for event in events:
        if isinstance(event, Observed) and event.what == _WHAT:
            named = event.facts.get(_FACT)
            if isinstance(named, bytes):
                yield from (named[at : at + DIGEST_BYTES] for at in range(0, len(named), DIGEST_BYTES))


@define
class Gap:
    """A record that an entry tells of, that is not there, and that was never dropped."""

    sequence: int
    digest: bytes

    def __str__(self) -> str:
        return f"record {self.digest.hex()[:16]} that it tells of is gone"


class Gaps:
    """The records that were missing on the way along a chain, until a later entry says that they were dropped."""

    def __init__(self) -> None:
        self._missing: dict[bytes, int] = {}
        self.dropped = 0  # how many were accounted for

    def miss(self, sequence: int, digest: bytes) -> None:
        """The record is not there that this entry tells of."""
        self._missing[digest] = sequence

    def take(self, events: Iterable[Event]) -> None:
        """What the next entry says."""
        if self._missing:
            self.account_for(digests_dropped(events))

    def account_for(self, digests: Iterable[bytes]) -> list[bytes]:
        """The next entries name these as dropped; returns those that were not missing."""
        others = []
        for digest in digests:
            if self._missing.pop(digest, None) is None:
                others.append(digest)
            else:
                self.dropped += 1
        return others

    def go_on(self, dropped: int, named: Iterable[bytes], missing: Mapping[bytes, int]) -> list[bytes]:
        """The next entries account for so many of their own, name others, and miss what they do not name.

        Returns of those named the ones that were not missing before, either.
        """
        self.dropped += dropped
        others = self.account_for(named)
        self._missing |= missing
        return others

    @property
    def missing(self) -> Mapping[bytes, int]:
        """The digests that no entry so far has accounted for, and the entries that tell of them."""
        return dict(self._missing)

    @property
    def first(self) -> Gap | None:
        """The first that no entry so far has accounted for."""
        return next((Gap(sequence, digest) for digest, sequence in islice(self._missing.items(), 1)), None)


class Sieve:
    """Goes along old records, oldest first, and says of each whether nothing needs it any more."""

    def __init__(self, books: Books, orders: Collection[bytes], offers: Collection[bytes]) -> None:
        """`orders` are those that accounts still know or that are being answered, `offers` those of such orders."""
        self._books = books
        self._orders = orders
        self._offers = offers
        self._trails: set[AccountKey] = set()  # accounts of which an acknowledgement stays, and so do those after it
        self.marks: dict[AccountKey, int] = {}  # the highest total of the acknowledgements that go, by account

    def may_go(self, kept: Kept) -> bool:
        """Whether a record that is old enough may be dropped."""
        if kept.kind == Offer.kind:
            return kept.digest not in self._offers
        if kept.kind == Acknowledgement.kind:
            return self._is_past(kept)
        return kept.kind in OF_ORDERS and kept.order is not None and kept.order not in self._orders

    def _is_past(self, kept: Kept) -> bool:
        """Whether a later voucher promises more, and no earlier acknowledgement of the account stays.

        Each names the one before it: one that is missing between two others counts as lost, and is asked for.
        """
        try:
            voucher = open_record(open_record(kept.raw, Acknowledgement).record.voucher, Voucher).record
        except Malformed:
            return False
        key = AccountKey(voucher.payer, voucher.payee, voucher.rail, voucher.unit)
        if kept.order in self._orders or voucher.total >= self._books.account(key).authorized:
            self._trails.add(key)
        if key in self._trails:
            return False
        self.marks[key] = max(voucher.total, self.marks.get(key, 0))
        return True
