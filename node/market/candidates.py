"""Who could answer: one `Candidate` for the local engine, each peer's offer and each remote backend, and the one
function that ranks them.

    score = w_quality * quality + w_cost * (1 - cost) + w_latency * (1 - latency)
          + w_sovereignty * sovereignty + w_privacy * privacy + w_reputation * reputation + w_bond * bond

Each part lies in 0..1; cost and latency are shares of the dearest and the slowest candidate of the same wish; a bond
that would pay for 10,000 such orders counts in full; the weights are the owner's. Hard limits come first: whoever
breaks one is ruled out, and the reason is kept for the owner.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

from attrs import field, frozen

from ledger.commitments import CHECKPOINT_TOKENS
from ledger.identity import Did
from ledger.money import MAX_AMOUNT, Amount, Price, Unit, cost
from ledger.records import PRIVACY_LEVELS, Offer, Privacy, Signed
from node.market.privacy import CEILINGS, Relation, within

Hardware = Literal["own", "rented", "cloud"]
# Own hardware 1.0, trusted peers 0.7, open mesh 0.5; a remote backend's depends on where it is and what it keeps.
SOVEREIGNTY: Final[dict[Relation, float]] = {"self": 1.0, "attested": 0.7, "named": 0.7, "anyone": 0.5, "remote": 0.1}
# The owner's hardware and rented hardware; then clouds, by (same jurisdiction, retention).
_OF_HARDWARE: Final[dict[Hardware, float]] = {"own": 1.0, "rented": 0.8}
_OF_CLOUDS: Final = {(True, False): 0.4, (True, True): 0.3, (False, False): 0.2, (False, True): 0.1}
# What a seller that nobody has measured is taken to need; close to a small machine's, so that it gets a try.
_UNMEASURED_TOKENS_PER_S: Final = 20.0
_UNMEASURED_FIRST_TOKEN_MS: Final = 500.0
# What stands behind a debt, in a word for the owner.
_CALLED: Final = {"stablecoin": "channel"}
# A bond stands behind all that its seller sells to anybody: one order is weighed against a small part of it.
_BACKED_ORDERS: Final = 10_000
Route = Literal["auto", "local", "peers", "remotes"]
# Where the owner sets no limit to a day's spending: a dollar, or a thousand satoshis. Credit and prices are the
# sellers' to say, and somebody has to say stop.
DEFAULT_MAX_PER_DAY: Final[dict[Unit, Amount]] = {
    "uusd": Amount(1_000_000, "uusd"),
    "msat": Amount(1_000_000, "msat"),
}


@frozen
class Weights:
    """How much each part of the score counts."""

    quality: float = 1.0
    cost: float = 1.0
    latency: float = 0.5
    sovereignty: float = 0.5
    privacy: float = 0.5
    reputation: float = 2.0
    bond: float = 0.5


@frozen
class Limits:
    """The owner's hard limits on buying; an amount of another unit than the offer's rules the offer out.

    None does not limit, but for `max_per_day`, which then has a default.
    """

    max_input_price: Amount | None = None
    max_output_price: Amount | None = None
    max_order_cost: Amount | None = None
    max_per_day: Amount | None = None
    min_reputation: float = 0.0
    allowed: frozenset[str] | None = None

    def most_per_day(self, unit: Unit) -> Amount:
        """What a day's spending may come to."""
        return self.max_per_day or DEFAULT_MAX_PER_DAY[unit]


@frozen
class Remote:
    """What the owner says of a remote backend. `name` is unique; `ceiling` is the highest level it may be shown."""

    name: str
    price: Price
    hardware: Hardware = "cloud"
    same_jurisdiction: bool = False
    retains: bool = True
    ceiling: Privacy = CEILINGS["remote"]

    @property
    def sovereignty(self) -> float:
        """How much the owner stays in command of what is sent there, 0..1."""
        return _OF_HARDWARE.get(self.hardware) or _OF_CLOUDS[self.same_jurisdiction, self.retains]


@frozen
class Way:
    """One way to pay a seller: its rail, what the account there still bears, and what of it may be unpaid at a time.

    Amounts in the unit of the seller's price.
    """

    rail: str
    available: int
    window: int

    def bears(self, most: int, first: int) -> bool:
        """Whether an order may cost `most` by it, and come to `first` before anything is paid."""
        return most <= self.available and first <= self.window


def choose_way(ways: Sequence[Way], most: int, first: int) -> Way | None:
    """The first way that bears an order, else the last: its seller may give more than is known here."""
    return next((way for way in ways if way.bears(most, first)), ways[-1] if ways else None)


@frozen
class Candidate:
    """One who could answer. `quality` and `reputation` lie in 0..1; speeds are measured, None until then."""

    model: bytes
    name: str
    quality: float
    relation: Relation
    context: int  # prompt and answer together, in tokens
    offer: Signed[Offer] | None = None
    reputation: float = 1.0
    condemned: bool = False
    bond: Amount | None = None  # what it would lose to arbiters whom this node trusts, as seen on the chain
    ways: tuple[Way, ...] | None = None  # how it can be paid, the preferred way first; None = not known yet
    paid_on_the_way: bool = True  # whether a long answer there is paid as it goes, and not only when it is over
    tokens_per_s: float | None = None
    first_token_ms: float | None = None
    remote: Remote | None = None

    @property
    def seller(self) -> Did | None:
        """Whose offer it is; None for this machine and for remote backends."""
        return self.offer.signer if self.offer else None

    @property
    def who(self) -> str:
        """Who it is, in a word for the owner."""
        return self.seller or (f"remote {self.remote.name}" if self.remote else "this machine")

    @property
    def price(self) -> Price | None:
        """What a million tokens cost; None for this machine."""
        if self.remote is not None:
            return self.remote.price
        return self.offer.record.price if self.offer else None

    @property
    def ceiling(self) -> Privacy:
        """The highest level of a prompt that it may be shown."""
        return self.remote.ceiling if self.remote else CEILINGS[self.relation]

    @property
    def sovereignty(self) -> float:
        """How much the owner stays in command of what is sent there, 0..1."""
        return self.remote.sovereignty if self.remote else SOVEREIGNTY[self.relation]

    def cost(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most that the answer can cost, in the unit of its price; nothing here."""
        return cost(self.price, prompt_tokens, max_tokens) if self.price else 0

    def unpaid_cost(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most that comes before anything is paid."""
        return self.cost(prompt_tokens, min(max_tokens, CHECKPOINT_TOKENS) if self.paid_on_the_way else max_tokens)


@frozen
class Wish:
    """What a request needs of whoever answers it. `models` are acceptable manifest digests; None accepts any."""

    models: frozenset[bytes] | None
    prompt_tokens: int
    max_tokens: int
    privacy: Privacy
    route: Route = "auto"
    spent_today: dict[str, int] = field(factory=dict)


def rule_out(candidate: Candidate, wish: Wish, limits: Limits) -> str | None:
    """Why this candidate may not answer, in words for the owner; None if it may."""
    if wish.models is not None and candidate.model not in wish.models:
        return "runs another model"
    if not within(candidate.ceiling, wish.privacy):
        return f"may see prompts up to {candidate.ceiling}, and this one is {wish.privacy}"
    if wish.route not in ("auto", _route_to(candidate)):
        return f"the route is {wish.route}"
    if wish.prompt_tokens + wish.max_tokens > candidate.context:
        return f"has a context of {candidate.context} tokens, and {wish.prompt_tokens + wish.max_tokens} are needed"
    if candidate.offer is not None and (reason := _distrusted(candidate, candidate.offer.record, limits)):
        return reason
    return _too_dear(candidate, candidate.price, wish, limits) if candidate.price else None


def _route_to(candidate: Candidate) -> Route:
    if candidate.remote is not None:
        return "remotes"
    return "local" if candidate.offer is None else "peers"


def _distrusted(candidate: Candidate, offer: Offer, limits: Limits) -> str | None:
    if limits.allowed is not None and candidate.seller not in limits.allowed:
        return "is not among the allowed peers"
    if candidate.condemned:
        return "was found cheating"
    if candidate.reputation < limits.min_reputation:
        return f"has a reputation of {candidate.reputation:.2f}, under the least of {limits.min_reputation:.2f}"
    if candidate.ways == ():
        return f"is paid by {' or '.join(offer.rails)}, and this node has no money there"
    return None


def _too_dear(candidate: Candidate, asks: Price, wish: Wish, limits: Limits) -> str | None:
    unit = asks.unit
    price = candidate.cost(wish.prompt_tokens, wish.max_tokens)
    if price > MAX_AMOUNT:
        return "asks more than can be paid at all"
    over_a_day = min(wish.spent_today.get(unit, 0) + price, MAX_AMOUNT)
    checks = (
        (limits.max_input_price, asks.input, "asks {} for a million prompt tokens", "max_input_price"),
        (limits.max_output_price, asks.output, "asks {} for a million output tokens", "max_output_price"),
        (limits.max_order_cost, price, "may cost {} for this order", "max_order_cost"),
        (limits.most_per_day(unit), over_a_day, "would bring today's spending to {}", "max_per_day"),
    )
    for most, asked, words, bound in checks:
        if most is not None and (most.unit != unit or asked > most.value):
            return f"{words.format(Amount(asked, unit))}, over the most of {most} by [buy] {bound}"
    return _not_borne(candidate, price, wish, unit)


def _not_borne(candidate: Candidate, price: int, wish: Wish, unit: Unit) -> str | None:
    """Why none of the ways to pay bears an order."""
    unpaid = candidate.unpaid_cost(wish.prompt_tokens, wish.max_tokens)
    if candidate.ways is None or any(way.bears(price, unpaid) for way in candidate.ways):
        return None
    bearing = [way for way in candidate.ways if price <= way.available]
    if bearing:
        most = Amount(max(way.window for way in bearing), unit)
        return f"delivers up to {Amount(unpaid, unit)} before it is paid, and its window bears {most}"
    borne = (f"its {_CALLED.get(way.rail, way.rail)} bears {Amount(way.available, unit)}" for way in candidate.ways)
    return f"may cost {Amount(price, unit)} for this order, and {', '.join(borne)}"


def rank(candidates: list[Candidate], wish: Wish, weights: Weights) -> list[Candidate]:
    """The candidates, best first; equal ones in the order of their sellers' names, so that it is reproducible."""
    if not candidates:
        return []
    costs = _shares([_comparable_cost(c, wish) for c in candidates])
    times = _shares([_expected_ms(c, wish) for c in candidates])
    scored = [
        (-_score(c, c.cost(wish.prompt_tokens, wish.max_tokens), spent, wait, weights), c.who if c.price else "", c)
        for c, spent, wait in zip(candidates, costs, times, strict=True)
    ]
    return [c for _, _, c in sorted(scored, key=lambda row: row[:2])]


def _score(candidate: Candidate, most: int, cost_share: float, time_share: float, weights: Weights) -> float:
    privacy = PRIVACY_LEVELS.index(candidate.ceiling) / (len(PRIVACY_LEVELS) - 1)
    return (
        weights.quality * candidate.quality
        + weights.cost * (1 - cost_share)
        + weights.latency * (1 - time_share)
        + weights.sovereignty * candidate.sovereignty
        + weights.privacy * privacy
        + weights.reputation * candidate.reputation
        + weights.bond * _backed(candidate, most)
    )


def _backed(candidate: Candidate, most: int) -> float:
    """How well the stake of a candidate covers an order that costs `most`, 0..1; this machine needs none."""
    if candidate.price is None:
        return 1.0
    bond = candidate.bond
    if bond is None or bond.unit != candidate.price.unit or bond.value == 0:
        return 0.0
    return min(bond.value / (_BACKED_ORDERS * most), 1.0) if most else 1.0


def _comparable_cost(candidate: Candidate, wish: Wish) -> float:
    # Units are not converted into each other: a millisatoshi and a millionth of a dollar are of one order of magnitude.
    return float(candidate.cost(wish.prompt_tokens, wish.max_tokens))


def _expected_ms(candidate: Candidate, wish: Wish) -> float:
    speed = candidate.tokens_per_s or _UNMEASURED_TOKENS_PER_S
    return (candidate.first_token_ms or _UNMEASURED_FIRST_TOKEN_MS) + 1000 * wish.max_tokens / speed


def _shares(values: list[float]) -> list[float]:
    most = max(values)
    return [value / most if most else 0.0 for value in values]


def quality_of(parameters: int, tier: float) -> float:
    """A rough quality in 0..1: the model's size on a scale from a million to a trillion, and its tier in 0..1."""
    size = (math.log10(max(parameters, 1)) - 6) / 6
    return 0.7 * min(max(size, 0.0), 1.0) + 0.3 * tier
