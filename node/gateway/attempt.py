"""The way of one question through the candidates.

The order of things: who may answer at all (model, privacy, route, context, the owner's limits), whether this machine
can, which peer is best, the next peer if one fails before the client saw anything, and last the best local model, with
its degradation said. If nobody can, the error lists why each candidate was ruled out.
"""

import asyncio
from typing import Final

from node.engine.port import Job
from node.exchange.purchase import Ask, NotPlaced
from node.gateway.answer import Answer, AnswerCut, LocalSource
from node.gateway.question import ContextExceeded, Policy, Question, Unservable
from node.gateway.supply import Supply
from node.market.candidates import Candidate, Wish, rank, rule_out
from node.market.privacy import may_see
from node.mesh.static import NoTokenizerToBeHad
from node.models.gguf import BadModelFile
from node.models.template import TemplateError

# After so many sellers have failed, one more is not likely to do better, and the client has waited long enough.
MAX_ATTEMPTS: Final = 4
_POLL_S: Final = 0.01
# Refusals after which the seller's new offer is worth a try.
_STALE: Final = frozenset({"unknown_offer", "expired", "cannot_open"})


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
        self._spent = supply.spent_today()
        self._prompts: dict[bytes, tuple[int, ...]] = {}
        self._reasons: list[str] = []

    async def run(self) -> Answer:
        """Go through the candidates. Raises Unservable, ContextExceeded, EngineError, TemplateError."""
        here = await self._allowed(self._supply.local_candidates())
        if here and self._supply.local(here[0].model).engine.free_slots():
            return await self._answer_here(here[0], None)
        peers = await self._allowed(self._supply.peer_candidates())
        if here and (not peers or await self._slot_comes_free(here[0])):
            return await self._answer_here(here[0], None)
        for candidate in peers[:MAX_ATTEMPTS]:
            answer = await self._try(candidate)
            if answer is not None:
                return answer
        if here:
            return await self._answer_here(here[0], None)
        return await self._degrade()

    async def _allowed(self, candidates: list[Candidate]) -> list[Candidate]:
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
        reason = rule_out(candidate, self._wish(candidate, 0), self._policy.limits)
        if reason is not None:
            return reason
        try:
            prompt = await self._prompt(candidate)
        except (NoTokenizerToBeHad, BadModelFile) as error:
            return f"its tokenizer cannot be had: {error}"
        except TemplateError as error:
            if candidate.offer is None:
                raise
            return f"its chat template fails: {error}"  # a stranger's template must not stop the others
        return rule_out(candidate, self._wish(candidate, len(prompt)), self._policy.limits)

    def _wish(self, candidate: Candidate | None, prompt_tokens: int) -> Wish:
        question = self._question
        most = self._most_tokens(candidate, prompt_tokens)
        return Wish(self._models, prompt_tokens, most, question.privacy, question.route, self._spent)

    def _most_tokens(self, candidate: Candidate | None, prompt_tokens: int) -> int:
        """The most output tokens: as asked, else the owner's default or what the context has left, at least one."""
        if self._question.max_tokens is not None:
            return self._question.max_tokens
        room = candidate.context - prompt_tokens if candidate else self._policy.max_tokens
        return max(min(self._policy.max_tokens, room), 1)

    async def _prompt(self, candidate: Candidate) -> tuple[int, ...]:
        tokenizer = await self._supply.tokenizer_for(candidate)
        if tokenizer.digest not in self._prompts:
            self._prompts[tokenizer.digest] = await tokenizer.encode(self._question.messages, self._question.tools)
        return self._prompts[tokenizer.digest]

    def _note(self, candidate: Candidate, reason: str) -> None:
        self._reasons.append(f"{candidate.seller or 'this machine'} ({candidate.name}): {reason}")

    async def _slot_comes_free(self, candidate: Candidate) -> bool:
        """Whether this machine can begin within the owner's `busy_wait`."""
        engine = self._supply.local(candidate.model).engine
        loop = asyncio.get_running_loop()
        patience = loop.time() + self._policy.busy_wait_s
        while not engine.free_slots():
            if loop.time() >= patience:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _answer_here(self, candidate: Candidate, degraded: str | None) -> Answer:
        """Answer with a local model. Raises ContextExceeded, EngineError."""
        local, question = self._supply.local(candidate.model), self._question
        prompt = await self._prompt(candidate)
        most = self._most_tokens(candidate, len(prompt))
        if len(prompt) + most > candidate.context:
            raise ContextExceeded(len(prompt) + most, candidate.context)
        answer = Answer(
            LocalSource(
                local.engine,
                Job(
                    prompt,
                    question.sampling,
                    self._seed,
                    most,
                    steering=question.steering,
                    logprobs=question.logprobs,
                ),
            ),
            local.tokenizer.stream(question.stop),
            local.tokenizer.eog,
            route="local",
            model=local.name,
            prompt_tokens=len(prompt),
            degraded=degraded,
        )
        await answer.begin()
        return answer

    async def _try(self, candidate: Candidate) -> Answer | None:
        """Buy from one peer, if need be by its newest offer; None if it failed before the client saw anything."""
        try:
            return await self._buy(candidate)
        except NotPlaced as error:
            self._note(candidate, str(error))
            renewed = await self._supply.renewed(candidate) if error.code in _STALE else None
        except AnswerCut as error:
            self._note(candidate, str(error))
            return None
        if renewed is None or await self._reason_against(renewed) is not None:
            return None
        try:
            return await self._buy(renewed)
        except (NotPlaced, AnswerCut) as error:
            self._note(renewed, str(error))
            return None

    async def _buy(self, candidate: Candidate) -> Answer:
        """An order with one peer, begun (or, for a client that takes no stream, whole). Raises NotPlaced, AnswerCut."""
        question, prompt = self._question, await self._prompt(candidate)
        tokenizer = await self._supply.tokenizer_for(candidate)
        most = self._most_tokens(candidate, len(prompt))
        ask = Ask(prompt, question.stop, question.sampling, self._seed, most, question.privacy, question.steering)
        source = self._supply.buy(candidate, ask, tokenizer)
        answer = Answer(
            source,
            tokenizer.stream(question.stop),
            tokenizer.eog,
            route=str(candidate.seller),
            model=candidate.name,
            prompt_tokens=len(prompt),
        )
        try:
            if not await answer.begin():
                await source.outcome()  # nothing came: this raises why, if it was no empty answer
            if not question.streaming:
                await answer.gather()
        except BaseException:
            await answer.close()
            raise
        return answer

    async def _degrade(self) -> Answer:
        """The best local model instead, and say so; or the error that lists why nobody else can."""
        question, local = self._question, self._supply.local_candidates()
        if question.may_degrade and local:
            best = rank(local, self._wish(None, 0), self._policy.weights)[0]
            why = "; ".join(self._reasons) or f"no model is called {question.model!r}"
            return await self._answer_here(best, f"{best.name} answers here instead: {why}")
        summary = "nobody can answer this now"
        if not may_see("named", question.privacy):
            summary = f"a {question.privacy} prompt must not leave this machine, and it cannot be answered here"
        raise Unservable(summary, self._reasons)
