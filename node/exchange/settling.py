"""Credit is paid off by other means: the payer asks its payee to count a payment, the payee's owner confirms it.

Theory of operation. The payer signs a Settlement and hands it over, as often as it takes. The payee lays it before its
owner, and answers with nothing until the owner has confirmed: then with both signatures. Each side counts them in one
durable entry, together with both records, and the account's growing total makes sure that it does so once. Requests
that wait are held in memory only; one that a restart forgot is asked again.
"""

from collections.abc import Callable
from typing import Protocol

from attrs import define, frozen

from ledger import codec
from ledger.account import AccountKey
from ledger.agreements import AgreementRefused, OutOfDate, check_settlement, propose_settlement, settle, settlement_key
from ledger.events import Books
from ledger.identity import Did
from ledger.money import MAX_AMOUNT, Amount
from ledger.records import Settlement, Signed, open_record, sign
from node.exchange.book import Book, kept
from node.exchange.pairs import last_pair
from node.wire.messages import Refused, Unreachable, decode_signatures, encode_signatures


class SettlingError(Exception):
    """A settlement that cannot be asked for or confirmed; the message says what to do."""


@define
class NoSuchRequest(SettlingError):
    """There is nothing of this peer to confirm, or it is about another amount."""

    peer: str
    amount: Amount

    def __str__(self) -> str:
        return f"{self.peer} has not asked to settle {self.amount}: `idlemesh settlements` shows what was asked"


@define
class NotCounted(SettlingError):
    """The peer did not take the request, or answered what is no settlement of ours."""

    peer: str
    why: str

    def __str__(self) -> str:
        return f"{self.peer} has not taken the settlement: {self.why}"


@define
class AboveDebt(SettlingError):
    """More would be settled than is owed; the owner may mean it, as a payment in advance."""

    peer: str
    owed: Amount
    amount: Amount

    def __str__(self) -> str:
        owed = f"only {self.owed} is owed to {self.peer}" if self.owed.value else f"nothing is owed to {self.peer}"
        return f"{owed}, so that {self.amount} would be a payment in advance"


@frozen
class Asked:
    """What a request has come to. `replaced` is the one before, which now counts no more, if it was another."""

    confirmed: bool
    replaced: Amount | None = None


class Payee(Protocol):
    """A peer that can be asked to count a payment."""

    async def settlement(self, raw: bytes) -> bytes:
        """Hand over a payer's signed Settlement: the signatures that count by now. Raises Refused, Unreachable."""


@frozen
class Request:
    """A payment that a peer says it has made, and that waits for this node's owner."""

    peer: str
    amount: Amount


class Settling:
    """Asks for settlements of what this node owes, and takes those of what it is owed."""

    def __init__(self, book: Book, dial: Callable[[Did], Payee | None]) -> None:
        self._book = book
        self._dial = dial
        self._asked: dict[AccountKey, Signed[Settlement]] = {}
        self._waiting: dict[AccountKey, Signed[Settlement]] = {}

    # The payer

    async def ask(self, peer: Did, amount: Amount, *, in_advance: bool = False) -> Asked:
        """Ask a peer to count `amount` as paid. The same again does no harm; another amount takes its place.

        `in_advance`: also more than is owed. Raises SettlingError.
        """
        account = self._book.debt_to(peer, amount.unit)
        if not 0 < amount.value <= MAX_AMOUNT - account.settled:
            raise NotCounted(peer, "the amount must be above 0, and within what an account can hold")
        self._line(peer)
        owed = max(account.owed - account.settled - account.netted, 0)
        if amount.value > owed and not in_advance:
            raise AboveDebt(peer, Amount(owed, amount.unit), amount)
        before = asked = self._asked.get(account.key)
        if asked is None or _request(asked.record).amount != amount:
            said = propose_settlement(account, amount.value, self._book.now())
            asked = self._asked[account.key] = sign(said, self._book.identity)
        replaced = None if before is None or before is asked else _request(before.record).amount
        return Asked(await self._hand_over(peer, asked), replaced)

    async def sweep(self) -> None:
        """Ask once more for what was asked and not confirmed."""
        for key, asked in list(self._asked.items()):
            try:
                await self._hand_over(Did(key.payee), asked)
            except SettlingError:
                continue

    async def _hand_over(self, peer: Did, asked: Signed[Settlement]) -> bool:
        try:
            answer = decode_signatures(await self._line(peer).settlement(asked.raw))
            if answer is None:
                return False
            one, other = (open_record(raw, Settlement) for raw in answer)
            await self._count(one, other, settlement_key(asked.record))
        except (Refused, Unreachable, codec.Malformed, AgreementRefused) as error:
            raise NotCounted(peer, str(error)) from None
        if self._asked.get(settlement_key(asked.record)) is asked:
            del self._asked[settlement_key(asked.record)]
        if one.record != asked.record:
            raise NotCounted(peer, "an earlier settlement was counted just now: ask again if this is another payment")
        return True

    def _line(self, peer: Did) -> Payee:
        line = self._dial(peer)
        if line is None:
            raise NotCounted(peer, "it is none of the named peers: name it with `idlemesh up --peer`")
        return line

    async def _count(
        self,
        one: Signed[Settlement],
        other: Signed[Settlement],
        key: AccountKey,
        check: Callable[[Books], None] | None = None,
    ) -> None:
        event = settle(one, other)
        if event.key != key:
            raise codec.Malformed("the answer is about another account")
        if self._book.journal.books.account(key).settled < one.record.total:
            await self._book.post(event, records=(kept(one), kept(other)), check=check)

    # The payee

    @property
    def waiting(self) -> list[Request]:
        """What waits for the owner."""
        return [_request(signed.record) for signed in self._waiting.values()]

    async def settlement(self, raw: bytes) -> bytes:
        """Take a payer's request; see `Payee.settlement`."""
        try:
            asked = open_record(raw, Settlement)
        except codec.Malformed as error:
            raise Refused("malformed", str(error)) from None
        said, key = asked.record, settlement_key(asked.record)
        if asked.signer != said.payer or said.payee != self._book.me:
            raise Refused("malformed", "a settlement is asked for by its payer, of its payee")
        account = self._book.journal.books.accounts.get(key)
        if account is None:
            raise Refused("credit", "you owe nothing here in this unit")
        try:
            check_settlement(said, account)
        except OutOfDate as error:
            self._waiting.pop(key, None)
            total = account.settled
            return await last_pair(
                self._book,
                Settlement,
                (key.payer, key.payee),
                lambda last: settlement_key(last) == key and last.total == total,
                error,
            )
        self._waiting[key] = asked
        return encode_signatures(None)

    async def confirm(self, peer: str, amount: Amount) -> None:
        """The owner says that so much has arrived from a peer. Durable on return. Raises SettlingError."""
        key = self._book.debt_of(peer, amount.unit).key
        asked = self._waiting.get(key)
        if asked is None or _request(asked.record).amount != amount:
            raise NoSuchRequest(peer, amount)
        record = asked.record

        def check(books: Books) -> None:
            # Another process may have confirmed another one in between.
            check_settlement(record, books.account(key))

        try:
            check(self._book.journal.books)
            # Until it is on disk it goes on waiting: the owner can confirm it again.
            await self._count(asked, sign(record, self._book.identity), key, check)
        except OutOfDate:
            self._waiting.pop(key, None)
            raise NoSuchRequest(peer, amount) from None
        self._waiting.pop(key, None)


def _request(said: Settlement) -> Request:
    return Request(said.payer, Amount(said.total - said.before, said.unit))
