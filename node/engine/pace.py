"""How much of the prompts goes into a step: pure arithmetic over what steps have taken so far.

While streams run, a prompt is computed in chunks beside their tokens, so large that a step takes about `GAP` times as
long as one without: what a stream's reader sees of a long prompt is a slower stream, never a stop. On a CPU the chunks
are a few tokens; on a GPU they are hundreds. They are not fewer than the streams either, since the weights are read
once more for each chunk and less would not be worth that, unless a step then takes more than `MOST_GAP` times as long:
a token far into a long prompt takes twice what one of a short one does.
"""

import math
from typing import Final

GAP: Final = 1.6
MOST_GAP: Final = 2.0
LEAST: Final = 4  # tokens of a chunk, beside however few streams
_FIRST: Final = 8  # before any chunk was seen
_WEIGHT: Final = 0.2  # of the last step in the means
_OUTLIER: Final = 4.0  # times the mean: as much as one step can say


class Pace:
    """Learns what steps and chunks take. Durations in seconds."""

    def __init__(self) -> None:
        self._steps: dict[int, float] = {}  # of so many streams without a chunk
        self._token: float | None = None  # of a chunk

    def chunk(self, streams: int, most: int) -> int:
        """How many tokens of prompts may go along with so many streams, `most` at most."""
        step = self._step(streams)
        if streams == 0:
            return most
        if step is None or self._token is None:
            return min(_FIRST, most)
        tokens = step / self._token  # that take as long as a step
        bearable = min(streams, math.floor((MOST_GAP - 1) * tokens))
        return min(most, max(LEAST, bearable, math.ceil((GAP - 1) * tokens)))

    def note(self, streams: int, chunk: int, seconds: float) -> None:
        """A batch of so many streams with so many tokens of prompts took that long."""
        if streams and not chunk:
            self._steps[streams] = _mean(self._steps.get(streams), seconds)
        # A chunk computed in a batch of its own says by itself what it takes, however fast the machine is just then.
        step = self._step(streams) if streams else 0.0
        if chunk >= LEAST and step is not None:
            least = seconds / (chunk + streams) / _OUTLIER  # a noisy step may seem shorter than one without a chunk
            self._token = _mean(self._token, max(least, (seconds - step) / chunk))

    def _step(self, streams: int) -> float | None:
        """What a step of so many streams takes, or the next number of streams that is known."""
        if not self._steps:
            return None
        return self._steps[min(self._steps, key=lambda known: abs(known - streams))]


def _mean(before: float | None, now: float) -> float:
    if before is None:
        return now
    return before + _WEIGHT * (min(max(now, before / _OUTLIER), before * _OUTLIER) - before)
