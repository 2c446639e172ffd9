"""An answer on its way to the client: text as it comes, whoever computes it, and what it was in the end."""

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Literal

from attrs import frozen

from ledger.money import Amount
from node.engine.port import EngineError, Logprob, Piece
from node.exchange.purchase import NotPlaced
from node.gateway.sources import AnswerCut, Paper, Source, costs_of, records_of
from node.models.text import TextStream


@frozen
class Ending:
    """How an answer ended, with the papers of its parts in their order; most answers have one."""

    finish: Literal["stop", "length"]
    tokens: int
    papers: tuple[Paper, ...]

    @property
    def records(self) -> tuple[bytes, ...]:
        """The digests of the parts' receipts, or of the last checkpoints of those that were cut off."""
        return records_of(self.papers)

    @property
    def costs(self) -> tuple[Amount, ...]:
        """What the parts cost together, in each unit that their sellers take."""
        return costs_of(self.papers)


@frozen
class Part:
    """Text that is safe to show, and how likely its tokens were: of those that are wholly shown, if it was asked."""

    text: str
    logprobs: tuple[Logprob, ...] = ()


class Answer:
    """One answer under way. Read `text` to its end, then `ending` tells the rest."""

    def __init__(
        self,
        source: Source,
        stream: TextStream,
        eog: frozenset[int],
        *,
        model: str,
        prompt_tokens: int,
        degraded: str | None = None,
        spell: Callable[[int], bytes] | None = None,
    ) -> None:
        """`degraded` says why it is not what was wished, if it is not;
        `spell` gives the bytes of a token of the logprobs, control tokens by their names.
        """
        self.model, self.prompt_tokens, self.degraded = model, prompt_tokens, degraded
        self.spell = spell or (lambda _: b"")
        self.cached = 0  # how many of the prompt's tokens were known from an earlier one
        self.ending: Ending | None = None
        self.lost: tuple[Paper, ...] = ()  # of what was bought for it and is no part of it, or broke off
        self._source = source
        self._stream = stream
        self._eog = eog
        self._tokens = 0
        self._last: int | None = None
        self._ids = source.ids()
        self._waiting: list[Part] = []
        self._unshown: deque[tuple[int, Logprob]] = deque()  # with where the token's text ends

    @property
    def route(self) -> str:
        """Who computes it: `local` or the seller's did; of an answer in parts all of them so far, in their order."""
        return self._source.route

    @property
    def tokens(self) -> int:
        """How many tokens it has by now."""
        return self._tokens

    async def begin(self) -> bool:
        """Wait for the first ids; False if none came. Raises what the source raises."""
        try:
            piece = await anext(self._ids, None)
            if piece is None:
                return False
            self.cached = piece.cached
            self._waiting.append(self._take(piece))
        except BaseException:
            await self.close()
            raise
        return True

    async def collect(self) -> str:
        """The whole text at once. Raises AnswerCut and what the source raises."""
        return "".join([text async for text in self.text()])

    async def gather(self) -> None:
        """Wait for the whole answer before any of it is shown, so that a failure can still be mended unseen."""
        self._waiting = [part async for part in self.parts()]

    async def text(self) -> AsyncIterator[str]:
        """The text as it comes. Raises AnswerCut and what the source raises."""
        async for part in self.parts():
            yield part.text

    async def parts(self) -> AsyncIterator[Part]:
        """The text as it comes, in pieces that are safe to show. Raises AnswerCut and what the source raises."""
        for part in self._waiting:
            yield part
        self._waiting = []
        if self.ending is not None:
            return
        try:
            while self._wants_more() and (piece := await anext(self._ids, None)) is not None:
                part = self._take(piece)
                if part.text or part.logprobs:
                    yield part
            rest = Part(self._stream.finish(), self._shown())
            if rest.text or rest.logprobs:
                yield rest
        except (AnswerCut, EngineError):
            await self.close()
            with contextlib.suppress(NotPlaced):
                self.lost += await self._source.papers()
            raise
        finally:
            await self.close()
        papers = await self._source.papers()
        stopped = self._stream.stopped_at is not None or self._last in self._eog
        self.ending = Ending("stop" if stopped else "length", self._tokens, papers)

    async def close(self) -> None:
        """Stop the work, here or at the seller."""
        await self._ids.aclose()

    def _wants_more(self) -> bool:
        return self._stream.stopped_at is None or self._source.stops_itself

    def _take(self, piece: Piece) -> Part:
        before = self._stream.tokens
        text = self._take_each(piece) if piece.logprobs else self._stream.feed(piece.ids)
        taken = self._stream.tokens - before
        self._tokens += taken
        self._last = piece.ids[taken - 1] if taken else self._last
        return Part(text, self._shown())

    def _take_each(self, piece: Piece) -> str:
        texts = []
        for logprob in piece.logprobs:
            texts.append(self._stream.feed([logprob.token]))
            if self._stream.shows(logprob.token):
                self._unshown.append((self._stream.ends_at, logprob))
        return "".join(texts)

    def _shown(self) -> tuple[Logprob, ...]:
        """The likelihoods of the tokens that can be seen whole by now, each once."""
        shown = []
        while self._unshown and self._unshown[0][0] <= self._stream.shown:
            shown.append(self._unshown.popleft()[1])
        return tuple(shown)
