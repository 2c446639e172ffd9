"""Reading and spelling the parts of a journal's entries at a speed at which years can be replayed.

Theory of operation. What a journal holds is in deterministic CBOR, so each event of a known shape has one spelling: the
same bytes around its values. Here those bytes are looked for, instead of decoding everything into maps, looking at each
value and encoding it again to compare. A reader returns None at whatever is spelled otherwise, and the caller decodes
it the general way, which also says what is wrong with it. So nothing is accepted here that would be refused there, and
what a pattern has let through needs no second look when a change is made of it. In the same way a change is spelled by
putting its values between these bytes.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, get_args

from attrs import fields

from ledger import codec
from ledger.account import AccountKey
from ledger.changes import ORDER_DIGEST_BYTES, Change
from ledger.money import MAX_AMOUNT, UNITS
from ledger.orders import unchecked

# Parties, rails, kinds and names of facts come again and again, and are far shorter than this; longer ones are not
# looked for, so that what is remembered stays small.
MAX_WORDS_BYTES: Final = 1_024
_REMEMBERED: Final = 4_096

# Heads of an argument in its shortest form (RFC 8949, 4.2.1), for major type 0, up to MAX_AMOUNT.
_UNSIGNED: Final = rb"([\x00-\x17]|\x18[\x18-\xff]|\x19(?!\0).{2}|\x1a(?!\0\0).{4}|\x1b(?!\0{4})\0[\0-%c].{6})" % (
    MAX_AMOUNT >> 48
)
# What of so many bytes, read as one number, is the argument: all but the first three bits, or all but the head.
_ARGUMENT: Final = (0, 0x1F, 2**8 - 1, 2**16 - 1, 0, 2**32 - 1, 0, 0, 0, 2**64 - 1)
_ORDER: Final = rb"X\x20(.{%d})" % ORDER_DIGEST_BYTES

Scalar = int | str | bytes


def _key_order(name: str) -> tuple[int, str]:
    return len(name), name


def _spelled(text: str) -> bytes:
    return re.escape(codec.encode(text))


def _spelling(kinds: Sequence[type[Change]]) -> bytes:
    """A pattern for changes with the same fields in their one spelling, a group for each field and one for the kind."""
    patterns = {"change": b"(" + b"|".join(_spelled(kind.__name__) for kind in kinds) + b")"}
    for attribute in fields(kinds[0]):
        patterns[attribute.name] = {int: _UNSIGNED, bytes: _ORDER}[attribute.type]
    body = b"".join(_spelled(name) + patterns[name] for name in sorted(patterns, key=_key_order))
    return re.escape(bytes([0xA0 + len(patterns)])) + body


def _is_plain(kind: type[Change]) -> bool:
    return all(attribute.type in (int, bytes) for attribute in fields(kind))


class _Shape:
    """How to make a change of some kind from what the pattern of all with its fields found."""

    def __init__(self, kinds: Sequence[type[Change]], first_group: int) -> None:
        # The groups come in the order in which the fields are spelled.
        types = {"change": None} | {attribute.name: attribute.type for attribute in fields(kinds[0])}
        named = [(name, first_group + n) for n, name in enumerate(sorted(types, key=_key_order))]
        self.kinds = {codec.encode(kind.__name__): kind for kind in kinds}
        self.kind_group = dict(named)["change"]
        self.digests = [(name, group) for name, group in named if types[name] is bytes]
        self.numbers = [(name, group) for name, group in named if types[name] is int]


def _all_shapes() -> tuple[re.Pattern[bytes], dict[int, _Shape]]:
    """One pattern for every kind of change, and what to make of it by the number of the group that closes last."""
    alike: dict[frozenset[str], list[type[Change]]] = {}
    for kind in filter(_is_plain, get_args(Change)):
        alike.setdefault(frozenset(attribute.name for attribute in fields(kind)), []).append(kind)
    patterns, shapes, group = [], {}, 1
    for kinds in alike.values():
        patterns.append(b"(" + _spelling(kinds) + b")")
        shapes[group] = _Shape(kinds, group + 1)
        group += 2 + len(fields(kinds[0]))
    return re.compile(b"|".join(patterns), re.DOTALL), shapes


_CHANGES, _SHAPES = _all_shapes()


def _around(kind: type[Change]) -> tuple[tuple[bytes, str | None], ...]:
    """What is spelled before each value of a change, and which field the value is of; at the end, of none."""
    of_type = {attribute.name: attribute.type for attribute in fields(kind)}
    pieces: list[tuple[bytes, str | None]] = []
    before = bytes([0xA0 + len(of_type) + 1])
    for name in sorted(["change", *of_type], key=_key_order):
        before += codec.encode(name)
        if name == "change":
            before += codec.encode(kind.__name__)
        else:
            pieces.append((before + (_DIGEST_HEAD if of_type[name] is bytes else b""), name))
            before = b""
    return (*pieces, (before, None))


_DIGEST_HEAD: Final = bytes([0x58, ORDER_DIGEST_BYTES])
_AROUND: Final = {kind: _around(kind) for kind in get_args(Change) if _is_plain(kind)}


def spell_change(change: Change) -> bytes | None:
    """A change in its one spelling; None for one of a kind that has to be encoded the general way."""
    around = _AROUND.get(type(change))
    if around is None:
        return None
    spelled = b""
    for before, name in around:
        value: Any = getattr(change, name) if name else b""
        spelled += before + (value if type(value) is bytes else spell_head(0, value))
    return spelled


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


@lru_cache(_REMEMBERED)
def spell_account_key(key: AccountKey) -> bytes:
    """The parts of an account's key, as an array."""
    return codec.encode([key.payer, key.payee, key.rail, key.unit])


def spell_text(text: str) -> bytes:
    """A text. Raises UnicodeEncodeError."""
    raw = text.encode()
    return spell_head(3, len(raw)) + raw


def change(raw: bytes, at: int) -> tuple[Change, int] | None:
    """The change that is spelled at a place, and where it ends."""
    found = _CHANGES.match(raw, at)
    if found is None or found.lastindex is None:
        return None
    shape = _SHAPES[found.lastindex]
    values: dict[str, Any] = {}
    for name, group in shape.digests:
        values[name] = found[group]
    for name, group in shape.numbers:
        value = found[group]
        values[name] = int.from_bytes(value, "big") & _ARGUMENT[len(value)]
    return unchecked(shape.kinds[found[shape.kind_group]], values), found.end()


@lru_cache(_REMEMBERED)
def account_key(raw: bytes) -> AccountKey | None:
    """The account that these bytes, and no others, name."""
    match _decoded(raw):
        case [str(payer), str(payee), str(rail), str(unit)] if unit in UNITS:
            return AccountKey(payer, payee, rail, unit)
    return None


@lru_cache(_REMEMBERED)
def word(raw: bytes) -> str | None:
    """The text that these bytes, and no others, spell."""
    match _decoded(raw):
        case str(text):
            return text
    return None


def _decoded(raw: bytes) -> Any:
    try:
        return codec.decode(raw, MAX_WORDS_BYTES)
    except codec.Malformed:
        return None


def array(raw: bytes) -> tuple[int, int] | None:
    """How many items the array has that the bytes begin with, and where the first is."""
    return _argument(raw, 0) if raw[:1] and raw[0] >> 5 == 4 else None


def scalars(raw: bytes, at: int) -> tuple[Mapping[str, Scalar], int] | None:
    """The map of texts to numbers, texts and bytes that is spelled at a place, and where it ends."""
    head = _argument(raw, at) if raw[at] >> 5 == 5 else None
    if head is None:
        return None
    count, at = head
    found: dict[str, Scalar] = {}
    last = b""
    for _ in range(count):
        head = _argument(raw, at) if raw[at] >> 5 == 3 else None
        if head is None:
            return None
        end = head[0] + head[1]
        spelled = raw[at:end]
        name = word(spelled) if len(spelled) <= MAX_WORDS_BYTES else None
        value = _scalar(raw, end)
        # Keys in order: so none comes twice.
        in_order = len(spelled) > len(last) or (len(spelled) == len(last) and spelled > last)
        if name is None or value is None or not in_order:
            return None
        found[name], at = value
        last = spelled
    return found, at


def text(raw: bytes, at: int) -> tuple[str, int] | None:
    """The text that is spelled at a place, and where it ends. Raises UnicodeDecodeError."""
    head = _argument(raw, at) if raw[at] >> 5 == 3 else None
    return (str(raw[head[1] : head[1] + head[0]], "utf-8"), head[1] + head[0]) if head else None


def _scalar(raw: bytes, at: int) -> tuple[Scalar, int] | None:
    major = raw[at] >> 5
    head = _argument(raw, at)
    if head is None or major > 3:
        return None
    argument, at = head
    if major < 2:
        return -1 - argument if major else argument, at
    end = at + argument
    return str(raw[at:end], "utf-8") if major == 3 else raw[at:end], end


def _argument(raw: bytes, at: int) -> tuple[int, int] | None:
    """The argument of a head (RFC 8949, 3) in its shortest form, and where the head ends."""
    low = raw[at] & 0x1F
    if low < 24:
        return low, at + 1
    if low > 27:
        return None
    size = 1 << (low - 24)
    end = at + 1 + size
    argument = int.from_bytes(raw[at + 1 : end], "big")
    shortest = argument >= 24 if size == 1 else argument >> (4 * size)
    return (argument, end) if shortest else None
