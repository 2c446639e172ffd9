"""One order under way, as its reader sees it: ids as they arrive, a way to stop, and the outcome."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Protocol

from attrs import field, frozen

from ledger.identity import Did
from ledger.records import Checkpoint, Privacy, Sampling, Signed
from node.exchange.delivery import Delivery, Terms
from node.wire.messages import Earlier
from verify.steering import Steering


@frozen
class Ask:
    """What is to be bought: a prompt's ids and how to continue them.

    Of a continued answer the prompt ends with its tokens so far, `start` of them, and `earlier` shows the part before,
    if that was bought. With `claimed` it is a score order: those ids are to be judged, and `max_tokens` is 1.
    """

    prompt: tuple[int, ...] = field(repr=False)
    stop: tuple[str, ...] = field(repr=False)
    sampling: Sampling
    seed: int
    max_tokens: int
    privacy: Privacy
    steering: Steering = field(factory=Steering, repr=False)
    start: int = 0
    earlier: Earlier | None = field(default=None, repr=False)
    claimed: tuple[int, ...] = field(default=(), repr=False)


class Paying(Protocol):
    """Who pays for long answers as they go."""

    def pays_on_the_way(self, seller: Did) -> bool:
        """Whether a seller is paid before its answers are over. One whose work is audited first is not."""
        ...

    def pay(self, terms: Terms, checkpoint: Signed[Checkpoint], awaited: bool) -> None:
        """Pay up to a checkpoint that fits what came, in the background, if the account's window needs it.

        `awaited`: the seller has stood still there, so it may see the window otherwise.
        """
        ...

    def paid_up(self, terms: Terms, tokens: int) -> bool:
        """Whether a seller that was to go on behind so many tokens has been paid for all that it has to be."""
        ...


class NotPlaced(Exception):
    """The order brought nothing, and nothing is owed. The message says why, the code is a refusal's or `failed`."""

    def __init__(self, reason: str, code: str = "failed") -> None:
        super().__init__(reason)
        self.code: Final = code


class Purchase:
    """The two ends of a running order: `tokens`, `cancel` and `outcome` for its reader, the rest for the buyer."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[tuple[int, ...] | None] = asyncio.Queue()
        self._cancelled = asyncio.Event()
        self._outcome: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()

    async def tokens(self) -> AsyncIterator[tuple[int, ...]]:
        """The answer's ids as they arrive; at most as many as were ordered are ever held."""
        while (ids := await self._arrived.get()) is not None:
            yield ids

    def cancel(self) -> None:
        """Ask the seller to stop; what is owed by then is still settled."""
        self._cancelled.set()

    async def outcome(self) -> Delivery:
        """How it ended. Raises NotPlaced if it brought nothing."""
        return await asyncio.shield(self._outcome)

    @property
    def cancelled(self) -> bool:
        """Whether the reader asked to stop."""
        return self._cancelled.is_set()

    async def wait_cancelled(self) -> None:
        """Return once the reader asks to stop."""
        await self._cancelled.wait()

    def arrived(self, ids: tuple[int, ...]) -> None:
        """More ids for the reader."""
        self._arrived.put_nowait(ids)

    def delivered(self, delivery: Delivery) -> None:
        """The order has ended."""
        self._outcome.set_result(delivery)
        self._arrived.put_nowait(None)

    def failed(self, error: BaseException) -> None:
        """The order has failed."""
        self._outcome.set_exception(error)
        self._outcome.exception()  # counted as seen: a reader that left early must not leave a warning behind
        self._arrived.put_nowait(None)
