"""The node's memory: the durable journal, and the experience that follows from it.

Every service writes through `Book.post`, which returns when the change is durable. What it says of accounts and of
other nodes is always as of the last durable entry that this process has written or taken in.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from ledger import codec
from ledger.account import Account, AccountKey, Reservation
from ledger.changes import Expired, Forgotten, Released
from ledger.commitments import ids_bytes, ids_from_bytes
from ledger.database import LedgerError
from ledger.events import AccountChanged, Books, Event
from ledger.identity import Identity
from ledger.journal import Journal, Kept, Material, Nonce, Remembered, Replay
from ledger.money import Unit
from ledger.records import CLOCK_SKEW_S, Record, Signed
from ledger.statement import DAY_MS
from node.exchange.fees import Fees
from node.exchange.holding import Watch, held
from node.exchange.promised import Promised
from node.exchange.rails import CREDIT, Rails, counts_in, ways_to_pay
from node.exchange.recollection import BadRecollection, Recollection
from node.exchange.strangers import Strangers, is_stranger
from node.exchange.trails import Trails
from node.market.candidates import Way
from node.ports import Clock
from node.wire.messages import MAX_REQUEST, Request, decode_request, encode_request

# A closed order can still be acknowledged so long: its buyer may have been away.
REMEMBERED_S: Final = 24 * 3600
# The owner's setting, unless there is another: audits and challenges are over by then.
TOKEN_IDS_S: Final = 7 * 24 * 3600

# What others are told while this node cannot write: the rest is its owner's business.
NO_LEDGER: Final = "its ledger cannot be used now: try later, or elsewhere"

_log = logging.getLogger(__name__)


class Book:
    """One node's journal with what follows from it. Build it with `Book.open`."""

    def __init__(
        self, journal: Journal, identity: Identity, clock: Clock, recollection: Recollection, *, resumed: bool = False
    ) -> None:
        """The book of a journal whose entries so far `recollection` has taken. See `Journal.follow`."""
        journal.follow(recollection, resumed)
        self.journal: Final = journal
        self.identity: Final = identity
        self.experience: Final = recollection.experience
        self.rails: Final = Rails()
        self.under_way: Final[set[bytes]] = set()  # orders of ours that are being answered now, by digest
        self.trouble: str | None = None  # why the last write failed, if it did
        self.token_ids_s = TOKEN_IDS_S  # how long prompts and answers are kept from now on, encrypted
        self._clock = clock
        self._recollection = recollection
        self._watch = Watch(journal)
        self._box = SecretBox(identity.secret(b"audit materials"))

    @staticmethod
    async def open(journal: Journal, identity: Identity, clock: Clock) -> "Book":
        """Fold the journal into experience: what came since the last snapshot, where there is one of it."""
        resumed = _resume(journal.remembered, identity.did)
        recollection, replayed = resumed or (Recollection(identity.did), Replay(identity.did))
        async for entry in journal.entries(replayed.head.sequence):
            if entry.sequence > journal.head.sequence:
                break  # another process writes; the journal hands over what it takes in from now on
            recollection.take(entry.time_ms, replayed.add(entry), replayed)
        return Book(journal, identity, clock, recollection, resumed=resumed is not None)

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

    def debt_to(self, seller: str, unit: Unit, rail: str = CREDIT) -> Account:
        """What this node owes a seller, on one rail."""
        return self.journal.books.account(AccountKey(self.me, seller, rail, unit))

    def debt_of(self, buyer: str, unit: Unit, rail: str = CREDIT) -> Account:
        """What a buyer owes this node, on one rail."""
        return self.journal.books.account(AccountKey(buyer, self.me, rail, unit))

    def ways_to_pay(self, seller: str, offered: Sequence[str], unit: Unit) -> tuple[Way, ...]:
        """How this node could pay a seller that takes these rails, the preferred way first."""
        common = [rail for rail in self.rails.buying if rail in offered and counts_in(rail, unit)]
        return ways_to_pay(self.debt_to(seller, unit, rail) for rail in common)

    async def post(
        self,
        *events: Event,
        records: Sequence[Kept] = (),
        nonces: Sequence[Nonce] = (),
        materials: Sequence[Material] = (),
        check: Callable[[Books], None] | None = None,
    ) -> None:
        """Make it durable, all or nothing. Raises AccountError, NonceReused, and what the database raises.

        `check` raises why it must not be, by the books that this moves: whatever others wrote is in them.
        """
        written = (*events, *held(self.me, self.journal.name, events))
        with self._telling_trouble():
            await self.journal.append(
                written, time_ms=self.now_ms(), records=records, nonces=nonces, materials=materials, check=check
            )

    async def leads(self) -> bool:
        """Whether this process does what only one of those that share the ledger may do."""
        return await self.journal.leads()

    async def endable(self, orders: Collection[tuple[AccountKey, bytes]]) -> set[bytes]:
        """Those of these open orders that this process may end: its own, and what was left behind, where that is its.

        The process that leads takes on what others have left; what is paid on a rail, the one that moves money on it.
        """
        me, holders = self.journal.name, self._recollection.holders
        if not me:
            return {order for _, order in orders}
        mine = {order for _, order in orders if holders.of(order) == me}
        others = [(key, order) for key, order in orders if order not in mine]
        if not others:
            return mine
        leads = await self.leads()
        gone = {b"", *await self._watch.gone({holders.of(order) for _, order in others} - {b""}, self._clock.now())}
        on_rail = [
            (key, order) for key, order in others if (leads if key.rail == CREDIT else key.rail in self.rails.names)
        ]
        return mine | {order for _, order in on_rail if holders.of(order) in gone}

    def is_others(self, order: bytes) -> bool:
        """Whether another process opened an order, and holds it or left it behind."""
        return self._recollection.holders.of(order) not in (b"", self.journal.name)

    async def gone(self) -> Collection[bytes]:
        """The processes that hold orders and are gone: what they left should be ended soon."""
        others = self._recollection.holders.processes - {self.journal.name}
        return await self._watch.gone(others, self._clock.now()) if others else ()

    async def end_left_sales(self) -> None:
        """Close what other processes were selling when they ended, whether or not this one sells."""
        left = [
            (key, order)
            for key, account in self.journal.books.accounts.items()
            if key.payee == self.me and not is_stranger(key.payer)
            for order, reservation in account.orders.items()
            if reservation.open and self.is_others(order)
        ]
        endable = await self.endable(left) if left else set()
        for key in {key for key, order in left if order in endable}:
            await self.let_go(key, {order for of, order in left if of == key and order in endable})

    @contextlib.contextmanager
    def _telling_trouble(self) -> Iterator[None]:
        """Remember why the ledger cannot be written, until it can be again."""
        try:
            yield
        except LedgerError as error:
            if self.trouble is None:
                _log.error("%s. Until then this node answers by itself, and neither buys nor sells", error)
            self.trouble = str(error)
            raise
        if self.trouble is not None:
            _log.warning("the ledger can be written again")
        self.trouble = None

    @property
    def promised(self) -> Promised:
        """The best vouchers on channels."""
        return self._recollection.promised

    @property
    def trails(self) -> Trails:
        """Which of our acknowledgements were dropped as old."""
        return self._recollection.trails

    @property
    def strangers(self) -> Strangers:
        """What strangers that pay by x402 have presented."""
        return self._recollection.strangers

    @property
    def fees(self) -> Fees:
        """What networks have taken for this node's transactions."""
        return self._recollection.fees

    def fees_today(self) -> dict[str, int]:
        """What they took since midnight UTC, in wei of each network's coin."""
        return self.fees.on(self.now_ms() // DAY_MS)

    def earned_today(self) -> dict[Unit, int]:
        """What this node has delivered to others since midnight UTC, by unit."""
        return self._recollection.turnover.on(self.now_ms() // DAY_MS, "payee", "earned")

    def paid_today(self) -> dict[Unit, int]:
        """What this node authorized since midnight UTC, by unit."""
        return self._recollection.turnover.on(self.now_ms() // DAY_MS, "payer", "authorized")

    def spent_today(self, books: Books | None = None) -> dict[str, int]:
        """What this node authorized since midnight UTC, and what its open orders may still cost, by unit.

        `books`: by those that a `check` of `post` is given, which are ahead of the journal's by what is being written.
        """
        spent: dict[str, int] = dict(self.paid_today().items())
        known = self.journal.books
        for key, account in (books or known).accounts.items():
            if key.payer == self.me:
                open_orders = sum(self._may_cost(order, reservation) for order, reservation in account.orders.items())
                being_paid = account.authorized - known.account(key).authorized
                spent[key.unit] = spent.get(key.unit, 0) + open_orders + being_paid
        return spent

    def unsettled_s(self, key: AccountKey) -> float:
        """For how long something has been unsettled on an account; 0 where nothing is, or the clock was set back."""
        since_ms = self._recollection.unsettled.since_ms(key)
        return 0 if since_ms is None else max(self.now_ms() - since_ms, 0) / 1000

    def spent_on_checking_today(self, unit: Unit) -> int:
        """What help in audits has cost this node since midnight UTC, and what open orders for it may still cost."""
        return self._recollection.spent_on_checking(self.now_ms() // DAY_MS, unit)

    def _may_cost(self, order: bytes, reservation: Reservation) -> int:
        """What an open order may still cost: what is due, once it has ended."""
        due = self.experience.due(order)
        return reservation.rest if due is None else min(reservation.rest, max(due.owed - reservation.earned, 0))

    async def let_go(self, key: AccountKey, orders: Collection[bytes]) -> None:
        """Close open orders of an account that came to nothing: in one word where they, and no others, expired."""
        if not orders:
            return
        account = self.journal.books.account(key)
        before = 1 + max(account.orders[order].expires for order in orders)
        # What a buyer's clock has just let expire may be admitted in the meantime.
        is_over = before <= self.now() - 2 * CLOCK_SKEW_S
        older = (order for order, reserved in account.orders.items() if reserved.open and reserved.expires < before)
        if is_over and all(order in orders for order in older):
            await self.post(AccountChanged(key, Expired(before)))
        else:
            await self.post(*(AccountChanged(key, Released(order)) for order in orders))

    async def sweep(self) -> None:
        """Drop nonces and token ids past their time, and orders that are long closed.

        While the ledger is in trouble, try it first, by an entry that says nothing.
        """
        if self.trouble is not None:
            await self.post()
        if not await self.leads():
            return
        await self.end_left_sales()
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


def _resume(remembered: Remembered | None, me: str) -> tuple[Recollection, Replay] | None:
    """What was remembered with a snapshot, ready to go on from there; None where it is not usable."""
    if remembered is None:
        return None
    try:
        recollection = Recollection.read(remembered.raw, me, remembered.books.accounts.values())
    except BadRecollection as error:
        _log.warning("the journal is read from its beginning: %s", error)
        return None
    return recollection, Replay.after(remembered.head, remembered.books)


def kept(signed: Signed[Record], order: bytes | None = None) -> Kept:
    """A signed record as the journal keeps it."""
    return Kept(signed.record.kind, signed.raw, order)
