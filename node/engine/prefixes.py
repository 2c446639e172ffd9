"""Which sequences of the KV cache hold what, kept apart for each client: pure bookkeeping, no computation.

A sequence whose job has ended stays as a prefix that the same client's next job may begin with. No client ever gets
another's: neither its tokens nor, by the time to the first token, the news that somebody asked the same.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@frozen(eq=False)
class Prefix:
    """The ids that a sequence holds, from position 0 on, and whose they are."""

    sequence: int
    client: str = field(repr=False)
    ids: Ids = field(repr=False)

    @property
    def tokens(self) -> int:
        """How many ids it holds."""
        return int(self.ids.size)


def common(first: Ids, second: Ids) -> int:
    """How many ids two rows of ids have in common from the start."""
    size = min(first.size, second.size)
    differ = first[:size] != second[:size]
    where = int(differ.argmax()) if size else 0
    return where if size and differ[where] else size


def as_ids(ids: Sequence[int]) -> Ids:
    """The ids as an array."""
    return np.array(ids, np.int32)


class Prefixes:
    """The sequences kept for later, by last use."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, prefix: Prefix) -> list[int]:
        """Keep one more; the sequences of those that are no longer needed, for it begins with all they hold."""
        spare = [
            other.sequence
            for other in self._kept.values()
            if other.client == prefix.client and common(other.ids, prefix.ids) == other.tokens
        ]
        for sequence in spare:
            del self._kept[sequence]
        self._kept[prefix.sequence] = prefix
        return spare

    def longest(self, client: str, ids: Ids) -> tuple[Prefix, int] | None:
        """The client's own prefix with the most ids in common, and how many; the latest used of equals."""
        best: tuple[Prefix, int] | None = None
        for prefix in self._kept.values():
            if prefix.client == client:
                shared = common(prefix.ids, ids)
                if shared and (best is None or shared >= best[1]):
                    best = prefix, shared
        return best

    def touch(self, sequence: int) -> None:
        """Note that it was used."""
        self._kept.move_to_end(sequence)

    def take(self, sequence: int) -> Prefix:
        """Keep it no longer."""
        return self._kept.pop(sequence)

    def oldest(self, spared: int | None = None) -> int | None:
        """The sequence that was not used for the longest time, other than `spared`; None if there is none."""
        return next((sequence for sequence in self._kept if sequence != spared), None)
