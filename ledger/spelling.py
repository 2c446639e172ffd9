"""How the parts of a journal's entries are spelled: deterministic CBOR, put together instead of encoded from maps.

What a journal holds has one spelling, so each event of a known kind is the same bytes around its values. `Spelled` is
such a value, with what it may be in the bytes of another event of its kind.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, get_args

from attrs import fields, frozen

from ledger import codec
from ledger.account import AccountKey
from ledger.changes import ORDER_DIGEST_BYTES, Change
from ledger.money import MAX_AMOUNT

_REMEMBERED: Final = 4_096
# What is before the bytes of a digest.
DIGEST_HEAD: Final = bytes([0x58, ORDER_DIGEST_BYTES])
# By the bytes of an argument (RFC 8949, 3): the least that is not spelled shorter, and how `struct` reads it.
_ARGUMENTS: Final = {0: (0, "B"), 1: (24, "B"), 2: (2**8, "H"), 4: (2**16, "I"), 8: (2**32, "Q")}


@frozen
class Spelled:
    """A value between the bytes of its event: how `struct` reads it, and of a number what it may be."""

    format: str
    least: int | None = None
    most: int = 0

    @classmethod
    def like(cls, spelled: bytes) -> "Spelled":
        """Bytes that are read elsewhere: as many as these."""
        return cls(f"{len(spelled)}s")


# What stays, or stands for a value.
Piece = bytes | Spelled
DIGEST: Final = Spelled(f"{ORDER_DIGEST_BYTES}s")


def spell_head(major: int, argument: int) -> bytes:
    """The head of a value (RFC 8949, 3), its argument in the shortest form."""
    first = major << 5
    if argument < 24:
        return bytes([first + argument])
    if argument < 256:
        return bytes([first + 24, argument])
    if argument < 65_536:
        return bytes([first + 25]) + argument.to_bytes(2, "big")
    if argument < 2**32:
        return bytes([first + 26]) + argument.to_bytes(4, "big")
    return bytes([first + 27]) + argument.to_bytes(8, "big")


def pieces_of_number(number: int, most: int) -> tuple[bytes, Spelled]:
    """A number that is not below 0, as one of its width: at most `most`."""
    head = spell_head(0, number)
    size = len(head) - 1
    least, letter = _ARGUMENTS[size]
    # What is below 24 is its own head.
    return (head[:1], Spelled(letter, least, min(most, 256**size - 1))) if size else (b"", Spelled(letter, least, 23))


def spell_text(text: str) -> bytes:
    """A text. Raises UnicodeEncodeError."""
    raw = text.encode()
    return spell_head(3, len(raw)) + raw


@lru_cache(_REMEMBERED)
def spell_account_key(key: AccountKey) -> bytes:
    """The parts of an account's key, as an array."""
    return codec.encode([key.payer, key.payee, key.rail, key.unit])


def _key_order(name: str) -> tuple[int, str]:
    return len(name), name


def _around(kind: type[Change]) -> tuple[tuple[tuple[bytes, str], ...], bytes]:
    """What is spelled before each value of a change, with the field that the value is of; and what after the last."""
    of_type = {attribute.name: attribute.type for attribute in fields(kind)}
    pieces: list[tuple[bytes, str]] = []
    before = bytes([0xA0 + len(of_type) + 1])
    for name in sorted(["change", *of_type], key=_key_order):
        before += codec.encode(name)
        if name == "change":
            before += codec.encode(kind.__name__)
        else:
            pieces.append((before + (DIGEST_HEAD if of_type[name] is bytes else b""), name))
            before = b""
    return tuple(pieces), before


# Every kind of change has numbers and digests alone.
_AROUND: Final = {kind: _around(kind) for kind in get_args(Change)}
# The places of each kind's fields, in their own order, among its values as they are spelled.
PLACES: Final = {
    kind: tuple([name for _, name in pieces].index(field.name) for field in fields(kind))
    for kind, (pieces, _) in _AROUND.items()
}


def spell_change(change: Change) -> bytes:
    """A change in its one spelling."""
    pieces, after = _AROUND[type(change)]
    spelled = b""
    for before, name in pieces:
        value: Any = getattr(change, name)
        spelled += before + (value if type(value) is bytes else spell_head(0, value))
    return spelled + after


def pieces_of_change(change: Change) -> Iterator[Piece]:
    """The same, its values left open."""
    pieces, after = _AROUND[type(change)]
    for before, name in pieces:
        yield before
        value: Any = getattr(change, name)
        if type(value) is bytes:
            yield DIGEST
        else:
            yield from pieces_of_number(value, MAX_AMOUNT)
    yield after


def values_in(pieces: Iterable[Piece]) -> int:
    """How many of these stand for values."""
    return sum(isinstance(piece, Spelled) for piece in pieces)
