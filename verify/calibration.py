"""What honest engines show: margins counted in bins, bounds on them, and the odds that evidence is weighed by.

A calibration belongs to one model and one pair of engines, a seller's and a checker's: honest margins come from
rounding, so they depend on the quantization as much as on what computes it. It holds how many tokens of honest
answers fell into each bin of margins, apart for each stratum: temperature, cutoffs, length of the context.

**Bins.** Bin 0 is a margin of exactly 0; bin j a margin above EDGES[j-1] and up to EDGES[j]; the last but one has no
upper end, and the last holds tokens that the grammar forbids.

**Bounds.** U(j) bounds from above the chance of a token in bin j or a later one: the largest of the Clopper-Pearson
bounds of all groups, where a group is one kind of sampling (temperature, with cutoffs or without) at any length, or one
length at any sampling; each at 1 - (1 - CONFIDENCE) / (groups * (BINS - 1)), so that all of them hold at once with
CONFIDENCE (Bonferroni). With U(0) = 1 and u(j) = U(j) - U(j+1) the u add up to 1: they are the worst that honest
engines may be, and anything that grows with the margin is at most as large on average for them as it is under u.
Honest margins grow with the temperature, so an order is judged by the groups of temperatures up to its own, or to the
next that is calibrated.

**Odds.** Each of BETS detectors puts a share s of its stake on bins 1 and above, divided by PROFILE, and the rest on
an honest token: q = (1 - s) u + s PROFILE, which adds up to 1. e = q / u = 1 - s + s PROFILE / u, made to grow with
the margin (where it would fall, neighbouring bins are taken together, by their u) and at most E_MAX, averages at most 1
as long as the seller is honest. E_MAX sees to it that no few tokens condemn anyone, whatever the calibration says.
PROFILE is how the tokens of lower quantizations divide among the bins.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from operator import add
from typing import Any, Final

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from ledger.money import MAX_AMOUNT
from ledger.records import Fingerprint, Sampling
from verify.cutoffs import MILLION
from verify.noise import Reals
from verify.replay import MASKED

EDGES: Final = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)  # logits
BINS: Final = len(EDGES) + 2
CONFIDENCE: Final = 0.99
BETS: Final = (0.002, 0.006, 0.018)  # shares of the stake
PROFILE: Final = (0.02, 0.03, 0.10, 0.12, 0.18, 0.25, 0.20, 0.08, 0.02)  # of bins 1 and above
E_MAX: Final = 100.0

LONG: Final = 256  # from this position on a context is long
TEMPERATURES: Final = (0, 700_000, 1_000_000, 1_500_000)  # millionths
LEAST_TOKENS: Final = 500  # of each stratum: fewer bound nothing

FORMAT: Final = "idlemesh calibration 1"
COMPARED: Final = ("build", "backend", "kv", "sampler")  # what tells one engine's fingerprint from another's
MAX_BYTES: Final = 1_048_576
MAX_PAIRS: Final = 64
# Where more of the honest tokens than this share are off by more than so many logits, models differ.
GROSS_MARGIN: Final = 0.8
GROSS_SHARE: Final = 0.05


class NotMargins(ValueError):
    """A margin is negative or no number, so it says nothing about honesty."""

    def __init__(self, index: int, margin: float) -> None:
        super().__init__(f"margin {index} is {margin}: pass what verify.replay.margins returned")
        self.index = index
        self.margin = margin


class BadCalibration(ValueError):
    """Bytes that are no calibration, or one that contradicts itself."""

    def __init__(self, why: str) -> None:
        super().__init__(f"not a calibration: {why}; delete the file and make it again with `idlemesh calibrate`")
        self.why = why


def bins_of(margins: Reals) -> NDArray[np.intp]:
    """The bin of each margin (N,), in logits. Raises NotMargins."""
    wrong = np.flatnonzero(~(np.isfinite(margins) & (margins >= 0)))
    if wrong.size:
        raise NotMargins(int(wrong[0]), float(margins[wrong[0]]))
    return np.searchsorted((*EDGES, np.nextafter(MASKED, 0)), margins, side="left")


@frozen(order=True)
class Stratum:
    """One kind of honest work."""

    temperature: int  # millionths
    cutoffs: bool  # top-k, top-p or min-p
    long: bool  # a context of LONG tokens or more

    @classmethod
    def of(cls, sampling: Sampling, long: bool) -> "Stratum":
        """Where a token belongs; at temperature 0 nothing is cut."""
        cut = bool(sampling.top_k or sampling.min_p or sampling.top_p < MILLION) and sampling.temperature > 0
        return cls(sampling.temperature, cut, long)


STRATA: Final = tuple(
    Stratum(temperature, cutoffs, long)
    for temperature in TEMPERATURES
    for cutoffs in ((False, True) if temperature else (False,))
    for long in (False, True)
)


def _counts(_: object, __: object, counts: Mapping[Stratum, tuple[int, ...]]) -> None:
    for one in counts.values():
        if len(one) != BINS or not all(type(n) is int and 0 <= n <= MAX_AMOUNT for n in one) or sum(one) > MAX_AMOUNT:
            raise BadCalibration(f"a stratum needs {BINS} counts that are whole numbers")


@frozen
class Calibration:
    """Honest tokens of one model between two engines: how many fell into each bin, (BINS,), in each stratum."""

    seller: Fingerprint
    checker: Fingerprint
    model: bytes
    counts: Mapping[Stratum, tuple[int, ...]] = field(factory=dict, validator=_counts)

    @property
    def tokens(self) -> int:
        """How many tokens were counted."""
        return sum(map(sum, self.counts.values()))

    def joined(self, other: "Calibration") -> "Calibration":
        """With the counts of another calibration of the same model and pair."""
        nothing = (0,) * BINS
        counts = {
            stratum: tuple(map(add, self.counts.get(stratum, nothing), other.counts.get(stratum, nothing)))
            for stratum in {**self.counts, **other.counts}
        }
        return evolve(self, counts=counts)

    def covers(self, sampling: Sampling) -> bool:
        """Whether every stratum that an order of this sampling is judged by has enough tokens to bound something.

        One of temperature 0 alone covers orders of temperature 0, and no others.
        """
        warmest = TEMPERATURES[self._class(sampling)]
        judged = [stratum for stratum in STRATA if stratum.temperature <= warmest]
        return sampling.temperature <= warmest and all(
            sum(self.counts.get(stratum, ())) >= LEAST_TOKENS for stratum in judged
        )

    def tells(self, sampling: Sampling) -> bool:
        """Whether honest work of this sampling is near enough to what the checker computes to be told from other work.

        It is not where seller and checker do not run one model at all.
        """
        return bool(self.bounds(sampling)[EDGES.index(GROSS_MARGIN) + 1] <= GROSS_SHARE)

    def add(self, stratum: Stratum, margins: Reals) -> "Calibration":
        """With the margins (N,) of more honest tokens of one stratum. Raises NotMargins."""
        more = np.bincount(bins_of(margins), minlength=BINS).tolist()
        return self.joined(evolve(self, counts={stratum: tuple(more)}))

    def bounds(self, sampling: Sampling) -> Reals:
        """U (BINS,) for orders of this sampling: 1, then for each bin above 0 the bound on the chance of a token in it
        or a later one.
        """
        return self._bounds[self._class(sampling)]

    def odds(self, sampling: Sampling) -> "Odds":
        """What a token in each bin weighs, in orders of this sampling."""
        return self._odds[self._class(sampling)]

    def _class(self, sampling: Sampling) -> int:
        return min(bisect_left(TEMPERATURES, sampling.temperature), len(TEMPERATURES) - 1)

    @cached_property
    def _bounds(self) -> list[Reals]:
        found: list[Reals] = []
        for temperature in TEMPERATURES:
            tails = [np.cumsum(counts[::-1])[::-1] for counts in self._groups(temperature)]
            delta = (1 - CONFIDENCE) / (max(len(tails), 1) * (BINS - 1))
            above = [max((_bound(tail, j, delta) for tail in tails), default=1.0) for j in range(1, BINS)]
            found.append(np.array([1.0, *above]))
        return found

    @cached_property
    def _odds(self) -> "list[Odds]":
        return [
            Odds(np.log(np.stack([_odds(-np.diff(bounds, append=0.0), share) for share in BETS])))
            for bounds in self._bounds
        ]

    def _groups(self, temperature: int) -> list[NDArray[np.int64]]:
        """The counts up to a temperature: of each kind of sampling at any length, of each length at any sampling."""
        groups: dict[object, NDArray[np.int64]] = {}
        for stratum, counts in self.counts.items():
            if stratum.temperature <= temperature and any(counts):
                for group in ((stratum.temperature, stratum.cutoffs), stratum.long):
                    groups[group] = groups.get(group, np.zeros(BINS, np.int64)) + np.array(counts, np.int64)
        return list(groups.values())


@frozen(eq=False)
class Odds:
    """ln e, (bets, BINS), growing with the bin: what `verify.evidence.observe` weighs tokens by."""

    log_e: Reals


def _odds(u: Reals, share: float) -> Reals:
    if u[-1] >= 1:  # nothing is known: nothing can be held against anyone
        return np.full(BINS, 1 - share)
    q = (1 - share) * u + share * np.array([0.0, *PROFILE])
    return np.minimum(_growing(q, u), E_MAX)


def _growing(q: Reals, u: Reals) -> Reals:
    """q / u, with neighbours taken together where it would fall or u is 0 (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for one, weight in zip(q, u, strict=True):
        block = (float(one), float(weight), 1)
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    return np.concatenate([np.full(size, value / weight) for value, weight, size in blocks])


def _bound(tail: NDArray[np.int64], j: int, delta: float) -> float:
    return upper_bound(int(tail[j]), int(tail[0]), delta)


@cache
def upper_bound(hits: int, trials: int, delta: float) -> float:
    """The largest chance p at which `hits` or fewer of `trials` come with at least `delta` (Clopper, Pearson 1934)."""
    if hits >= trials:
        return 1.0

    def below(p: float) -> bool:
        # P(at most `hits`) is 1 - I_p(hits + 1, trials - hits).
        return 1 - incomplete_beta(hits + 1, trials - hits, p) >= delta

    low, width = hits / trials, 1 / trials
    while below(min(low + width, 1.0)):
        low, width = low + width, 2 * width
    high = min(low + width, 1.0)
    while high - low > 1e-8 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), a and b above 0, by its continued fraction (Lentz)."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, its mirror image does not
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 100_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) * fraction / a


def encode(calibrations: Iterable[Calibration]) -> bytes:
    """The calibrations of one model as a file's bytes: JSON, the same for the same counts."""
    ordered = sorted(calibrations, key=lambda one: (repr(one.seller), repr(one.checker)))
    body = {
        "format": FORMAT,
        "model": ordered[0].model.hex() if ordered else "",
        "edges": list(EDGES),
        "pairs": [
            {
                "seller": engine_words(one.seller),
                "checker": engine_words(one.checker),
                "strata": [
                    {
                        "temperature": stratum.temperature,
                        "cutoffs": stratum.cutoffs,
                        "long": stratum.long,
                        "counts": list(one.counts[stratum]),
                    }
                    for stratum in sorted(one.counts)
                ],
            }
            for one in ordered
        ],
    }
    return json.dumps(body, indent=1).encode() + b"\n"


def decode(raw: bytes) -> tuple[Calibration, ...]:
    """Read what `encode` wrote. Raises BadCalibration."""
    if len(raw) > MAX_BYTES:
        raise BadCalibration(f"it has more than {MAX_BYTES} bytes")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadCalibration(f"it is no JSON ({type(error).__name__})") from None
    _, model, edges, pairs = _fields(body, "format", "model", "edges", "pairs")
    if body["format"] != FORMAT or edges != list(EDGES):
        raise BadCalibration("another version wrote it, with other bins")
    if not isinstance(pairs, list) or len(pairs) > MAX_PAIRS:
        raise BadCalibration(f"`pairs` must be a list of at most {MAX_PAIRS}")
    found = [_pair(pair, _hexadecimal(model)) for pair in pairs]
    if len({(one.seller, one.checker) for one in found}) != len(found):
        raise BadCalibration("a pair stands in it twice")
    return tuple(found)


def _pair(pair: object, model: bytes) -> Calibration:
    seller, checker, strata = _fields(pair, "seller", "checker", "strata")
    if not isinstance(strata, list) or len(strata) > len(STRATA):
        raise BadCalibration(f"`strata` must be a list of at most {len(STRATA)}")
    counts: dict[Stratum, tuple[int, ...]] = {}
    for one in strata:
        temperature, cutoffs, long, numbers = _fields(one, "temperature", "cutoffs", "long", "counts")
        if not (type(temperature) is int and type(cutoffs) is type(long) is bool and isinstance(numbers, list)):
            raise BadCalibration("a stratum's fields are of other types")
        stratum = Stratum(temperature, cutoffs, long)
        if stratum not in STRATA or stratum in counts:
            raise BadCalibration("a stratum is unknown, or stands in it twice")
        counts[stratum] = tuple(numbers)
    return Calibration(_fingerprint(seller), _fingerprint(checker), model, counts)


def _fields(body: object, *names: str) -> Sequence[Any]:
    if not isinstance(body, dict) or set(body) != set(names):
        raise BadCalibration(f"an object must have the fields {', '.join(names)}")
    return [body[name] for name in names]


def _fingerprint(body: object) -> Fingerprint:
    words = _fields(body, *COMPARED)
    if not all(isinstance(word, str) for word in words):
        raise BadCalibration("an engine's fields must be text")
    try:
        return Fingerprint(*words)
    except ValueError as error:
        raise BadCalibration(f"an engine's {error}") from None


def engine_words(fingerprint: Fingerprint) -> dict[str, str]:
    """What tells an engine from others, by name, as files hold it."""
    return {name: getattr(fingerprint, name) for name in COMPARED}


def _hexadecimal(text: object) -> bytes:
    try:
        digest = bytes.fromhex(text if isinstance(text, str) else "")
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise BadCalibration("`model` must be a manifest's digest, 64 hexadecimal digits")
    return digest
