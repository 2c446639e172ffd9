"""What this node has seen of others: histories, evidence and speeds, folded from the journal's observations.

Every observation is a journal entry, so a restart remembers all of it. This module is the one place that knows what
the observations are called and which facts they carry.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, get_args

from attrs import evolve, field, frozen

from ledger.changes import Released
from ledger.events import AccountChanged, Event, Fact, Observed
from ledger.money import Unit
from ledger.records import Outcome
from node.exchange.plain import plain, read
from verify.evidence import CONTEXT_BYTES, Evidence
from verify.reputation import Event as Conduct
from verify.reputation import History, observe
from verify.scores import Credibility, Word, heard

# How much the newest measurement moves a seller's measured speed.
_NEWEST: Final = 0.3
# An audit of fewer new tokens tells too little to speak for a seller.
_TELLING: Final = 16
# So many Scores of a model are remembered that scorers agreed on.
_AGREED: Final = 64


@frozen
class Speed:
    """What a seller's answers took, smoothed; None until measured."""

    tokens_per_s: float | None = None
    first_token_ms: float | None = None


@frozen
class Due:
    """What is due for an order that has ended and is not settled yet; `objection` is why less than asked."""

    owed: int
    objection: str | None


@frozen
class Agreed:
    """A score order whose Score others agreed with; `answer` is the order that it was about."""

    order: bytes
    scorer: str
    answer: bytes


@frozen
class Standing:
    """All that is known of one seller."""

    history: History = field(factory=History)
    speed: Speed = field(factory=Speed)
    audits: int = 0  # how many audits really checked something
    word: Credibility = field(factory=Credibility)  # what its Scores are worth


def delivered(seller: str, tokens: int, first_token_ms: int, total_ms: int) -> Observed:
    """A seller's answer arrived whole, with a receipt that fits it."""
    facts: dict[str, Fact] = {"tokens": tokens, "first_token_ms": first_token_ms, "total_ms": total_ms}
    return Observed(seller, "delivered", facts)


def failed(seller: str, reason: str) -> Observed:
    """A seller's answer was cut, stalled, or came with a receipt that does not fit it."""
    return Observed(seller, "failed", {"reason": reason[:256]})


def due(seller: str, order: bytes, owed: int, objection: str | None) -> Observed:
    """What the buyer found to be due for an order, before it is settled: a restart goes on from here."""
    return Observed(seller, "due", {"order": order, "owed": owed, "objection": (objection or "")[:256]})


def refused(seller: str, code: str) -> Observed:
    """A seller turned an order down."""
    return Observed(seller, "refused", {"code": code})


def audited(seller: str, model: bytes, outcome: Outcome, evidence: Evidence, contexts: Iterable[bytes]) -> Observed:
    """An audit moved the evidence on a seller and model; `contexts` are those that counted in it."""
    facts: dict[str, Fact] = {
        "model": model,
        "outcome": outcome,
        # Floats as hexadecimal text: the journal holds whole numbers, text and bytes, and nothing may be rounded.
        "log_m": " ".join(log_m.hex() for log_m in evidence.log_ms),
        "peak": evidence.peak.hex(),
        "tokens": evidence.tokens,
        "odd": evidence.odd,
        "contexts": b"".join(contexts),
    }
    return Observed(seller, "audited", facts)


def scored(scorer: str, order: bytes) -> Observed:
    """A Score came that fits its order; what it is worth is found out by comparison."""
    return Observed(scorer, "scored", {"order": order})


def word(scorer: str, model: bytes, order: bytes, answer: bytes, said: Word) -> Observed:
    """What a scorer's Score turned out to be worth; `answer` is the digest of the order that it was about."""
    return Observed(scorer, "word", {"model": model, "order": order, "answer": answer, "said": said})


def contradicted(seller: str, order: bytes) -> Observed:
    """Two other sellers answered an order alike, and otherwise than this one."""
    return Observed(seller, "contradicted", {"order": order})


def checking(helper: str, unit: Unit, cost: int) -> Observed:
    """So much may be paid to somebody for help in checking somebody else; below zero: so much of it was not."""
    return Observed(helper, "checking", {"unit": unit, "cost": cost})


def disputed(buyer: str, order: bytes, amount: int) -> Observed:
    """A buyer disputed a receipt of ours, down to this amount."""
    return Observed(buyer, "disputed", {"order": order, "amount": amount})


class Experience:
    """The fold itself; `take` every entry's events in order."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._evidence: dict[tuple[str, bytes], Evidence] = {}
        self._contexts: dict[tuple[str, bytes], set[bytes]] = {}
        self._due: dict[bytes, Due] = {}  # by order
        self._agreed: dict[bytes, deque[Agreed]] = {}  # by model, oldest first

    def copy(self) -> "Experience":
        """All of it as it is now; what is taken later moves only one of the two."""
        copy = Experience()
        copy._standings = dict(self._standings)
        copy._evidence = dict(self._evidence)
        copy._contexts = {key: set(seen) for key, seen in self._contexts.items()}
        copy._due = dict(self._due)
        copy._agreed = {model: deque(scores, _AGREED) for model, scores in self._agreed.items()}
        return copy

    def to_plain(self) -> dict[str, Any]:
        """All of it as what CBOR can hold; equal experience gives equal values."""
        return {
            "standings": [[seller, plain(standing)] for seller, standing in sorted(self._standings.items())],
            "evidence": [[*key, plain(self._evidence[key])] for key in sorted(self._evidence)],
            "contexts": [[*key, b"".join(sorted(self._contexts[key]))] for key in sorted(self._contexts)],
            "due": [[order, plain(self._due[order])] for order in sorted(self._due)],
            "agreed": [[model, plain(tuple(self._agreed[model]))] for model in sorted(self._agreed)],
        }

    @classmethod
    def from_plain(cls, written: Mapping[str, Any]) -> "Experience":
        """What `to_plain` gave. Raises ValueError, TypeError, KeyError at anything else."""
        found = cls()
        found._standings = {read(str, seller): read(Standing, value) for seller, value in written["standings"]}
        found._evidence = {
            (read(str, seller), read(bytes, model)): read(Evidence, value)
            for seller, model, value in written["evidence"]
        }
        found._contexts = {
            (read(str, seller), read(bytes, model)): set(_contexts(read(bytes, packed)))
            for seller, model, packed in written["contexts"]
        }
        found._due = {read(bytes, order): read(Due, value) for order, value in written["due"]}
        found._agreed = {
            read(bytes, model): deque((read(Agreed, one) for one in scores), _AGREED)
            for model, scores in written["agreed"]
        }
        return found

    def agreed(self, model: bytes) -> Sequence[Agreed]:
        """The latest Scores of a model that scorers agreed on."""
        return tuple(self._agreed.get(model, ()))

    def standing(self, seller: str) -> Standing:
        """What is known of a seller; a stranger's is empty."""
        return self._standings.get(seller) or Standing()

    def evidence(self, seller: str, model: bytes) -> Evidence:
        """Where the sequential test on a seller's work with one model stands."""
        return self._evidence.get((seller, model)) or Evidence()

    def contexts(self, seller: str, model: bytes) -> set[bytes]:
        """The contexts that counted as evidence already."""
        return self._contexts.get((seller, model)) or set()

    def due(self, order: bytes) -> Due | None:
        """What is due for an order that waits for its settlement."""
        return self._due.get(order)

    def take(self, events: Iterable[Event]) -> None:
        """Fold what one journal entry says."""
        for event in events:
            match event:
                case Observed():
                    self._observe(event)
                case AccountChanged(change=Released(order)):
                    self._due.pop(order, None)

    def _observe(self, event: Observed) -> None:
        seller, facts = event.subject, event.facts
        standing = self.standing(seller)
        match event.what:
            case "delivered":
                standing = evolve(standing, speed=_measured(standing.speed, facts))
                self._conduct(seller, standing, "delivered", _int(facts, "tokens"))
            case "failed":
                self._conduct(seller, standing, "failed")
            case "refused":
                self._conduct(seller, standing, "refused")
            case "due":
                self._remember_due(facts)
            case "audited":
                self._audit(seller, standing, facts)
            case "contradicted":
                self._conduct(seller, standing, "contradicted")
            case "word":
                self._remember_word(seller, standing, facts)
            case _:
                pass  # about buyers, or written by a newer version: it is kept, and counts for nothing here

    def _conduct(self, seller: str, standing: Standing, event: Conduct, tokens: int = 0) -> None:
        self._standings[seller] = evolve(standing, history=observe(standing.history, event, tokens))

    def _remember_word(self, scorer: str, standing: Standing, facts: Mapping[str, Fact]) -> None:
        model, order, answer, said = (facts.get(name) for name in ("model", "order", "answer", "said"))
        known: Word | None = next((word for word in get_args(Word) if word == said), None)
        if known is None or not (isinstance(model, bytes) and isinstance(order, bytes) and isinstance(answer, bytes)):
            return
        self._standings[scorer] = evolve(standing, word=heard(standing.word, known))
        if known == "agreed":
            self._agreed.setdefault(model, deque(maxlen=_AGREED)).append(Agreed(order, scorer, answer))

    def _remember_due(self, facts: Mapping[str, Fact]) -> None:
        order, objection = facts.get("order"), facts.get("objection")
        if isinstance(order, bytes):
            why = objection if isinstance(objection, str) and objection else None
            self._due[order] = Due(_int(facts, "owed"), why)

    def _audit(self, seller: str, standing: Standing, facts: Mapping[str, Fact]) -> None:
        model, outcome = facts.get("model"), facts.get("outcome")
        packed = facts.get("contexts")
        if not isinstance(model, bytes) or not isinstance(packed, bytes):
            return
        self._evidence[seller, model] = Evidence(
            _detectors(facts), _float(facts, "peak"), _int(facts, "tokens"), _int(facts, "odd")
        )
        if packed:
            self._contexts.setdefault((seller, model), set()).update(_contexts(packed))
        if packed:
            # What was checked before speaks for nobody a second time.
            standing = evolve(standing, audits=standing.audits + 1)
            self._standings[seller] = standing
        if outcome == "dishonest":
            self._conduct(seller, standing, "dishonest")
        elif outcome == "honest" and len(packed) >= _TELLING * CONTEXT_BYTES:
            self._conduct(seller, standing, "honest")


def _contexts(packed: bytes) -> list[bytes]:
    return [packed[i : i + CONTEXT_BYTES] for i in range(0, len(packed), CONTEXT_BYTES)]


def _int(facts: Mapping[str, Fact], name: str) -> int:
    value = facts.get(name)
    return value if isinstance(value, int) else 0


def _float(facts: Mapping[str, Fact], name: str) -> float:
    value = facts.get(name)
    return float.fromhex(value) if isinstance(value, str) else -math.inf


def _detectors(facts: Mapping[str, Fact]) -> tuple[float, ...]:
    """Each detector's ln M; what was written when there was one alone is where all of them stand."""
    value, start = facts.get("log_m"), Evidence().log_ms
    found = tuple(map(float.fromhex, value.split())) if isinstance(value, str) else start
    return found if len(found) == len(start) else (max(found, default=-math.inf),) * len(start)


def _measured(speed: Speed, facts: Mapping[str, Fact]) -> Speed:
    first, total, tokens = (_int(facts, name) for name in ("first_token_ms", "total_ms", "tokens"))
    rest_ms = max(total - first, 1)
    per_s = 1000 * (tokens - 1) / rest_ms if tokens > 1 else None
    return Speed(_smooth(speed.tokens_per_s, per_s), _smooth(speed.first_token_ms, float(first)))


def _smooth(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return old if new is None else new
    return (1 - _NEWEST) * old + _NEWEST * new
