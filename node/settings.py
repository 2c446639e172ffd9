"""What the sections of the configuration are made of: amounts, prices and identities as people write them."""

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ledger.identity import parse_did
from ledger.money import Amount, Price, parse_amount, parse_price

MAX_URL: Final = 256


def read_with(parse: Callable[[str], Any], kind: type = str) -> BeforeValidator:
    """Read what people write; also a number, so that the parser can say what it lacks."""
    return BeforeValidator(lambda value: value if isinstance(value, kind) and kind is not str else parse(str(value)))


AmountText = Annotated[Amount, read_with(parse_amount, Amount)]
PriceText = Annotated[Price, read_with(parse_price, Price)]
DidText = Annotated[str, read_with(parse_did)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """One table of the file: what it does not know is refused, and nothing changes it later."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


# What to write instead, by the kind of what is wrong; braces are filled from what the check knows.
_WORDS: Final = {
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "finite_number": "write a number",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "greater_than": "write more than {gt}",
    "greater_than_equal": "write {ge} or more",
    "int_from_float": "write a whole number",
    "int_parsing": "write a whole number",
    "int_type": "write a whole number",
    "less_than": "write less than {lt}",
    "less_than_equal": "write {le} or less",
    "list_type": "write a list, in brackets",
    "literal_error": "write {expected}",
    "missing": "is missing",
    "path_type": "write a path, in quotes",
    "string_too_long": "write at most {max_length} characters",
    "string_too_short": "write at least {min_length} characters",
    "string_type": "write a text, in quotes",
    "too_long": "name at most {max_length}",
    "too_short": "name at least {min_length}",
    "tuple_type": "write a list, in brackets",
}
_NAME: Final = re.compile(r"(?!constrained-)[A-Za-z0-9_-]{1,64}")
_EXAMPLES: Final = {
    "^0x[0-9a-fA-F]{40}$": "write an address: 0x and 40 hexadecimal digits",
    "^0x[0-9a-fA-F]{64}$": "write 0x and 64 hexadecimal digits",
    "^[A-Z]{2,3}$": "write a country in capitals, as DE, or EU",
    r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,63}$": "write up to 64 letters, digits and . _ / + -, a letter or digit first",
    r"^[A-Za-z_][A-Za-z0-9_]{0,127}$": "write the name of an environment variable",
    "^[0-9a-f]{64}$": "write 64 hexadecimal digits",
    r"^https?://[^\s@?#]+$": "write an address alone, as https://api.example/v1: neither user nor key belongs into it",
    r"^[a-z0-9-]{1,32}(:[a-zA-Z0-9-]{1,32})?$": "write a network, as base or eip155:8453",
}


def complaints(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """What is wrong with settings, one setting each, in words that tell what to write. Values are never repeated."""
    found: dict[str, str] = {}
    for one in error.errors(include_url=False, include_input=False):
        place, inner = _place(one["loc"]), _section(root, one["loc"][:-1])
        said = "; ".join(_said(one["type"], one["msg"], one.get("ctx", {}), str((one["loc"] or ("",))[-1]), inner))
        # Of a list with a bad item the same is said twice.
        if not (one["type"] == "too_short" and any(other.startswith(f"{place}.") for other in found)):
            found[place] = f"{found[place]}, or {said.removeprefix('write ')}" if place in found else said
    return [f"{place}: {said}" if place else said for place, said in found.items()]


def _said(kind: str, message: str, context: dict[str, Any], name: str, inner: type[BaseModel] | None) -> Iterator[str]:
    match kind:
        case "extra_forbidden":
            yield "there is no such setting"
            known = [] if inner is None else list(inner.model_fields)
            close = get_close_matches(name, known, 1)
            if close or known:
                yield f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        case "model_type" | "dict_type" | "model_attributes_type":
            yield f"is a section: write [{name}], and its settings below" if not name.isdigit() else "write a section"
        case "string_pattern_mismatch":
            yield _EXAMPLES.get(context.get("pattern", ""), f"it has to match {context.get('pattern', '')}")
        case _ if kind in _WORDS:
            yield _WORDS[kind].format(**context)
        case _:
            yield message.removeprefix("Value error, ")


def _place(loc: Sequence[int | str]) -> str:
    """Where something stands in the file: `node.port`, or `models[2].path` for the second of several."""
    place = ""
    # Which of several forms was tried is none of the owner's words: a literal, a constrained number.
    for part in (part for part in loc if isinstance(part, int) or _NAME.fullmatch(part)):
        place += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if place else part
    return place


def _section(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The section at a place, if there is one."""
    found: type[BaseModel] | None = model
    for name in (part for part in loc if isinstance(part, str)):
        field = None if found is None else found.model_fields.get(name)
        found = None if field is None else _model_in(field.annotation)
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)
