"""What the sections of the configuration are made of: amounts, prices and identities as people write them."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
