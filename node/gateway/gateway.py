"""The gateway: this machine first, then the best peer, then the best that is left, and never a silent change.

The order of things for one question: who may answer at all (model, privacy, route, the owner's limits), whether this
machine can, which peer is best, the next peer if one fails before the client saw anything, and last the best local
model, with its degradation said. If nobody can, the error lists why each candidate was ruled out.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from attrs import evolve, field, frozen

from ledger.codec import Malformed
from ledger.identity import Did
from ledger.money import Amount
from ledger.records import Offer, Privacy, Sampling, Signed
from node.engine.port import Engine, Job
from node.exchange.book import Book
from node.exchange.buyer import Buyer
from node.exchange.purchase import Ask, NotPlaced
from node.gateway.answer import Answer, AnswerCut, BoughtSource, LocalSource
from node.market.candidates import Candidate, Limits, Route, Weights, Wish, quality_of, rank, rule_out
from node.market.privacy import may_see
from node.mesh.static import NamedPeers, NoTokenizerToBeHad
from node.models.catalogue import Catalogue, NoSuchModel
from node.models.gguf import BadModelFile
from node.models.quantization import TIERS, UnknownTier
from node.models.quantization import rank as tier_rank
from node.models.tokenizer import Tokenizer
from node.ports import Entropy
from node.wire.messages import Refused, Unreachable
from verify.reputation import score

AUTO: Final = "auto"
# After so many sellers have failed, one more is not likely to do better, and the client has waited long enough.
MAX_ATTEMPTS: Final = 4
_DIGEST_NAME: Final = "sha256:"
_POLL_S: Final = 0.01


@frozen
class Local:
    """A model on this machine."""

    engine: Engine
    tokenizer: Tokenizer
    name: str


@frozen
class Question:
    """What a client wants; `seed` None draws one, `model` is a name, `family:tier` or `auto`."""

    messages: Sequence[dict[str, Any]] = field(repr=False)
    model: str
    sampling: Sampling
    max_tokens: int
    privacy: Privacy
    route: Route
    stop: tuple[str, ...] = ()
    seed: int | None = None
    may_degrade: bool = True
    streaming: bool = True


class UnknownModel(Exception):
    """Nobody has a model of this name, and the client wants no other."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no model is called {name!r}: /v1/models lists what can be had, and 'auto' takes the best")
        self.name = name


class Unservable(Exception):
    """Nobody may or can answer now; `reasons` says why, candidate by candidate."""

    def __init__(self, summary: str, reasons: Sequence[str]) -> None:
        super().__init__("; ".join([summary, *reasons]))
        self.reasons = tuple(reasons)


class ContextExceeded(Exception):
    """Prompt and answer do not fit the context of the model that would answer."""

    def __init__(self, needed: int, context: int) -> None:
        super().__init__(f"this request needs {needed} tokens, and the model's context has {context}")
        self.needed, self.context = needed, context


@frozen
class Policy:
    """The owner's rules for where requests go."""

    limits: Limits = field(factory=Limits)
    weights: Weights = field(factory=Weights)
    busy_wait_s: float = 2.0


class Gateway:
    """Answers questions with what this machine and its peers have."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        locals_: Sequence[Local],
        catalogue: Catalogue,
        peers: NamedPeers,
        buyer: Buyer,
        policy: Policy,
    ) -> None:
        self._book = book
        self._entropy = entropy
        self._locals = {local.engine.manifest.digest: local for local in locals_}
        self._catalogue = catalogue
        self._peers = peers
        self._buyer = buyer
        self._policy = policy

    def models(self) -> list[tuple[str, str]]:
        """The names that can be asked for, each with who has it: `local` or a seller's did."""
        names = {local.name: "local" for local in self._locals.values()}
        for offer in self._peers.offers():
            names.setdefault(self.name_of(offer.record.model), offer.signer)
        return list(names.items())

    def name_of(self, model: bytes) -> str:
        """What the owner's catalogue calls a model; a stranger's goes by its digest, whatever its seller says."""
        entry = self._catalogue.entry(model)
        return entry.name if entry else _DIGEST_NAME + model.hex()

    async def answer(self, question: Question) -> Answer:
        """Find who answers, and begin.

        Raises UnknownModel, Unservable, ContextExceeded, EngineBusy, TemplateError.
        """
        models = self._wished(question.model)
        if models is not None and not models and not question.may_degrade:
            raise UnknownModel(question.model)
        if question.seed is None:
            question = evolve(question, seed=int.from_bytes(self._entropy.bytes(8), "little"))
        attempt = _Attempt(self, question, models)
        return await attempt.run()

    def _wished(self, name: str) -> frozenset[bytes] | None:
        """The digests that a model's name stands for; None for any, empty for a name that nobody knows."""
        if name == AUTO:
            return None
        if name.startswith(_DIGEST_NAME):
            known = {*self._locals, *(offer.record.model for offer in self._peers.offers())}
            return frozenset(digest for digest in known if digest.hex() == name.removeprefix(_DIGEST_NAME))
        family, colon, tier = name.partition(":")
        try:
            if colon:
                return frozenset(self._catalogue.family(family, tier))
            return frozenset({self._catalogue.find(name)})
        except (NoSuchModel, UnknownTier):
            return frozenset()

    # What there is

    def local_candidates(self) -> list[Candidate]:
        """This machine's models."""
        return [
            Candidate(
                digest,
                local.name,
                _quality(local.engine.manifest.parameters, local.engine.manifest.quantization),
                "self",
            )
            for digest, local in self._locals.items()
        ]

    def peer_candidates(self) -> list[Candidate]:
        """The open offers of the named peers, with what is known of their sellers."""
        return [self._peer_candidate(offer) for offer in self._peers.offers()]

    def _peer_candidate(self, offer: Signed[Offer]) -> Candidate:
        said = offer.record
        standing = self._book.experience.standing(offer.signer)
        account = self._book.debt_to(offer.signer, said.price.unit)
        return Candidate(
            model=said.model,
            name=self.name_of(said.model),
            quality=_quality(said.parameters, said.quantization),
            relation="named",
            offer=offer,
            reputation=score(standing.history),
            condemned=standing.history.condemned,
            available=Amount(account.available, said.price.unit),
            tokens_per_s=standing.speed.tokens_per_s,
            first_token_ms=standing.speed.first_token_ms,
        )

    def local(self, model: bytes) -> Local:
        """A local model."""
        return self._locals[model]

    @property
    def policy(self) -> Policy:
        """The owner's rules."""
        return self._policy

    def spent_today(self) -> dict[str, int]:
        """What this node spent since midnight UTC, and what its open orders may still cost, by unit."""
        return self._book.spent_today()

    async def tokenizer_for(self, candidate: Candidate) -> Tokenizer:
        """The tokenizer of a candidate's model. Raises NoTokenizerToBeHad."""
        if candidate.model in self._locals:
            return self._locals[candidate.model].tokenizer
        if candidate.offer is None:
            raise NoTokenizerToBeHad(candidate.name)
        return await self._peers.tokenizer(candidate.offer.record.tokenizer, candidate.seller)

    async def buy(self, candidate: Candidate, ask: Ask, tokenizer: Tokenizer) -> BoughtSource:
        """Place an order with a peer. Raises NotPlaced when it cannot even be tried."""
        peer = self._peers.dial(candidate.seller) if candidate.seller else None
        if peer is None or candidate.offer is None:
            raise NotPlaced("it is not among the named peers")
        return BoughtSource(self._buyer.buy(peer, candidate.offer, ask, tokenizer))

    async def refresh(self, seller: Did) -> None:
        """Fetch a seller's offers again, since one is not open any more."""
        try:
            await self._peers.refresh(seller)
        except (Refused, Unreachable, Malformed):
            return  # the background refresh keeps trying, and says what is wrong


class _Attempt:
    """The way of one question through the candidates."""

    def __init__(self, gateway: Gateway, question: Question, models: frozenset[bytes] | None) -> None:
        self._gateway = gateway
        self._question = question
        self._models = models
        self._prompts: dict[bytes, tuple[int, ...]] = {}
        self._reasons: list[str] = []

    async def run(self) -> Answer:
        """Try in the order of the policy."""
        question, gateway = self._question, self._gateway
        here = await self._allowed(gateway.local_candidates()) if question.route != "peers" else []
        peers = await self._allowed(gateway.peer_candidates()) if question.route != "local" else []
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
        spent = self._gateway.spent_today()
        allowed = []
        for candidate in candidates:
            wish = self._wish(0, spent)
            reason = rule_out(candidate, wish, self._gateway.policy.limits)
            if reason is None:
                try:
                    prompt = await self._prompt(candidate)
                except (NoTokenizerToBeHad, BadModelFile) as error:
                    reason = f"its tokenizer cannot be had: {error}"
                else:
                    reason = rule_out(candidate, self._wish(len(prompt), spent), self._gateway.policy.limits)
            if reason is None:
                allowed.append(candidate)
            else:
                self._note(candidate, reason)
        return rank(allowed, self._wish(0, spent), self._gateway.policy.weights)

    def _wish(self, prompt_tokens: int, spent: dict[str, int]) -> Wish:
        question = self._question
        return Wish(self._models, prompt_tokens, question.max_tokens, question.privacy, question.route, spent)

    async def _prompt(self, candidate: Candidate) -> tuple[int, ...]:
        tokenizer = await self._gateway.tokenizer_for(candidate)
        if tokenizer.digest not in self._prompts:
            self._prompts[tokenizer.digest] = await tokenizer.encode(self._question.messages)
        return self._prompts[tokenizer.digest]

    def _note(self, candidate: Candidate, reason: str) -> None:
        self._reasons.append(f"{candidate.seller or 'this machine'} ({candidate.name}): {reason}")

    async def _slot_comes_free(self, candidate: Candidate) -> bool:
        """Whether this machine can begin within the owner's `busy_wait`."""
        engine = self._gateway.local(candidate.model).engine
        loop = asyncio.get_running_loop()
        patience = loop.time() + self._gateway.policy.busy_wait_s
        while not engine.free_slots():
            if loop.time() >= patience:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _answer_here(self, candidate: Candidate, degraded: str | None) -> Answer:
        """Answer with a local model. Raises ContextExceeded, EngineBusy."""
        local, question = self._gateway.local(candidate.model), self._question
        prompt = await self._prompt(candidate)
        room = local.engine.context - len(prompt)
        if question.max_tokens > room:
            raise ContextExceeded(len(prompt) + question.max_tokens, local.engine.context)
        seed = question.seed or 0
        job = Job(prompt, question.sampling, seed, question.max_tokens)
        answer = Answer(
            LocalSource(local.engine, job),
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
        """Buy from one peer; None if it failed before the client saw anything. An offer renewed meanwhile is used."""
        answer = None
        try:
            answer = await self._begin_purchase(candidate)
            if await answer.begin():
                if not self._question.streaming:
                    await answer.gather()
                return answer
            await answer.collect()  # nothing came: this raises why
            reason = "nothing arrived"
        except (NotPlaced, AnswerCut) as error:
            reason = str(error)
        except asyncio.CancelledError:
            if answer is not None:
                await answer.close()
            raise
        self._note(candidate, reason)
        if candidate.seller is not None:
            await self._gateway.refresh(candidate.seller)
        return None

    async def _begin_purchase(self, candidate: Candidate) -> Answer:
        question = self._question
        tokenizer, prompt = await self._gateway.tokenizer_for(candidate), await self._prompt(candidate)
        ask = Ask(prompt, question.stop, question.sampling, question.seed or 0, question.max_tokens, question.privacy)
        source = await self._gateway.buy(candidate, ask, tokenizer)
        return Answer(
            source,
            tokenizer.stream(question.stop),
            tokenizer.eog,
            route=str(candidate.seller),
            model=candidate.name,
            prompt_tokens=len(prompt),
        )

    async def _degrade(self) -> Answer:
        """The best local model instead, and say so; or the error that lists why nobody else can."""
        question = self._question
        local = self._gateway.local_candidates()
        if question.may_degrade and local:
            best = rank(local, self._wish(0, {}), self._gateway.policy.weights)[0]
            why = "; ".join(self._reasons) or f"no model is called {question.model!r}"
            return await self._answer_here(best, f"{best.name} answers here instead: {why}")
        if not may_see("named", question.privacy) and not (self._models is None and local):
            summary = f"a {question.privacy} prompt must not leave this machine, and it cannot be answered here"
        else:
            summary = "nobody can answer this now"
        raise Unservable(summary, self._reasons)


def _quality(parameters: int, quantization: str) -> float:
    try:
        tier = 1 - tier_rank(quantization) / (len(TIERS) - 1)
    except UnknownTier:
        tier = 0.0
    return quality_of(parameters, tier)
