"""Remote backends as candidates: what they may be asked, what they cost the owner today, and when they are let rest."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Final

from attrs import evolve, frozen

from ledger.money import Amount
from node.engine.completions import estimated_tokens
from node.engine.paying import Payer
from node.engine.port import EngineBusy, EngineError, Job, Piece
from node.engine.remote import RemoteChat, RemoteEngine
from node.engine.streaming import Said
from node.gateway.answer import Answer, Part
from node.gateway.question import Question
from node.gateway.sources import Paper
from node.market.candidates import Candidate, Limits, Remote
from node.models.text import TextStream
from node.models.tokenizer import Tokenizer
from node.ports import Clock
from node.wire.messages import Earlier

# After a failure it is not asked for a while, so that not every question waits for a server that is gone.
_REST_S: Final = 15.0
_DAY_S: Final = 86_400
_END: Final = 0


@frozen
class Tokens:
    """A remote whose tokenizer is here: it takes and gives ids, as an engine does."""

    engine: RemoteEngine
    tokenizer: Tokenizer


@frozen
class Backend:
    """One remote backend. `model` is its manifest's digest, or stands for a model that only the owner's word names.

    One that has a `payer` is asked for one answer at a time, and costs what that paid.
    """

    terms: Remote
    model: bytes
    quality: float
    context: int
    speaks: Tokens | RemoteChat
    payer: Payer | None = None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it is here."""
        return self.speaks.tokenizer if isinstance(self.speaks, Tokens) else None

    def free_slots(self) -> int:
        """Requests that it may be asked now."""
        return (self.speaks.engine if isinstance(self.speaks, Tokens) else self.speaks).free_slots()


class Remotes:
    """All remote backends of a node. What they cost is counted until the node stops, day by day (UTC).

    What is paid for each request is in the journal, and counts there.
    """

    def __init__(self, backends: Sequence[Backend], clock: Clock, limits: Limits | None = None) -> None:
        """`limits` are the owner's on all buying."""
        self._limits = limits or Limits()
        self._backends: Final = {backend.terms.name: backend for backend in backends}
        self._clock = clock
        self._resting: dict[str, tuple[float, str]] = {}
        self._spent: dict[str, int] = {}
        self._day = 0

    def candidates(self) -> list[Candidate]:
        """Every backend."""
        return [
            Candidate(one.model, name, one.quality, "remote", one.context, remote=one.terms)
            for name, one in self._backends.items()
        ]

    def backend(self, candidate: Candidate) -> Backend:
        """The backend that a candidate stands for."""
        assert candidate.remote is not None
        return self._backends[candidate.remote.name]

    def names(self) -> list[str]:
        """What they are called."""
        return list(self._backends)

    def named(self, name: str) -> frozenset[bytes]:
        """The model of the backend of this name, if there is one."""
        return frozenset({self._backends[name].model}) if name in self._backends else frozenset()

    def trouble(self, candidate: Candidate) -> str | None:
        """Why it is not asked now, if it failed or was busy a moment ago."""
        backend = self.backend(candidate)
        until, why = self._resting.get(backend.terms.name, (0.0, ""))
        if self._clock.now() < until:
            return f"is left alone for a while: {why}"
        return None if backend.free_slots() else "has no slot free"

    def status(self) -> list[dict[str, Any]]:
        """Every backend, for the owner."""
        return [self._status(candidate, self.backend(candidate)) for candidate in self.candidates()]

    def _status(self, candidate: Candidate, backend: Backend) -> dict[str, Any]:
        return {
            "remote": candidate.who,
            "price": str(backend.terms.price),
            "privacy": backend.terms.ceiling,
            "free_slots": backend.free_slots(),
            "trouble": self.trouble(candidate),
            **({} if backend.payer is None else self._paid(backend.payer)),
        }

    def _paid(self, payer: Payer) -> dict[str, str]:
        """What a remote was paid today, and by which of the owner's bounds how much it may be."""
        spent, own = payer.spent_today(), payer.max_per_day
        most, bound = self._limits.most_per_day(spent.unit), "[buy] max_per_day"
        if own is not None and own.value < most.value:
            most, bound = own, "[[remotes]] max_per_day"
        return {"paid_today": str(spent), "max_per_day": str(most), "bounded_by": bound}

    def failed(self, candidate: Candidate, error: EngineError) -> None:
        """Leave it alone for a while."""
        rest_s = error.retry_after if isinstance(error, EngineBusy) else _REST_S
        self._resting[self.backend(candidate).terms.name] = (self._clock.now() + rest_s, str(error))

    def spent_today(self) -> dict[str, int]:
        """What they cost since midnight UTC, and what running requests may still cost, by unit."""
        day = int(self._clock.now() // _DAY_S)
        if day != self._day:
            self._day, self._spent = day, {}
        return dict(self._spent)

    @contextmanager
    def spending(self, backend: Backend, most: int, spent: Callable[[], int]) -> Iterator[None]:
        """A request that may cost so much; in the end it counts for what it cost."""
        unit, counts = backend.terms.price.unit, backend.payer is None
        self._add(unit, most if counts else 0)
        try:
            yield
        finally:
            self._add(unit, spent() - most if counts else 0)

    def _add(self, unit: str, value: int) -> None:
        today = self.spent_today()
        self._spent = {**today, unit: max(today.get(unit, 0) + value, 0)}


class Paid:
    """What a payer pays from now on, for one answer."""

    def __init__(self, payer: Payer | None) -> None:
        self._payer = payer
        self._before = payer.charged if payer is not None else 0

    def cost(self, reckoned: int) -> int:
        """What was paid; as it is reckoned, where nothing is paid for each request."""
        return reckoned if self._payer is None else self._payer.charged - self._before


class RemoteSource:
    """An `Origin`: a remote that takes and gives ids."""

    stops_itself: Final = False

    def __init__(self, remotes: Remotes, candidate: Candidate, job: Job) -> None:
        self._remotes, self._candidate, self._job = remotes, candidate, job
        self._paid = Paid(remotes.backend(candidate).payer)
        self._tokens = 0
        self.route: Final = candidate.who

    async def ids(self) -> AsyncGenerator[Piece, None]:
        backend = self._remotes.backend(self._candidate)
        assert isinstance(backend.speaks, Tokens)
        most = self._candidate.cost(len(self._job.prompt), self._job.max_tokens)
        try:
            with self._remotes.spending(backend, most, self._cost):
                async with aclosing(backend.speaks.engine.generate(self._job)) as pieces:
                    async for piece in pieces:
                        self._tokens += len(piece.ids)
                        yield piece
        except EngineError as error:
            self._remotes.failed(self._candidate, error)
            raise

    def _cost(self) -> int:
        # A request that brought nothing is not billed by anybody.
        reckoned = self._candidate.cost(len(self._job.prompt), self._tokens) if self._tokens else 0
        return self._paid.cost(reckoned)

    async def papers(self) -> tuple[Paper, ...]:
        return (Paper(self.route, None, Amount(self._cost(), self._remotes.backend(self._candidate).terms.price.unit)),)

    async def earlier(self) -> Earlier | None:
        return None


class TextSource:
    """A `Source`: a remote that gives text. Each part of the text is given a number, as if it were a token; `piece`
    tells the text again. Zero is the end.
    """

    stops_itself: Final = False

    def __init__(self, remotes: Remotes, candidate: Candidate, question: Question, seed: int, most: int) -> None:
        self._remotes, self._candidate, self._question = remotes, candidate, question
        self._seed, self._most = seed, most
        self._texts: dict[int, bytes] = {}
        self._parts = 0
        self.prompt_tokens = estimated_tokens(question.messages)
        self._paid = Paid(remotes.backend(candidate).payer)
        self.output_tokens: int | None = None  # as the server counts
        self.route: Final = candidate.who

    def piece(self, number: int) -> bytes:
        """The text of one part, once."""
        return self._texts.pop(number, b"")

    async def ids(self) -> AsyncGenerator[Piece, None]:
        backend = self._remotes.backend(self._candidate)
        assert isinstance(backend.speaks, RemoteChat)
        most = self._candidate.cost(self.prompt_tokens, self._most)
        try:
            with self._remotes.spending(backend, most, self._cost):
                async with aclosing(self._numbered(backend.speaks)) as pieces:
                    async for piece in pieces:
                        yield piece
        except EngineError as error:
            self._remotes.failed(self._candidate, error)
            raise

    async def _numbered(self, chat: RemoteChat) -> AsyncGenerator[Piece, None]:
        question = self._question
        asked = chat.answer(question.messages, question.sampling, question.steering, self._seed, self._most)
        async with aclosing(asked) as said:
            async for part in said:
                self._count(part)
                if part.text and self._parts >= self._most:
                    return  # more than was asked for, whatever a token is there
                if part.text:
                    self._parts += 1
                    self._texts[self._parts] = part.text.encode()
                    yield Piece((self._parts,))
                if part.finish == "stop":
                    yield Piece((_END,))

    def _count(self, part: Said) -> None:
        self.prompt_tokens = self.prompt_tokens if part.prompt_tokens is None else part.prompt_tokens
        self.output_tokens = self.output_tokens if part.output_tokens is None else part.output_tokens

    @property
    def tokens(self) -> int:
        """Output tokens as the server counts them, else the parts that came."""
        return self._parts if self.output_tokens is None else self.output_tokens

    def _cost(self) -> int:
        return self._paid.cost(self._candidate.cost(self.prompt_tokens, self.tokens) if self._parts else 0)

    async def papers(self) -> tuple[Paper, ...]:
        return (Paper(self.route, None, Amount(self._cost(), self._remotes.backend(self._candidate).terms.price.unit)),)


class TextAnswer(Answer):
    """An answer of a remote that gives text; its counts are the server's in the end."""

    def __init__(self, source: TextSource, question: Question, model: str) -> None:
        stream = TextStream(source.piece, frozenset({_END}), question.stop)
        super().__init__(source, stream, frozenset({_END}), model=model, prompt_tokens=source.prompt_tokens)
        self._text_source = source

    async def parts(self) -> AsyncGenerator[Part, None]:
        """See `Answer.parts`."""
        async for part in super().parts():
            yield part
        if self.ending is not None:
            self.prompt_tokens = self._text_source.prompt_tokens
            self.ending = evolve(self.ending, tokens=self._text_source.tokens)
