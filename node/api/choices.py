"""Several answers at once, read as one sequence of events: `n` choices, or a list of prompts."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from node.gateway.answer import Answer, Part
from node.gateway.question import Question

# Of one request. More wait for these, so that one client does not fill the engine's line.
_AT_ONCE: Final = 16
# Events that wait for a slow reader; then the engines wait as well.
_WAITING: Final = 32

# A choice's index and what came: a part of its text, or None at its end.
Event = tuple[int, Part | None]


class Answerer(Protocol):
    """Who answers questions: the gateway, or what is sold to strangers."""

    async def answer(self, question: Question) -> Answer:
        """An answer that has begun. Raises what `errors.FAILURES` lists."""
        ...


class Choices:
    """The answers to some questions, under way while the context is open."""

    def __init__(self, gateway: Answerer, questions: Sequence[Question]) -> None:
        self.answers: list[Answer | None] = [None] * len(questions)
        self._gateway, self._questions = gateway, questions
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue(_WAITING)
        self._first: Event | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        if not self._alone:
            self._tasks = [asyncio.create_task(self._run(*one)) for one in enumerate(self._questions)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._alone and self.answers[0] is not None:
            await self.answers[0].close()

    @property
    def _alone(self) -> bool:
        """Whether there is but one answer: it is read where it comes, without a task and a queue between."""
        return len(self._questions) == 1

    @property
    def begun(self) -> list[Answer]:
        """The answers that have begun, in the order of their questions."""
        return [answer for answer in self.answers if answer is not None]

    async def begin(self) -> None:
        """Wait until the first answer has begun. Raises what the gateway raises."""
        if self._alone:
            self.answers[0] = await self._gateway.answer(self._questions[0])
        else:
            self._first = await self._next()

    async def events(self) -> AsyncIterator[Event]:
        """Everything in the order in which it comes. Raises what the gateway and an answer raise."""
        if self._alone:
            async for event in self._only():
                yield event
            return
        ended = 0
        while ended < len(self._questions):
            event, self._first = self._first or await self._next(), None
            ended += event[1] is None
            yield event

    async def _only(self) -> AsyncIterator[Event]:
        if self.answers[0] is None:
            await self.begin()
        assert self.answers[0] is not None
        async for part in self.answers[0].parts():
            yield 0, part
        yield 0, None

    async def _next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def _run(self, index: int, question: Question) -> None:
        try:
            async with self._turns:
                await self._answer(index, question)
        except Exception as error:  # noqa: BLE001 - raised again where the events are read
            await self._events.put(error)

    async def _answer(self, index: int, question: Question) -> None:
        self.answers[index] = answer = await self._gateway.answer(question)
        try:
            async for part in answer.parts():
                await self._events.put((index, part))
        finally:
            await answer.close()
        await self._events.put((index, None))
