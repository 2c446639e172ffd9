"""What others' weights say of an answer: scores of claimed tokens, and whether the scorers can be believed.

A scorer computes, for each claimed token, what the sampler would have chosen there (its id and its logit) and the
margin of the claimed one, as `verify.replay` defines it. One that has the weights cannot be told from an honest one,
and needs not be; one that answers without them, or for a friend, is found out by what it cannot know:

- **The bait.** Some tokens at the end of the answer are replaced by random ones, at places that only the checker
  knows. A random token is the sampler's choice once in a vocabulary; who says so of several has not looked. What
  stands before the first bait is the answer as it was, and that part alone is evidence.
- **The other one.** Two scorers must agree, bait and all, before their word counts; where they do not, a third
  decides, and the odd one out gets a mark.
- **Known answers.** What scorers agreed on before is asked of another one, with other bait, so that it looks like any
  other answer.

Honest scorers differ by rounding. On the demo model (8-bit weights, f16 against q8_0 KV cache, answers of 120 tokens)
one says 0 and the other over 0.1 at about one token in 1,500; where neither says 0 they are 0.06 logits apart in the
median, and 0.5 at most; they name another best id at one token in 200; and behind bait, in contexts that no model would
write, margins differ by 0.2 to 0.9 at one token in 50. So two agree if, of the N tokens before the bait,
N/500 at most are 0 to the one and over 0.1 to the other; 1 + N/100 are further apart than 0.2 (and 10% of the larger),
none further than 0.5 (and 20%); behind it, 1 and a fifth may be; and all over, their best ids differ in 1 and 5% of the
tokens, and the logits of best ids that both name by over 0.25 (and 2%) in as many. Who is outside at a quarter of the
tokens has not computed them from these weights at all.

What a friend of the seller may take from margins within these bounds, it takes from the evidence: the least margin
counts, for the opposite would let a liar condemn the honest. That is why scorers are drawn at random.
"""

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import Final, Literal

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from ledger.records import Sampling, Score
from verify.cutoffs import MILLION
from verify.noise import Ids, Reals
from verify.replay import MASKED, margins
from verify.sampler import sample

# Shorter answers leave no room for bait.
LEAST_TOKENS: Final = 8
ENTROPY_BYTES: Final = 16
# The bait lies in the last quarter of an answer, in its last four tokens at least.
_TAIL: Final = 4
_LEAST_BAIT, _MOST_BAIT, _TOKENS_PER_BAIT = 2, 16, 64

ODD_LOGITS: Final = 0.1
NEAR_LOGITS, NEAR_SHARE = 0.2, 0.1
FAR_LOGITS, FAR_SHARE = 0.5, 0.2
VALUE_LOGITS, VALUE_SHARE = 0.25, 0.02
_TOKENS_PER_FLIP, _TOKENS_PER_APART, _TOKENS_PER_STRANGE, _TOKENS_PER_OTHER_BEST = 500, 100, 5, 20
_GROSS: Final = 0.25

# A scorer that others contradict so often, and more often than they agree with it, is not asked again.
_OUTVOTED: Final = 3

_INT32: Final = np.iinfo(np.int32)
_UINT32: Final = np.iinfo(np.uint32)

Word = Literal["agreed", "outvoted", "caught"]


class TooShort(ValueError):
    """An answer with too few tokens to hide bait in."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"{tokens} tokens are too few for others to check: {LEAST_TOKENS} are needed")
        self.tokens = tokens


class BadScore(ValueError):
    """A Score that contradicts itself, or does not fit what was to be scored."""


@frozen(eq=False)
class Opinion:
    """What one scorer says of N claimed tokens; three arrays (N,). `values` and `margins` in logits."""

    best: Ids  # what the sampler would have chosen
    values: Reals  # its logit after steering
    margins: Reals  # of the claimed token: zero exactly if it is the best

    @property
    def tokens(self) -> int:
        """How many tokens it is about."""
        return int(self.best.size)

    def first(self, tokens: int) -> "Opinion":
        """What it says of the first tokens alone."""
        return Opinion(self.best[:tokens], self.values[:tokens], self.margins[:tokens])


def opinion_of(
    logits: NDArray[np.float32], claimed: Ids, sampling: Sampling, seed: int, first_position: int
) -> Opinion:
    """Score claimed tokens (N,) against steered logits (N, V); raises what `verify.replay.margins` does."""
    found = margins(logits, claimed, sampling, seed, first_position)
    best = np.array([sample(row, sampling, seed, first_position + j) for j, row in enumerate(logits)], np.int64)
    return Opinion(best, logits[np.arange(best.size), best].astype(np.float64), found)


def join(opinions: Sequence[Opinion]) -> Opinion:
    """The opinions on consecutive blocks of tokens, as one."""
    return Opinion(
        np.concatenate([one.best for one in opinions]),
        np.concatenate([one.values for one in opinions]),
        np.concatenate([one.margins for one in opinions]),
    )


def pack(opinion: Opinion) -> tuple[bytes, bytes, bytes]:
    """Best ids, values and margins as a Score holds them.

    Margins are rounded up, so that only a true zero is a zero; what is too large for 4 bytes becomes the largest
    number that they hold.
    """
    values = np.clip(np.rint(opinion.values * MILLION), _INT32.min, _INT32.max)
    distances = np.clip(np.ceil(opinion.margins * MILLION), 0, _UINT32.max)
    return (
        opinion.best.astype("<u4").tobytes(),
        values.astype("<i4").tobytes(),
        distances.astype("<u4").tobytes(),
    )


def unpack(score: Score, claimed: Sequence[int]) -> Opinion:
    """Read a Score of these tokens. Raises BadScore."""
    if score.tokens != len(claimed):
        raise BadScore(f"the score is about {score.tokens} tokens, and {len(claimed)} were to be scored")
    best = np.frombuffer(score.best, "<u4").astype(np.int64)
    packed = np.frombuffer(score.margins, "<u4")
    found = np.where(packed == _UINT32.max, MASKED, packed / MILLION)
    if ((best == np.asarray(claimed, np.int64)) != (found == 0)).any():
        raise BadScore("the score contradicts itself: a margin is zero exactly where the claimed token is the best")
    return Opinion(best, np.frombuffer(score.values, "<i4").astype(np.float64) / MILLION, found)


@frozen
class Baited:
    """An answer with bait in it."""

    claimed: tuple[int, ...] = field(repr=False)
    places: tuple[int, ...] = field(repr=False)  # where tokens were replaced, ascending

    @property
    def genuine(self) -> int:
        """How many of the first tokens are the answer's own, in their own context."""
        return self.places[0]


def bait(answer: Sequence[int], vocabulary: int, never: AbstractSet[int], entropy: bytes) -> Baited:
    """Replace some of the answer's last tokens by random ones, by 16 bytes of entropy that nobody else knows.

    `never` are ids that would stand out, as those that end an answer. Raises TooShort.
    """
    tokens = len(answer)
    if tokens < LEAST_TOKENS:
        raise TooShort(tokens)
    if len(entropy) < ENTROPY_BYTES:
        raise ValueError(f"{len(entropy)} bytes of entropy: draw {ENTROPY_BYTES} after the delivery")
    dice = _Dice(entropy)
    tail = max(_TAIL, tokens // 4)
    count = min(max(_LEAST_BAIT, tokens // _TOKENS_PER_BAIT), _MOST_BAIT, tail)
    # What stands behind the first one is no evidence: it may be anywhere, or a seller could cheat near the end.
    first = tokens - tail + dice.below(tail - count + 1)
    behind = list(range(first + 1, tokens))
    places = [first, *sorted(behind.pop(dice.below(len(behind))) for _ in range(count - 1))]
    claimed = list(answer)
    for place in places:
        claimed[place] = dice.other(vocabulary, never | {answer[place]})
    return Baited(tuple(claimed), tuple(places))


def took_bait(opinion: Opinion, baited: Baited) -> bool:
    """Whether a scorer calls most of the bait, and two of it at least, what the weights would have chosen."""
    taken = int((opinion.margins[list(baited.places)] == 0).sum())
    return taken >= max(_LEAST_BAIT, math.ceil(len(baited.places) / 2))


@frozen
class Comparison:
    """How far two opinions on the same tokens are apart, in tokens. The first `genuine` ones are before all bait."""

    tokens: int
    genuine: int
    flips: int  # of the genuine ones: what the one would have chosen too, and the other by no means
    apart: int  # of the genuine ones: margins further apart than rounding makes them, as a rule
    far: int  # of the genuine ones: margins further apart than rounding ever makes them
    strange: int  # of the others: such margins
    other_best: int
    other_value: int  # of the same best id

    @property
    def agree(self) -> bool:
        """Whether both can be honest."""
        few = 1 + self.tokens // _TOKENS_PER_OTHER_BEST
        return (
            self.flips <= self.genuine // _TOKENS_PER_FLIP
            and self.apart <= 1 + self.genuine // _TOKENS_PER_APART
            and not self.far
            and self.strange <= 1 + (self.tokens - self.genuine) // _TOKENS_PER_STRANGE
            and self.other_best <= few
            and self.other_value <= few
        )

    @property
    def gross(self) -> bool:
        """Whether one of them cannot have computed it from these weights."""
        bar = max(_GROSS * self.tokens, 2)
        return self.far + self.strange > bar or self.other_best + self.other_value > bar


def compare(one: Opinion, other: Opinion, genuine: int) -> Comparison:
    """Compare two opinions on the same tokens, of which the first `genuine` are before all bait."""
    apart = np.abs(one.margins - other.margins)
    larger = np.maximum(one.margins, other.margins)
    both = np.minimum(one.margins, other.margins) > 0
    far = apart > FAR_LOGITS + FAR_SHARE * larger
    same = one.best == other.best
    value_apart = np.abs(one.values - other.values)
    value_larger = np.maximum(np.abs(one.values), np.abs(other.values))
    return Comparison(
        tokens=one.tokens,
        genuine=genuine,
        flips=int((~both & (larger > ODD_LOGITS))[:genuine].sum()),
        apart=int((both & (apart > NEAR_LOGITS + NEAR_SHARE * larger))[:genuine].sum()),
        far=int(far[:genuine].sum()),
        strange=int(far[genuine:].sum()),
        other_best=int((~same).sum()),
        other_value=int((same & (value_apart > VALUE_LOGITS + VALUE_SHARE * value_larger)).sum()),
    )


def compare_to_known(known: Opinion, got: Opinion, baited: Baited, genuine: int) -> Comparison:
    """Compare an opinion on a baited answer with what is known of the same answer with older bait in it.

    At the first bait, old or new, the context is still that of both, so the best id there is known, too: with an honest
    seller it is the token that the bait replaced. The margin is not, for it is the bait's. `genuine`: how many of the
    known answer's first tokens are before the older bait.
    """
    common = min(baited.genuine, genuine)
    expected, said = known.first(common + 1), got.first(common + 1)
    return compare(_but_the_last_margin(expected), _but_the_last_margin(said), common)


def _but_the_last_margin(opinion: Opinion) -> Opinion:
    return evolve(opinion, margins=np.append(opinion.margins[:-1], 0.0))


@frozen
class Majority:
    """Who agrees, and who does not, as places in the list of opinions."""

    agreed: tuple[int, ...]
    odd: tuple[int, ...]


def majority(opinions: Sequence[Opinion], genuine: int) -> Majority | None:
    """More than half of the opinions, two at least, that agree with one of them; None if there are none such."""
    groups = [
        tuple(j for j, other in enumerate(opinions) if i == j or compare(one, other, genuine).agree)
        for i, one in enumerate(opinions)
    ]
    largest = max(groups, key=len, default=())
    if len(largest) < 2 or 2 * len(largest) <= len(opinions):
        return None
    return Majority(largest, tuple(j for j in range(len(opinions)) if j not in largest))


def agreed_margins(opinions: Sequence[Opinion]) -> Reals:
    """The margins that count: of each token the least, so that no single scorer can make a seller look worse."""
    least: Reals = np.minimum.reduce([one.margins for one in opinions])
    return least


@frozen
class Credibility:
    """What a scorer's word is worth to us. A value: fold with `heard`."""

    agreed: int = 0
    outvoted: int = 0
    caught: bool = False

    @property
    def lost(self) -> bool:
        """Whether its word counts no more."""
        return self.caught or (self.outvoted >= _OUTVOTED and self.outvoted > self.agreed)


def heard(credibility: Credibility, word: Word) -> Credibility:
    """The credibility after one more score."""
    match word:
        case "agreed":
            return evolve(credibility, agreed=credibility.agreed + 1)
        case "outvoted":
            return evolve(credibility, outvoted=credibility.outvoted + 1)
        case "caught":
            return evolve(credibility, caught=True)


class _Dice:
    """Numbers from entropy, as many as are needed."""

    def __init__(self, entropy: bytes) -> None:
        self._entropy = entropy
        self._thrown = 0

    def below(self, sides: int) -> int:
        """A number from 0 to `sides` - 1; 16 bytes make the bias too small to matter."""
        self._thrown += 1
        drawn = blake2b(self._entropy + self._thrown.to_bytes(8, "little"), digest_size=16).digest()
        return int.from_bytes(drawn, "big") % sides

    def other(self, sides: int, never: AbstractSet[int]) -> int:
        """Such a number that is none of these."""
        excluded = sorted(number for number in never if 0 <= number < sides)
        drawn = self.below(sides - len(excluded))
        for number in excluded:
            drawn += drawn >= number
        return drawn


def shuffled(items: Iterable[int], entropy: bytes) -> list[int]:
    """The items in an order that the entropy decides."""
    dice, left = _Dice(entropy), list(items)
    return [left.pop(dice.below(len(left))) for _ in range(len(left))]
