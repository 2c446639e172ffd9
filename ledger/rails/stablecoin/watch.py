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
import json
import logging
import time
from pathlib import Path
from typing import Any, Final

from attrs import define, frozen

from ledger.rails.stablecoin.contracts import answered, encoded
from ledger.rails.stablecoin.digests import ChannelConfig, Place
from ledger.rails.stablecoin.errors import ChainError, ChannelUnknown, Disagreement, Unreachable
from ledger.rails.stablecoin.logs import IDS_AT_ONCE, Event, events
from ledger.rails.stablecoin.networks import Network
from ledger.rails.stablecoin.outbox import write_whole
from ledger.rails.stablecoin.rpc import Endpoint, Endpoints, Head, Said, Silent, head, hexed, octets

# An endpoint whose head is that old has stopped, if another's is not.
_STOPPED_S: Final = 900
# Questions for one channel's past: who names an old channel must not keep a node busy.
_MAX_PARTS: Final = 2_000
_MAX_CHANNELS: Final = 100_000
_ADOPTED_AT_ONCE: Final = 2
# Adopting takes one, events that do not add up another; and a block may be replaced in the middle of a look.
_TRIES: Final = 4
_VERSION: Final = 1

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


@frozen
class _State:
    """A channel as the contract has it at a block."""

    balance: int
    claimed: int
    withdrawing: int = 0
    began: int = 0
    nonce: int = 0


@frozen
class _Sums:
    """What came and went up to the cursor."""

    deposited: int = 0
    gone: int = 0

    def plus(self, happened: list[Event]) -> "_Sums":
        came = sum(each.amount for each in happened if each.kind == "deposited")
        went = sum(each.amount for each in happened if each.kind in ("refunded", "withdrawn"))
        return _Sums(self.deposited + came, self.gone + went)


@define
class _Cursor:
    """The deep block up to which everything is added up."""

    block: int
    hash: bytes


class Watch:
    """The channels of one contract that were looked at."""

    def __init__(self, endpoints: Endpoints, network: Network, place: Place, path: Path) -> None:
        """`path` is the file; one that cannot be used is made anew from the chain."""
        self._endpoints = endpoints
        self._network = network
        self._place = place
        self._path = path
        self._cursor: _Cursor | None = None
        self._sums: dict[bytes, _Sums] = {}
        self._recent: dict[bytes, list[Event]] = {}  # after the cursor
        self._seen_to: Head | None = None
        self._views: dict[bytes, ChannelView] = {}  # at that block
        self._turn = 0  # whose events are read
        self._lock = asyncio.Lock()
        self._adopting = asyncio.Semaphore(_ADOPTED_AT_ONCE)
        self._load()

    async def look(self, config: ChannelConfig) -> ChannelView:
        """A channel now. Raises Unreachable, Disagreement, ChannelUnknown."""
        channel = self._place.channel_id(config)
        for _ in range(_TRIES):
            async with self._lock:
                now = await self._advance()
                if channel in self._views:
                    return self._views[channel]
                sums, recent, cursor = self._sums.get(channel), self._recent.get(channel, []), self._cursor
            if sums is None or cursor is None:
                await self._adopt(channel, now)
                continue
            total = sums.plus(recent)
            at_head, at_depth = await self._states(channel, now.number), await self._states(channel, cursor.block)
            if self._adds_up(sums, at_depth) and self._adds_up(total, at_head):
                view = _view(channel, now.number, cursor.block, sums, total, at_head, at_depth)
                if now == self._seen_to:
                    self._views[channel] = view
                return view
            _log.info("events and balance of a channel do not add up: they are read anew")
            self._turn += 1
            self._sums.pop(channel, None)
        raise Disagreement("what a channel holds")

    @staticmethod
    def _adds_up(sums: _Sums, states: list[_State]) -> bool:
        return all(sums.deposited - sums.gone == each.balance for each in states)

    # The head

    async def head(self) -> Head:
        """The lowest head of all endpoints that have not stopped. Raises Unreachable."""
        said = await self._endpoints.ask_all("eth_getBlockByNumber", "latest", False, parse=head)
        heads = [each for _, each in said if not isinstance(each, Said)]
        if not heads:
            raise Unreachable("none gives the last block")
        fresh = [each for each in heads if each.time >= time.time() - _STOPPED_S]
        return min(fresh or heads, key=lambda each: each.number)

    def deep(self, number: int) -> int:
        """The last block that has enough confirmations under a head."""
        return max(number - self._network.confirmations, 0)

    # Events

    async def _advance(self) -> Head:
        """Take in what happened since the last look, for all channels; returns the head."""
        now = await self.head()
        if self._seen_to is not None and now.hash == self._seen_to.hash:
            return now
        if self._cursor is not None and now.number < self._cursor.block:
            raise Disagreement("the last block")
        deep = self.deep(now.number)
        if self._cursor is not None and (await self._block(self._cursor.block)).hash != self._cursor.hash:
            _log.warning("blocks that were deep were replaced: all channels are read anew")
            self._sums.clear()
            self._cursor = None
        if self._cursor is None:
            self._cursor = _Cursor(deep, (await self._block(deep)).hash)
        # An endpoint may lag a little; what was deep stays so.
        deep = max(deep, self._cursor.block)
        happened = await self._happened(self._cursor.block + 1, now.number)
        self._recent = {}
        for each in happened:
            self._recent.setdefault(each.channel, []).append(each)
        self._move(_Cursor(deep, (await self._block(deep)).hash))
        self._seen_to, self._views = now, {}
        return now

    async def _happened(self, first: int, last: int) -> list[Event]:
        channels = list(self._sums)
        found: list[Event] = []
        for begin in range(0, len(channels), IDS_AT_ONCE):
            found += await self._read(first, last, channels[begin : begin + IDS_AT_ONCE])
        return found

    async def _read(self, first: int, last: int, channels: list[bytes], until_created: bool = False) -> list[Event]:
        """Events of channels, as one endpoint has them; if it fails, the next."""
        usable = self._endpoints.usable
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

    async def _adopt(self, channel: bytes, now: Head) -> None:
        """Add up a channel's past, back to where it was opened; meanwhile others are looked at."""
        states = await self._states(channel, now.number)
        if all(each == _State(0, 0) for each in states) or len(self._sums) >= _MAX_CHANNELS:
            raise ChannelUnknown(channel)
        async with self._adopting:
            happened = await self._read(self._network.since, now.number, [channel], until_created=True)
        async with self._lock:
            assert self._cursor is not None
            if self._cursor.block > now.number:
                happened += await self._read(now.number + 1, self._cursor.block, [channel])
            self._sums[channel] = _Sums().plus([each for each in happened if each.block <= self._cursor.block])
            self._seen_to = None  # what is newer is read together with that of all others
            self._save()

    def _move(self, cursor: _Cursor) -> None:
        """Everything up to a deeper block stays, and is added up."""
        moved = False
        for channel, happened in list(self._recent.items()):
            stay = [each for each in happened if each.block <= cursor.block]
            if stay:
                self._sums[channel] = self._sums[channel].plus(stay)
                self._recent[channel] = [each for each in happened if each.block > cursor.block]
                moved = True
        assert self._cursor is not None
        # Without events in between it makes no difference from where the next run reads on.
        self._cursor, far = cursor, cursor.block - self._kept_to >= self._network.logs
        if moved or far:
            self._save()

    # The contract's state

    async def _states(self, channel: bytes, block: int) -> list[_State]:
        """A channel after a block, as each endpoint has it. Raises Unreachable."""
        said = await self._endpoints.each(lambda endpoint: self._state(endpoint, channel, block))
        found = [each for _, each in said if isinstance(each, _State)]
        if not found:
            raise Unreachable(f"none gives the state at block {block}")
        return found

    async def _state(self, endpoint: Endpoint, channel: bytes, block: int) -> _State:
        async def read(name: str) -> tuple[Any, ...]:
            question = {"to": hexed(self._place.contract), "data": hexed(encoded(name, channel))}
            return await endpoint.ask(
                "eth_call", question, hexed(block), parse=lambda found: answered(name, octets(found))
            )

        names = ("channels", "pendingWithdrawals", "refundNonce")
        money, withdrawal, nonce = await asyncio.gather(*map(read, names))
        return _State(money[0], money[1], withdrawal[0], withdrawal[1], nonce[0])

    async def _block(self, number: int) -> Head:
        return await self._endpoints.ask("eth_getBlockByNumber", hexed(number), False, parse=head)

    # The file

    def _load(self) -> None:
        self._kept_to = 0
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if kept["version"] != _VERSION or kept["place"] != [self._place.network, self._place.contract.hex()]:
                return
            sums = {bytes.fromhex(key): _Sums(*map(int, each)) for key, each in kept["channels"].items()}
            cursor = _Cursor(int(kept["block"]), bytes.fromhex(kept["hash"]))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            _log.warning("%s cannot be used: the channels are read anew from the chain", self._path)
            return
        self._sums, self._cursor, self._kept_to = sums, cursor, cursor.block

    def _save(self) -> None:
        assert self._cursor is not None
        kept = {
            "version": _VERSION,
            "place": [self._place.network, self._place.contract.hex()],
            "block": self._cursor.block,
            "hash": self._cursor.hash.hex(),
            "channels": {key.hex(): [each.deposited, each.gone] for key, each in self._sums.items()},
        }
        write_whole(self._path, kept)
        self._kept_to = self._cursor.block


def _view(
    channel: bytes, block: int, deep: int, sums: _Sums, total: _Sums, at_head: list[_State], at_depth: list[_State]
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
