"""Mutual aid without money: what two nodes owe each other is set off, by both signatures and without their owners.

Theory of operation. One node signs a Netting of all that its own books say both owe, and hands it over. The other signs
the same if its books bear it, counts it in both directions in one durable entry, and answers with both signatures; the
first one counts them then. A lost answer is found at the next netting: the totals that it builds on do not agree.
What came of its debts meanwhile counts first: signatures that set off more than is owed wait until as much is.
"""

from collections.abc import Callable
from typing import Protocol

from attrs import define

from ledger import codec
from ledger.account import Account
from ledger.agreements import (
    AboveMutual,
    AgreementRefused,
    NotOfNow,
    OutOfDate,
    check_borne,
    check_netting,
    mutual_debt,
    net,
    netting_keys,
    propose_netting,
)
from ledger.events import Books
from ledger.identity import Did
from ledger.money import UNITS, Amount, Unit
from ledger.records import Netting, Signed, open_record, sign
from node.exchange.book import Book, kept
from node.exchange.pairs import last_pair
from node.wire.messages import Refused, Unreachable, decode_signatures, encode_signatures


@define
class NotNetted(Exception):
    """Nothing was set off; the message says why."""

    peer: str
    why: str

    def __str__(self) -> str:
        return f"nothing was set off with {self.peer}: {self.why}"


class Helper(Protocol):
    """A peer with which debts can be set off."""

    async def netting(self, raw: bytes) -> bytes:
        """Hand over a signed Netting: both signatures under what counts now. Raises Refused, Unreachable."""


class Netter:
    """Sets off what this node and its peers owe each other."""

    def __init__(self, book: Book, dial: Callable[[Did], Helper | None]) -> None:
        self._book = book
        self._dial = dial

    async def ask(self, peer: Did) -> list[Amount]:
        """Set off all that both owe, in each unit. Durable on return. Raises NotNetted where there was nothing."""
        units = [unit for unit in UNITS if mutual_debt(*self._accounts(peer, unit))]
        if not units:
            raise NotNetted(peer, "you do not owe each other anything that is acknowledged and unpaid")
        return [await self._set_off(peer, unit) for unit in units]

    def _accounts(self, peer: str, unit: Unit) -> tuple[Account, Account]:
        return self._book.debt_to(peer, unit), self._book.debt_of(peer, unit)

    async def _set_off(self, peer: Did, unit: Unit) -> Amount:
        line = self._dial(peer)
        if line is None:
            raise NotNetted(peer, "it is none of the named peers: name it with `idlemesh up --peer`")
        said = propose_netting(self._book.me, peer, unit, self._accounts(peer, unit), self._book.now())
        asked = sign(said, self._book.identity)
        try:
            answer = decode_signatures(await line.netting(asked.raw))
            if answer is None:
                raise codec.Malformed("it answered without a signature")
            one, other = (open_record(raw, Netting) for raw in answer)
            if set(netting_keys(one.record)) != set(netting_keys(said)):
                raise codec.Malformed("its answer is about other accounts")
            before = self._accounts(peer, unit)[0].netted
            await self._count(one, other)
        except (Refused, Unreachable, codec.Malformed, AgreementRefused) as error:
            raise NotNetted(peer, str(error)) from None
        return Amount(max(one.record.total - before, 0), unit)

    async def _count(self, one: Signed[Netting], other: Signed[Netting]) -> None:
        events = net(one, other)

        def check(books: Books) -> None:
            check_borne(one.record, (books.account(events[0].key), books.account(events[1].key)))

        if self._book.journal.books.account(events[0].key).netted < one.record.total:
            await self._book.post(*events, records=(kept(one), kept(other)), check=check)

    async def netting(self, raw: bytes) -> bytes:
        """Take a peer's request; see `Helper.netting`."""
        try:
            asked = open_record(raw, Netting)
        except codec.Malformed as error:
            raise Refused("malformed", str(error)) from None
        said, peer = asked.record, asked.signer
        if peer == self._book.me or {peer, self._book.me} != {said.first, said.second}:
            raise Refused("malformed", "a netting is asked for by one of its two parties, of the other")
        accounts = self._accounts(peer, said.unit)
        try:
            check_netting(said, accounts, self._book.now())
        except OutOfDate as error:
            keys, total = netting_keys(said), accounts[0].netted
            return await last_pair(
                self._book,
                Netting,
                (said.first, said.second),
                lambda last: netting_keys(last) == keys and last.total == total,
                error,
            )
        except NotOfNow as error:
            raise Refused("expired", str(error)) from None
        except AboveMutual as error:
            raise Refused("credit", str(error)) from None
        ours = sign(said, self._book.identity)
        await self._count(asked, ours)
        return encode_signatures((asked.raw, ours.raw))
