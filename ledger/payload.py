"""An entry's payload: a list of events in deterministic CBOR.

Theory of operation. There are two ways to read one, which say the same: with care, by maps that are looked at value by
value, and by the shapes of those that were read before (`ledger.shapes`). Of each that is read with care its shape is
learned, with a plan: what its values are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, Final, NamedTuple

from attrs import fields_dict, frozen

from ledger import codec
from ledger.account import AccountKey
from ledger.changes import Change, InvalidChange
from ledger.effects import EffectPlanned, EffectTold
from ledger.event_maps import decode_event, encode_event
from ledger.events import AccountChanged, Event, Fact, InvalidEvents, Observed, PlainMove, RecordKept, account_of
from ledger.money import UNITS
from ledger.orders import unchecked
from ledger.shapes import LONGEST, Shapes
from ledger.spelling import (
    DIGEST,
    DIGEST_HEAD,
    PLACES,
    Piece,
    Spelled,
    pieces_of_change,
    pieces_of_number,
    spell_account_key,
    spell_change,
    spell_head,
    spell_text,
    values_in,
)

# Far above what one append holds; it bounds what a damaged row can make us decode.
MAX_PAYLOAD_BYTES: Final = 1_048_576
# Parties and accounts come again and again, and are far shorter than this; longer ones are not remembered.
_MAX_WORDS_BYTES: Final = 1_024
_REMEMBERED: Final = 4_096
_MAX_FACT: Final = 2**63 - 1

# What stands around the values of an event.
_ACCOUNT_1: Final = b"\xa3ckey"
_ACCOUNT_2: Final = b"eeventgaccountfchange"
_RECORD_1: Final = b"\xa4dkind"
_RECORD_2: Final = b"eeventfrecordeorder"
_RECORD_3: Final = b"fdigest"
_NONE: Final = b"\xf6"
_OBSERVED_1: Final = b"\xa4dwhat"
_OBSERVED_2: Final = b"eeventhobservedefacts"
_OBSERVED_3: Final = b"gsubject"

_FIELDS: Final = {kind: tuple(fields_dict(kind)) for kind in PLACES}
# The kind of a record, its digest, and that of its order.
RecordTold = tuple[str, bytes, bytes | None]


class Content(NamedTuple):
    """What an entry says of records and, in plain values, of accounts; and what it observed that has bytes in it."""

    records: Sequence[RecordTold]
    moves: Sequence[tuple[AccountKey, PlainMove]]
    observed: Sequence[Observed]


def encode_events(events: Iterable[Event]) -> bytes:
    """An entry's payload. Raises InvalidEvents when it would be larger than an entry may be."""
    spelled = [_spelled(event) for event in events]
    payload = spell_head(4, len(spelled)) + b"".join(spelled)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidEvents(f"{len(payload)} bytes in one entry, of at most {MAX_PAYLOAD_BYTES}: append in parts")
    return payload


def _spelled(event: Event) -> bytes:
    match event:
        case AccountChanged(key, change):
            return _ACCOUNT_1 + spell_account_key(key) + _ACCOUNT_2 + spell_change(change)
        case RecordKept(kind, digest, order):
            of_order = _NONE if order is None else DIGEST_HEAD + order
            return _RECORD_1 + spell_text(kind) + _RECORD_2 + of_order + _RECORD_3 + DIGEST_HEAD + digest
    return codec.encode(encode_event(event))


def decode_events(payload: bytes) -> tuple[Event, ...]:
    """Read an entry's payload. Raises InvalidEvents."""
    try:
        if found := _SHAPES.read(payload):
            plan, values = found
            return tuple([make(values) for make in plan.events])
    except _Unknown:
        pass
    return _decode_and_learn(payload)


def read_content(payload: bytes) -> Content:
    """Read an entry's payload, but make no changes of what moves accounts. Raises InvalidEvents."""
    try:
        if found := _SHAPES.read(payload):
            plan, values = found
            for subject in plan.subjects:
                _text(values[subject])
            records = [
                (kind, values[digest], None if order is None else values[order]) for kind, digest, order in plan.records
            ]
            moves = [(_account_key(values[key]), (kind, take(values))) for key, kind, take in plan.moves]
            return Content(records, moves, ())
    except _Unknown:
        pass
    return _content_of(_decode_and_learn(payload))


def _content_of(events: Iterable[Event]) -> Content:
    records: list[RecordTold] = []
    moves: list[tuple[AccountKey, PlainMove]] = []
    observed: list[Observed] = []
    for event in events:
        match event:
            case AccountChanged(key, change):
                kind = type(change)
                moves.append((key, (kind, tuple(getattr(change, name) for name in _FIELDS[kind]))))
            case RecordKept(kind, digest, order):
                records.append((kind, digest, order))
            case EffectPlanned() | EffectTold():
                moves.append((account_of(event), event))
            case Observed() if _has_bytes(event):
                observed.append(event)
    return Content(records, moves, observed)


def _decode(payload: bytes) -> tuple[Event, ...]:
    try:
        plain = codec.decode(payload, MAX_PAYLOAD_BYTES)
        if not isinstance(plain, list):
            raise InvalidEvents(f"a list is needed, not {type(plain).__name__}")
        return tuple(decode_event(event) for event in plain)
    except (codec.Malformed, InvalidChange) as error:
        raise InvalidEvents(str(error)) from error


class _Unknown(ValueError):
    """Bytes that do not spell what they should in the shape at hand."""


_Take = Callable[[Sequence[Any]], Sequence[Any]]


@frozen
class _Plan:
    """What the values of a payload are, by their places.

    `events` makes each event of all values; `records` has the kind of each record told of, the place of its digest and
    that of its order; `moves` the place of each account's key, the kind of change, and what takes the values of its
    fields; `subjects` the place of whom each observation is about.
    """

    events: list[Callable[[Sequence[Any]], Event]]
    records: list[tuple[str, int, int | None]]
    moves: list[tuple[int, type[Change], _Take]]
    subjects: list[int]


_SHAPES: Final[Shapes[_Plan]] = Shapes()


def _decode_and_learn(payload: bytes) -> tuple[Event, ...]:
    events = _decode(payload)
    if len(payload) <= LONGEST:
        pieces: list[Piece] = [spell_head(4, len(events))]
        plan = _Plan([], [], [], [])
        if all(_take_up(event, pieces, plan) for event in events):
            _SHAPES.learn(pieces, plan)
    return events


def _take_up(event: Event, pieces: list[Piece], plan: _Plan) -> bool:
    """Add an event to pieces and plan; returns whether it is of a kind that comes again and again, and can be read so.

    A party with too long a name could not be: its shape would be learned anew each time.
    """
    first = values_in(pieces)
    match event:
        case AccountChanged(key, change):
            kind, spelled_key = type(change), spell_account_key(key)
            pieces += [_ACCOUNT_1, Spelled.like(spelled_key), _ACCOUNT_2, *pieces_of_change(change)]
            plan.moves.append((first, kind, _taking(first + 1, PLACES[kind])))
            plan.events.append(partial(_account_changed, *plan.moves[-1]))
            return len(spelled_key) <= _MAX_WORDS_BYTES
        case RecordKept(kind, _, order):
            of_order = (_NONE,) if order is None else (DIGEST_HEAD, DIGEST)
            pieces += [_RECORD_1, spell_text(kind), _RECORD_2, *of_order, _RECORD_3, DIGEST_HEAD, DIGEST]
            plan.records.append((kind, first, None) if order is None else (kind, first + 1, first))
            plan.events.append(partial(_record_kept, *plan.records[-1]))
        case Observed(subject, what, facts) if not _has_bytes(event):
            spelled = {name: _pieces_of_fact(fact) for name, fact in facts.items()}
            pieces += [_OBSERVED_1, spell_text(what), _OBSERVED_2, spell_head(5, len(facts))]
            for name, of_fact in spelled.items():
                pieces += [spell_text(name), *of_fact]
            spelled_subject = spell_text(subject)
            pieces += [_OBSERVED_3, Spelled.like(spelled_subject)]
            numbers = tuple(name for name, of_fact in spelled.items() if values_in(of_fact))
            plan.subjects.append(first + len(numbers))
            plan.events.append(partial(_observed, what, facts, numbers, first))
            return len(spelled_subject) <= _MAX_WORDS_BYTES
        case _:
            return False
    return True


def _taking(first: int, places: Sequence[int]) -> _Take:
    """What takes the values of a change's fields, in their own order, from those of a payload."""
    if list(places) == sorted(places):
        return itemgetter(slice(first, first + len(places)))
    return itemgetter(*(first + place for place in places))


def _account_changed(key: int, kind: type[Change], take: _Take, values: Sequence[Any]) -> Event:
    change = unchecked(kind, dict(zip(_FIELDS[kind], take(values), strict=True)))
    return unchecked(AccountChanged, {"key": _account_key(values[key]), "change": change})


def _record_kept(kind: str, digest: int, order: int | None, values: Sequence[Any]) -> Event:
    of_order = None if order is None else values[order]
    return unchecked(RecordKept, {"kind": kind, "digest": values[digest], "order": of_order})


def _observed(
    what: str, facts: Mapping[str, Fact], numbers: tuple[str, ...], first: int, values: Sequence[Any]
) -> Event:
    subject = first + len(numbers)
    return Observed(_text(values[subject]), what, {**facts, **dict(zip(numbers, values[first:subject], strict=True))})


def _has_bytes(event: Observed) -> bool:
    return any(isinstance(fact, bytes) for fact in event.facts.values())


def _pieces_of_fact(fact: Fact) -> Sequence[Piece]:
    """Another number may stand in the place of a fact; a text is as good as its name."""
    return pieces_of_number(fact, _MAX_FACT) if isinstance(fact, int) and fact >= 0 else (codec.encode(fact),)


@lru_cache(_REMEMBERED)
def _account_key(raw: bytes) -> AccountKey:
    """The account that these bytes, and no others, name."""
    match _decoded(raw):
        case [str(payer), str(payee), str(rail), str(unit)] if unit in UNITS:
            return AccountKey(payer, payee, rail, unit)
    raise _Unknown


@lru_cache(_REMEMBERED)
def _text(raw: bytes) -> str:
    """The text that these bytes, and no others, spell."""
    match _decoded(raw):
        case str(text):
            return text
    raise _Unknown


def _decoded(raw: bytes) -> Any:
    try:
        return codec.decode(raw, _MAX_WORDS_BYTES)
    except codec.Malformed:
        raise _Unknown from None
