"""The auditor: replays what was bought on this node's own weights, and says what the margins are evidence of."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from ledger.records import Margins, Outcome, Signed, Verdict, sign
from node.engine.port import Engine, EngineError
from node.exchange import experience
from node.exchange.book import Book, kept
from node.exchange.delivery import Terms
from verify.attestation import abstention
from verify.evidence import Evidence, contexts, fresh, observe, summarise
from verify.replay import margins


@frozen
class Audit:
    """What an audit came to: a signed Verdict. One over no tokens is an abstention, and its reason says why."""

    verdict: Signed[Verdict]

    @property
    def outcome(self) -> Outcome:
        """The verdict's outcome; an abstention is undecided."""
        return self.verdict.record.outcome

    @property
    def reason(self) -> str:
        """The verdict's reason."""
        return self.verdict.record.reason

    @property
    def abstained(self) -> bool:
        """Whether nothing could be checked."""
        return self.verdict.record.margins.tokens == 0


class Auditor:
    """Audits with the engines at hand, one audit at a time."""

    def __init__(self, book: Book, engines: Sequence[Engine]) -> None:
        self._book = book
        self._engines: Final = {engine.manifest.digest: engine for engine in engines}
        self._one_at_a_time = asyncio.Lock()

    async def audit(self, terms: Terms, receipt: bytes, answer: Sequence[int]) -> Audit:
        """Replay an answer; record the verdict and the evidence. `receipt` is the receipt's digest.

        Auditing the same answer again gives a verdict, but no new evidence: each context counts once.
        """
        engine = self._engines.get(terms.offer.record.model)
        if engine is None:
            return await self._abstain(terms, receipt, "the weights of this model are not here")
        reason = abstention(terms.offer.record.engine, engine.fingerprint)
        if reason is None and not answer:
            reason = "there is no token to check"
        if reason is not None:
            return await self._abstain(terms, receipt, reason)
        async with self._one_at_a_time:
            try:
                return await self._replay(engine, terms, receipt, answer)
            except EngineError as error:
                return await self._abstain(terms, receipt, f"the replay failed: {error}")

    async def _abstain(self, terms: Terms, receipt: bytes, why: str) -> Audit:
        verdict = sign(
            Verdict(
                receipt=receipt,
                seller=terms.seller,
                model=terms.offer.record.model,
                margins=Margins(0, 0, 0, 0),
                evidence=self._book.experience.evidence(terms.seller, terms.offer.record.model).thousandths,
                outcome="undecided",
                reason=f"the audit abstains: {why}"[:256],
                engine=terms.offer.record.engine,
                issued=self._book.now(),
            ),
            self._book.identity,
        )
        await self._book.post(records=(kept(verdict, terms.order.digest),))
        return Audit(verdict)

    async def _replay(self, engine: Engine, terms: Terms, receipt: bytes, answer: Sequence[int]) -> Audit:
        order, prompt = terms.order.record, terms.request.prompt
        found: list[NDArray[np.float64]] = []
        done = 0
        async with contextlib.aclosing(engine.score(prompt, answer)) as blocks:
            async for rows in blocks:
                claimed = np.asarray(answer[done : done + len(rows)], dtype=np.int64)
                found.append(margins(rows, claimed, order.sampling, order.seed, len(prompt) + done))
                done += len(rows)
        all_margins = np.concatenate(found)
        seller, model = terms.seller, terms.offer.record.model
        seen = contexts(prompt, answer)
        counts = fresh(seen, self._book.experience.contexts(seller, model))
        evidence = observe(self._book.experience.evidence(seller, model), all_margins[counts])
        verdict = self._verdict(engine, terms, receipt, summarise(all_margins), evidence)
        counted = [context for context, new in zip(seen, counts, strict=True) if new]
        observed = experience.audited(seller, model, evidence.outcome, evidence, counted)
        await self._book.post(observed, records=(kept(verdict, terms.order.digest),))
        return Audit(verdict)

    def _verdict(
        self, engine: Engine, terms: Terms, receipt: bytes, summary: Margins, evidence: Evidence
    ) -> Signed[Verdict]:
        reasons: dict[Outcome, str] = {
            "honest": "the tokens are what the promised weights would have chosen",
            "undecided": "some tokens are unlikely from the promised weights; more checks will tell",
            "dishonest": "the tokens of this seller cannot come from the promised weights",
        }
        record = Verdict(
            receipt=receipt,
            seller=terms.seller,
            model=terms.offer.record.model,
            margins=summary,
            evidence=evidence.thousandths,
            outcome=evidence.outcome,
            reason=reasons[evidence.outcome],
            engine=engine.fingerprint,
            issued=self._book.now(),
        )
        return sign(record, self._book.identity)
