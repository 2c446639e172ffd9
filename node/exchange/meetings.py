"""With whom accounts were compared, and that this node's own journal was cut: folded from its observations."""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ledger.events import Fact, Observed
from ledger.records import DIGEST_BYTES


@frozen
class Cut:
    """Entries that this node had signed and that its journal does not have any more."""

    peer: str  # who showed it
    sequence: int  # of the lost head
    entries: int  # what the journal had when it was found
    found_ms: int  # or when the lost head was signed, by a clock that was ahead: what was signed before is known


@frozen
class Compared:
    """The digests of two states of one moment; `ours` is empty where they did not differ."""

    theirs: bytes
    ours: bytes


def compared(peer: str, theirs: bytes, ours: bytes) -> Observed:
    """Accounts were compared with a peer, by these states."""
    return Observed(peer, "compared", {"theirs": theirs, "ours": ours})


def cut(me: str, found: Cut) -> Observed:
    """Our own journal was cut."""
    facts: dict[str, Fact] = {
        "peer": found.peer,
        "signed": found.sequence,
        "entries": found.entries,
        "found_ms": found.found_ms,
    }
    return Observed(me, "cut", facts)


class Meetings:
    """The fold itself; `take` every observation in order."""

    def __init__(self) -> None:
        self.compared: dict[str, Compared] = {}  # by peer, the last time
        self.cut: Cut | None = None
        self.after_cut: set[str] = set()  # with whom they were compared since

    def take(self, event: Observed) -> None:
        """Fold one observation; another one is passed over."""
        match event:
            case Observed(what="compared", facts={"theirs": bytes(theirs), "ours": bytes(ours)}):
                if len(theirs) == DIGEST_BYTES:
                    self.compared[event.subject] = Compared(theirs, ours)
                    self.after_cut.add(event.subject)
            case Observed(
                what="cut",
                facts={"peer": str(peer), "signed": int(signed), "entries": int(entries), "found_ms": int(found_ms)},
            ):
                self.cut = Cut(peer, signed, entries, found_ms)
                self.after_cut = set()

    def copy(self) -> "Meetings":
        """All of it as it is now."""
        copy = Meetings()
        copy.compared, copy.cut, copy.after_cut = dict(self.compared), self.cut, set(self.after_cut)
        return copy

    def to_plain(self) -> dict[str, Any]:
        """All of it as what CBOR can hold; equal meetings give equal values."""
        found = self.cut
        return {
            "compared": [[peer, one.theirs, one.ours] for peer, one in sorted(self.compared.items())],
            "cut": None if found is None else [found.peer, found.sequence, found.entries, found.found_ms],
            "after_cut": sorted(self.after_cut),
        }

    @classmethod
    def from_plain(cls, written: Mapping[str, Any]) -> "Meetings":
        """What `to_plain` gave. Raises ValueError, TypeError, KeyError at anything else."""
        made = cls()
        for row in written["compared"]:
            match row:
                case [str(peer), bytes(theirs), bytes(ours)]:
                    made.compared[peer] = Compared(theirs, ours)
                case _:
                    raise ValueError("a comparison is a peer and two digests")
        match written["cut"]:
            case None:
                pass
            case [str(peer), int(signed), int(entries), int(found_ms)]:
                made.cut = Cut(peer, signed, entries, found_ms)
            case _:
                raise ValueError("a cut is a peer and three numbers")
        if not all(isinstance(peer, str) for peer in written["after_cut"]):
            raise ValueError("peers are named by text")
        made.after_cut = set(written["after_cut"])
        return made
