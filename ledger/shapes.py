"""Payloads of a shape that was seen before are taken apart at once, at a speed at which years can be replayed.

Theory of operation. A journal is made of few kinds of entries in deterministic CBOR, so two of one kind differ in their
values alone: digests, numbers, accounts. A shape is the bytes that stay, and where the values lie between them. It is
learned from a payload that was decoded with care. Another payload is of that shape if it is as long, has the same bytes
around its values, and each value is one that these bytes may stand around; then it says the same with other values, and
need not be decoded. What is of no shape known is decoded with care, so nothing is accepted here that would be refused
there.
"""

from collections.abc import Iterable
from struct import Struct
from typing import Any, Final, Generic, TypeVar

from ledger.spelling import Piece, Spelled

# A journal has some hundred lengths, with few shapes each; what texts make of more is forgotten again. All of one
# length are tried, so that entries with ever other texts in them must not add to them.
_LENGTHS: Final = 512
_ALIKE: Final = 16
# In bytes. Entries that are longer are rare.
LONGEST: Final = 4_096

P = TypeVar("P")


class _Shape(Generic[P]):
    """The bytes of a payload that stay, and where its values lie."""

    __slots__ = ("_around", "_numbers", "_take_apart", "plan", "size")

    def __init__(self, pieces: Iterable[Piece], plan: P) -> None:
        self.plan = plan
        around, formats = [b""], list[str]()
        numbers: list[tuple[int, int, int]] = []
        for piece in pieces:
            if isinstance(piece, Spelled):
                if piece.least is not None:
                    numbers.append((len(formats), piece.least, piece.most))
                formats.append(piece.format)
                around.append(b"")
            else:
                around[-1] += piece
        self._around, self._numbers = tuple(around), tuple(numbers)
        mixed = [f"{len(stays)}s{value}" for stays, value in zip(around, [*formats, ""], strict=True)]
        struct = Struct(">" + "".join(mixed))
        self.size, self._take_apart = struct.size, struct.unpack

    def read(self, payload: bytes) -> tuple[Any, ...] | None:
        """The values of a payload of this length; None where it is of another shape."""
        found = self._take_apart(payload)
        if found[::2] != self._around:
            return None
        values = found[1::2]
        for at, least, most in self._numbers:
            if not least <= values[at] <= most:
                return None
        return values


class Shapes(Generic[P]):
    """The shapes that were learned, each with a plan: what its values are. Several threads may read and learn."""

    def __init__(self) -> None:
        self._known: dict[int, list[_Shape[P]]] = {}

    def read(self, payload: bytes) -> tuple[P, tuple[Any, ...]] | None:
        """The plan of a payload's shape, and its values; None where its shape is not known."""
        for shape in self._known.get(len(payload), ()):
            values = shape.read(payload)
            if values is not None:
                return shape.plan, values
        return None

    def learn(self, pieces: Iterable[Piece], plan: P) -> None:
        """Know payloads of these pieces from now on."""
        shape = _Shape(pieces, plan)
        before = self._known.get(shape.size, [])
        if not before and len(self._known) >= _LENGTHS:
            self._known.clear()
        # A list of its own: whoever reads goes on with the one before.
        self._known[shape.size] = [*before, shape][-_ALIKE:]
