"""What channels hold: deposits that stay, less all that went or may go.

Theory of operation. A channel's balance is on the chain, but what came in and what went in all are only in its events.
They are added up once, to a block that is deep enough to stay, and kept in a file; from there on, few blocks are asked
about at each look, for all channels at once. Each look is pinned to one block, the lowest head of all endpoints.
Events come from one endpoint; balance, claims and withdrawals are asked of all. Then

    deposits - what went = balance        at the deep block, and at the head

holds, or nothing is said, and the events are added up anew, as another endpoint has them. So who lies about events has
to lie about as much that came as went, which changes nothing that counts. Where endpoints differ on a withdrawal or a
claim, the more careful one counts. If the deep block is replaced after all, everything is added up anew.
"""

import asyncio
import logging
from typing import Final

from attrs import frozen

from ledger.rails.stablecoin.digests import ChannelConfig, Place
from ledger.rails.stablecoin.errors import ChainError, ChannelUnknown, Disagreement, Unreachable
from ledger.rails.stablecoin.logs import IDS_AT_ONCE, Event, events
from ledger.rails.stablecoin.networks import Network
from ledger.rails.stablecoin.reading import ChannelState, Reading
from ledger.rails.stablecoin.rpc import Endpoint, Head, Silent
from ledger.rails.stablecoin.sights import Cursor, Sights, Sums

# Questions for one channel's past (a year of Base is half of it): who names an old one must not keep a node busy.
_MAX_PARTS: Final = 20_000
_MAX_CHANNELS: Final = 100_000
_ADOPTED_AT_ONCE: Final = 2
# Adopting takes one, events that do not add up another; and a block may be replaced in the middle of a look.
_TRIES: Final = 4

_log = logging.getLogger(__name__)


@frozen
class ChannelView:
    """A channel at one moment, amounts in units of the token.

    `block` is the head that was looked at, `deep` the last block with enough confirmations. `deposited` counts to
    `deep`, so it stays; `gone` (refunds and withdrawals) and `withdrawing` (under way) count to the head: money that
    may leave never counts. `claimed` is the total at `deep`, `claimed_at_head` and `balance` (less what is gone, claims
    do not lower it) those at the head. `withdraw_began` is in seconds since 1970, 0 if nothing is under way.
    """

    channel: bytes
    block: int
    deep: int
    deposited: int
    gone: int
    withdrawing: int
    withdraw_began: int
    claimed: int
    claimed_at_head: int
    balance: int
    refund_nonce: int


class Watch:
    """The channels of one contract that were looked at."""

    def __init__(self, reading: Reading, network: Network, place: Place, sights: Sights) -> None:
        """`sights` are what is known of earlier runs."""
        self._reading = reading
        self._network = network
        self._place = place
        self._sights = sights
        self._recent: dict[bytes, list[Event]] = {}  # after the cursor
        self._seen_to: Head | None = None
        self._views: dict[bytes, ChannelView] = {}  # at that block
        self._turn = 0  # whose events are read
        self._lock = asyncio.Lock()
        self._adopting = asyncio.Semaphore(_ADOPTED_AT_ONCE)
        self._adoptions: dict[bytes, asyncio.Task[None]] = {}

    async def look(self, config: ChannelConfig, opened: int | None = None) -> ChannelView:
        """A channel now; one that is not known yet is added up from the block where it was `opened`, or opened last.

        What came before its last opening has gone before that, so it is the sums alone that differ. Raises Unreachable,
        Disagreement, ChannelUnknown.
        """
        channel = self._place.channel_id(config)
        for _ in range(_TRIES):
            async with self._lock:
                now = await self._advance()
                if channel in self._views:
                    return self._views[channel]
                sums, recent, cursor = (
                    self._sights.sums.get(channel),
                    self._recent.get(channel, []),
                    self._sights.cursor,
                )
            if sums is None or cursor is None:
                await self._adopt(channel, now, opened)
                continue
            total = sums.plus(recent)
            at_head, at_depth = await self._states(channel, now.number), await self._states(channel, cursor.block)
            if self._adds_up(sums, at_depth) and self._adds_up(total, at_head):
                view = _view(channel, now.number, cursor.block, sums, total, at_head, at_depth)
                if now == self._seen_to:
                    self._views[channel] = view
                return view
            _log.info("events and balance of a channel do not add up: they are read anew")
            async with self._lock:
                self._turn += 1
                self._sights.sums.pop(channel, None)
        raise Disagreement("what a channel holds")

    @staticmethod
    def _adds_up(sums: Sums, states: list[ChannelState]) -> bool:
        return all(sums.deposited - sums.gone == each.balance for each in states)

    # Events

    async def _advance(self) -> Head:
        """Take in what happened since the last look, for all channels; returns the head."""
        now = await self._reading.head()
        if self._seen_to is not None and now.hash == self._seen_to.hash:
            return now
        if self._sights.cursor is not None and now.number < self._sights.cursor.block:
            raise Disagreement("the last block")
        deep = self._reading.deep(now.number)
        if self._sights.cursor is not None and self._sights.cursor.hash not in await self._reading.hashes(
            self._sights.cursor.block
        ):
            _log.warning("blocks that were deep were replaced: all channels are read anew")
            self._sights.sums.clear()
            self._sights.cursor = None
        if self._sights.cursor is None:
            self._sights.cursor = await self._cursor_at(deep)
        # An endpoint may lag a little; what was deep stays so.
        deep = max(deep, self._sights.cursor.block)
        happened = await self._happened(self._sights.cursor.block + 1, now.number)
        self._recent = {}
        for each in happened:
            self._recent.setdefault(each.channel, []).append(each)
        self._sights.move(await self._cursor_at(deep), self._recent, self._network.logs)
        self._seen_to, self._views = now, {}
        self._sights.looked()
        return now

    async def _happened(self, first: int, last: int) -> list[Event]:
        channels = list(self._sights.sums)
        found: list[Event] = []
        for begin in range(0, len(channels), IDS_AT_ONCE):
            found += await self._read(first, last, channels[begin : begin + IDS_AT_ONCE])
        return found

    async def _read(self, first: int, last: int, channels: list[bytes], until_created: bool = False) -> list[Event]:
        """Events of channels, as one endpoint has them; if it fails, the next."""
        usable = self._reading.endpoints.usable
        why: ChainError = Unreachable("none is configured")
        for turn in range(len(usable)):
            endpoint = usable[(self._turn + turn) % len(usable)]
            try:
                return await self._read_at(endpoint, first, last, channels, until_created)
            except (Silent, Unreachable) as error:
                why = error
        raise Unreachable(str(why))

    async def _read_at(
        self, endpoint: Endpoint, first: int, last: int, channels: list[bytes], until_created: bool
    ) -> list[Event]:
        found: list[Event] = []
        parts = 0
        async for part in events(endpoint, self._place.contract, first, last, self._network.logs, channels):
            found = part + found
            parts += 1
            if until_created and any(each.kind == "created" for each in part):
                opened = max(each.block for each in part if each.kind == "created")
                return [each for each in found if each.block >= opened]
            if until_created and parts >= _MAX_PARTS:
                raise Unreachable("a channel was opened too long ago to look for its events")
        return found

    async def close(self) -> None:
        """Read no further."""
        for task in (under_way := list(self._adoptions.values())):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _adopt(self, channel: bytes, now: Head, opened: int | None) -> None:
        """Add up a channel's past, once for all who wait for it; it goes on when they no longer do."""
        task = self._adoptions.get(channel)
        if task is None:
            task = asyncio.create_task(self._add_up(channel, now, opened))
            self._adoptions[channel] = task
            task.add_done_callback(lambda done: self._is_adopted(channel, done))
        await asyncio.shield(task)

    def _is_adopted(self, channel: bytes, done: asyncio.Task[None]) -> None:
        del self._adoptions[channel]
        if not done.cancelled() and done.exception() is not None:
            _log.debug("a channel's past could not be read: %s", done.exception())

    async def _add_up(self, channel: bytes, now: Head, opened: int | None) -> None:
        """Back to where it was opened; meanwhile others are looked at."""
        states = await self._states(channel, now.number)
        if all(each == ChannelState(0, 0) for each in states) or len(self._sights.sums) >= _MAX_CHANNELS:
            raise ChannelUnknown(channel)
        async with self._adopting:
            first = self._network.since if opened is None else opened
            happened = await self._read(first, now.number, [channel], until_created=opened is None)
        async with self._lock:
            assert self._sights.cursor is not None
            if self._sights.cursor.block > now.number:
                happened += await self._read(now.number + 1, self._sights.cursor.block, [channel])
            self._sights.sums[channel] = Sums().plus(
                [each for each in happened if each.block <= self._sights.cursor.block]
            )
            self._seen_to = None  # what is newer is read together with that of all others
            self._sights.save()

    async def _states(self, channel: bytes, block: int) -> list[ChannelState]:
        return await self._reading.states(self._place.contract, channel, block)

    async def _cursor_at(self, block: int) -> Cursor:
        return Cursor(block, (await self._reading.hashes(block))[0])


def _view(
    channel: bytes,
    block: int,
    deep: int,
    sums: Sums,
    total: Sums,
    at_head: list[ChannelState],
    at_depth: list[ChannelState],
) -> ChannelView:
    """Where endpoints differ, the most that may leave and the least that was claimed count."""
    leaving = max(at_head, key=lambda each: (each.withdrawing, -each.began))
    return ChannelView(
        channel=channel,
        block=block,
        deep=deep,
        deposited=sums.deposited,
        gone=total.gone,
        withdrawing=leaving.withdrawing,
        withdraw_began=leaving.began,
        claimed=min(each.claimed for each in at_depth),
        claimed_at_head=min(each.claimed for each in at_head),
        balance=at_head[0].balance,
        refund_nonce=max(each.nonce for each in at_head),
    )
