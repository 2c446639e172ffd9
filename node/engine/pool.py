"""Several models on one machine: loaded when first used, dropped by last use, within the memory that the owner allows.

Theory of operation. For each model there is a `PooledEngine`, an `Engine` like any other, that can be asked from the
start. A job counts as a user of its model from before it begins until it has ended; a model with users is never
dropped. Models are loaded one at a time, by a task that belongs to the pool and not to who asked first, so that a
client that goes away breaks nothing for the others. To make room, the idle model that was used longest ago is dropped;
while none is idle who asks waits, and models at work make room in turn (see `turns`). Who waited long in vain hears
EngineBusy, and has its place kept for when it comes again. What a model takes is the higher of the estimate before and
the measurement after its first loading.

A model's name is its file's bytes, so a file that is not the same any more (see `models.known.FileIdentity`) ends its
sale and its loading until the node is started again. What is in memory is a copy and still whole: it goes on answering
its owner until it is dropped.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from itertools import count
from time import monotonic
from typing import Final, TypeVar

from attrs import define, evolve, field

from ledger.records import Fingerprint
from node.engine.port import (
    BadPrompt,
    Engine,
    EngineBusy,
    EngineClosed,
    Job,
    Piece,
    PromptTooLong,
    Rows,
)
from node.engine.stock import RETRY_AFTER_S, DoesNotFit, LoadFailed, ModelChanged, NoRoom, Seen, State, Stock
from node.engine.turns import Pace, Turns
from node.models.known import FileIdentity
from node.models.manifest import Manifest

T = TypeVar("T")

# For room in memory, while nobody makes any: a client waits that long anyway for a model to be loaded.
PATIENCE_S: Final = 10.0
MAX_WAITING: Final = 64  # who wait for a model, in all; as many of the owner's wait beside sold work

_log = logging.getLogger(__name__)


@define(eq=False)
class _Place:
    """One model's place in the pool."""

    stock: Stock
    bytes: int
    engine: Engine | None = None
    loading: "asyncio.Task[None] | None" = None
    users: int = 0
    waiting: int = 0
    last_used: int = 0
    trouble: str | None = None  # what happened to its file
    closing: set["asyncio.Task[None]"] = field(factory=set)


class Pool:
    """The models of one node. `allowed` bytes for all together; `used` reads the memory in use, to measure with."""

    def __init__(
        self,
        allowed: int,
        *,
        used: Callable[[], int] = lambda: 0,
        patience_s: float = PATIENCE_S,
        max_waiting: int = MAX_WAITING,
        pace: Pace | None = None,
    ) -> None:
        self.allowed: Final = allowed
        self._used = used
        self._patience_s, self._max_waiting = patience_s, max_waiting
        self._waiting = {False: 0, True: 0}  # by whether it is sold work
        self._turns: Turns[_Place] = Turns(pace or Pace())
        self._places: list[_Place] = []
        self._ticks = count(1)
        self._changed = asyncio.Event()
        self._closed = False

    def add(self, stock: Stock) -> "PooledEngine":
        """One more model, not loaded yet. Raises DoesNotFit if it never can be."""
        if stock.bytes > self.allowed:
            raise DoesNotFit(stock.name, stock.bytes, self.allowed)
        place = _Place(stock, stock.bytes)
        self._places.append(place)
        return PooledEngine(self, place)

    @property
    def taken(self) -> int:
        """Bytes that models take now."""
        return sum(place.bytes for place in self._places if _takes_memory(place))

    def seen(self) -> list[Seen]:
        """All models as they are now, in the order in which they were added."""
        return [
            Seen(
                name=place.stock.name,
                model=place.stock.manifest.digest,
                state=self.state(place),
                users=place.users,
                bytes=place.bytes,
                slots=place.stock.slots,
                free_slots=self.free_slots(place),
                context=place.stock.context,
                trouble=place.trouble,
            )
            for place in self._places
        ]

    def sweep(self) -> None:
        """Look at all files."""
        for place in self._places:
            self.is_unchanged(place)

    async def close(self) -> None:
        """End all jobs with EngineClosed and free the memory; again does nothing."""
        self._closed = True
        self._tell()
        for place in self._places:
            if place.loading is not None:
                await asyncio.wait({place.loading})
            self._drop(place)
        await self._all_closed()

    # What the engines ask

    def state(self, place: _Place) -> State:
        """Whether the model is in memory."""
        if place.engine is not None:
            return "loaded"
        if place.trouble is not None:
            return "changed"
        return "loading" if place.loading is not None else "on disk"

    def free_slots(self, place: _Place) -> int:
        """How many jobs would begin at once, or as soon as the model is loaded where it can be now."""
        if self._closed or self.state(place) == "changed":
            return 0
        self._look()
        if place.engine is not None:
            return 0 if self._turns.leaves(place) else place.engine.free_slots()
        if place.loading is None and not self._could_have_room(place, self._kept):
            return 0
        return max(0, place.stock.slots - place.waiting)

    def is_unchanged(self, place: _Place) -> bool:
        """Whether the file is still the one that was read at the start; once it was not, it never is again."""
        if place.trouble is not None:
            return False
        try:
            now = FileIdentity.of(place.stock.path)
        except OSError as error:
            place.trouble = f"cannot be read any more ({error.strerror})"
        else:
            if now == place.stock.identity:
                return True
            place.trouble = "was changed"
        _log.warning(
            "%s %s: %s is neither sold nor loaded any more; start the node again to use what is there now",
            place.stock.path,
            place.trouble,
            place.stock.name,
        )
        self._tell()
        return False

    def check(self, place: _Place) -> None:
        """Raises EngineClosed, ModelChanged where nothing can come of a job."""
        self.is_unchanged(place)
        if self._closed:
            raise EngineClosed
        if place.engine is None and place.trouble is not None:
            raise ModelChanged(place.stock.name, place.trouble)

    @contextlib.asynccontextmanager
    async def using(self, place: _Place, sold: bool) -> AsyncIterator[Engine]:
        """The model in memory, and kept there meanwhile; for sold work, or for the owner.

        Raises EngineBusy, LoadFailed, ModelChanged, EngineClosed.
        """
        engine = await self._ready(place, sold)
        try:
            yield engine
        finally:
            place.users -= 1
            place.last_used = next(self._ticks)
            self._turns.use(place, sold, monotonic())
            self._tell()

    def miss(self, place: _Place) -> None:
        """Sold work was refused for want of room: it may come again, and keeps its turn for a while."""
        if not self._closed and (place.engine is None or self._turns.leaves(place)):
            self._turns.miss(place, True, monotonic())

    async def _ready(self, place: _Place, sold: bool) -> Engine:
        """Wait until the model is in memory and takes work, and count one more user."""
        self.check(place)
        self._look()
        if place.engine is None or self._turns.keeps_out(place, sold):
            if self._waiting[sold] + (self._waiting[not sold] if sold else 0) >= self._max_waiting:
                raise EngineBusy(self._max_waiting, RETRY_AFTER_S)
            async with self._in_line(place, sold):
                await self._wait_for(place, sold)
        if place.engine is None:
            raise EngineClosed
        place.users += 1
        self._turns.use(place, sold, monotonic())
        return place.engine

    @contextlib.asynccontextmanager
    async def _in_line(self, place: _Place, sold: bool) -> AsyncIterator[None]:
        """Wait while the context lasts."""
        comes_back = False
        place.waiting += 1
        self._waiting[sold] += 1
        self._turns.wait(place, sold, monotonic())
        try:
            yield
        except NoRoom:
            comes_back = True
            raise
        finally:
            place.waiting -= 1
            self._waiting[sold] -= 1
            self._turns.leave(place, sold, monotonic(), comes_back)
            self._tell()

    async def _wait_for(self, place: _Place, sold: bool) -> None:
        deadline = monotonic() + self._patience_s
        while place.engine is None or self._turns.keeps_out(place, sold):
            self.check(place)
            if self._may_begin(place):
                place.loading = asyncio.create_task(self._load(place))
                place.loading.add_done_callback(_retrieve)
            if place.loading is not None:
                # Whoever asked first may go away; the others, and the next to come, still want it.
                await asyncio.shield(place.loading)
                continue
            self._look()
            if not self._may_begin(place):
                await self._something_changes(place, deadline)

    async def _something_changes(self, place: _Place, deadline: float) -> None:
        """Wait until a look is worth it. Raises NoRoom at the deadline, unless room is being made for this model."""
        now = monotonic()
        awaited = self._turns.next is place
        if now >= deadline and not awaited:
            raise NoRoom(place.stock.name)
        wake = min(self._turns.soonest(now), float("inf") if awaited else deadline)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wake - now if wake < float("inf") else None):
                await self._changed.wait()

    def _may_begin(self, place: _Place) -> bool:
        """Whether the model can be loaded now."""
        loading = any(one.loading is not None for one in self._places)
        return place.engine is None and not loading and self._could_have_room(place, self._stays)

    def _could_have_room(self, place: _Place, stays: Callable[[_Place], bool]) -> bool:
        """Whether the model fits beside those that stay, and beside the one whose turn it is."""
        kept = sum(one.bytes for one in self._places if one is not place and one.engine is not None and stays(one))
        turn = self._turns.next
        others = turn.bytes if turn is not None and turn is not place else 0
        return kept + others + place.bytes <= self.allowed

    def _kept(self, place: _Place) -> bool:
        """Whether somebody uses the model, or will in a moment: who waited for its loading has yet to wake up."""
        return place.users > 0 or (place.waiting > 0 and not self._turns.leaves(place))

    def _stays(self, place: _Place) -> bool:
        """Whether a model is not to be dropped just now."""
        return self._kept(place) or (not self._turns.leaves(place) and self._turns.pauses(place, monotonic()))

    def _look(self) -> None:
        """Whose turn is it now?"""
        loaded = [one for one in self._places if one.engine is not None]
        loaded.sort(key=lambda one: (one.users > 0, one.last_used))
        lacking = {one: self.taken + one.bytes - self.allowed for one in self._places if one.engine is None}
        before = self._turns.next
        self._turns.look(monotonic(), lacking, [(one, one.bytes) for one in loaded])
        if self._turns.next is not before:
            self._tell()

    async def _load(self, place: _Place) -> None:
        """Drop what must go, and load; where others have come to use what should go, nothing happens."""
        try:
            await self._all_closed()
            while self.taken + place.bytes > self.allowed:
                idle = [one for one in self._places if one.engine is not None and not self._stays(one)]
                if not idle:
                    return
                self._drop(min(idle, key=lambda one: (not self._turns.leaves(one), one.last_used)))
                await self._all_closed()
            before = await asyncio.to_thread(self._used)  # asking a GPU's driver takes its time
            engine = await place.stock.load()
            grown = await asyncio.to_thread(self._used) - before
            place.bytes = min(max(place.stock.bytes, grown), self.allowed)
            if self._closed or not self.is_unchanged(place):
                await engine.close()
                return
            place.engine = engine
            # What the engine says of itself holds from now on, also after it was dropped.
            place.stock = evolve(
                place.stock, fingerprint=engine.fingerprint, context=engine.context, slots=engine.slots
            )
            place.last_used = next(self._ticks)
            self._turns.loaded(place, monotonic())
        except Exception as error:
            _log.warning("%s could not be loaded: %s", place.stock.name, error)
            raise LoadFailed(place.stock.name, error) from error
        finally:
            place.loading = None
            self._tell()

    def _drop(self, place: _Place) -> None:
        """Take a model out of use; its memory counts until it is free."""
        engine, place.engine = place.engine, None
        self._turns.dropped(place)
        if engine is not None:
            closing = asyncio.ensure_future(engine.close())
            place.closing.add(closing)
            closing.add_done_callback(place.closing.discard)

    async def _all_closed(self) -> None:
        closing = {task for place in self._places for task in place.closing}
        if closing:
            await asyncio.wait(closing)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _retrieve(loading: "asyncio.Task[None]") -> None:
    """A failure that nobody waits for any more was logged already."""
    if not loading.cancelled():
        loading.exception()


def _takes_memory(place: _Place) -> bool:
    return place.engine is not None or bool(place.closing)


class PooledEngine:
    """An `Engine` whose model is in memory only while it is used. Made by `Pool.add`."""

    def __init__(self, pool: Pool, place: _Place) -> None:
        self._pool, self._place = pool, place

    @property
    def manifest(self) -> Manifest:
        """See `Engine.manifest`."""
        return self._place.stock.manifest

    @property
    def fingerprint(self) -> Fingerprint:
        """See `Engine.fingerprint`."""
        return self._place.stock.fingerprint

    @property
    def context(self) -> int:
        """See `Engine.context`."""
        return self._place.stock.context

    @property
    def slots(self) -> int:
        """See `Engine.slots`."""
        return self._place.stock.slots

    @property
    def state(self) -> State:
        """Whether the model is in memory."""
        return self._pool.state(self._place)

    def is_unchanged(self) -> bool:
        """Whether the file is still what the manifest says, so that the model may be sold; takes some microseconds."""
        return self._pool.is_unchanged(self._place)

    async def load(self) -> None:
        """Load it now. Raises as `generate`."""
        async with self._pool.using(self._place, sold=False):
            pass

    def free_slots(self) -> int:
        """See `Engine.free_slots`."""
        return self._pool.free_slots(self._place)

    def miss(self) -> None:
        """An order was refused because no slot was free: where the model is not in memory, it claims a turn."""
        self._pool.miss(self._place)

    def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        """See `Engine.generate`; loads the model if need be."""
        self._check(job.prompt, 1)
        return self._while_used(lambda engine: engine.generate(job), job.sold)

    def score(self, prompt: Sequence[int], claimed: Sequence[int]) -> AsyncGenerator[Rows, None]:
        """See `Engine.score`; loads the model if need be, and waits for that behind the owner's answers."""
        self._check(prompt, len(claimed))
        return self._while_used(lambda engine: engine.score(prompt, claimed), sold=True)

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Rows:
        """See `Engine.embed`; loads the model if need be."""
        async with self._pool.using(self._place, sold=False) as engine:
            return await engine.embed(inputs)

    async def close(self) -> None:
        """Close the pool, and so all of its engines; see `Engine.close`."""
        await self._pool.close()

    def _check(self, prompt: Sequence[int], more: int) -> None:
        if not prompt:
            raise BadPrompt("a prompt needs one id or more")
        if len(prompt) + more > self.context:
            raise PromptTooLong(len(prompt), self.context)
        self._pool.check(self._place)

    async def _while_used(
        self, start: Callable[[Engine], AsyncGenerator[T, None]], sold: bool
    ) -> AsyncGenerator[T, None]:
        async with self._pool.using(self._place, sold) as engine, contextlib.aclosing(start(engine)) as results:
            async for result in results:
                yield result
