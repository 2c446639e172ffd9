"""The node's memory: the durable journal, and the experience that follows from it.

Every service writes through `Book.post`, which returns when the change is durable. What it says of accounts and of
other nodes is always as of the last durable entry.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from ledger import codec
from ledger.account import Account, AccountKey, Reservation
from ledger.changes import Forgotten
from ledger.commitments import ids_bytes, ids_from_bytes
from ledger.events import AccountChanged, Event, Observed, decode_events
from ledger.identity import Identity
from ledger.journal import Journal, Kept, Material, Nonce
from ledger.money import Unit
from ledger.records import Record, Signed
from ledger.statement import DAY_MS, Turnover
from node.exchange.experience import Experience
from node.ports import Clock
from node.wire.messages import MAX_REQUEST, Request, decode_request, encode_request

RAIL: Final = "credit"
# A closed order can still be acknowledged so long: its buyer may have been away.
REMEMBERED_S: Final = 24 * 3600
# The owner's setting, unless there is another: audits and challenges are over by then.
TOKEN_IDS_S: Final = 7 * 24 * 3600


class Book:
    """One node's journal with what follows from it. Build it with `Book.open`."""

    def __init__(self, journal: Journal, identity: Identity, clock: Clock, experience: Experience) -> None:
        """An empty journal's book; `open` folds what a journal holds."""
        self.journal: Final = journal
        self.identity: Final = identity
        self.experience: Final = experience
        self.under_way: Final[set[bytes]] = set()  # orders of ours that are being answered now, by digest
        self.token_ids_s = TOKEN_IDS_S  # how long prompts and answers are kept from now on, encrypted
        self._clock = clock
        self._turnover = Turnover(identity.did)
        # Spent on help in audits, by (day since 1970, unit).
        self._checking: dict[tuple[int, str], int] = {}
        self._box = SecretBox(identity.secret(b"audit materials"))

    @staticmethod
    async def open(journal: Journal, identity: Identity, clock: Clock) -> "Book":
        """Fold the journal so far into experience."""
        book = Book(journal, identity, clock, Experience())
        async for entry in journal.entries():
            events = decode_events(entry.payload)
            book._turnover.take(entry.time_ms, events)
            book._take(events, entry.time_ms)
        return book

    @property
    def me(self) -> str:
        """This node's did:key."""
        return self.identity.did

    def now(self) -> int:
        """Seconds since 1970."""
        return int(self._clock.now())

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self._clock.now() * 1000)

    def debt_to(self, seller: str, unit: Unit) -> Account:
        """What this node owes a seller."""
        return self.journal.books.account(AccountKey(self.me, seller, RAIL, unit))

    def debt_of(self, buyer: str, unit: Unit) -> Account:
        """What a buyer owes this node."""
        return self.journal.books.account(AccountKey(buyer, self.me, RAIL, unit))

    async def post(
        self,
        *events: Event,
        records: Sequence[Kept] = (),
        nonces: Sequence[Nonce] = (),
        materials: Sequence[Material] = (),
    ) -> None:
        """Make it durable, all or nothing. Raises AccountError, NonceReused, and what the database raises."""
        posting = self._post(events, records, nonces, materials)
        # Whoever waits may be cancelled; what is on disk must be taken in all the same.
        await asyncio.shield(asyncio.ensure_future(posting))

    async def _post(
        self,
        events: Sequence[Event],
        records: Sequence[Kept],
        nonces: Sequence[Nonce],
        materials: Sequence[Material],
    ) -> None:
        time_ms = self.now_ms()
        await self.journal.append(events, time_ms=time_ms, records=records, nonces=nonces, materials=materials)
        self._take(events, time_ms)
        # Several entries may be on disk before the first of them is taken here: the accounts tell what has moved.
        for key in {event.key for event in events if isinstance(event, AccountChanged)}:
            self._turnover.see(time_ms, self.journal.books.account(key))

    def _take(self, events: Sequence[Event], time_ms: int) -> None:
        self.experience.take(events)
        for event in events:
            match event:
                case Observed(what="checking", facts={"unit": str(unit), "cost": int(cost)}):
                    today = (time_ms // DAY_MS, unit)
                    # What comes back after midnight was of another day.
                    self._checking[today] = max(self._checking.get(today, 0) + cost, 0)

    def earned_today(self) -> dict[Unit, int]:
        """What this node has delivered to others since midnight UTC, by unit."""
        return self._turnover.on(self.now_ms() // DAY_MS, "payee", "earned")

    def paid_today(self) -> dict[Unit, int]:
        """What this node authorized since midnight UTC, by unit."""
        return self._turnover.on(self.now_ms() // DAY_MS, "payer", "authorized")

    def spent_today(self) -> dict[str, int]:
        """What this node authorized since midnight UTC, and what its open orders may still cost, by unit."""
        spent: dict[str, int] = dict(self.paid_today().items())
        for key, account in self.journal.books.accounts.items():
            if key.payer == self.me:
                open_orders = sum(self._may_cost(order, reservation) for order, reservation in account.orders.items())
                spent[key.unit] = spent.get(key.unit, 0) + open_orders
        return spent

    def spent_on_checking_today(self, unit: Unit) -> int:
        """What help in audits has cost this node since midnight UTC, and what open orders for it may still cost."""
        return self._checking.get((self.now_ms() // DAY_MS, unit), 0)

    def _may_cost(self, order: bytes, reservation: Reservation) -> int:
        """What an open order may still cost: what is due, once it has ended."""
        due = self.experience.due(order)
        return reservation.rest if due is None else min(reservation.rest, due.owed)

    async def sweep(self) -> None:
        """Drop nonces and token ids past their time, and orders that are long closed."""
        now = self.now()
        await self.journal.expire(now)
        before = now - REMEMBERED_S
        for key, account in list(self.journal.books.accounts.items()):
            if any(not order.binds and order.expires < before for order in account.orders.values()):
                await self.post(AccountChanged(key, Forgotten(before)))

    def sealed_material(self, order: bytes, request: Request, answer: Sequence[int]) -> Material:
        """Prompt and answer of an order, encrypted for this node alone, to be kept until its audit window closes."""
        plain = codec.encode({"request": encode_request(request), "answer": ids_bytes(answer)})
        return Material(order, self._box.encrypt(plain), self.now() + self.token_ids_s)

    async def material(self, order: bytes) -> tuple[Request, tuple[int, ...]] | None:
        """Prompt and answer of an order, while they are kept."""
        sealed = await self.journal.material(order)
        if sealed is None:
            return None
        try:
            plain = codec.decode(self._box.decrypt(sealed), 2 * MAX_REQUEST)
        except CryptoError:
            return None
        return decode_request(plain["request"]), ids_from_bytes(plain["answer"])


def kept(signed: Signed[Record], order: bytes | None = None) -> Kept:
    """A signed record as the journal keeps it."""
    return Kept(signed.record.kind, signed.raw, order)
