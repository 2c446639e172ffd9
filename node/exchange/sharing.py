"""Keeping up with the other processes of this node that write to its ledger, where there can be any.

Theory of operation. What others write is taken in whenever something is written here, when a peer or the owner asks for
something, and else every half second: so books and statements are never further behind than that, as long as the ledger
can be read. Whoever waits for pay looks again then, for the pay may have come to another process. What a process has
left that is gone is ended soon after, by the one that leads.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ledger.database import LedgerError
from node.exchange.book import Book

LOOK_S: Final = 0.5
# How often it is asked which processes are there, while others hold orders.
_WHO_S: Final = 2.0
# A request does not wait for longer until the books are as of now.
_FRESH_S: Final = 5.0

_log = logging.getLogger(__name__)


async def keep_up(book: Book, moved: Callable[[], None], sweeps: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Until cancelled. `moved` is told when others have written; `sweeps` end what is left behind."""
    if not book.journal.name:
        return
    head, rounds, gone = book.journal.head, 0, set[bytes]()
    while True:
        await asyncio.sleep(LOOK_S)
        rounds += 1
        try:
            await book.journal.refresh()
            if rounds * LOOK_S % _WHO_S == 0:
                left = set(await book.gone())
                if left - gone:
                    for sweep in sweeps:
                        await sweep()
                gone = left  # what could not be ended now is tried again with all else that is swept
        except LedgerError as error:
            _log.info("what other processes wrote cannot be read now: %s", error)
        except Exception:  # noqa: BLE001 - it must outlive any one failure
            _log.exception("ending what another process left failed; it is tried again")
        if book.journal.head != head:
            head = book.journal.head
            moved()


async def catch_up(book: Book) -> None:
    """Take in what others wrote before now, if that can be read soon; what is asked for is answered in any case."""
    if not book.journal.name:
        return
    try:
        async with asyncio.timeout(_FRESH_S):
            await book.journal.refresh()
    except (LedgerError, TimeoutError):
        pass  # what is written next is judged by the ledger itself
