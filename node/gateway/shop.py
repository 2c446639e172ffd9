"""What is sold to anyone who pays for each request: what it may cost, and the answers of this machine's own models.

A prompt of a stranger goes nowhere else, and its work waits while the owner's own does.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Final

from attrs import field, frozen

from ledger.money import cost
from node.engine.port import EngineBusy, EngineError, Job, Piece
from node.exchange.sale import Ware
from node.gateway.answer import Answer
from node.gateway.question import ContextExceeded, Question, UnknownModel, Unservable, ids_of
from node.gateway.sources import Paper
from node.gateway.supply import AUTO
from node.models.grammar import GrammarGaveUp
from node.wire.messages import Refused

_SLOT_WAIT_S: Final = 2.0
_POLL_S: Final = 0.01
_RETRY_AFTER_S: Final = 2.0


class HandedBack(EngineError):
    """The owner of this machine needs it: what was sold is cut."""

    def __init__(self) -> None:
        super().__init__("the owner of this machine needs it now: try again later, or elsewhere")


@frozen
class Quote:
    """A request with its price: `most` is what it may cost, in millionths of a dollar."""

    ware: Ware
    prompt: tuple[int, ...] = field(repr=False)
    most_tokens: int  # of each answer
    answers: int

    @property
    def most(self) -> int:
        """What it costs if each answer becomes as long as it may."""
        return self.cost(self.answers * self.most_tokens)

    def cost(self, tokens: int, *, whole: bool = True) -> int:
        """What so many output tokens cost, the prompt once for all answers; without it where they were cut here."""
        return cost(self.ware.price, len(self.prompt) if whole else 0, tokens)


class Shop:
    """The models that anyone may pay for, at their prices."""

    def __init__(self, wares: Sequence[Ware], me: str, may_sell: Callable[[], Refused | None], max_tokens: int) -> None:
        """`me` is this node's did, `may_sell` says why nothing may begin now, `max_tokens` is for requests that do not
        say.
        """
        self.me: Final = me
        self._wares = {ware.name: ware for ware in wares}
        self._may_sell = may_sell
        self._max_tokens = max_tokens
        self._open: set[Counter] = set()

    def wares(self) -> list[Ware]:
        """What is sold."""
        return list(self._wares.values())

    async def quote(self, questions: Sequence[Question]) -> Quote:
        """What a request may cost; its questions differ in their seeds alone.

        Raises UnknownModel, Unservable, ContextExceeded, EngineError, TemplateError.
        """
        question = questions[0]
        ware = self._ware(question.model)
        prompt = await ids_of(question, ware.tokenizer)
        context = ware.engine.context
        most = question.max_tokens or max(min(self._max_tokens, context - len(prompt)), 1)
        if len(prompt) + most > context:
            raise ContextExceeded(len(prompt) + most, context)
        return Quote(ware, prompt, most, len(questions))

    def _ware(self, name: str) -> Ware:
        if not self._wares:
            raise Unservable("nothing is sold here", [])
        if name == AUTO:
            return next(iter(self._wares.values()))
        if name not in self._wares:
            raise UnknownModel(name)
        return self._wares[name]

    def least(self) -> int:
        """What the shortest request for the longest usual answer may cost. Raises Unservable."""
        ware = self._ware(AUTO)
        return cost(ware.price, 1, self._max_tokens)

    def check_open(self) -> None:
        """Raises Unservable while nothing may be sold."""
        if (refusal := self._may_sell()) is not None:
            raise Unservable(str(refusal), [])

    async def wait_for_slot(self, quote: Quote, is_proven: Callable[[], bool] = lambda: False) -> None:
        """Return when a request can begin at once; for who `is_proven` other models make room until it comes again.

        Raises Unservable, EngineBusy.
        """
        self.check_open()
        if not quote.ware.is_unchanged():
            raise Unservable(f"{quote.ware.name} is not sold any more", [])
        loop = asyncio.get_running_loop()
        patience = loop.time() + _SLOT_WAIT_S
        while not quote.ware.engine.free_slots():
            if loop.time() >= patience:
                if is_proven():
                    quote.ware.miss()
                raise EngineBusy(0, _RETRY_AFTER_S)
            await asyncio.sleep(_POLL_S)

    @contextlib.contextmanager
    def serving(self, counter: "Counter") -> Iterator[None]:
        """While the context lasts, the answers of a paid request can be cut."""
        self._open.add(counter)
        try:
            yield
        finally:
            self._open.discard(counter)

    def hand_back(self) -> None:
        """Cut all that is being answered."""
        for counter in self._open:
            counter.handed_back.set()


class Counter:
    """Answers one paid request, as `gateway.Gateway` answers the owner's."""

    def __init__(self, quote: Quote, client: str, me: str) -> None:
        self.quote: Final = quote
        self.answers: Final[list[Answer]] = []
        self.handed_back: Final = asyncio.Event()
        self.failed = False
        self.abandoned = False  # by its client
        self._client = client
        self._me = me

    @property
    def tokens(self) -> int:
        """The tokens of all answers so far."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def cost(self) -> int:
        """What it costs by now: nothing before there is a token, and no prompt where it was broken off here.

        Who goes away before the first token owes the prompt, or reading long ones would be free work.
        """
        begun = self.tokens or (self.abandoned and self.answers)
        return self.quote.cost(self.tokens, whole=not self.failed) if begun else 0

    async def answer(self, question: Question) -> Answer:
        """One answer, begun. Raises EngineError."""
        quote, ware = self.quote, self.quote.ware
        assert question.seed is not None  # it was drawn with the request
        job = Job(
            quote.prompt,
            question.sampling,
            question.seed,
            quote.most_tokens,
            steering=question.steering,
            client=self._client,
            sold=True,
            logprobs=question.logprobs,
        )
        answer = Answer(
            _SoldSource(self, job, self._me),
            ware.tokenizer.stream(question.stop),
            ware.tokenizer.eog,
            model=ware.name,
            prompt_tokens=len(quote.prompt),
            spell=ware.tokenizer.spell,
        )
        self.answers.append(answer)
        await answer.begin()
        return answer


class _SoldSource:
    """This machine's engine, at work for a stranger."""

    stops_itself: Final = False

    def __init__(self, counter: Counter, job: Job, me: str) -> None:
        self._counter, self._job = counter, job
        self.route: Final = me

    async def ids(self) -> AsyncGenerator[Piece, None]:
        try:
            async with contextlib.aclosing(self._counter.quote.ware.engine.generate(self._job)) as pieces:
                async for piece in pieces:
                    yield piece
                    if self._counter.handed_back.is_set():
                        raise HandedBack
        except EngineError as error:
            # What asked for too much is owed as far as it went, or such requests were a way to free work.
            self._counter.failed = not isinstance(error.__cause__, GrammarGaveUp)
            raise

    async def papers(self) -> tuple[Paper, ...]:
        return (Paper(self.route),)
