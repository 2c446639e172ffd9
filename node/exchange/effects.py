"""The driver of effects: money moves by rails when it should, once, and what became of it is always found out.

Theory of operation. Each round looks at every account on a rail that can move something. Where nothing is under way,
the policy decides; what it wants is durable in the journal before the rail hears of it. The rail's answer goes into
one entry together with what it changes in the account. No answer in time is no answer: the effect is then unknown, and
is asked for until the rail tells. So is what was planned before a restart: it may have been tried, and is tried again
only where the rail says that it never heard of it, under the same key. What failed is asked for once more before it is
tried again; what settled is asked for once more before it is forgotten. A rail whose words do not agree is left alone
on that account, until the owner has looked.

Every wait is bounded, every account has its own, and one that gets no answer holds up no other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeVar

from attrs import define, frozen

from ledger.account import Account, AccountError, AccountKey
from ledger.changes import InvalidChange
from ledger.effects import (
    KEY_BYTES,
    MAX_WHY,
    CounterMoved,
    Effect,
    EffectPlanned,
    EffectTold,
    EffectUnknown,
    Kind,
    News,
    Tracked,
    counted_at_once,
    draw_up,
)
from ledger.events import AccountChanged
from ledger.rails.answers import counted, moved_by, news_of, seen, why_of
from ledger.rails.policy import Policy, Wish, wanted
from ledger.rails.port import Answer, Rail, Sight
from node.exchange.book import Book
from node.ports import Entropy

# Of all accounts so many are attended to at the same time.
_AT_ONCE: Final = 16
# An account that moves between reckoning and writing is reckoned again so many times.
_RECKONED: Final = 8
_NO_WORD: Final = Answer("unknown")

_log = logging.getLogger(__name__)

T = TypeVar("T")


@frozen
class Pace:
    """How long the driver waits, in seconds.

    `answer_s` for a rail's answer; `look_s` between two looks at an account's collateral; `confirm_s` before what
    settled is asked for once more. Retries wait twice as long each time, from `first_retry_s` to `last_retry_s`.
    """

    round_s: float = 5.0
    answer_s: float = 30.0
    look_s: float = 60.0
    confirm_s: float = 600.0
    first_retry_s: float = 2.0
    last_retry_s: float = 3600.0


class EffectRefused(Exception):
    """An effect that cannot be asked for or put aside; the message says what to do."""


@define
class CannotMove(EffectRefused):
    """The rail of the account cannot do this, or not for this side of it."""

    rail: str
    kind: str

    def __str__(self) -> str:
        return f"the rail {self.rail!r} has no {self.kind} for this side of the account"


@define
class NotNow(EffectRefused):
    """The account does not admit it now."""

    why: str

    def __str__(self) -> str:
        return self.why


@define
class _Waits:
    """What the driver remembers of one account between rounds; times are the clock's seconds."""

    due_since: float | None = None
    looked: float | None = None
    leaving: int = 0
    tried: float | None = None
    pauses: int = 0


class EffectDriver:
    """Moves money by rails: `run` it in the background, or go on by one `step` at a time."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        rails: Iterable[Rail],
        policy: Policy | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._book = book
        self._entropy = entropy
        self._rails: Mapping[str, Rail] = {rail.name: rail for rail in rails if rail.effects}
        self._policy = policy or Policy()
        self._pace = pace or Pace()
        self._waits: dict[AccountKey, _Waits] = {}
        self._locks: dict[AccountKey, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._attending: dict[AccountKey, asyncio.Task[None]] = {}

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
        await asyncio.gather(*self._attending.values())

    async def close(self) -> None:
        """Stop what is being attended to."""
        tasks = list(self._attending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, key: AccountKey, kind: Kind, amount: int) -> Tracked | None:
        """Move `amount` now, because the owner or the other side asks for it; what is known of it afterwards.

        To close takes what is unsettled, and `amount` is 0. Raises EffectRefused.
        """
        rail = self._rails.get(key.rail)
        if rail is None or kind not in rail.effects:
            raise CannotMove(key.rail, kind)
        async with self._lock(key):
            account = self._book.journal.books.account(key)
            try:
                effect = self._draw_up(account, Wish(kind, account.unsettled if kind == "close" else amount))
                if effect.asked_by_payer not in (None, key.payer == self._book.me):
                    raise CannotMove(key.rail, kind)
                await self._plan(effect, account)
            except (AccountError, InvalidChange) as error:
                raise NotNow(str(error)) from None
            await self._perform(rail, effect)
            return self._book.journal.books.effects.get(key)

    async def dismiss(self, key: bytes) -> None:
        """The owner has seen an effect that failed or was contradicted, and the account goes on. Raises EffectRefused.

        What a rail has once said to have failed may be asked for again after this, under a new key.
        """
        found = [one for one in self._book.journal.books.effects.values() if one.effect.key == key]
        if not found:
            raise NotNow(str(EffectUnknown(key)))
        key_of = found[0].effect.account
        async with self._lock(key_of):
            tracked = self._book.journal.books.effects.get(key_of)
            if tracked is not None and tracked.under_way:
                raise NotNow("its rail has not said yet whether it has moved: this node asks on until it does")
            try:
                await self._tell(found[0], "dismissed")
            except AccountError as error:
                raise NotNow(str(error)) from None

    # Rounds

    def _start_round(self) -> None:
        books = self._book.journal.books
        for key in {**books.accounts, **books.effects}:
            rail = self._rails.get(key.rail)
            if rail is None or key in self._attending or not self._concerns_us(books.account(key)):
                continue
            task = asyncio.create_task(self._attend(key, rail))
            self._attending[key] = task
            task.add_done_callback(lambda _, key=key: self._attending.pop(key, None))  # type: ignore[misc]

    def _concerns_us(self, account: Account) -> bool:
        """Whether there can be anything to do, so that accounts at rest cost nothing."""
        key = account.key
        ours = self._book.me in (key.payer, key.payee)
        return ours and (key in self._book.journal.books.effects or account.unsettled > 0 or self._look_is_due(key))

    async def _attend(self, key: AccountKey, rail: Rail) -> None:
        async with self._slots, self._lock(key):
            try:
                await self._go_on(key, rail)
            except AccountError as error:
                self._pause(key)
                _log.info("what should move on the rail %s cannot now: %s", key.rail, error)
            except Exception:  # noqa: BLE001 - one account's trouble, or the disk's, is no other's
                _log.exception("an effect on the rail %s could not go on; it is tried again", key.rail)

    async def _go_on(self, key: AccountKey, rail: Rail) -> None:
        await self._look(key, rail)
        tracked = self._book.journal.books.effects.get(key)
        if not self._rested(key):
            return
        if tracked is None:
            await self._decide(key, rail)
        elif tracked.under_way:
            await self._find_out(rail, tracked)
        elif tracked.state == "failed":
            await self._try_again(rail, tracked)
        elif tracked.state == "settled":
            await self._confirm(rail, tracked)

    async def _decide(self, key: AccountKey, rail: Rail) -> None:
        account = self._book.journal.books.account(key)
        wish = self._wish(account, rail)
        if wish is not None:
            effect = self._draw_up(account, wish)
            await self._plan(effect, account)
            await self._perform(rail, effect)

    def _wish(self, account: Account, rail: Rail) -> Wish | None:
        waits, now = self._wait(account.key), self._book.now()
        if not account.unsettled:
            waits.due_since = None
        elif waits.due_since is None or waits.due_since > now:
            waits.due_since = now
        age = 0 if waits.due_since is None else now - waits.due_since
        return wanted(account, self._book.me, rail.effects, self._policy, age, waits.leaving)

    # One effect

    def _draw_up(self, account: Account, wish: Wish) -> Effect:
        return draw_up(account, wish.kind, wish.amount, self._entropy.bytes(KEY_BYTES))

    async def _plan(self, effect: Effect, account: Account) -> None:
        """Make it durable that this is about to be tried. Raises AccountError."""
        at_once = [AccountChanged(account.key, change) for change in counted_at_once(effect, account)]
        await self._book.post(EffectPlanned(effect, self._book.now()), *at_once)

    async def _perform(self, rail: Rail, effect: Effect) -> None:
        answer = await self._heard(rail, "perform", effect)
        await self._take(rail, effect, answer)

    async def _find_out(self, rail: Rail, tracked: Tracked) -> None:
        """Ask what became of an effect; only where it was never heard of, it is tried, under the same key."""
        answer = await self._heard(rail, "fate", tracked.effect)
        if answer.fate == "absent":
            answer = await self._heard(rail, "perform", tracked.effect)
        await self._take(rail, tracked.effect, answer)

    async def _try_again(self, rail: Rail, tracked: Tracked) -> None:
        answer = await self._heard(rail, "fate", tracked.effect)
        if answer.fate in ("settled", "unknown"):
            await self._take(rail, tracked.effect, answer)
        elif tracked.effect.kind == "claim":
            # By now more may be due; claims are paid by their totals, so one that grew cannot be paid twice.
            self._pause(tracked.effect.account)
            await self._decide(tracked.effect.account, rail)
        else:
            self._pause(tracked.effect.account)
            try:
                await self._tell(tracked, "retried", why=tracked.why)
            except AccountError as error:
                _log.info("a %s on the rail %s is not tried again: %s", tracked.effect.kind, rail.name, error)
            else:
                await self._perform(rail, tracked.effect)

    async def _confirm(self, rail: Rail, tracked: Tracked) -> None:
        """Ask once more for what settled: when some time has passed, or something else waits for it."""
        wish = self._wish(self._book.journal.books.account(tracked.effect.account), rail)
        heard_s = self._book.now() - tracked.heard
        if wish is not None or not 0 <= heard_s < self._pace.confirm_s:
            await self._take(rail, tracked.effect, await self._heard(rail, "fate", tracked.effect))

    async def _take(self, rail: Rail, effect: Effect, answer: Answer) -> None:
        """Make durable what a rail says of an effect, with what it changes in the account."""
        tracked = self._book.journal.books.effects.get(effect.account)
        if tracked is None or tracked.effect.key != effect.key:
            return
        news = news_of(tracked, answer)
        if news is None:
            self._pause(effect.account)
            return
        why = why_of(tracked, answer)
        await self._tell(tracked, news, 0 if news == "confirmed" else moved_by(tracked, answer), why)
        if news == "contradicted":
            _log.warning("the rail %s contradicts itself on a %s: %s", rail.name, effect.kind, why)
        if news in ("settled", "confirmed"):
            self._refresh(effect.account)
        else:
            self._pause(effect.account)
        if news in ("settled", "contradicted"):
            await self._look(effect.account, rail)

    async def _tell(self, tracked: Tracked, news: News, moved: int = 0, why: str = "") -> None:
        """Write one piece of news, and in the same entry what it settles. Raises AccountError."""
        effect = tracked.effect
        key = effect.account
        for _ in range(_RECKONED):
            account = self._book.journal.books.account(key)
            told = EffectTold(key, effect.key, news, self._book.now(), moved, account.settled, why[:MAX_WHY])
            changes = [AccountChanged(key, change) for change in counted(tracked, news, moved, account)]
            try:
                await self._book.post(told, *changes)
            except CounterMoved:
                continue  # something else was settled in between
            return
        raise NotNow("the account moves too fast: try again")

    # What the rail says

    async def _heard(self, rail: Rail, what: str, effect: Effect) -> Answer:
        ask: Callable[[Effect], Awaitable[Answer]] = rail.perform if what == "perform" else rail.fate
        answer = await self._bounded(rail, ask(effect))
        return answer if isinstance(answer, Answer) else _NO_WORD

    async def _bounded(self, rail: Rail, asked: Awaitable[T]) -> T | None:
        """An answer; None where there is none in time, whatever went wrong: it may have been done all the same."""
        try:
            return await asyncio.wait_for(asked, self._pace.answer_s)
        except TimeoutError:
            _log.info("the rail %s has not answered in %s s", rail.name, self._pace.answer_s)
        except Exception as error:  # noqa: BLE001 - a rail may fail in any way, and its text may hold secrets
            _log.warning("the rail %s failed to answer: %s", rail.name, type(error).__name__)
        return None

    async def _look(self, key: AccountKey, rail: Rail) -> None:
        """Take in what collateral the rail sees behind an account, every now and then."""
        if not self._look_is_due(key):
            return
        waits = self._wait(key)
        waits.looked = self._book.now()
        account = self._book.journal.books.account(key)
        sight = await self._bounded(rail, rail.collateral(account))
        if isinstance(sight, Sight):
            waits.leaving = sight.leaving
            changes = seen(self._book.journal.books.account(key), self._book.journal.books.effects.get(key), sight)
            if changes:
                await self._book.post(*(AccountChanged(key, change) for change in changes))

    def _look_is_due(self, key: AccountKey) -> bool:
        looked = self._wait(key).looked
        return looked is None or not 0 <= self._book.now() - looked < self._pace.look_s

    # Waiting

    def _lock(self, key: AccountKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    def _wait(self, key: AccountKey) -> _Waits:
        return self._waits.setdefault(key, _Waits())

    def _pause(self, key: AccountKey) -> None:
        waits = self._wait(key)
        waits.tried, waits.pauses = self._book.now(), waits.pauses + 1

    def _refresh(self, key: AccountKey) -> None:
        waits = self._wait(key)
        # What has just moved shows in the collateral: the next look is due at once.
        waits.tried, waits.pauses, waits.looked = None, 0, None

    def _rested(self, key: AccountKey) -> bool:
        """Whether an account may be tried again; where collateral is leaving, there is no time for long pauses."""
        waits = self._wait(key)
        if waits.tried is None:
            return True
        longest = self._pace.first_retry_s if waits.leaving else self._pace.last_retry_s
        pause = min(self._pace.first_retry_s * 2.0 ** min(waits.pauses - 1, 30), longest)
        # A clock that was set back makes nothing wait longer.
        return not 0 <= self._book.now() - waits.tried < pause
