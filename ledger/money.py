"""Units, prices per million tokens, and the one rounding rule.

Money is integers only: `msat` (thousandths of a satoshi) or `uusd` (millionths of a dollar). People write and read
amounts with their unit (`0.05usd`, `250000msat`, `12sat`); a number without a unit is refused.
"""

import re
from fractions import Fraction
from typing import Final, Literal, get_args

from attrs import field, frozen, validators

Unit = Literal["msat", "uusd"]
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)

MILLION: Final = 1_000_000
# The largest amount or price that a record may carry: far above any real debt, and exact in every language.
MAX_AMOUNT: Final = 2**53 - 1

# What people write, the unit it is kept in, and how many of that unit it is worth.
_WRITTEN: Final[dict[str, tuple[Unit, int]]] = {
    "msat": ("msat", 1),
    "sat": ("msat", 1_000),
    "btc": ("msat", 100_000_000_000),
    "uusd": ("uusd", 1),
    "usd": ("uusd", MILLION),
}
# Digits enough for any amount; without an exponent, which nobody means and which can stand for a number of any size.
_NUMBER: Final = re.compile(r"[0-9]{1,24}(\.[0-9]{0,24})?|\.[0-9]{1,24}")


class MoneyError(ValueError):
    """An amount or price that cannot be read; the message says how to write it."""


_in_range = [validators.instance_of(int), validators.ge(0), validators.le(MAX_AMOUNT)]


@frozen
class Amount:
    """An integer number of one unit."""

    value: int = field(validator=_in_range)
    unit: Unit = field(validator=validators.in_(UNITS))

    def __str__(self) -> str:
        """The amount as people write it, exact: `0.000123usd`, `250000msat`."""
        if self.unit == "msat":
            return f"{self.value}msat"
        return f"{self.value // MILLION}.{self.value % MILLION:06}usd"


@frozen
class Price:
    """What a million prompt tokens and a million output tokens cost, in one unit."""

    input: int = field(validator=_in_range)
    output: int = field(validator=_in_range)
    unit: Unit = field(validator=validators.in_(UNITS))

    def __str__(self) -> str:
        return f"{Amount(self.input, self.unit)}:{Amount(self.output, self.unit)}"


def cost(price: Price, prompt_tokens: int, output_tokens: int) -> int:
    """What so many tokens cost, in the price's unit: rounded up, once, and nowhere else."""
    return -((-price.input * prompt_tokens - price.output * output_tokens) // MILLION)


def parse_amount(text: str) -> Amount:
    """Read `0.05usd`, `250000msat`, `12sat`. Raises MoneyError, also for fractions of the smallest unit."""
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz")
    suffix = text.strip()[len(number) :]
    if suffix not in _WRITTEN:
        raise MoneyError(f"{text!r} has no unit: write an amount as 0.05usd, 250000msat or 12sat")
    unit, scale = _WRITTEN[suffix]
    if not _NUMBER.fullmatch(number.strip()):
        raise MoneyError(f"{text[:80]!r} is not an amount: write it as 0.05usd, 250000msat or 12sat")
    value = Fraction(number) * scale
    if value > MAX_AMOUNT:
        raise MoneyError(f"{text!r} is out of range: an amount lies between 0 and {MAX_AMOUNT}{unit}")
    if value.denominator != 1:
        raise MoneyError(f"{text!r} is finer than the smallest unit: one {unit}")
    return Amount(int(value), unit)


def parse_price(text: str) -> Price:
    """Read `0.05usd:0.15usd`: a million prompt tokens, a million output tokens. Raises MoneyError."""
    parts = text.split(":")
    if len(parts) != 2:
        raise MoneyError(f"{text!r} is not a price: write IN:OUT for a million tokens, as 0.05usd:0.15usd")
    into, out = (parse_amount(part) for part in parts)
    if into.unit != out.unit:
        raise MoneyError(f"{text!r} mixes units: give both prices in usd, or both in msat")
    return Price(into.value, out.value, into.unit)
