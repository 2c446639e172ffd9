"""On each connection two nodes compare their accounts, and give back to each other what one of them has lost.

Theory of operation. Whoever connects asks for a nonce, and signs its state under it; the other answers with its own
state, under the nonce of whoever asked, with the last state of the asker that it knows, and with the records that the
asker lacks. The asker takes those, hands back what the other lacks, and compares again until there is nothing more to
give. So both hear a state of the other that is fresh, and both find out whether their own journal was cut (`heads`).
What still differs then stands in the two states, which are kept together.

Everything is bounded: nonces, sizes, rounds, and how often each peer, and each address of strangers and all of them
together, may compare.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

from attrs import frozen

from ledger.account import Account, AccountKey
from ledger.codec import Malformed
from ledger.identity import Did
from ledger.reconcile import accounts_between, by_key, totals_of
from ledger.records import NONCE_BYTES, AccountState, Signed, open_record, sign
from node.exchange.book import Book
from node.exchange.heads import Heads
from node.exchange.lacking import Lacking, Parcel
from node.exchange.rates import Rates, Turns
from node.exchange.taking import Taking
from node.ports import Entropy
from node.wire.messages import (
    Answered,
    Asked,
    Handed,
    Refused,
    decode_answered,
    decode_asked,
    decode_handed,
    decode_nonce,
    encode_answered,
    encode_asked,
    encode_handed,
    encode_nonce,
)

# Of one meeting; what is left is given back at the next one.
MAX_ROUNDS: Final = 16
_NONCES: Final = 4_096
_SESSIONS: Final = 512
# So many comparisons at once, and of one peer, or one address of strangers, so many a second after a first burst; and
# of all strangers together, in turns by their addresses.
_AT_ONCE: Final = 4
_RATE: Final = 2.0
_BURST: Final = 2.0 * MAX_ROUNDS
_STRANGE_RATE: Final = 10.0
_STRANGE_BURST: Final = 10.0 * MAX_ROUNDS
_PATIENCE_S: Final = 10.0  # how long a stranger waits for its turn
# So many acknowledgements that are looked through count as one comparison more.
_PER_WALK: Final = 1_000


class Counterpart(Protocol):
    """A node with which accounts are compared. Every call may raise Refused or Unreachable."""

    async def challenge(self) -> bytes:
        """A nonce that the asker's state has to bear."""

    async def state(self, raw: bytes) -> bytes:
        """Hand over an `Asked`: an `Answered` comes back."""

    async def hand_back(self, raw: bytes) -> None:
        """Hand back records that the other lacks, under the nonce of the last exchange."""


class Reconciler:
    """Compares accounts with peers, as the one that asks and as the one that is asked."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        dial: Callable[[Did], Counterpart | None],
        promised: Callable[[AccountKey, bytes], None],
    ) -> None:
        """`promised` as for `Taking`; its `paid` is set by whoever makes the seller."""
        self._book = book
        self._entropy = entropy
        self._dial = dial
        self._lacking = Lacking(book)
        self.taking: Final = Taking(book, promised)
        self.heads: Final = Heads(book)
        self._nonces: OrderedDict[bytes, None] = OrderedDict()
        self._sessions: OrderedDict[bytes, Signed[AccountState]] = OrderedDict()
        self._rates = Rates(book.now, _RATE, _BURST)
        self._strange = Turns(book.now, _STRANGE_RATE, _STRANGE_BURST, _PATIENCE_S)
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    # Whoever asks

    async def meet(self, peer: Did) -> None:
        """Compare accounts with a peer, until neither has anything to give. Raises Refused, Unreachable, Malformed."""
        line = self._dial(peer)
        if line is None:
            return
        before: Signed[AccountState] | None = None
        for _ in range(MAX_ROUNDS):
            met = await self._exchange(peer, line)
            # What was handed back and has moved nothing there is not handed back again.
            moved = before is None or before.record.accounts != met.theirs.record.accounts
            if met.lacks and moved:
                await line.hand_back(encode_handed(met.nonce, met.lacks))
            elif not met.news and met.whole:
                return
            before = met.theirs

    async def _exchange(self, peer: Did, line: Counterpart) -> "_Exchange":
        nonce, own = decode_nonce(await line.challenge()), self._entropy.bytes(NONCE_BYTES)
        ours = await self._state(peer, nonce)
        answered = decode_answered(await line.state(encode_asked(Asked(ours.raw, own, self.heads.last(peer)))))
        theirs = self._opened(answered.state, own)
        if theirs.signer != peer:
            raise Malformed("the state that came is another node's")
        whole = await self.heads.shown(peer, answered.last)
        news = await self.taking.take(peer, answered.records, _earned(theirs, self._book.me))
        await self.heads.heard(peer, theirs, ours)
        return _Exchange(theirs, nonce, news, whole, (await self._lacks(theirs)).records)

    # Whoever is asked

    async def challenge(self) -> bytes:
        """See `Counterpart.challenge`."""
        nonce = self._entropy.bytes(NONCE_BYTES)
        self._nonces[nonce] = None
        _bound(self._nonces, _NONCES)
        return encode_nonce(nonce)

    async def state(self, raw: bytes, address: str = "") -> bytes:
        """See `Counterpart.state`; it came from this address, or network of them."""
        try:
            asked = decode_asked(raw)
            nonce, theirs = self._known_nonce(asked.state)
        except Malformed as error:
            raise Refused("malformed", str(error)) from None
        peer = theirs.signer
        who = peer if self._is_known(peer, asked.last) else address
        # An address is no did: the two share no rate.
        if self._rates.charge(who) < 0 or (who == address and not await self._strange.take(address)):
            raise Refused("too_many_requests", "accounts were compared often enough: wait a moment", 1)
        async with self._at_once:
            ours = await self._state(peer, asked.nonce)
            last = self.heads.last(peer)
            await self.heads.shown(peer, asked.last)
            await self.heads.heard(peer, theirs, ours)
            parcel = await self._lacks(theirs)
        self._rates.charge(who, parcel.walked / _PER_WALK)
        self._sessions[nonce] = theirs
        _bound(self._sessions, _SESSIONS)
        return encode_answered(Answered(ours.raw, last, parcel.records))

    def _known_nonce(self, raw: bytes) -> tuple[bytes, Signed[AccountState]]:
        """A state under a nonce of ours that was not used yet. Raises Malformed."""
        theirs = open_record(raw, AccountState)
        nonce = theirs.record.nonce
        if nonce not in self._nonces:
            raise Malformed("the state is under no nonce that was given here: ask for one again")
        del self._nonces[nonce]
        return nonce, self._opened(raw, nonce)

    async def hand_back(self, raw: bytes) -> None:
        """See `Counterpart.hand_back`."""
        try:
            nonce, handed = decode_handed(raw)
        except Malformed as error:
            raise Refused("malformed", str(error)) from None
        session = self._sessions.pop(nonce, None)
        if session is None:
            raise Refused("malformed", "records are handed back once after an exchange of states")
        async with self._at_once:
            await self.taking.take(session.signer, handed, _earned(session, self._book.me))

    def _is_known(self, peer: Did, last: bytes) -> bool:
        """Whether a peer has a rate of its own, and not that of its address.

        Where our journal has lost the account, our own signature under it does: or strangers could keep those away that
        have to give it back.
        """
        known = accounts_between(self._book.journal.books.accounts.values(), self._book.me, peer)
        return bool(known) or self.heads.gave_account(peer, last)

    # Both

    async def _state(self, peer: Did, nonce: bytes) -> Signed[AccountState]:
        """What our books say now, under the peer's nonce."""
        mine = accounts_between(self._book.journal.books.accounts.values(), self._book.me, peer)
        last = {account.key: await self._lacking.last_of(account) for account in mine}
        # Accounts and head of one moment: nothing is awaited from here on.
        head, books = self._book.journal.head, self._book.journal.books
        said = tuple(totals_of(books.account(key), acknowledged) for key, acknowledged in last.items())
        state = AccountState(peer, nonce, head.sequence, head.hash, said, self._book.now_ms())
        signed = sign(state, self._book.identity)
        self.heads.gave(peer, signed)
        return signed

    def _opened(self, raw: bytes, nonce: bytes) -> Signed[AccountState]:
        theirs = open_record(raw, AccountState)
        if (theirs.record.peer, theirs.record.nonce) != (self._book.me, nonce) or theirs.signer == self._book.me:
            raise Malformed("the state is for another node, or is not of this moment")
        return theirs

    async def _lacks(self, theirs: Signed[AccountState]) -> Parcel:
        """The records that a peer lacks, by what it says."""
        parcel, said = Parcel(), by_key(theirs)
        for account in accounts_between(self._book.journal.books.accounts.values(), self._book.me, theirs.signer):
            totals = said.get(account.key) or totals_of(Account(account.key), b"")
            await self._lacking.collect(account, await self._lacking.last_of(account), totals, parcel)
        return parcel


@frozen
class _Exchange:
    """What one exchange of states has brought to whoever asked."""

    theirs: Signed[AccountState]
    nonce: bytes  # under which records may be handed back
    news: int
    whole: bool  # whether our journal still is what the peer knows of it
    lacks: Handed


def _earned(theirs: Signed[AccountState], me: str) -> dict[AccountKey, int]:
    """What we have earned by what a payer says, disputed or not."""
    return {key: totals.earned + totals.disputed for key, totals in by_key(theirs).items() if key.payee == me}


def _bound(memory: OrderedDict[Any, Any], most: int) -> None:
    """Forget the oldest."""
    while len(memory) > most:
        memory.popitem(last=False)
