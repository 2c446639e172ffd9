"""The states that counterparties gave, and what they tell of this node's own journal.

A chain of hashes cannot show that its tail was cut off, nor that it was restored from an older copy: but others have
this node's signature under heads that it had. One of those that is not in the chain any more proves the cut. Then this
node starts no new work with a peer until both have compared their accounts.
"""

import contextlib
import logging
from collections import OrderedDict
from typing import Final, TypeVar

from attrs import define

from ledger.codec import Malformed
from ledger.identity import Did, parse_did
from ledger.journal import Entry, Journal, genesis
from ledger.reconcile import Difference, accounts_between, differences, follows
from ledger.records import AccountState, Signed, Totals, open_record
from node.exchange import meetings
from node.exchange.book import Book, kept
from node.exchange.meetings import Cut, Meetings
from node.wire.messages import Refused

# How often the state of one peer is put on disk at most, however often it comes.
_KEPT_EVERY_MS: Final = 60_000
# And while nothing has moved in our own books, whatever the peer says then: each one is kept for good.
_KEPT_UNMOVED_MS: Final = 3_600_000
_RETRY_S: Final = 5
# Those of the exchange under way, and of the one before it.
_GIVEN: Final = 4
# Of so many peers; whoever is forgotten is looked up in the chain, or compares accounts once more.
_PEERS: Final = 8_192

_log = logging.getLogger(__name__)

V = TypeVar("V")


@define
class Met:
    """One counterparty: its newest state, and ours of the same moment where the two differed."""

    theirs: Signed[AccountState]
    ours: Signed[AccountState] | None = None
    kept_ms: int | None = None  # when it was put on disk, if in this run
    kept: Signed[AccountState] | None = None  # which one
    differed: bool = False  # whether ours was kept with it
    said: tuple[Totals, ...] = ()  # what ours said then

    @property
    def differences(self) -> list[Difference]:
        """What the two states say differently."""
        return differences(self.ours, self.theirs) if self.ours is not None else []


class Heads:
    """What this node knows of its counterparties' states."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._met: dict[Did, Met] = {}
        # Anybody may ask for a state, under any number of names: of these two the oldest are forgotten.
        self._given: OrderedDict[Did, tuple[bytes, ...]] = OrderedDict()  # digests of our last states in this run
        self._compared: OrderedDict[Did, None] = OrderedDict()  # since the cut was found
        self.cut: Cut | None = None

    async def open(self) -> None:
        """Take up what the journal holds."""
        folded = self._book.experience.meetings
        self._met = await stored_meetings(self._book.journal, folded)
        self.cut = folded.cut
        self._compared = OrderedDict.fromkeys(map(parse_did, sorted(folded.after_cut)))

    def last(self, peer: Did) -> bytes:
        """The last state that a peer gave, to be shown to it; empty if there is none."""
        met = self._met.get(peer)
        return met.theirs.raw if met is not None else b""

    def met(self) -> dict[Did, Met]:
        """All counterparties whose state is known."""
        return dict(self._met)

    def gave(self, peer: Did, state: Signed[AccountState]) -> None:
        """Our state goes to a peer now."""
        _remember(self._given, peer, (*self._given.get(peer, ()), state.digest)[-_GIVEN:])

    async def shown(self, peer: Did, raw: bytes) -> bool:
        """A peer shows the last state of ours that it has; whether our journal still is what it was then."""
        signed = self._ours(peer, raw)
        if signed is None or signed.digest in self._given.get(peer, ()) or await self._has(signed):
            if self.cut is not None:
                _remember(self._compared, peer, None)
            return True
        self._compared.pop(peer, None)
        await self._find_cut(peer, signed)
        return False

    def gave_account(self, peer: Did, raw: bytes) -> bool:
        """Whether a peer shows a state of ours that speaks of accounts with it."""
        signed = self._ours(peer, raw)
        return signed is not None and bool(signed.record.accounts)

    def _ours(self, peer: Did, raw: bytes) -> Signed[AccountState] | None:
        """A state that we gave this peer; of anything else nothing follows."""
        with contextlib.suppress(Malformed):
            signed = open_record(raw, AccountState)
            if (signed.signer, signed.record.peer) == (self._book.me, peer):
                return signed
        return None

    async def _find_cut(self, peer: Did, signed: Signed[AccountState]) -> None:
        """Say it once for each cut: states from before one that is known already are not another."""
        if self.cut is not None and signed.record.issued_ms <= self.cut.found_ms:
            return
        head = self._book.journal.head.sequence
        # A clock that is behind the one that signed it must not make the same state another cut each time.
        found_ms = max(self._book.now_ms(), signed.record.issued_ms)
        self.cut = Cut(peer, signed.record.sequence, head, found_ms)
        self._compared.clear()
        _log.error(
            "this ledger was cut or restored from an older copy: it has %d entries, and %s shows this node's own "
            "signature under entry %d. What is lost comes back from the peers as they are met; until then no new work "
            "starts with them",
            head,
            peer,
            signed.record.sequence,
        )
        await self._book.post(meetings.cut(self._book.me, self.cut), records=(kept(signed),))

    async def _has(self, signed: Signed[AccountState]) -> bool:
        """Whether our chain has the head that a state of ours names."""
        if signed.record.sequence > self._book.journal.head.sequence:
            await self._book.journal.refresh()  # another process of ours may have signed it just now
        entry = await _entry(self._book.journal, self._book.me, signed.record.sequence)
        return entry is not None and follows(signed, entry)

    def may_work_with(self, peer: Did) -> Refused | None:
        """Why no new work may start with a peer, if none may."""
        self._take_up()
        if self.cut is None or peer in self._compared:
            return None
        why = "this node's ledger was restored from an older copy: compare accounts with it first"
        return Refused("busy", why, _RETRY_S)

    def _take_up(self) -> None:
        """A cut that another process of ours has found, and with whom it has compared since."""
        found = self._book.experience.meetings
        if found.cut is not None and (self.cut is None or found.cut.found_ms > self.cut.found_ms):
            self.cut = found.cut
            self._compared.clear()
        if self._book.journal.name and found.cut == self.cut:
            for peer in found.after_cut:
                self._compared.setdefault(parse_did(peer), None)

    async def heard(self, peer: Did, theirs: Signed[AccountState], ours: Signed[AccountState]) -> None:
        """A peer's state came in an exchange, ours of the same moment went. Kept if there is an account with it."""
        if not accounts_between(self._book.journal.books.accounts.values(), self._book.me, peer):
            return
        met = self._met.setdefault(peer, Met(theirs))
        met.theirs, met.ours = theirs, ours if differences(ours, theirs) else None
        now = self._book.now_ms()
        news = met.kept is None or met.kept.record.accounts != theirs.record.accounts
        # A clock that was set back keeps nobody waiting; a difference that is gone is not shown after a restart.
        pause = _KEPT_UNMOVED_MS if met.said == ours.record.accounts else _KEPT_EVERY_MS
        soon = met.kept_ms is not None and 0 <= now - met.kept_ms < pause
        if (news and not soon) or (met.differed and met.ours is None):
            met.kept_ms, met.kept, met.differed, met.said = now, theirs, met.ours is not None, ours.record.accounts
            states = tuple(state for state in (theirs, met.ours) if state is not None)
            told = meetings.compared(peer, theirs.digest, met.ours.digest if met.ours is not None else b"")
            await self._book.post(told, records=tuple(map(kept, states)))


def _remember(memory: OrderedDict[Did, V], peer: Did, value: V) -> None:
    memory[peer] = value
    memory.move_to_end(peer)
    while len(memory) > _PEERS:
        memory.popitem(last=False)


async def _entry(journal: Journal, me: str, sequence: int) -> Entry | None:
    head = journal.head
    if sequence >= head.sequence:
        return head if sequence == head.sequence else None
    if sequence == 0:
        return genesis(me)
    async for entry in journal.entries(sequence - 1):
        return entry
    return None


async def stored_meetings(journal: Journal, folded: Meetings) -> dict[Did, Met]:
    """The last state of each counterparty, with ours where the two differed, as far as they are kept."""
    found: dict[Did, Met] = {}
    for peer, one in folded.compared.items():
        theirs, ours = await _state(journal, one.theirs), await _state(journal, one.ours)
        if theirs is not None and theirs.signer == peer:
            found[theirs.signer] = Met(theirs, ours, kept=theirs, differed=ours is not None)
    return found


async def _state(journal: Journal, digest: bytes) -> Signed[AccountState] | None:
    record = await journal.record(digest) if digest else None
    return open_record(record.raw, AccountState) if record is not None and record.kind == AccountState.kind else None
