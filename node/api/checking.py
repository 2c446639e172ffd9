"""Whether the journal of a running node and its books still agree, found out without stopping the node.

Theory of operation. A journal may hold years, and was read and checked when it was opened. So this begins at the stored
snapshot, which is never far behind, and reads what follows it again: the snapshot, the entries after it and the books
must fit together. Where there is none the chain is short, and all of it is read. What lies before a snapshot is for
`idlemesh ledger verify`, in a process of its own.
"""

import asyncio
from typing import Final

from attrs import frozen

from ledger import snapshot
from ledger.journal import BrokenChain, Entry, Journal, Replay, StoredSnapshot, check_content
from ledger.snapshot import BadSnapshot, Snapshot

# So many entries are taken before others have their turn.
_IN_ONE_GO: Final = 100


@frozen
class Checked:
    """The entries after `since` up to `last` were read: do they chain, if not `why`, and do the books follow?"""

    since: int
    last: int
    balanced: bool
    why: str | None = None


async def check_books(journal: Journal, me: str) -> Checked:
    """Compare the books of a node (its did:key) with its journal as it is stored."""
    since = 0
    try:
        replayed = await _begin(journal, me)
        since = replayed.head.sequence
        # The snapshot may be of an entry that another process has written.
        await journal.refresh()
        # More is written meanwhile: books and chain are compared as they were at one entry.
        head, books = journal.head, journal.books
        await _read_on(journal, replayed, head)
    except BrokenChain as error:
        return Checked(since, journal.head.sequence, balanced=False, why=str(error))
    return Checked(since, head.sequence, balanced=replayed.books == books)


async def _begin(journal: Journal, me: str) -> Replay:
    stored = await journal.snapshot()
    taken = None if stored is None else await asyncio.to_thread(_decode, stored, me)
    if taken is not None:
        async for entry in journal.entries(taken.sequence - 1):
            if not taken.follows(entry):
                break
            check_content(entry)
            return Replay.after(entry, taken.books)
    return Replay(me)


def _decode(stored: StoredSnapshot, me: str) -> Snapshot | None:
    try:
        return snapshot.decode(stored.books, me)
    except BadSnapshot:
        return None


async def _read_on(journal: Journal, replayed: Replay, written: Entry) -> None:
    """Take what is stored up to an entry. Raises BrokenChain, also where the end is missing or another one."""
    if replayed.head.sequence >= written.sequence:
        return
    async for entry in journal.entries(replayed.head.sequence):
        replayed.add(entry)
        if entry.sequence == written.sequence and entry.hash != written.hash:
            raise BrokenChain(entry.sequence, "it is another one than was written")
        if entry.sequence == written.sequence:
            return
        if entry.sequence % _IN_ONE_GO == 0:
            await asyncio.sleep(0)
    raise BrokenChain(replayed.head.sequence + 1, "it is gone, and so is what followed it")
