"""Where the answers on one account wait for their turn to draw from its window.

Theory of operation. Before each 64 tokens an answer draws their cost, in the entry that keeps the checkpoint before
them; so an answer that its window bears costs no more writes. One that finds the window empty, or others waiting, lines
up. Only the first in line draws: it looks again whenever something was paid or an order was closed, and now and then,
for what else makes room. So many answers on one account take turns, and none of them starves. They wait as long as one
of them draws now and then: pay that is never enough to draw buys no time, or a unit now and then would hold an answer
for ever.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from attrs import field, frozen

from ledger.account import AboveWindow, AccountKey
from ledger.changes import Drawn
from ledger.events import AccountChanged, Event
from ledger.journal import Kept
from node.exchange.book import Book


@frozen(eq=False)
class Place:
    """A place in line; `turn` is set when it is worth a look."""

    key: AccountKey
    turn: asyncio.Event = field(factory=asyncio.Event)


class Windows:
    """The lines of all accounts, and when somebody last drew in each."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._lines: dict[AccountKey, list[Place]] = {}
        self._drawn_at: dict[AccountKey, float] = {}

    async def draw(
        self, key: AccountKey, order: bytes, total: int, *with_it: Event, records: Sequence[Kept] = ()
    ) -> bool:
        """Write `with_it` and the records, and draw if nobody waits and the window bears it; whether it did."""
        return not self._lines.get(key) and await self._draw(key, order, total, with_it, records)

    async def draw_in_turn(self, place: Place, order: bytes, total: int) -> bool:
        """Draw if it is this place's turn and the window bears it; whether it did."""
        line = self._lines[place.key]
        if line[0] is not place:
            return False
        account = self._book.journal.books.account(place.key)
        drawn = account.orders[order].drawn
        # A look alone costs no write.
        if total - drawn > account.window_left or not await self._draw(place.key, order, total):
            return False
        self._drawn_at[place.key] = asyncio.get_running_loop().time()
        return True

    async def _draw(
        self, key: AccountKey, order: bytes, total: int, with_it: Sequence[Event] = (), records: Sequence[Kept] = ()
    ) -> bool:
        try:
            await self._book.post(*with_it, AccountChanged(key, Drawn(order, total)), records=records)
        except AboveWindow:
            return False
        return True

    @contextlib.contextmanager
    def line_up(self, key: AccountKey) -> Iterator[Place]:
        """Stand in line while the context lasts."""
        place, line = Place(key), self._lines.setdefault(key, [])
        line.append(place)
        place.turn.set()
        try:
            yield place
        finally:
            line.remove(place)
            if not line:
                del self._lines[key]
                self._drawn_at.pop(key, None)
            self.moved(key)

    def drawn_at(self, key: AccountKey) -> float:
        """When one of those who wait last drew, by the event loop's clock; minus infinity if none has."""
        return self._drawn_at.get(key, float("-inf"))

    def look_again(self) -> None:
        """There may be room in any window."""
        for key in self._lines:
            self.moved(key)

    def moved(self, key: AccountKey) -> None:
        """There may be room in this account's window: who is first in line should look."""
        if line := self._lines.get(key):
            line[0].turn.set()
