"""One movement of money on one account: planned, tried, and followed until the rail has said what became of it.

Whoever calls this holds the account's lock; see `node.exchange.effects`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from attrs import define

from ledger.account import Account, AccountError, AccountKey
from ledger.effects import (
    KEY_BYTES,
    MAX_WHY,
    CounterMoved,
    Effect,
    EffectPlanned,
    EffectTold,
    News,
    Tracked,
    counted_at_once,
    draw_up,
)
from ledger.events import AccountChanged
from ledger.rails.answers import counted, given_up, moved_by, news_of, seen, shows, why_of
from ledger.rails.policy import Wish
from ledger.rails.port import Answer, Rail, Sight
from node.exchange.book import Book
from node.exchange.pacing import Pace, Waits
from node.exchange.strangers import is_stranger
from node.ports import Entropy

# An account that moves between reckoning and writing is reckoned again so many times.
_RECKONED: Final = 8
_NO_WORD: Final = Answer("unknown")
# A rail that gives another reason each time it is asked fills no journal with them.
_REASON_S: Final = 60

_log = logging.getLogger(__name__)

T = TypeVar("T")


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


class Mover:
    """Carries out what is wished on single accounts, and finds out what became of it."""

    def __init__(self, book: Book, entropy: Entropy, pace: Pace) -> None:
        self._book = book
        self._entropy = entropy
        self._pace = pace
        self._waits: dict[AccountKey, Waits] = {}

    def wait(self, key: AccountKey) -> Waits:
        """What is remembered of an account between rounds."""
        return self._waits.setdefault(key, Waits(self._pace))

    def pause(self, key: AccountKey) -> None:
        """It did not go on."""
        self.wait(key).pause(self._book.now())

    async def begin(self, rail: Rail, account: Account, wish: Wish) -> None:
        """Make it durable that a wish is about to be tried, and try it. Raises AccountError, InvalidChange."""
        effect = self.draw_up(account, wish)
        await self.plan(effect, account)
        await self.perform(rail, effect)

    def draw_up(self, account: Account, wish: Wish, key: bytes | None = None) -> Effect:
        """The effect that a wish is, under a key of its own unless there is one. Raises InvalidChange."""
        return draw_up(account, wish.kind, wish.amount, key or self._entropy.bytes(KEY_BYTES))

    async def plan(self, effect: Effect, account: Account) -> None:
        """Make it durable that this is about to be tried. Raises AccountError."""
        at_once = [AccountChanged(account.key, change) for change in counted_at_once(effect, account)]
        await self._book.post(EffectPlanned(effect, self._book.now()), *at_once)

    async def perform(self, rail: Rail, effect: Effect) -> None:
        """Try what was planned, and take in what the rail says."""
        answer = await self._heard(rail, "perform", effect)
        await self._take(rail, effect, answer)

    async def find_out(self, rail: Rail, tracked: Tracked) -> None:
        """Ask what became of an effect; only where it was never heard of, it is tried, under the same key."""
        answer = await self._heard(rail, "fate", tracked.effect)
        if answer.fate == "absent":
            answer = await self._heard(rail, "perform", tracked.effect)
        await self._take(rail, tracked.effect, answer)

    async def try_again(self, rail: Rail, tracked: Tracked) -> bool:
        """Go on with one that failed; whether another may be planned over it."""
        answer = await self._heard(rail, "fate", tracked.effect)
        if answer.fate in ("settled", "unknown"):
            await self._take(rail, tracked.effect, answer)
            return False
        self.pause(tracked.effect.account)
        if tracked.effect.kind == "claim":
            # By now more may be due; claims are paid by their totals, so one that grew cannot be paid twice.
            return True
        try:
            await self.tell(tracked, "retried", why=tracked.why)
        except AccountError as error:
            _log.info("a %s on the rail %s is not tried again: %s", tracked.effect.kind, rail.name, error)
        else:
            await self.perform(rail, tracked.effect)
        return False

    async def confirm(self, rail: Rail, tracked: Tracked) -> None:
        """Ask once more for what settled."""
        answer = await self._heard(rail, "fate", tracked.effect)
        if answer.fate == "settled" and not shows(tracked, self._account_of(tracked)):
            self.pause(tracked.effect.account)
        else:
            await self._take(rail, tracked.effect, answer)

    async def retry(self, rail: Rail, tracked: Tracked) -> None:
        """Ask for an effect again under its key, if that still holds. Raises AccountError."""
        await self.tell(tracked, "retried", why=tracked.why)
        await self.find_out(rail, tracked)

    def is_pressing(self, tracked: Tracked) -> bool:
        """Whether a claim that was contradicted cannot wait for its owner: its collateral is leaving.

        It may be retried without a risk, for under its key it is paid once; but not for ever.
        """
        return tracked.effect.kind == "claim" and self.wait(tracked.effect.account).press()

    async def tell(self, tracked: Tracked, news: News, moved: int = 0, why: str = "") -> None:
        """Write one piece of news, and in the same entry what it settles. Raises AccountError, NotNow."""
        effect = tracked.effect
        key = effect.account
        for _ in range(_RECKONED):
            account = self._book.journal.books.account(key)
            told = EffectTold(key, effect.key, news, self._book.now(), moved, account.settled, why[:MAX_WHY])
            moved_by_it = (*counted(tracked, moved, account), *given_up(tracked, news, account, self._book.me))
            changes = [AccountChanged(key, change) for change in moved_by_it]
            try:
                await self._book.post(told, *changes)
            except CounterMoved:
                continue  # something else was settled in between
            return
        raise NotNow("the account moves too fast: try again")

    def look_is_due(self, key: AccountKey) -> bool:
        """Whether an account's collateral is to be looked at now."""
        books = self._book.journal.books
        account = books.account(key)
        at_stake = key in books.effects or account.unsettled > 0 or account.reserved > 0 or account.unpaid > 0
        # A stranger's channel is looked at when it pays; there may be any number of them.
        seldom = account.backed == 0 or is_stranger(key.payer)
        return self.wait(key).look_is_due(self._book.now(), at_stake, seldom)

    async def look(self, key: AccountKey, rail: Rail) -> None:
        """Take in what collateral the rail sees behind an account, every now and then."""
        if not self.look_is_due(key):
            return
        waits, now = self.wait(key), self._book.now()
        waits.look(now)
        sight = await self.bounded(rail, rail.collateral(self._book.journal.books.account(key)))
        if isinstance(sight, Sight) and waits.saw(sight.sequence, sight.leaving):
            books = self._book.journal.books
            account, awaited = books.account(key), self._is_awaited(key)
            changes = seen(account, self._book.me, books.effects.get(key), sight, awaited=awaited)
            if changes:
                await self._book.post(*(AccountChanged(key, change) for change in changes))

    def _is_awaited(self, key: AccountKey) -> bool:
        """Whether a deposit to one who is paid by x402 may come to show; what came to nothing is told by its order."""
        until = self._book.strangers.deposit_until(key)
        return until > 0 and (self._book.now() <= until or self._book.journal.books.account(key).reserved > 0)

    async def bounded(self, rail: Rail, asked: Awaitable[T]) -> T | None:
        """An answer; None where there is none in time, whatever went wrong: it may have been done all the same."""
        try:
            return await asyncio.wait_for(asked, self._pace.answer_s)
        except TimeoutError:
            _log.info("the rail %s has not answered in %s s", rail.name, self._pace.answer_s)
        except Exception as error:  # noqa: BLE001 - a rail may fail in any way, and its text may hold secrets
            _log.warning("the rail %s failed to answer: %s", rail.name, type(error).__name__)
        return None

    async def _heard(self, rail: Rail, what: str, effect: Effect) -> Answer:
        ask: Callable[[Effect], Awaitable[Answer]] = rail.perform if what == "perform" else rail.fate
        answer = await self.bounded(rail, ask(effect))
        return answer if isinstance(answer, Answer) else _NO_WORD

    async def _take(self, rail: Rail, effect: Effect, answer: Answer) -> None:
        """Make durable what a rail says of an effect, with what it changes in the account."""
        tracked = self._book.journal.books.effects.get(effect.account)
        if tracked is None or tracked.effect.key != effect.key:
            return
        news = news_of(tracked, answer)
        if news is None or (news == tracked.state and 0 <= self._book.now() - tracked.heard < _REASON_S):
            self.pause(effect.account)
            return
        why = why_of(tracked, answer)
        await self.tell(tracked, news, 0 if news == "confirmed" else moved_by(tracked, answer), why)
        if news in ("contradicted", "vanished"):
            _log.warning("the rail %s contradicts itself on a %s: %s", rail.name, effect.kind, why)
        if news in ("settled", "confirmed", "vanished"):
            self.wait(effect.account).refresh()
        else:
            self.pause(effect.account)
        if news in ("settled", "contradicted"):
            await self.look(effect.account, rail)

    def _account_of(self, tracked: Tracked) -> Account:
        return self._book.journal.books.account(tracked.effect.account)
