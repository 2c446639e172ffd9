"""The way of one question through the candidates.

The order of things: who may answer at all (model, privacy, route, context, the owner's limits), whether this machine
can, which peer is best, the next peer if one fails before the client saw anything, and last the best local model, with
its degradation said. If nobody can, the error lists why each candidate was ruled out. Where an answer breaks off, the
next one who has the same model and may see the prompt goes on with it.
"""

import asyncio
import functools
from collections.abc import Sequence
from typing import Final

from attrs import evolve, frozen

from ledger.money import Amount
from node.engine.completions import estimated_tokens
from node.engine.port import BadPrompt, EngineClosed, EngineError, Job
from node.exchange.purchase import Ask, NotPlaced
from node.gateway.answer import Answer
from node.gateway.continued import MAX_ATTEMPTS, ContinuedSource, SoFar
from node.gateway.question import BadBias, ContextExceeded, Policy, Question, Unservable, ids_of
from node.gateway.remotes import RemoteSource, TextAnswer, TextSource
from node.gateway.sources import AnswerCut, LocalSource, Origin, Paper
from node.gateway.supply import Supply
from node.market.candidates import Candidate, Limits, Wish, rank, rule_out
from node.market.privacy import may_see
from node.mesh.static import NoTokenizerToBeHad
from node.models.gguf import BadModelFile
from node.models.template import TemplateError

_POLL_S: Final = 0.01
# Refusals after which the seller's new offer is worth a try.
_STALE: Final = frozenset({"unknown_offer", "expired", "cannot_open"})


@frozen
class _Begun:
    """What the first part of an answer has settled for those that follow; `most` is the answer's length in tokens."""

    model: bytes
    tokenizer: bytes
    most: int


class Attempt:
    """One question's way; `models` are the digests of those that may answer, None for any; `seed` is drawn already."""

    def __init__(
        self, supply: Supply, policy: Policy, question: Question, models: frozenset[bytes] | None, seed: int
    ) -> None:
        self._supply = supply
        self._policy = policy
        self._question = question
        self._models = models
        self._seed = seed
        self._spent: dict[str, int] | None = None  # asked for once a seller is considered, and anew for each part
        self._prompts: dict[bytes, tuple[int, ...]] = {}
        self._reasons: list[str] = []
        self._too_long: ContextExceeded | None = None  # for a model of this machine that may answer otherwise
        self._refused: TemplateError | EngineError | None = None  # what the client hears if nobody can be tried
        self._tried: list[Candidate] = []
        self._begun: _Begun | None = None  # of an answer that has to go on elsewhere
        self._so_far = SoFar()
        self._lost: tuple[Paper, ...] = ()  # of answers that broke off for good before the client saw them

    async def run(self) -> Answer:
        """Go through the candidates. Raises Unservable, ContextExceeded, EngineError, TemplateError."""
        answer = await self._run()
        answer.lost += self._lost
        return answer

    async def _run(self) -> Answer:
        here = self._supply.readiest(await self._allowed(self._supply.local_candidates()))
        if here and self._has_slot(here[0]):
            return await self._begin(here[0])
        others = await self._allowed(self._supply.other_candidates())
        if here and (not others or await self._slot_comes_free(here[0])):
            return await self._begin(here[0])
        for candidate in others[:MAX_ATTEMPTS]:
            if self._was_tried(candidate) or await self._is_beyond_what_is_left(candidate):
                continue
            answer = await self._try(candidate)
            if answer is not None:
                return answer
        if here:
            return await self._begin(here[0])
        return await self._degrade()

    # Who may answer

    async def _allowed(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those who may answer, best first; why the others may not is noted."""
        allowed = []
        for candidate in candidates:
            reason = await self._reason_against(candidate)
            if reason is None:
                allowed.append(candidate)
            else:
                self._note(candidate, reason)
        return rank(allowed, self._wish(None, 0), self._policy.weights)

    async def _reason_against(self, candidate: Candidate) -> str | None:
        # First without the prompt: for those who may not answer anyway, no tokenizer is fetched.
        reason = rule_out(candidate, self._wish(candidate, 0), self._limits()) or self._beyond(candidate)
        if reason is not None:
            return reason
        if self._gives_text(candidate):
            return rule_out(candidate, self._wish(candidate, estimated_tokens(self._question.messages)), self._limits())
        try:
            prompt = await self._prompt(candidate)
        except (NoTokenizerToBeHad, BadModelFile) as error:
            return f"its tokenizer cannot be had: {error}"
        except TemplateError as error:
            if candidate.relation == "self":
                self._refused = self._refused or error
            return f"its chat template fails: {error}"
        except (BadPrompt, BadBias) as error:
            self._refused = self._refused or error
            return str(error)
        if self._begun is not None and (await self._supply.tokenizer_for(candidate)).digest != self._begun.tokenizer:
            return "the answer's tokens so far are of another tokenizer"
        needed = len(prompt) + self._most_tokens(candidate, len(prompt))
        if candidate.relation == "self" and needed > candidate.context:
            self._too_long = ContextExceeded(needed, candidate.context)
        return rule_out(candidate, self._wish(candidate, len(prompt)), self._limits())

    def _beyond(self, candidate: Candidate) -> str | None:
        """Why what is asked is beyond a candidate, whatever its model; None if it is not."""
        if candidate.relation == "self":
            return None
        if self._question.logprobs is not None:
            return "logprobs are computed on this machine only"
        if self._question.names_ids and self._models is None:
            return "token ids belong to one vocabulary: name the model they are meant for"
        return self._beyond_remote(candidate) if candidate.remote is not None else None

    def _beyond_remote(self, candidate: Candidate) -> str | None:
        """Why what is asked is beyond a remote backend, or why it is not asked now."""
        question = self._question
        if question.steering.grammar:
            return "is asked for no grammars"
        if self._gives_text(candidate):
            if self._begun is not None:
                return "gives text alone, and so goes on with nobody's answer"
            if question.names_ids or question.prompt is not None or question.tools:
                return "takes plain conversations alone: its tokenizer is not here"
        return self._supply.remotes.trouble(candidate)

    def _gives_text(self, candidate: Candidate) -> bool:
        """Whether it is a remote backend whose tokenizer is not here."""
        return candidate.remote is not None and self._supply.remotes.backend(candidate).tokenizer is None

    def _wish(self, candidate: Candidate | None, prompt_tokens: int) -> Wish:
        question = self._question
        models = self._models if self._begun is None else frozenset({self._begun.model})
        most = self._most_tokens(candidate, prompt_tokens)
        if self._spent is None and candidate is not None and candidate.price is not None:
            self._spent = self._supply.spent_today()
        return Wish(models, prompt_tokens, most, question.privacy, question.route, self._spent or {})

    def _limits(self) -> Limits:
        """The owner's limits on the next part: what an answer may cost is for all of its parts together, and for
        those that were lost before it.
        """
        limits = self._policy.limits
        most = limits.max_order_cost
        if most is None:
            return limits
        spent = SoFar(papers=(*self._lost, *self._so_far.papers)).cost(most.unit)
        return evolve(limits, max_order_cost=Amount(max(most.value - spent, 0), most.unit))

    def _most_tokens(self, candidate: Candidate | None, prompt_tokens: int) -> int:
        """The most output tokens: as asked, else the owner's default or what the context has left, at least one."""
        if self._begun is not None:
            return self._begun.most - len(self._so_far.ids)
        if self._question.max_tokens is not None:
            return self._question.max_tokens
        room = candidate.context - prompt_tokens if candidate else self._policy.max_tokens
        return max(min(self._policy.max_tokens, room), 1)

    async def _prompt(self, candidate: Candidate) -> tuple[int, ...]:
        """The prompt for a candidate; of an answer that goes on, with its tokens so far."""
        tokenizer = await self._supply.tokenizer_for(candidate)
        if tokenizer.digest not in self._prompts:
            self._prompts[tokenizer.digest] = await ids_of(self._question, tokenizer)
        return self._prompts[tokenizer.digest] + self._so_far.ids

    def _note(self, candidate: Candidate, reason: str) -> None:
        line = f"{candidate.who} ({candidate.name}): {reason}"
        if line not in self._reasons:
            self._reasons.append(line)

    async def _is_beyond_what_is_left(self, candidate: Candidate) -> bool:
        """Whether a candidate may not answer any more, for what a lost answer has cost."""
        reason = await self._reason_against(candidate) if self._lost else None
        if reason is not None:
            self._note(candidate, reason)
        return reason is not None

    def _was_tried(self, candidate: Candidate) -> bool:
        return any(candidate.who == tried.who for tried in self._tried)

    def _has_slot(self, candidate: Candidate) -> bool:
        """Whether this machine can begin at once."""
        return self._supply.local(candidate.model).engine.free_slots() > 0

    async def _slot_comes_free(self, candidate: Candidate) -> bool:
        """Whether this machine can begin within the owner's `busy_wait`."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + self._policy.busy_wait_s
        while not self._has_slot(candidate):
            if loop.time() >= patience:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    # An answer

    async def _begin(self, candidate: Candidate, degraded: str | None = None) -> Answer:
        """An answer, begun by this candidate (or, from a peer for a client that takes no stream, whole).

        Raises NotPlaced, AnswerCut, ContextExceeded, EngineError.
        """
        if self._gives_text(candidate):
            return await self._begin_text(candidate)
        prompt, tokenizer = await self._prompt(candidate), await self._supply.tokenizer_for(candidate)
        most = self._most_tokens(candidate, len(prompt))
        if len(prompt) + most > candidate.context:
            raise ContextExceeded(len(prompt) + most, candidate.context)
        begun = _Begun(candidate.model, tokenizer.digest, most)
        source = ContinuedSource(await self._origin(candidate), functools.partial(self._following, begun))
        answer = Answer(
            source,
            tokenizer.stream(self._question.stop),
            tokenizer.eog,
            model=candidate.name,
            prompt_tokens=len(prompt),
            degraded=degraded,
            spell=tokenizer.spell,
        )
        try:
            await answer.begin()
            if candidate.relation != "self" and not self._question.streaming:
                await answer.gather()
        except (NotPlaced, AnswerCut, EngineError):
            self._lost += source.ended
            self._begun, self._so_far, self._spent = None, SoFar(), None
            raise
        return answer

    async def _begin_text(self, candidate: Candidate) -> Answer:
        """An answer of a remote backend that gives text. Raises EngineError."""
        self._tried.append(candidate)
        most = self._most_tokens(candidate, estimated_tokens(self._question.messages))
        source = TextSource(self._supply.remotes, candidate, self._question, self._seed, most)
        answer = TextAnswer(source, self._question, candidate.name)
        await answer.begin()
        if not self._question.streaming:
            await answer.gather()
        return answer

    async def _origin(self, candidate: Candidate) -> Origin:
        """This candidate at work on the answer, from where it stands. Raises NotPlaced."""
        question, so_far = self._question, self._so_far
        prompt, start = await self._prompt(candidate), len(so_far.ids)
        most = self._most_tokens(candidate, len(prompt))
        self._tried.append(candidate)
        if candidate.offer is None:  # this machine, or a remote backend
            job = Job(
                prompt,
                question.sampling,
                self._seed,
                most,
                steering=question.steering,
                earlier=start,
                logprobs=question.logprobs,
            )
            if candidate.remote is not None:
                return RemoteSource(self._supply.remotes, candidate, job)
            return LocalSource(self._supply.local(candidate.model).engine, job)
        ask = Ask(
            prompt,
            question.stop,
            question.sampling,
            self._seed,
            most,
            question.privacy,
            question.steering,
            start=start,
            earlier=so_far.earlier,
        )
        return self._supply.buy(candidate, ask, await self._supply.tokenizer_for(candidate))

    async def _try(self, candidate: Candidate) -> Answer | None:
        """Buy from one peer, if need be by its newest offer; None if it failed before the client saw anything."""
        try:
            return await self._begin(candidate)
        except EngineClosed:
            raise
        except (NotPlaced, AnswerCut, EngineError) as error:
            self._note(candidate, str(error))
            renewed = await self._renewed(candidate, error)
        return await self._try(renewed) if renewed is not None else None

    async def _renewed(self, candidate: Candidate, trouble: Exception) -> Candidate | None:
        """The same peer by its newest offer, once, where only its old one was refused, or another process may do."""
        again = sum(candidate.seller == tried.seller for tried in self._tried) > 1
        is_stale = isinstance(trouble, NotPlaced) and trouble.code in _STALE
        if again or not (is_stale or self._supply.is_of_several(candidate)):
            return None
        renewed = await self._supply.renewed(candidate)
        return renewed if renewed is not None and await self._reason_against(renewed) is None else None

    async def _following(self, begun: _Begun, so_far: SoFar, trouble: Exception) -> Origin | None:
        """Who goes on with an answer, at work on it; None if nobody can."""
        failed = self._tried[-1]
        self._note(failed, str(trouble))
        self._begun, self._so_far, self._spent = begun, so_far, None
        renewed = await self._renewed(failed, trouble)
        for candidate in [renewed] if renewed is not None else await self._next_candidates():
            try:
                return await self._origin(candidate)
            except NotPlaced as error:
                self._note(candidate, str(error))
        return None

    async def _next_candidates(self) -> list[Candidate]:
        """Who may go on with an answer, in order."""
        known = [*self._supply.local_candidates(), *self._supply.other_candidates()]
        allowed = await self._allowed([candidate for candidate in known if not self._was_tried(candidate)])
        here = [candidate for candidate in allowed if candidate.relation == "self"]
        return in_order(allowed, any(map(self._has_slot, here)))

    async def _can_read(self, candidate: Candidate) -> bool:
        """Whether a local model that was not asked for can take the question: token ids are of the vocabulary of those
        that were.
        """
        tokenizer = await self._supply.tokenizer_for(candidate)
        if self._question.names_ids and self._models and candidate.model not in self._models:
            return tokenizer.digest in self._prompts
        try:
            await self._prompt(candidate)
        except (TemplateError, BadPrompt, BadBias) as error:
            self._refused = self._refused or error
            return False
        return True

    async def _degrade(self) -> Answer:
        """The best local model instead, and say so; or the error that lists why nobody else can."""
        question, local = self._question, self._supply.local_candidates()
        self._reasons += self._supply.troubles(self._models)
        self._reasons += self._supply.absent_peers(question.route)
        if question.may_degrade:
            for best in self._supply.readiest(rank(local, self._wish(None, 0), self._policy.weights)):
                if await self._can_read(best):
                    why = "; ".join(self._reasons) or f"no model is called {question.model!r}"
                    return await self._begin(best, f"{best.name} answers here instead: {why}")
        if not self._tried and (refused := self._too_long or self._refused) is not None:
            raise refused
        summary = "nobody can answer this now"
        if not may_see("named", question.privacy):
            summary = f"a {question.privacy} prompt must not leave this machine, and it cannot be answered here"
        raise Unservable(summary, self._reasons, self._lost)


def in_order(candidates: Sequence[Candidate], free: bool) -> list[Candidate]:
    """Who goes on with an answer, of those who may, best first: `free` says that this machine can begin at once.

    If it cannot, its queue comes after the peers.
    """
    here = [candidate for candidate in candidates if candidate.relation == "self"]
    others = [candidate for candidate in candidates if candidate.relation != "self"]
    return [*here, *others] if free else [*others, *here]
