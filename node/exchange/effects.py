"""The driver of effects: money moves by rails when it should, once, and what became of it is always found out.

Theory of operation. Each round attends to every account on a rail that can move something, and then decides, of all
that nothing is under way on, what goes now: what moves together shares a fee, and the policy says when the fee is small
enough. What is to move is durable in the journal before the rail hears of it. The rail's answer goes into one entry
together with what it changes in the account. No answer in time is no answer: the effect is then unknown, and is asked
for until the rail tells. So is what was planned before a restart: it may have been tried, and is tried again only where
the rail says that it never heard of it, under the same key. What failed is asked for once more before it is tried
again; what settled is asked for once more before it is forgotten, and a claim that a reorganised chain has lost by then
is made again. A rail whose words do not agree is left alone on that account, until the owner has looked.

Every wait is bounded, every account has its own, and a rail that gives no answer holds up no other.
"""

import asyncio
import itertools
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final

from attrs import evolve

from ledger.account import Account, AccountError, AccountKey
from ledger.changes import InvalidChange
from ledger.effects import EffectUnknown, Kind, Tracked, claimable
from ledger.rails.policy import Policy, Wish
from ledger.rails.port import Rail
from node.exchange.book import Book
from node.exchange.choosing import Chooser
from node.exchange.moving import CannotMove, EffectRefused, Mover, NotNow
from node.exchange.pacing import Pace
from node.ports import Entropy

__all__ = ["CannotMove", "EffectDriver", "EffectRefused", "NotNow"]

# Of a rail's accounts so many are attended to at the same time.
_AT_ONCE: Final = 16

_log = logging.getLogger(__name__)


class EffectDriver:
    """Moves money by rails: `run` it in the background, or go on by one `step` at a time."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        rails: Iterable[Rail],
        policies: Mapping[str, Policy] | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`policies` are the owner's, by the rail's name."""
        self._book = book
        self._rails: Mapping[str, Rail] = {rail.name: rail for rail in rails if rail.effects}
        self._pace = pace or Pace()
        self._mover = Mover(book, entropy, self._pace)
        self._chooser = Chooser(book, self._mover, policies or {})
        self._locks: dict[AccountKey, asyncio.Lock] = {}
        self._slots = {name: asyncio.Semaphore(_AT_ONCE) for name in self._rails}
        self._attending: dict[AccountKey, asyncio.Task[bool]] = {}
        self._rounds: dict[str, asyncio.Task[list[asyncio.Task[bool]]]] = {}

    async def run(self) -> None:
        """Round after round, until cancelled; what is under way then is picked up after the next start."""
        try:
            while True:
                self._start_round()
                await asyncio.sleep(self._pace.round_s)
        finally:
            await self.close()

    async def step(self) -> None:
        """One round, to its end."""
        self._start_round()
        moves = await asyncio.gather(*self._rounds.values())
        await asyncio.gather(*self._attending.values(), *itertools.chain(*moves))

    async def close(self) -> None:
        """Stop what is being attended to."""
        tasks = [*self._rounds.values(), *self._attending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, key: AccountKey, kind: Kind, amount: int, under: bytes | None = None) -> Tracked | None:
        """Move `amount` now, because the owner or the other side asks for it; what is known of it afterwards.

        To close takes what is unsettled, and `amount` is 0. Whatever the fee is. `under` is the effect's key (32
        bytes), where the other side is to know it. Raises EffectRefused.
        """
        rail = self._rails.get(key.rail)
        if rail is None or kind not in rail.effects:
            raise CannotMove(key.rail, kind)
        async with self._lock(key):
            await self._make_way(rail, key)
            account = self._book.journal.books.account(key)
            try:
                if kind == "close":
                    amount = account.unsettled
                elif kind == "claim":
                    amount = min(amount, self._due(account, kind))
                    if account.unsettled and not amount:
                        raise NotNow("nothing of what is owed lies in the channel any more: its payer deposits first")
                effect = self._mover.draw_up(account, Wish(kind, amount), under)
                if effect.asked_by_payer not in (None, key.payer == self._book.me):
                    raise CannotMove(key.rail, kind)
                await self._mover.plan(effect, account)
            except (AccountError, InvalidChange) as error:
                raise NotNow(str(error)) from None
            await self._mover.perform(rail, effect)
            return self._book.journal.books.effects.get(key)

    async def look(self, key: AccountKey) -> Account:
        """The account, its collateral looked at now rather than in a while: somebody says that it has changed.

        Not more often than `Pace.look_again_s`: what is asked for sooner, or while the account is attended to, waits
        for one of the next rounds.
        """
        rail = self._rails.get(key.rail)
        if rail is not None:
            self._mover.wait(key).ask_for_look(self._book.now())
            if not self._lock(key).locked():
                async with self._lock(key):
                    await self._mover.look(key, rail)
        return self._book.journal.books.account(key)

    async def dismiss(self, key: bytes) -> None:
        """The owner has seen an effect that failed or was contradicted, and gives it up. Raises EffectRefused.

        What of it still counts as owed may be asked for again after this, under a new key.
        """
        tracked = self._seen_by_owner(key)
        async with self._lock(tracked.effect.account):
            try:
                await self._mover.tell(tracked, "dismissed")
            except AccountError as error:
                raise NotNow(str(error)) from None

    async def retry(self, key: bytes) -> None:
        """The owner wants such an effect to be asked for once more, under the same key. Raises EffectRefused."""
        tracked = self._seen_by_owner(key)
        rail = self._rails.get(tracked.effect.account.rail)
        if rail is None:
            raise CannotMove(tracked.effect.account.rail, tracked.effect.kind)
        async with self._lock(tracked.effect.account):
            try:
                await self._mover.retry(rail, tracked)
            except AccountError as error:
                raise NotNow(str(error)) from None

    async def _make_way(self, rail: Rail, key: AccountKey) -> None:
        """What settled need not wait to be asked for once more where something else is to move."""
        tracked = self._book.journal.books.effects.get(key)
        if tracked is not None and tracked.state == "settled":
            await self._mover.confirm(rail, tracked)

    def _seen_by_owner(self, key: bytes) -> Tracked:
        for tracked in self._book.journal.books.effects.values():
            if tracked.effect.key == key:
                if tracked.under_way:
                    raise NotNow("its rail has not said yet whether it has moved: this node asks on until it does")
                return tracked
        raise NotNow(str(EffectUnknown(key)))

    # Rounds

    def _start_round(self) -> None:
        for name, rail in self._rails.items():
            if name not in self._rounds:
                task = self._rounds[name] = asyncio.create_task(self._round(rail))
                task.add_done_callback(lambda _, name=name: self._rounds.pop(name, None))  # type: ignore[misc]

    async def _round(self, rail: Rail) -> list[asyncio.Task[bool]]:
        """Attend to each account; then decide for those that are free, without waiting long for the others.

        Gives what was begun.
        """
        books = self._book.journal.books
        keys = [key for key in {**books.accounts, **books.effects} if self._concerns_us(key, rail)]
        started = {key: self._start(key, self._attend(key, rail)) for key in keys}
        if started:
            await asyncio.wait(started.values(), timeout=self._pace.round_s)
        free = [key for key, task in started.items() if task.done() and not task.cancelled() and task.result()]
        begun = []
        for key, wish in (await self._chooser.chosen(free, rail)).items():
            if key not in self._attending:
                begun.append(self._start(key, self._move(key, rail, wish)))
        return begun

    def _concerns_us(self, key: AccountKey, rail: Rail) -> bool:
        """Whether there can be anything to do, so that accounts at rest cost nothing."""
        books = self._book.journal.books
        if key.rail != rail.name or self._book.me not in (key.payer, key.payee) or key in self._attending:
            return False
        wish = self._chooser.wish(key, rail)
        return key in books.effects or wish is not None or self._mover.look_is_due(key)

    def _start(self, key: AccountKey, doing: Coroutine[Any, Any, bool]) -> asyncio.Task[bool]:
        task = self._attending[key] = asyncio.create_task(doing)
        task.add_done_callback(lambda _: self._attending.pop(key, None))
        return task

    async def _attend(self, key: AccountKey, rail: Rail) -> bool:
        """Look, and go on with what is under way; whether something new may be planned."""
        async with self._slots[key.rail]:
            return await self._carefully(key, self._go_on(key, rail))

    async def _move(self, key: AccountKey, rail: Rail, wish: Wish) -> bool:
        """Plan and try what was decided, with what is due by now."""
        await self._carefully(key, self._begin(key, rail, wish))
        return False

    async def _carefully(self, key: AccountKey, doing: Coroutine[Any, Any, bool]) -> bool:
        async with self._lock(key):
            try:
                return await doing
            except (AccountError, InvalidChange, EffectRefused) as error:
                self._mover.pause(key)
                _log.info("what should move on the rail %s cannot now: %s", key.rail, error)
            except Exception:  # noqa: BLE001 - one account's trouble, or the disk's, is no other's
                _log.exception("an effect on the rail %s could not go on; it is tried again", key.rail)
        return False

    async def _go_on(self, key: AccountKey, rail: Rail) -> bool:
        await self._mover.look(key, rail)
        tracked = self._book.journal.books.effects.get(key)
        if not self._mover.wait(key).rested(self._book.now()):
            return False
        if tracked is None:
            return True
        if tracked.under_way:
            await self._mover.find_out(rail, tracked)
        elif tracked.state == "failed":
            return await self._mover.try_again(rail, tracked)
        elif tracked.state == "settled":
            if self._is_to_be_confirmed(tracked, rail):
                await self._mover.confirm(rail, tracked)
        elif self._mover.is_pressing(tracked):
            await self._mover.retry(rail, tracked)
        return False

    async def _begin(self, key: AccountKey, rail: Rail, wish: Wish) -> bool:
        account = self._book.journal.books.account(key)
        amount = wish.amount if wish.kind == "top_up" else self._due(account, wish.kind)
        await self._mover.begin(rail, account, evolve(wish, amount=amount))
        return False

    def _due(self, account: Account, kind: Kind) -> int:
        """What is to be paid or claimed now of what is unsettled."""
        return claimable(account, self._mover.wait(account.key).leaving) if kind == "claim" else account.unsettled

    def _is_to_be_confirmed(self, tracked: Tracked, rail: Rail) -> bool:
        """When some time has passed, or something else waits for it."""
        wish = self._chooser.wish(tracked.effect.account, rail)
        heard_s = self._book.now() - tracked.heard
        return (wish is not None and wish.ripe) or not 0 <= heard_s < self._pace.confirm_s

    def _lock(self, key: AccountKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())
