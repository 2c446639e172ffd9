"""The panel: other sellers of the same weights, who are asked what they think of a bought answer.

Theory of operation. A node without the weights sends the answer, with bait in its last part (`verify.scores`), as a
score order to sellers of the same model, drawn at random with entropy that nobody knows: never to the one that is
checked, nor to those whose word is lost, and to none that the order's privacy level keeps out. Two that agree are
enough; where they do not, a third decides, and the odd one out gets a mark. One that takes the bait loses its word for
good. Now and then, and before its first word counts, a scorer also gets what others agreed on before, with new bait.

Where no two scorers can be had, the same order goes to another seller, and where its answer differs, to a third. With
the weights here a difference is one that their margins call no rounding; without, any other token. Equal answers prove
nothing, and different ones little, since honest engines round: it never moves the evidence, but the one that two others
contradict gets a mark.

All of it is paid as any order is, at most as much a day as the owner allows; what is bought here is not audited.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from attrs import define, evolve, field, frozen

from ledger.identity import Did
from ledger.money import Amount, Unit
from ledger.records import MAX_SCORED, Fingerprint, Offer, Score, Signed, open_record
from node.engine.port import EngineError
from node.exchange import experience
from node.exchange.book import Book
from node.exchange.bought import load_bought
from node.exchange.buyer import Buyer
from node.exchange.delivery import Delivery, Terms
from node.exchange.purchase import Ask, NotPlaced
from node.market.candidates import Candidate, Limits, Wish, rule_out
from node.mesh.static import NoTokenizerToBeHad
from node.models.tokenizer import Tokenizer
from node.ports import Entropy
from node.wire.peer import Peer
from verify.noise import Reals
from verify.sampler import SAMPLER
from verify.scores import (
    ENTROPY_BYTES,
    Baited,
    Majority,
    Opinion,
    TooShort,
    Word,
    agreed_margins,
    bait,
    compare_to_known,
    majority,
    shuffled,
    took_bait,
    unpack,
)
from verify.steering import Steering

Recompute = Callable[[Sequence[int]], Awaitable[Reals]]

# So many scores are compared at most, and so many scorers asked for them.
MOST_OPINIONS: Final = 3
MOST_ASKED: Final = 6
# How long all of it may take for one answer: its seller waits for its money meanwhile.
PANEL_S: Final = 900.0
# When one that is busy is asked again; 0 is the last time.
_AGAIN_S: Final = (0.5, 1.0, 2.0, 0.0)
_LATER: Final = frozenset({"busy", "window", "too_many_requests"})
# How often a scorer whose word has counted before gets a known answer, too: one time in so many.
_QUIZ_ONE_IN: Final = 4
# By these weights' margins an answer may come of rounding if no more of its tokens than this share, and one, are off
# by more than so many logits.
ROUNDING: Final = 0.4
ROUNDED_SHARE: Final = 0.02
# Where the owner says nothing, help in audits may cost a cent a day, or ten satoshis.
DEFAULT_MAX_PER_DAY: Final[dict[Unit, Amount]] = {"uusd": Amount(10_000, "uusd"), "msat": Amount(10_000, "msat")}


@frozen
class Findings:
    """What the panel agreed on: the margins (N,) of the answer's first tokens, and what computed them."""

    margins: Reals = field(repr=False)
    checker: Fingerprint
    scorers: tuple[Did, ...]


@frozen
class Market:
    """Whom to ask, and how. `candidates` are the peers' open offers; `tokenizer` raises NoTokenizerToBeHad."""

    candidates: Callable[[], Sequence[Candidate]]
    dial: Callable[[Did], Peer | None]
    tokenizer: Callable[[Signed[Offer]], Awaitable[Tokenizer]]
    limits: Limits = field(factory=Limits)
    max_per_day: Amount | None = None  # None: DEFAULT_MAX_PER_DAY


@frozen
class _Heard:
    """One scorer's opinion on the answer, with bait."""

    scorer: Did
    engine: Fingerprint
    order: bytes
    opinion: Opinion = field(repr=False)


@frozen
class _Quiz:
    """An answer on which scorers agreed before."""

    ask: Ask = field(repr=False)
    answer: bytes
    known: Opinion = field(repr=False)
    genuine: int  # how many of its first tokens were before the bait when `known` was said of it


class Panel:
    """Asks other sellers. `buyer` must settle without audits."""

    def __init__(self, book: Book, entropy: Entropy, buyer: Buyer, market: Market) -> None:
        self._book = book
        self._entropy = entropy
        self._buyer = buyer
        self._market = market
        self._counting = asyncio.Lock()  # between the look at what today's help has cost and the entry for more

    async def check(
        self,
        terms: Terms,
        answer: Sequence[int],
        calibrated: Callable[[Fingerprint], bool],
        recompute: Recompute | None = None,
    ) -> Findings | str:
        """What others make of an answer; else why nothing follows, in a sentence.

        `calibrated`: whether the margins that an engine finds of this seller's work are evidence; `recompute`, where
        the weights are here: the margins (N,) in logits of any answer to this order, raising EngineError.
        """
        try:
            async with asyncio.timeout(PANEL_S):
                return await self._check(terms, answer, calibrated, recompute)
        except TimeoutError:
            return "other sellers take too long to say what they think of it"

    async def _check(
        self,
        terms: Terms,
        answer: Sequence[int],
        calibrated: Callable[[Fingerprint], bool],
        recompute: Recompute | None,
    ) -> Findings | str:
        try:
            tokenizer = await self._market.tokenizer(terms.offer)
        except NoTokenizerToBeHad as error:
            return f"the tokenizer is not to be had: {error}"
        try:
            baited = bait(answer[:MAX_SCORED], tokenizer.size, tokenizer.eog, self._entropy.bytes(ENTROPY_BYTES))
        except TooShort as error:
            return str(error)
        heard: list[_Heard] = []
        asked = 0
        for scorer in self._at_random(self._scorers(terms, baited, calibrated))[:MOST_ASKED]:
            asked += 1
            if (one := await self._hear(scorer, terms, baited, tokenizer)) is None:
                continue
            heard.append(one)
            found = majority([each.opinion for each in heard], baited.genuine)
            if found is not None:
                return await self._agree(terms, heard, found, baited)
            if len(heard) == MOST_OPINIONS:
                return "three scorers say three different things"
        if len(heard) > 1:
            return "two scorers disagree, and there is no third"
        compared = await self._compare(terms, answer, tokenizer, recompute)
        return f"of {asked} other sellers of this model {len(heard)} gave a score, and it takes two; {compared}"

    # Whom to ask

    def _scorers(
        self, terms: Terms, baited: Baited, calibrated: Callable[[Fingerprint], bool]
    ) -> list[tuple[Candidate, Signed[Offer]]]:
        tokens = len(terms.request.prompt) + len(baited.claimed)
        return [
            (candidate, offer)
            for candidate, offer in self._others(terms, tokens, 0)
            if calibrated(offer.record.engine) and not self._book.experience.standing(offer.signer).word.lost
        ]

    def _others(self, terms: Terms, prompt_tokens: int, max_tokens: int) -> list[tuple[Candidate, Signed[Offer]]]:
        """Other sellers of the same model that may be shown this order, and can be paid."""
        order = terms.order.record
        model = frozenset({terms.offer.record.model})
        wish = Wish(model, prompt_tokens, max_tokens, order.privacy, spent_today=self._book.spent_today())
        return [
            (candidate, candidate.offer)
            for candidate in self._market.candidates()
            if candidate.offer is not None
            and candidate.offer.signer not in (terms.seller, self._book.me)
            and candidate.offer.record.engine.sampler == SAMPLER
            and rule_out(candidate, wish, self._market.limits) is None
            and self._affordable(candidate, candidate.offer, prompt_tokens, max_tokens)
        ]

    def _affordable(self, candidate: Candidate, offer: Signed[Offer], prompt_tokens: int, max_tokens: int) -> bool:
        unit = offer.record.price.unit
        most = self._market.max_per_day or DEFAULT_MAX_PER_DAY[unit]
        spent = self._book.spent_on_checking_today(unit)
        return most.unit == unit and spent + candidate.cost(prompt_tokens, max_tokens) <= most.value

    def _at_random(
        self, candidates: Sequence[tuple[Candidate, Signed[Offer]]]
    ) -> list[tuple[Candidate, Signed[Offer]]]:
        order = shuffled(range(len(candidates)), self._entropy.bytes(ENTROPY_BYTES))
        return [candidates[i] for i in order]

    def _one_in(self, times: int) -> bool:
        return int.from_bytes(self._entropy.bytes(8), "big") % times == 0

    # A score

    async def _hear(
        self, scorer: tuple[Candidate, Signed[Offer]], terms: Terms, baited: Baited, tokenizer: Tokenizer
    ) -> _Heard | None:
        """A scorer's opinion; None if it gave none, or was caught lying. In which order it gets what, nobody knows."""
        order = terms.order
        ask = _ask(terms, claimed=baited.claimed)
        quiz = await self._quiz(scorer, terms.seller)
        quiz_first = self._one_in(2)
        if quiz is not None and quiz_first and not await self._passes(scorer, quiz, tokenizer):
            return None
        delivery = await self._order(scorer, ask, tokenizer)
        if delivery is None or delivery.score is None:
            return None
        opinion = unpack(delivery.score.record, baited.claimed)
        did, digest = delivery.terms.seller, delivery.terms.order.digest
        if took_bait(opinion, baited):
            await self._say(delivery.terms, order.digest, "caught")
            return None
        if quiz is not None and not quiz_first and not await self._passes(scorer, quiz, tokenizer):
            return None
        return _Heard(did, delivery.score.record.engine, digest, opinion)

    async def _passes(self, scorer: tuple[Candidate, Signed[Offer]], quiz: _Quiz, tokenizer: Tokenizer) -> bool:
        """Whether a scorer says of a known answer what is known. One that lies loses its word."""
        baited = bait(quiz.ask.claimed, tokenizer.size, tokenizer.eog, self._entropy.bytes(ENTROPY_BYTES))
        delivery = await self._order(scorer, evolve(quiz.ask, claimed=baited.claimed), tokenizer)
        if delivery is None or delivery.score is None:
            return False
        opinion = unpack(delivery.score.record, baited.claimed)
        compared = compare_to_known(quiz.known, opinion, baited, quiz.genuine)
        if took_bait(opinion, baited) or compared.gross:
            await self._say(delivery.terms, quiz.answer, "caught")
        elif not compared.agree:
            await self._say(delivery.terms, quiz.answer, "outvoted")
        return compared.agree and not took_bait(opinion, baited)

    async def _quiz(self, scorer: tuple[Candidate, Signed[Offer]], seller: Did) -> _Quiz | None:
        """Something known that this scorer cannot recognise: it neither answered nor scored it, nor did the checked."""
        candidate, offer = scorer
        agreed = self._book.experience.agreed(offer.record.model)
        if self._book.experience.standing(offer.signer).word.agreed and not self._one_in(_QUIZ_ONE_IN):
            return None
        theirs = {one.answer for one in agreed if one.scorer == offer.signer}
        for i in shuffled(range(len(agreed)), self._entropy.bytes(ENTROPY_BYTES)):
            if agreed[i].answer not in theirs and (quiz := await self._load(agreed[i], (offer.signer, seller))):
                tokens = len(quiz.ask.prompt) + len(quiz.ask.claimed)
                wish = Wish(None, tokens, 0, quiz.ask.privacy, spent_today=self._book.spent_today())
                if rule_out(candidate, wish, self._market.limits) is None:
                    return quiz
        return None

    async def _load(self, agreed: experience.Agreed, never: Sequence[Did]) -> _Quiz | None:
        """A known answer while it is kept, unless one of these sold it."""
        answered = await load_bought(self._book, agreed.answer)
        scored = await load_bought(self._book, agreed.order)
        scores = [r for r in await self._book.journal.records_of(agreed.order) if r.kind == Score.kind]
        if answered is None or scored is None or not scores or answered.terms.seller in never:
            return None
        claimed = scored.terms.request.claimed
        known = unpack(open_record(scores[0].raw, Score).record, claimed)
        pairs = enumerate(zip(claimed, answered.answer, strict=False))
        genuine = next((i for i, (scored_id, real) in pairs if scored_id != real), 0)
        # The answer as it was: with the bait of both it would stand out.
        ask = _ask(scored.terms, claimed=answered.answer[: len(claimed)])
        return _Quiz(ask, agreed.answer, known, genuine)

    async def _order(self, seller: tuple[Candidate, Signed[Offer]], ask: Ask, tokenizer: Tokenizer) -> Delivery | None:
        """Buy help, within what it may cost today; None if nothing came."""
        candidate, offer = seller
        peer = self._market.dial(offer.signer)
        tokens, most = len(ask.prompt) + len(ask.claimed), 0 if ask.claimed else ask.max_tokens
        helper, unit, cost = offer.signer, offer.record.price.unit, candidate.cost(tokens, most)
        async with self._counting:
            if peer is None or not self._affordable(candidate, offer, tokens, most):
                return None
            await self._book.post(experience.checking(helper, unit, cost))
        delivery = await self._placed(peer, offer, ask, tokenizer)
        owed = delivery.owed if delivery is not None else 0
        if owed < cost:
            # Who refuses, or gives less, must not use up what honest help may cost today.
            await self._book.post(experience.checking(helper, unit, owed - cost))
        return delivery

    async def _placed(self, peer: Peer, offer: Signed[Offer], ask: Ask, tokenizer: Tokenizer) -> Delivery | None:
        """What came of an order for help, which is tried again where the helper is busy; None if nothing came."""
        for wait_s in _AGAIN_S:
            try:
                return await self._buyer.buy(peer, offer, ask, tokenizer).outcome()
            except NotPlaced as error:
                if error.code not in _LATER or not wait_s:
                    return None
            await asyncio.sleep(wait_s)
        return None

    async def _agree(self, terms: Terms, heard: Sequence[_Heard], found: Majority, baited: Baited) -> Findings:
        """Remember who agreed and who did not, and say what counts."""
        model, answer = terms.offer.record.model, terms.order.digest
        words: list[tuple[int, Word]] = [(i, "agreed") for i in found.agreed]
        words += [(i, "outvoted") for i in found.odd]
        await self._book.post(
            *(experience.word(heard[i].scorer, model, heard[i].order, answer, said) for i, said in words)
        )
        agreed = [heard[i] for i in found.agreed]
        margins = agreed_margins([one.opinion for one in agreed])[: baited.genuine]
        return Findings(margins, agreed[0].engine, tuple(one.scorer for one in agreed))

    async def _say(self, scored: Terms, answer: bytes, said: Word) -> None:
        await self._book.post(
            experience.word(scored.seller, scored.offer.record.model, scored.order.digest, answer, said)
        )

    # The same order at others

    async def _compare(
        self, terms: Terms, answer: Sequence[int], tokenizer: Tokenizer, recompute: Recompute | None
    ) -> str:
        """Give the same order to another seller, and to a third if they differ; what came of it, in a few words."""
        drawn = terms.order.record.sampling.temperature > 0 or terms.request.steering != Steering()
        if drawn and terms.offer.record.engine.sampler != SAMPLER:
            return "and its sampler is its own, so nobody else's answers are like its"
        try:
            return await self._compared(terms, answer, tokenizer, _Comparison(recompute))
        except EngineError as error:
            return f"and other answers cannot be weighed: {error}"

    async def _compared(
        self, terms: Terms, answer: Sequence[int], tokenizer: Tokenizer, comparison: "_Comparison"
    ) -> str:
        ask = _ask(terms, max_tokens=len(answer))
        others = self._at_random(self._others(terms, len(ask.prompt), ask.max_tokens))
        answers: list[tuple[Did, tuple[int, ...]]] = []
        for other in others[:MOST_ASKED]:
            delivery = await self._order(other, ask, tokenizer)
            if delivery is None or not delivery.complete:
                continue
            answers.append((delivery.terms.seller, delivery.ids))
            if len(answers) == 1 and await comparison.alike(answers[0][1], answer):
                return "another one answers the same, which proves nothing"
            if len(answers) == 2:
                return await self._decide(terms, answer, answers, comparison)
        if not answers:
            return "and no other one can be asked for the same answer"
        return "another one answers differently, which rounding alone can do"

    async def _decide(
        self,
        terms: Terms,
        answer: Sequence[int],
        answers: Sequence[tuple[Did, tuple[int, ...]]],
        comparison: "_Comparison",
    ) -> str:
        (second, theirs), (_, third) = answers
        like_it, like_them = await comparison.alike(third, answer), await comparison.alike(third, theirs)
        if like_it and like_them:
            return "a third one answers as either may"
        if like_it:
            await self._book.post(experience.contradicted(second, terms.order.digest))
            return "of two other ones, one answers the same"
        if like_them:
            await self._book.post(experience.contradicted(terms.seller, terms.order.digest))
            return "two other ones answer differently, and alike"
        return "two other ones answer differently, and each in its own way"


@define
class _Comparison:
    """Of answers to one order; each is recomputed once at most."""

    recompute: Recompute | None
    _judged: dict[tuple[int, ...], bool] = field(factory=dict, repr=False)

    async def alike(self, one: Sequence[int], other: Sequence[int]) -> bool:
        """Whether they agree as far as both go, or both may come of these weights. Raises EngineError."""
        if all(a == b for a, b in zip(one, other, strict=False)):
            return True
        if self.recompute is None:
            return False
        return await self._may_be(one, self.recompute) and await self._may_be(other, self.recompute)

    async def _may_be(self, answer: Sequence[int], recompute: Recompute) -> bool:
        ids = tuple(answer)
        if ids not in self._judged:
            margins = await recompute(ids)
            self._judged[ids] = int((margins > ROUNDING).sum()) <= 1 + ROUNDED_SHARE * margins.size
        return self._judged[ids]


def _ask(terms: Terms, claimed: tuple[int, ...] = (), max_tokens: int = 1) -> Ask:
    """The same order once more, to be scored or to be answered."""
    order, request = terms.order.record, terms.request
    return Ask(
        prompt=request.prompt,
        stop=() if claimed else request.stop,
        sampling=order.sampling,
        seed=order.seed,
        max_tokens=max_tokens,
        privacy=order.privacy,
        steering=request.steering,
        start=order.start,
        claimed=claimed,
    )
