"""Frozen values as what CBOR can hold, by the names and types of their fields, and back."""

from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from attrs import fields, has

T = TypeVar("T")


class NotPlain(ValueError):
    """Something that no value of the wanted type was written as."""


def plain(value: Any) -> Any:
    """A value of numbers, text, bytes, tuples and attrs classes, for CBOR; floats as hexadecimal text, not rounded."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in fields(type(value))}
    return value


def read(kind: type[T], written: Any) -> T:
    """The value of a type that `plain` wrote. Raises NotPlain, and what the type's own checks raise."""
    found: T = _read(kind, written)
    return found


def _read(kind: Any, written: Any) -> Any:
    if isinstance(kind, UnionType):
        options = [option for option in get_args(kind) if option is not NoneType]
        return None if written is None and len(options) < len(get_args(kind)) else _read(options[0], written)
    if get_origin(kind) is tuple:
        return tuple(_read(get_args(kind)[0], item) for item in _of(list, written))
    if has(kind):
        return _made(kind, _of(dict, written))
    if kind is float:
        return float.fromhex(_of(str, written))
    return _of(kind, written)


def _made(kind: Any, written: dict[str, Any]) -> Any:
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    if sorted(written) != sorted(names):
        raise NotPlain(f"a {kind.__name__} has {', '.join(names)}")
    return kind(**{name: _read(types[name], written[name]) for name in names})


def _of(kind: type[T], written: object) -> T:
    # type(...) and not isinstance: True is no number here.
    if type(written) is not kind:
        raise NotPlain(f"{str(written)[:80]!r} is no {kind.__name__}")
    return written
