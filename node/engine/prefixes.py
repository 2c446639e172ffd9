"""What was computed before and may be computed upon again, kept apart for each client: pure bookkeeping.

When a job ends, what the KV cache holds of it is taken out and kept as a prefix that the same client's next job may
begin with. No client ever gets another's: neither its tokens nor, by the time to the first token, the news that
somebody asked the same. Kept outside of the cache, prefixes neither take a running stream's place nor slow it down.
"""

from collections.abc import Sequence

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from node.models.weights import State

Ids = NDArray[np.int32]


@frozen(eq=False)
class Prefix:
    """Ids from position 0 on, what the cache held of them, and whose they are."""

    client: str = field(repr=False)
    ids: Ids = field(repr=False)
    state: State = field(repr=False)

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
    """The prefixes kept for later, of at most `most` tokens together: those not used for longest go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[Prefix] = []  # the latest used last

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def tokens(self) -> int:
        """How many are kept in all."""
        return sum(prefix.tokens for prefix in self._kept)

    def keep(self, prefix: Prefix) -> None:
        """Keep one more; those that it begins with are no longer needed."""
        self._kept = [
            other
            for other in self._kept
            if other.client != prefix.client or common(other.ids, prefix.ids) < other.tokens
        ]
        self._kept.append(prefix)
        while self.tokens > self._most:
            del self._kept[0]

    def longest(self, client: str, ids: Ids) -> tuple[Prefix, int] | None:
        """The client's own prefix with the most ids in common, and how many; the latest used of equals."""
        best: tuple[Prefix, int] | None = None
        for prefix in self._kept:
            if prefix.client == client:
                shared = common(prefix.ids, ids)
                if shared and (best is None or shared >= best[1]):
                    best = prefix, shared
        return best

    def touch(self, prefix: Prefix) -> None:
        """Note that it was used."""
        self._kept.remove(prefix)
        self._kept.append(prefix)

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
