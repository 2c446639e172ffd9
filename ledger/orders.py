"""The orders of an account: a map that is never changed, and of which a changed copy costs little.

Theory of operation. An account moves with every change, and the one before it must stay as it was; copying all of its
orders each time makes a busy account slow. So they lie in a hash trie, of which a changed copy shares all but a few
nodes. What open orders may still earn, and what of it is drawn, is kept as sums.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import immutables


class Earning(Protocol):
    """What an order may still earn, in the account's unit."""

    @property
    def rest(self) -> int:
        """In all."""

    @property
    def ahead(self) -> int:
        """Before it draws again."""


V = TypeVar("V", bound=Earning)


class Orders(Mapping[bytes, V], Generic[V]):
    """An immutable map from an order's digest to its reservation, in the order of the digests."""

    __slots__ = ("_map", "ahead", "rest")

    def __init__(self, orders: Mapping[bytes, V] | Iterable[tuple[bytes, V]] = ()) -> None:
        known = dict(orders)
        self._map = immutables.Map(known)  # not changed after this
        self.rest = sum(value.rest for value in known.values())
        self.ahead = sum(value.ahead for value in known.values())

    def with_one(self, order: bytes, value: V) -> "Orders[V]":
        """The same with one order added, or put in the place of the one of its digest."""
        before = self._map.get(order)
        changed: Orders[V] = object.__new__(Orders)
        changed._map = self._map.set(order, value)
        if before is None:
            changed.rest = self.rest + value.rest
            changed.ahead = self.ahead + value.ahead
        else:
            changed.rest = self.rest + value.rest - before.rest
            changed.ahead = self.ahead + value.ahead - before.ahead
        return changed

    def find(self, order: bytes) -> V | None:
        """The value of an order, if it is there: `get`, but faster."""
        return self._map.get(order)

    def __getitem__(self, order: bytes) -> V:
        return self._map[order]

    def __contains__(self, order: object) -> bool:
        return isinstance(order, bytes) and order in self._map

    def __iter__(self) -> Iterator[bytes]:
        return iter(sorted(self._map))

    def __len__(self) -> int:
        return len(self._map)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Orders):
            return self._map == other._map
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(dict(self))


T = TypeVar("T")


def evolve(instance: T, **changes: Any) -> T:
    """A copy of a frozen value with some attributes changed: attrs' `evolve` for classes without slots, far faster.

    Nothing is checked or converted but that the attributes exist. Raises TypeError where one does not.
    """
    attributes = instance.__dict__ | changes
    if len(attributes) != len(instance.__dict__):
        raise TypeError(f"{type(instance).__name__} lacks one of {', '.join(changes)}")
    copy = object.__new__(type(instance))
    object.__setattr__(copy, "__dict__", attributes)
    return copy


def unchecked(kind: type[T], values: Mapping[str, Any]) -> T:
    """A frozen value of a class without slots, of all its attributes and nothing else, which are known to be right."""
    made = object.__new__(kind)
    made.__dict__.update(values)
    return made
