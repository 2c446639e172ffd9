"""The auditor: what was bought, replayed on this node's own weights or by others, and what that is evidence of."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from attrs import frozen

from ledger.events import Books
from ledger.records import Fingerprint, Margins, Outcome, Signed, Verdict, sign
from node.engine.port import Engine, EngineError
from node.exchange import experience
from node.exchange.book import Book, kept
from node.exchange.delivery import Terms
from node.exchange.panel import Panel
from node.exchange.recomputing import recomputed
from node.models.tokenizer import Tokenizer
from verify.attestation import abstention
from verify.calibration import BadCalibration, Calibration
from verify.evidence import Evidence, contexts, fresh, observe, summarise
from verify.noise import Reals
from verify.replay import margins

FindCalibration = Callable[[bytes, Fingerprint, Fingerprint], Calibration | None]


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


# Evidence that another process of this node adds to at the same time is built upon anew, so often.
_TRIES: Final = 32


class _Moved(Exception):
    """Another process has found evidence on the same seller in between."""


class Auditor:
    """Audits with the engines at hand, one audit at a time."""

    def __init__(
        self,
        book: Book,
        engines: Sequence[Engine],
        calibrations: FindCalibration,
        tokenizer: Callable[[bytes], Tokenizer],
    ) -> None:
        """`calibrations` gives that of a model, a seller's and a checker's engine, if there is one; `tokenizer` that of
        one of the engines' models, by its digest.
        """
        self._book = book
        self._engines: Final = {engine.manifest.digest: engine for engine in engines}
        self._calibrations, self._tokenizer = calibrations, tokenizer
        self._one_at_a_time = asyncio.Lock()
        # Who is asked where this node cannot tell by itself; it needs a buyer, which needs an auditor.
        self.panel: Panel | None = None

    async def audit(self, terms: Terms, receipt: bytes, answer: Sequence[int]) -> Audit:
        """Replay an answer; record the verdict and the evidence. `receipt` is the receipt's digest.

        Auditing the same answer again gives a verdict, but no new evidence: each context counts once.
        """
        if not answer:
            return await self._abstain(terms, receipt, "there is no token to check")
        engine = self._engines.get(terms.offer.record.model)
        if engine is None:
            return await self._ask_others(terms, receipt, answer, "the weights of this model are not here", None)
        reason = self._abstention(terms, engine.fingerprint)
        if reason is not None:
            return await self._ask_others(terms, receipt, answer, reason, engine)
        async with self._one_at_a_time:
            try:
                found = await self._replay(engine, terms, answer)
            except EngineError as error:
                return await self._abstain(terms, receipt, f"the replay failed: {error}")
            return await self._conclude(terms, receipt, answer, found, engine.fingerprint)

    def _calibration(self, terms: Terms, checker: Fingerprint) -> Calibration | None:
        offer = terms.offer.record
        return self._calibrations(offer.model, offer.engine, checker)

    def _abstention(self, terms: Terms, checker: Fingerprint) -> str | None:
        try:
            calibration = self._calibration(terms, checker)
        except (BadCalibration, OSError) as error:
            return f"the calibration cannot be read: {error}"
        engine, sampling = terms.offer.record.engine, terms.order.record.sampling
        return abstention(engine, checker, calibration, sampling, terms.request.steering)

    async def _ask_others(
        self, terms: Terms, receipt: bytes, answer: Sequence[int], why: str, engine: Engine | None
    ) -> Audit:
        """Let other sellers of the model judge; `why` this node cannot, although it may have the weights."""
        if self.panel is None:
            return await self._abstain(terms, receipt, why)

        async def recompute(ids: Sequence[int]) -> Reals:
            assert engine is not None
            async with self._one_at_a_time:
                return await self._replay(engine, terms, ids)

        found = await self.panel.check(
            terms,
            answer,
            lambda checker: self._abstention(terms, checker) is None,
            recompute if engine is not None else None,
        )
        if isinstance(found, str):
            return await self._abstain(terms, receipt, f"{found}; {why}")
        async with self._one_at_a_time:
            checked = answer[: len(found.margins)]
            return await self._conclude(terms, receipt, checked, found.margins, found.checker)

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

    async def _replay(self, engine: Engine, terms: Terms, answer: Sequence[int]) -> Reals:
        order, request = terms.order.record, terms.request
        tokenizer = self._tokenizer(engine.manifest.tokenizer)
        found: list[Reals] = []
        done = 0
        blocks = recomputed(engine, tokenizer, request.prompt, answer, request.steering, order.start)
        async with contextlib.aclosing(blocks):
            async for rows in blocks:
                claimed = np.asarray(answer[done : done + len(rows)], dtype=np.int64)
                found.append(margins(rows, claimed, order.sampling, order.seed, len(request.prompt) + done))
                done += len(rows)
        return np.concatenate(found)

    async def _conclude(
        self, terms: Terms, receipt: bytes, answer: Sequence[int], found: Reals, checker: Fingerprint
    ) -> Audit:
        """What the margins of an answer, found by this engine, are evidence of."""
        calibration = self._calibration(terms, checker)
        if calibration is None:
            return await self._abstain(terms, receipt, "the calibration is gone: `idlemesh calibrate` makes it again")
        seller, model = terms.seller, terms.offer.record.model
        odds = await asyncio.to_thread(calibration.odds, terms.order.record.sampling)  # at first use it takes a while
        seen = contexts(terms.request.prompt, answer)

        async def write() -> Audit:
            before = self._book.experience.evidence(seller, model)
            counts = fresh(seen, self._book.experience.contexts(seller, model))
            evidence = observe(before, found[counts], odds)
            verdict = self._verdict(checker, terms, receipt, summarise(found), evidence)
            counted = [context for context, new in zip(seen, counts, strict=True) if new]
            observed = experience.audited(seller, model, evidence.outcome, evidence, counted)

            def check(_: Books) -> None:
                if self._book.experience.evidence(seller, model) != before:
                    raise _Moved

            await self._book.post(observed, records=(kept(verdict, terms.order.digest),), check=check)
            return Audit(verdict)

        for _ in range(_TRIES - 1):
            with contextlib.suppress(_Moved):
                return await write()
        return await write()

    def _verdict(
        self, checker: Fingerprint, terms: Terms, receipt: bytes, summary: Margins, evidence: Evidence
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
            engine=checker,
            issued=self._book.now(),
        )
        return sign(record, self._book.identity)
