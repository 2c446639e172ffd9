"""What a day's buying may come to, judged as an order is written down: a look before that lets many pass at a time."""

from collections.abc import Callable, Mapping

from attrs import frozen

from ledger.money import Amount, Unit


class AboveAllowance(Exception):
    """An order that may bring the day's spending over what the owner allows."""


@frozen
class Allowance:
    """`most` is what a day may come to, by unit; `elsewhere` what was spent today beside orders, by unit."""

    most: Callable[[Unit], Amount]
    elsewhere: Callable[[], Mapping[str, int]]

    def check(self, ordered: int, unit: Unit) -> None:
        """Raises AboveAllowance: today's orders, with the one that is asked about, may cost `ordered`."""
        most, spent = self.most(unit), ordered + self.elsewhere().get(unit, 0)
        if most.unit != unit or spent > most.value:
            raise AboveAllowance(f"would bring today's spending over the most of {most} by [buy] max_per_day")
